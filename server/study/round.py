"""One round, in seven steps: choose the cohort, plan, ask, receive, check the quorum, aggregate, record.

One exchange per round: a site evaluates the weights it receives, trains, evaluates its served model and answers once.
An unusable update is rejected and named; too few usable ones stop the run.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from consilium.common.codecs import build_chain
from consilium.common.codecs.container import read_form
from consilium.common.errors import CohortTooSmall, UpdateRejected
from consilium.common.events.run import (
    AnswerRejected,
    RoundAsked,
    RoundFailed,
    UpdateAccepted,
    WeightingFallback,
)
from consilium.common.protocol.plans import CONTROL, RoundPlan
from consilium.common.protocol.replies import RoundReply
from consilium.common.results import RoundRecord, SiteRound
from consilium.common.seeds import seed_for
from consilium.common.weights.arithmetic import distance
from consilium.common.weights.arrays import Array, Weights, under, with_prefix
from consilium.common.weights.checks import check_finite
from consilium.server.privacy.noise import site_epsilon, with_site_noise
from consilium.server.strategies import ServerState, Update
from consilium.server.study.check import check_update
from consilium.server.study.cohort import choose_cohort
from consilium.server.study.context import Study
from consilium.server.study.defence import lengths_of, shortened, too_long
from consilium.server.study.downlink import Sending, send
from consilium.server.study.exchange import Answer, ask
from consilium.server.study.hold import Hold
from consilium.server.study.kept_updates import arrays_of, digest_of, forget_round, keep, kept_update
from consilium.server.study.record import Aggregation, Cohort, Intake, make_record
from consilium.server.study.sentences import reasons
from consilium.server.study.site_state import warn_of_state
from consilium.server.study.strikes import counted, say_set_aside, set_aside
from consilium.server.study.update_files import Spool
from consilium.server.weighting import Evidence, Weighed


def run_round(study: Study, state: ServerState) -> tuple[ServerState, RoundRecord]:
    """Run one round and return the new state with its record.

    Raises:
        CohortTooSmall: fewer usable updates than the quorum; names the sites that failed and why.
        UpdateRejected: finite updates whose sum is too large for the weights' dtype.
    """
    cohort, intake = choose(study, state), Intake()
    with Spool(study.folder.path) as spool:
        sending = gather(study, state, cohort, intake, spool)
        updates, intake.shortened = shortened(study.config, state, intake.updates, intake.lengths)
        aggregation = aggregate(study, state, updates)
    after = remember(study, state, cohort, intake, sending, aggregation)
    return after, make_record(cohort, intake, sending, aggregation)


def gather(study: Study, state: ServerState, cohort: Cohort, intake: Intake, spool: Spool) -> Sending:
    """Ask the sites of a round until enough updates are there: those that are missing again and again.

    Returns what was sent, without its payloads: they are as large as the model.

    Raises:
        CohortTooSmall: the quorum cannot be reached, or not within the study's limit.
    """
    if study.config.keep_updates:
        forget_round(study.folder.path, state.round + 1)
    hold, missing = Hold(study, cohort.round, cohort.quorum), cohort.sites
    while True:
        sending = send(study.config, state)
        plans = make_plans(study, state, cohort, in_part=sending.differences)
        plans = {site: plan for site, plan in plans.items() if site in missing}
        chain = build_chain(study.config.uplink, exact=state.buffers)
        most_bytes = chain.max_bytes({**sending.held, **control_of(state)})
        answers = send_plans(
            study, plans, sending, most_bytes=most_bytes, until=partial(waited_until, study, cohort, intake)
        )
        sending = sending.without_payloads()
        receive(study, state, answers, spool, intake, cohort=cohort, held=sending.held)
        if len(intake.updates) >= cohort.quorum:
            refuse_too_long(study, state, intake)
        usable = len(intake.updates)
        if usable >= cohort.quorum:
            hold.over()
            return sending
        if not hold.can_wait(intake.rejected, usable=usable):
            check_quorum(study, cohort, intake, sending)
        missing = hold.wait(intake.rejected, usable=usable)
        if not missing:
            check_quorum(study, cohort, intake, sending)
        intake.forget(missing)


def choose(study: Study, state: ServerState) -> Cohort:
    """Choose the sites of the next round."""
    began, config, number = time.monotonic(), study.config, state.round + 1
    able = study.train_sizes.keys() - set_aside(config, state.strikes)
    sites = choose_cohort(able, seed=config.seed, round_number=number, size=config.asked_size)
    quorum = study.quorum_of(min(len(sites), config.cohort_size))
    study.folder.log(RoundAsked(round=number, sites=sites, quorum=quorum))
    asked = {**state.asked, **{site: state.asked.get(site, 0) + 1 for site in sites}}
    return Cohort(number, sites, quorum, asked, began)


def make_plans(study: Study, state: ServerState, cohort: Cohort, *, in_part: Collection[str]) -> dict[str, RoundPlan]:
    """Return the plan of every site of the cohort.

    Args:
        in_part: sites that get the difference from the weights that they hold.
    """
    return {
        site: RoundPlan(
            study=study.site_digests[site],
            run=study.run,
            site=site,
            round=cohort.round,
            accepted=state.accepted.get(site),
            asked=cohort.asked[site],
            share=state.shares.get(site, 0.0),
            base=state.round if site in in_part else None,
            best=None if state.best is None else state.best.accepted.get(site),
        )
        for site in cohort.sites
    }


def send_plans(
    study: Study,
    plans: Mapping[str, RoundPlan],
    sending: Sending,
    *,
    most_bytes: int,
    until: Callable[[], float] = lambda: math.inf,
) -> Iterator[Answer]:
    """Send the plans and yield the answers as they arrive; the wire takes in none that is longer than an update."""
    return ask(
        study.exchange,
        plans,
        payload=sending.full,
        instead=sending.differences,
        timeout_seconds=study.config.round_timeout_seconds,
        most_bytes=most_bytes,
        absent_seconds=study.config.absent_seconds,
        until=until,
    )


def waited_until(study: Study, cohort: Cohort, intake: Intake) -> float:
    """Return until when (`time.monotonic`) a round waits for the sites that have not answered, as things stand."""
    config = study.config
    if config.over_selection and len(intake.updates) >= min(config.cohort_size, len(cohort.sites)):
        return -math.inf
    if config.straggler_seconds is None or intake.enough_since is None:
        return math.inf
    return intake.enough_since + config.straggler_seconds


def control_of(state: ServerState) -> dict[str, Array]:
    """Return the control variates that travel with the weights, under their prefix."""
    return with_prefix(under(state.along, CONTROL), CONTROL)


def receive(
    study: Study,
    state: ServerState,
    answers: Iterator[Answer],
    spool: Spool,
    intake: Intake,
    *,
    cohort: Cohort,
    held: Weights,
) -> None:
    """Check every answer as it arrives, and put the usable updates on disk."""
    for answer in answers:
        if answer.problem == "cut_off" and study.config.over_selection:
            continue  # one that was asked beyond the cohort
        is_usable = take(study, state, answer, spool, intake, held=held)
        if is_usable and len(intake.updates) == cohort.quorum:
            intake.enough_since = time.monotonic()
    intake.updates.sort(key=lambda update: update.site)


def take(
    study: Study, state: ServerState, answer: Answer, spool: Spool, intake: Intake, *, held: Weights, stale: int = 0
) -> bool:
    """Check an answer and put a usable update on disk; return whether it is usable.

    Args:
        stale: how many rounds before this one the site was asked.
    """
    intake.arrived(answer)
    began = time.monotonic()
    try:
        reply, update = check_update(answer, replace(state, round=state.round - stale), study, held=held)
    except UpdateRejected as error:
        reject(study, state, intake, answer.site, error)
        return False
    intake.checking_seconds += time.monotonic() - began
    accept(study, intake, reply, update=digest_of(update), stale=stale)
    if study.config.keep_updates:
        keep(kept_update(study.folder.path, update.site, round_number=state.round + 1), arrays_of(update))
    intake.lengths[update.site] = lengths_of(update, state)
    intake.updates.append(_on_disk(update, answer, spool, coded=bool(study.config.uplink)))
    return True


def accept(study: Study, intake: Intake, reply: RoundReply, *, update: str = "", stale: int = 0) -> None:
    """Note a usable update.

    Args:
        update: its digest; empty where the server does not see it by itself.
        stale: how many rounds before this one the site was asked.
    """
    number, metrics, site = reply.num_examples, dict(reply.metrics), reply.site
    intake.sites[site] = SiteRound(
        num_examples=number, seconds=round(reply.seconds, 4), metrics=metrics, privacy=reply.privacy, stale=stale
    )
    event = UpdateAccepted(
        round=reply.round + stale, site=site, metrics=metrics, num_examples=number, update=update, stale=stale
    )
    study.folder.note(event)
    warn_of_state(study, reply)


def reject(study: Study, state: ServerState, intake: Intake, site: str, error: UpdateRejected) -> None:
    """Note an unusable answer, and why."""
    intake.rejected[site], intake.details[site] = error.reason, str(error)
    event = AnswerRejected(round=state.round + 1, site=site, reason=error.reason, message=str(error))
    study.folder.log(event)


def refuse_too_long(study: Study, state: ServerState, intake: Intake) -> None:
    """Reject the updates that are beyond belief among those of a round."""
    sent = {update.site: (update.num_examples, intake.lengths[update.site]) for update in intake.updates}
    refused = too_long(study.config, state, sent)
    intake.withdraw(refused.keys())
    for site, sentence in refused.items():
        reject(study, state, intake, site, UpdateRejected("norm", sentence))


def _on_disk(update: Update, answer: Answer, spool: Spool, *, coded: bool) -> Update:
    """Return an update whose arrays are read from disk when they are asked for."""
    if answer.file is None or answer.payload is None or coded:
        return replace(update, delta=spool.keep(update.delta), control=spool.keep(update.control))
    form = read_form(answer.payload)
    control = {name: CONTROL + name for name in update.control}
    delta = spool.adopt(answer.file, form, {name: name for name in update.delta})
    return replace(update, delta=delta, control=spool.adopt(answer.file, form, control))


def check_quorum(study: Study, cohort: Cohort, intake: Intake, sending: Sending) -> None:
    """Check that enough updates are usable.

    Raises:
        CohortTooSmall: they are fewer than the quorum; names the sites that failed and why.
    """
    if len(intake.updates) >= cohort.quorum:
        return
    study.folder.log(RoundFailed(**dict(make_record(cohort, intake, sending))))
    usable = f"{len(intake.updates)} of {len(cohort.sites)} sites sent a usable update"
    raise CohortTooSmall(f"round {cohort.round}: {usable}, expected {cohort.quorum}; {reasons(intake.details)}")


def aggregate(study: Study, state: ServerState, updates: Sequence[Update]) -> Aggregation:
    """Weigh the updates and apply them to the weights.

    Raises:
        UpdateRejected: the new weights are not finite.
    """
    began, number = time.monotonic(), state.round + 1
    weighed = weigh(study, state, updates)
    noised = with_site_noise(study.config, updates, weighed.shares)
    step = study.strategy.apply(state, noised, weighed.shares)
    check_finite(step.state.weights, who=f"round {number}: the new global weights")
    control = {name: array for name, array in step.state.along.items() if name.startswith(CONTROL)}
    along = control | candidates(study, state, updates, weighed)
    if weighed.notes:
        study.folder.log(WeightingFallback(round=number, message="; ".join(weighed.notes)))
    after = replace(step.state, along=along, weighting=weighed.memory, shares=dict(step.shares))
    # NumPy's sums differ in their last bits with where an array lies in memory; equal runs have equal records.
    norm = float(f"{distance(after.weights, state.weights):.12g}")
    epsilon = site_epsilon(study.config, rounds_done=number)
    return Aggregation(after, after.shares, weighed.signals, weighed.notes, norm, time.monotonic() - began, epsilon)


def weigh(study: Study, state: ServerState, updates: Sequence[Update]) -> Weighed:
    """Return how much each update counts."""
    number = state.round + 1
    evidence = Evidence(
        updates,
        round=number,
        rounds=study.config.rounds,
        class_counts=study.class_counts,
        optimised=state.optimised,
        seed=seed_for(study.config.seed, "weighting", number),
    )
    return study.weighting.weigh(evidence, state.weighting)


def candidates(study: Study, state: ServerState, updates: Sequence[Update], weighed: Weighed) -> dict[str, Array]:
    """Return the weights that each candidate's shares give, under its name, for the sites to compare."""
    arrays: dict[str, Array] = {}
    for name, shares in weighed.candidates.items():
        weights = study.strategy.apply(state, updates, shares).state.weights
        check_finite(weights, who=f"round {state.round + 1}: {name}")
        arrays |= with_prefix(weights, f"{name}/")
    return arrays


def remember(
    study: Study, state: ServerState, cohort: Cohort, intake: Intake, sending: Sending, aggregation: Aggregation
) -> ServerState:
    """Return the state after a round, with the sites asked, those accepted, and the weights that the sites hold."""
    accepted = {**state.accepted, **{site: cohort.round - intake.sites[site].stale for site in intake.accepted}}
    strikes = counted(state.strikes, accepted=intake.accepted, rejected=intake.rejected)
    after = replace(aggregation.state, asked=cohort.asked, accepted=accepted, strikes=strikes)
    say_set_aside(study, state, after, intake.rejected)
    if not study.config.downlink:
        return after
    return replace(after, held=sending.held, link=sending.memory, holders=frozenset(intake.accepted))
