"""What a relay does with a plan: ask its leaves, check what they answer as a server does, and answer once for all.

Of a run it keeps the study, and what its leaves announced in the handshake. What passes from round to round is the
server's, and travels in the plans, so that a relay can be killed and started again.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast, get_args

from consilium.common.codecs import Identity, Payload
from consilium.common.errors import ProtocolError, UpdateRejected, clean
from consilium.common.events.run import RoundAsked
from consilium.common.protocol.plans import InitialWeightsPlan, Plan, RelayPlan, RoundPlan
from consilium.common.protocol.relays import (
    LeafAnswer,
    Problem,
    most_bytes_of_leaf,
    pack_answers,
    plans_in,
    within,
)
from consilium.common.protocol.replies import HandshakeReply, RelayReply, Reply
from consilium.common.study.limits import MAX_PAYLOAD_BYTES
from consilium.common.weights.arithmetic import weighted_mean
from consilium.common.weights.checks import check_finite
from consilium.server.relays.known import Known, read_known, write_known
from consilium.server.relays.means import SentMean, digest_of_weights, keep_mean, mean_sent, sent_again
from consilium.server.strategies import ServerState, Update, strategy_of
from consilium.server.study.applying import weigh
from consilium.server.study.context import Study
from consilium.server.study.defence import shortened
from consilium.server.study.exchange import Answer, Exchange, ask
from consilium.server.study.record import Cohort, Intake
from consilium.server.study.run_folder import RunFolder
from consilium.server.study.taking import receive, refuse_beyond_belief, reject
from consilium.server.study.update_files import Spool
from consilium.server.weighting import build_weighting

_PROBLEMS = frozenset(get_args(Problem))


@dataclass
class Relay:
    """A relay between a server and some of its sites, its leaves.

    Args:
        exchange: returns what reaches the leaves in a run.
        folder: returns a run's folder here, for its log and for updates on their way.
        enrolled: returns the names of the leaves, which the accepted study has here, and whose keys are approved.
        pid: of this process, for its replies.
    """

    name: str
    exchange: Callable[[str], Exchange]
    folder: Callable[[str], RunFolder]
    enrolled: Callable[[], Collection[str]]
    pid: int
    _known: dict[str, Known] = field(default_factory=dict)

    def answer(self, plan: RelayPlan, payload: Payload | None) -> tuple[RelayReply, bytes]:
        """Ask the leaves what a plan says, and return their answers with the mean of their updates.

        Args:
            payload: goes to each leaf as it is.

        Raises:
            ConsiliumError: nothing of it could be done.
        """
        began, plans = time.monotonic(), plans_in(plan)
        exchange, answers = self.exchange(plan.run), self._strangers(plans)
        for leaf in answers:
            del plans[leaf]
        asked = _Asked(plan, plans, payload, exchange)
        is_round = any(isinstance(one, RoundPlan) for one in plans.values())
        told, update = list[LeafAnswer](), b""
        if plans:
            told, update = self._round(asked) if is_round else self._passed_on(asked)
        reply = RelayReply(
            run=plan.run,
            site=self.name,
            pid=self.pid,
            seconds=time.monotonic() - began,
            online=tuple(sorted(exchange.connected() & set(self.enrolled()))),
            update_bytes=len(update),
        )
        return reply, pack_answers([*answers.values(), *told], update)

    def _strangers(self, plans: Mapping[str, Plan]) -> dict[str, LeafAnswer]:
        """Return what stands for the answers of sites that are not enrolled here."""
        enrolled = self.enrolled() if plans else ()
        detail = (
            "site '{}' is not enrolled at relay '{}', where 'consilium server approve' lets it take part, if the study "
            "that the relay accepted has it there"
        )
        return {
            leaf: LeafAnswer(site=leaf, problem="gone", detail=detail.format(leaf, self.name))
            for leaf in sorted(plans.keys() - set(enrolled))
        }

    def _passed_on(self, asked: "_Asked") -> tuple[list[LeafAnswer], bytes]:
        """Ask the leaves, and return their answers as they are; of payloads, the initial weights of one leaf alone."""
        weights_of_one = len(asked.plans) == 1 and isinstance(next(iter(asked.plans.values())), InitialWeightsPlan)
        told, carried, cards = list[LeafAnswer](), b"", dict[str, HandshakeReply]()
        most = most_bytes_of_leaf(asked.plans.values())
        for answer in asked.answers(most_bytes=MAX_PAYLOAD_BYTES if weights_of_one else 0):
            told.append(one := within(_told(answer), most))
            if weights_of_one:
                carried = bytes(answer.payload or b"")
            if isinstance(one.reply, HandshakeReply):
                cards[answer.site] = one.reply
        self._note(asked.plan, cards)
        return told, carried

    def _note(self, plan: RelayPlan, cards: Mapping[str, HandshakeReply]) -> None:
        """Keep the study of a handshake, and what the leaves announced in it."""
        if plan.handshake is None:
            return
        before = self._known.get(plan.run) or read_known(self.folder(plan.run).path)
        sizes = dict(before.sizes) if before is not None and before.digest == plan.study else {}
        sizes |= {leaf: reply.card.num_train for leaf, reply in cards.items()}
        buffers = next((reply.shared_buffers for reply in cards.values()), before.buffers if before else ())
        known = Known(digest=plan.study, study=plan.handshake, sizes=sizes, buffers=buffers)
        write_known(self.folder(plan.run).path, known)
        self._known[plan.run] = known

    def _of(self, plan: RelayPlan) -> Known:
        """Return what is known of a plan's run.

        Raises:
            ProtocolError: nothing, or of another study.
            StateError: what was kept is damaged.
        """
        known = self._known.get(plan.run) or read_known(self.folder(plan.run).path)
        if known is None or known.digest != plan.study:
            raise ProtocolError(
                f"run '{plan.run}' of this study has had no handshake at this relay, or what was kept of it in the "
                "folder 'relayed' of its home is gone: start a new run"
            )
        self._known[plan.run] = known
        return known

    def _round(self, asked: "_Asked") -> tuple[list[LeafAnswer], bytes]:
        """Have the leaves train, check their updates as a server does, and return their answers and the mean.

        Of a round there is one mean: where it was sent, it is sent again.
        """
        state, study = _state_of(asked, known := self._of(asked.plan)), self._study(asked, known)
        leaves, intake, weights = tuple(sorted(asked.plans)), Intake(), digest_of_weights(asked.payload or b"")
        if (before := mean_sent(study.folder.path, state.round + 1)) is not None:
            sent, update = before
            return sent_again(self.name, sent, leaves, weights), update
        cohort = Cohort(state.round + 1, leaves, len(leaves) // 2 + 1, {}, time.monotonic())
        study.folder.log(RoundAsked(round=cohort.round, sites=leaves, quorum=cohort.quorum))
        replies: dict[str, Reply] = {}
        with Spool(study.folder.path) as spool:
            most = len(asked.payload or b"")
            answers = (_noted(answer, replies) for answer in asked.answers(most_bytes=most))
            receive(study, state, answers, spool, intake, cohort=cohort, held=state.weights)
            _refuse_unmeasured(study, state, intake)
            refuse_beyond_belief(study, state, intake)
            problems = {leaf: (intake.rejected[leaf], intake.details[leaf]) for leaf in intake.rejected}
            few = len(intake.updates) < asked.plan.least
            update = b"" if few else _mean(study, state, intake)
        if few:
            sentence = (
                f"relay '{self.name}' sends no sum of fewer than {asked.plan.least} sites, and "
                f"{len(intake.updates)} of the {len(leaves)} asked sent a usable update"
            )
            problems |= {one.site: ("sum", sentence) for one in intake.updates}
        told = [_in_mean(leaf, replies, problems) for leaf in leaves]
        if not few:
            inside = tuple(one for one in told if one.reply is not None)
            keep_mean(study.folder.path, SentMean(round=cohort.round, weights=weights, answers=inside), update)
        return told, update

    def _study(self, asked: "_Asked", known: Known) -> Study:
        """Return the study of the leaves, as if this were their server."""
        config = known.leaves_study(tuple(sorted(asked.plans)))
        return Study(
            config=config,
            digest=known.digest,
            run=asked.plan.run,
            exchange=asked.exchange,
            strategy=strategy_of(config),
            weighting=build_weighting(config.weights_by),
            folder=self.folder(asked.plan.run),
            train_sizes={leaf: known.sizes.get(leaf, 0) for leaf in asked.plans},
        )


@dataclass(frozen=True)
class _Asked:
    """Plans for leaves that are enrolled, with the payload that goes along to each."""

    plan: RelayPlan
    plans: dict[str, Plan]
    payload: Payload | None
    exchange: Exchange

    def answers(self, *, most_bytes: int) -> Iterator[Answer]:
        """Yield one answer of each leaf, as they arrive."""
        return ask(
            self.exchange,
            self.plans,
            timeout_seconds=self.plan.seconds,
            payload=None if self.payload is None else bytes(self.payload),
            most_bytes=most_bytes,
            absent_seconds=self.plan.absent_seconds,
        )


def _state_of(asked: _Asked, known: Known) -> ServerState:
    """Return the state that the leaves are asked to go on from.

    Raises:
        ProtocolError: their plans are not of one round, or no weights came along.
    """
    rounds = {plan.round if isinstance(plan, RoundPlan) else None for plan in asked.plans.values()}
    if len(rounds) != 1 or (number := rounds.pop()) is None or asked.payload is None:
        raise ProtocolError("the plans of a relay's sites are of several kinds or rounds, or without weights")
    return ServerState(number - 1, Identity().decode(asked.payload), frozenset(known.buffers))


def _noted(answer: Answer, replies: dict[str, Reply]) -> Answer:
    if answer.reply is not None:
        replies[answer.site] = answer.reply
    return answer


def _mean(study: Study, state: ServerState, intake: Intake) -> bytes:
    """Return the mean of the updates as a payload, each counted as the server counts it beside all others.

    Raises:
        UpdateRejected: it is too large for the weights' dtype.
    """
    updates, _ = shortened(study.config, state, intake.updates, intake.lengths)
    shares = _shares(study, state, updates)
    mean = weighted_mean([update.delta for update in updates], [shares[update.site] for update in updates])
    check_finite(mean, who=f"round {state.round + 1}: the mean of the updates")
    return Identity().encode(mean)


def _shares(study: Study, state: ServerState, updates: Sequence[Update]) -> Mapping[str, float]:
    """Return how much each update counts: beside one another as much as beside those of other relays."""
    if not study.config.strategy.weighted:
        return dict.fromkeys((update.site for update in updates), 1.0)
    return weigh(study, state, updates).shares


def _refuse_unmeasured(study: Study, state: ServerState, intake: Intake) -> None:
    """Reject updates without what the weighting needs: the others of the relay would be weighed otherwise for them."""
    needs = study.config.weights_by.needs if study.config.strategy.weighted else frozenset()
    for update in [update for update in intake.updates if not needs <= update.metrics.keys()]:
        missing = ", ".join(sorted(needs - update.metrics.keys()))
        intake.withdraw([update.site])
        sentence = f"site '{update.site}' did not measure {missing}, which the weighting needs"
        reject(study, state, intake, update.site, UpdateRejected("metrics", sentence))


def _told(answer: Answer) -> LeafAnswer:
    """Return a leaf's answer as it goes on: without the head of its audit log, which its relay keeps."""
    if answer.problem is not None or answer.reply is None:
        return LeafAnswer(site=answer.site, problem=_bounded(answer.problem), detail=clean(answer.detail))
    return LeafAnswer(site=answer.site, reply=answer.reply.model_copy(update={"audit": None}))


def _in_mean(leaf: str, replies: Mapping[str, Reply], problems: Mapping[str, tuple[str, str]]) -> LeafAnswer:
    """Return the answer of a leaf that was asked for a round: its reply where its update is in the mean."""
    if leaf in problems or leaf not in replies:
        problem, detail = problems.get(leaf, ("gone", f"site '{leaf}' did not answer"))
        return LeafAnswer(site=leaf, problem=_bounded(problem), detail=clean(detail))
    return LeafAnswer(site=leaf, reply=replies[leaf].model_copy(update={"audit": None}))


def _bounded(problem: str | None) -> Problem:
    return cast("Problem", problem) if problem in _PROBLEMS else "protocol"
