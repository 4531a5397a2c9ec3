"""Rounds that end as soon as a few updates are there: slow sites hold up nobody, and count in a later round.

FedBuff (see `staleness.py` for the paper and its formula). A round is one aggregation:

    all sites that are not at work    get the newest weights, with the plan of this round
    those still at work               go on with the plan of an earlier round
    `size` updates are there          the round ends; an update of an earlier plan counts by its staleness
    an update is too stale            it is refused, and its site asked for this round

A site whose update waits in the buffer is asked for the next round: only then it is known whether its update counted,
and so from which state it goes on. With `size` = all sites every round is one of `round.py`, to the last bit.

Which plans are open is kept in memory alone. After a restart all sites are asked for the round after the checkpoint;
what they still send for a plan of before is for an order that nobody has given, and is dropped by the exchange.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from time import monotonic

from consilium.common.codecs import build_chain
from consilium.common.errors import UpdateRejected
from consilium.common.events.run import RoundAsked
from consilium.common.results import RoundRecord
from consilium.common.study.pace import BufferedPace
from consilium.common.weights.arrays import Weights
from consilium.server.strategies import ServerState
from consilium.server.study.applying import aggregate
from consilium.server.study.context import Study
from consilium.server.study.defence import shortened
from consilium.server.study.downlink import Sending, send
from consilium.server.study.exchange import Answer, Conversation, Mailing
from consilium.server.study.hold import Hold
from consilium.server.study.kept_updates import forget_round
from consilium.server.study.record import Cohort, Intake, make_record
from consilium.server.study.round import check_quorum, make_plans, remember
from consilium.server.study.staleness import discounted
from consilium.server.study.strikes import set_aside
from consilium.server.study.taking import refuse_against, refuse_beyond_belief, reject, take
from consilium.server.study.update_files import Spool


@dataclass
class Desk:
    """The plans of a run that stay open from round to round.

    Args:
        asked: the round of each site's last plan.
        sent: what updates are read with, of the weights sent for each round of which a plan is open.
    """

    conversation: Conversation
    schedule: BufferedPace
    asked: dict[str, int] = field(default_factory=dict)
    sent: dict[int, Weights] = field(default_factory=dict)

    def play(self, study: Study, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Run one round and return the new state with its record.

        Raises:
            CohortTooSmall: too few updates can come; names the sites that failed and why.
            UpdateRejected: finite updates whose sum is too large for the weights' dtype.
        """
        intake = Intake()
        with Spool(study.folder.path) as spool:
            turn = _begin(self, study, state, intake, spool)
            _fill(turn)
            refuse_against(study, state, intake, least=1)
            updates, intake.shortened = shortened(study.config, state, intake.updates, intake.lengths)
            stale = {site: facts.stale for site, facts in intake.sites.items()}
            aggregation = aggregate(study, state, discounted(self.schedule, state, updates, stale, self.sent))
        nothing = Sending(b"", state.weights)
        after = remember(study, state, turn.cohort, intake, nothing, aggregation)
        return after, make_record(turn.cohort, intake, nothing, aggregation)


@contextmanager
def desk_of(study: Study, schedule: BufferedPace) -> Iterator[Desk]:
    """Give a run's desk; the plans that are open at its end are taken back."""
    with closing(study.exchange.converse()) as conversation:
        yield Desk(conversation, schedule)


@dataclass
class _Turn:
    """A round while its buffer fills."""

    desk: Desk
    study: Study
    state: ServerState
    cohort: Cohort
    intake: Intake
    spool: Spool

    @property
    def idle(self) -> tuple[str, ...]:
        """The sites that can be asked for this round: neither at work, nor asked for it before, nor in the buffer."""
        able = self.study.train_sizes.keys() - set_aside(self.study.config, self.state.strikes)
        free = able - self.desk.conversation.open() - self.intake.sites.keys()
        return tuple(sorted(site for site in free if self.desk.asked.get(site) != self.cohort.round))

    @property
    def is_full(self) -> bool:
        """Whether the buffer has as many updates as a round takes."""
        return len(self.intake.updates) >= self.cohort.quorum


def _begin(desk: Desk, study: Study, state: ServerState, intake: Intake, spool: Spool) -> _Turn:
    """Take back what cannot count any more, and say who is asked in the next round or still at work."""
    began, number = monotonic(), state.round + 1
    if study.config.keep_updates:
        forget_round(study.folder.path, number)
    _take_back(desk, study, state)
    able = study.train_sizes.keys() - set_aside(study.config, state.strikes)
    sites = tuple(sorted(able))
    quorum = study.quorum_of(min(len(sites), study.config.cohort_size))
    study.folder.log(RoundAsked(round=number, sites=sites, quorum=quorum))
    return _Turn(desk, study, state, Cohort(number, sites, quorum, state.asked, began), intake, spool)


def _take_back(desk: Desk, study: Study, state: ServerState) -> None:
    """Take back the plans of sites that are set aside, and of those that are away and would come back too late."""
    conversation, number = desk.conversation, state.round + 1
    oldest = number - desk.schedule.max_staleness
    working = conversation.open()
    aside = working & set_aside(study.config, state.strikes)
    late = {site for site in working if desk.asked[site] < oldest}
    conversation.give_up(aside | (late - study.exchange.connected() if late else late))
    of_use = {desk.asked[site] for site in conversation.open()}
    desk.sent = {each: arrays for each, arrays in desk.sent.items() if each in of_use and each >= oldest}
    by_value = study.config.uplink and build_chain(study.config.uplink).lossless
    desk.sent[number] = {name: state.weights[name] for name in (state.weights if by_value else state.averaged)}


def _fill(turn: _Turn) -> None:
    """Ask and take answers until the buffer is full.

    Raises:
        CohortTooSmall: it cannot be filled, or not within the study's limit.
    """
    study, intake, cohort = turn.study, turn.intake, turn.cohort
    hold = Hold(study, cohort.round, cohort.quorum)
    while True:
        _ask(turn)
        with closing(turn.desk.conversation.answers(absent_seconds=study.config.absent_seconds)) as answers:
            for answer in answers:
                _take(turn, answer)
                if turn.is_full:
                    break
                _ask(turn)
        intake.updates.sort(key=lambda update: update.site)
        if turn.is_full:
            refuse_beyond_belief(study, turn.state, intake)
        if turn.is_full:
            hold.over()
            return
        if turn.idle or turn.desk.conversation.open():
            continue
        usable, nothing = len(intake.updates), Sending(b"", turn.state.weights)
        if not hold.can_wait(intake.rejected, usable=usable):
            check_quorum(study, turn.cohort, intake, nothing)
        missing = hold.wait(intake.rejected, usable=usable)
        if not missing:
            check_quorum(study, turn.cohort, intake, nothing)
        intake.forget(missing)
        for site in missing:
            del turn.desk.asked[site]


def _ask(turn: _Turn) -> None:
    """Send the newest weights to all sites that can be asked for this round."""
    sites, study, state, number = turn.idle, turn.study, turn.state, turn.cohort.round
    if not sites:
        return
    counts = {site: state.asked.get(site, 0) + 1 for site in sites}
    turn.cohort = replace(turn.cohort, asked={**turn.cohort.asked, **counts})
    plans = make_plans(study, state, replace(turn.cohort, sites=sites), in_part=())
    sending = send(study.config, state)
    most = build_chain(study.config.uplink, exact=state.buffers).max_bytes(sending.held)
    timeout = study.config.round_timeout_seconds
    turn.desk.conversation.send(Mailing(plans, timeout, sending.full, most_bytes=most))
    turn.desk.asked |= dict.fromkeys(sites, number)


def _take(turn: _Turn, answer: Answer) -> None:
    """Put an update into the buffer, or say why it is of no use."""
    site, most = answer.site, turn.desk.schedule.max_staleness
    stale = turn.cohort.round - turn.desk.asked[site]
    if stale > most and answer.payload is not None:
        turn.intake.arrived(answer)
        if answer.file is not None:
            answer.file.close()
        sentence = (
            f"site '{site}': its update is from weights of {stale} rounds ago, expected at most {most} "
            "(schedule.max_staleness)"
        )
        reject(turn.study, turn.state, turn.intake, site, UpdateRejected("stale", sentence))
        return
    held = {**turn.state.weights, **turn.desk.sent.get(turn.desk.asked[site], {})}
    if take(turn.study, turn.state, answer, turn.spool, turn.intake, held=held, stale=stale):
        turn.intake.forget([site])
