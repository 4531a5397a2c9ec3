"""One round, in seven steps: choose the cohort, plan, ask, receive, check the quorum, aggregate, record.

One exchange per round: a site evaluates the weights it receives, trains, evaluates its served model and answers once.
An unusable update is rejected and named; too few usable ones stop the run.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial

from consilium.common.codecs import build_chain
from consilium.common.errors import CohortTooSmall
from consilium.common.events.run import RoundAsked, RoundFailed
from consilium.common.protocol.plans import CONTROL, RoundPlan
from consilium.common.results import RoundRecord
from consilium.common.weights.arrays import Array, under, with_prefix
from consilium.server.strategies import ServerState
from consilium.server.study.applying import aggregate
from consilium.server.study.cohort import choose_cohort
from consilium.server.study.context import Study
from consilium.server.study.defence import shortened
from consilium.server.study.directions import counts_after
from consilium.server.study.downlink import Sending, send
from consilium.server.study.exchange import Answer, ask
from consilium.server.study.groups import WAIT_SECONDS, in_their_place
from consilium.server.study.hold import Hold
from consilium.server.study.kept_updates import forget_round
from consilium.server.study.record import Aggregation, Cohort, Intake, make_record
from consilium.server.study.sentences import reasons
from consilium.server.study.steps import made_by
from consilium.server.study.strikes import counted, say_set_aside, set_aside, with_another
from consilium.server.study.taking import receive, refuse_against, refuse_beyond_belief
from consilium.server.study.update_files import Spool


def run_round(study: Study, state: ServerState) -> tuple[ServerState, RoundRecord]:
    """Run one round and return the new state with its record.

    Raises:
        CohortTooSmall: fewer usable updates than the quorum; names the sites that failed and why.
        UpdateRejected: finite updates whose sum is too large for the weights' dtype.
    """
    cohort, intake = choose(study, state), Intake()
    with Spool(study.folder.path) as spool:
        cohort, sending = gather(study, state, cohort, intake, spool)
        refuse_against(study, state, intake, least=min(cohort.quorum, study.config.least_updates))
        updates, intake.shortened = shortened(study.config, state, intake.updates, intake.lengths)
        aggregation = aggregate(study, state, updates)
        intake.without = made_by(intake, aggregation.shares)
    after = remember(study, state, cohort, intake, sending, aggregation)
    return after, make_record(cohort, intake, sending, aggregation)


def gather(study: Study, state: ServerState, cohort: Cohort, intake: Intake, spool: Spool) -> tuple[Cohort, Sending]:
    """Ask the sites of a round until enough updates are there: those that are missing again and again.

    Returns who was asked, with the devices that took the place of others; and what was sent, without its payloads: they
    are as large as the model.

    Raises:
        CohortTooSmall: the quorum cannot be reached, or not within the study's limit.
    """
    if study.config.keep_updates:
        forget_round(study.folder.path, state.round + 1)
    patience = WAIT_SECONDS if study.config.groups else math.inf
    hold, missing = Hold(study, cohort.round, cohort.quorum, patience), cohort.sites
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
            refuse_beyond_belief(study, state, intake)
        usable = len(intake.updates)
        if usable >= cohort.quorum:
            hold.over()
            return cohort, sending
        if (wider := in_their_place(study, state, cohort, intake)) is not cohort:
            cohort, missing = wider, tuple(site for site in wider.sites if site not in cohort.sites)
            continue
        if not hold.can_wait(intake.rejected, usable=usable):
            check_quorum(study, cohort, intake, sending)
        missing = with_those_of_their_relays(study, cohort, hold.wait(intake.rejected, usable=usable))
        if not missing:
            hold.over()
            check_quorum(study, cohort, intake, sending)
        intake.withdraw(missing)
        intake.forget(missing)


def with_those_of_their_relays(study: Study, cohort: Cohort, missing: Collection[str]) -> tuple[str, ...]:
    """Return the sites to be asked again: a relay makes one mean of all of its own, and none of a single site."""
    again = set(missing).union(*(leaves for leaves in study.config.relays.values() if set(leaves) & set(missing)))
    return tuple(site for site in cohort.sites if site in again)


def choose(study: Study, state: ServerState) -> Cohort:
    """Choose the sites of the next round."""
    began, config, number = time.monotonic(), study.config, state.round + 1
    able = with_another(config, study.train_sizes.keys() - set_aside(config, state.strikes))
    if config.groups:
        able &= set(config.sites)
    named = choose_cohort(able, seed=config.seed, round_number=number, size=config.asked_sites)
    sites = tuple(sorted((*named, *study.devices)))
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


def check_quorum(study: Study, cohort: Cohort, intake: Intake, sending: Sending) -> None:
    """Check that enough updates are usable.

    Raises:
        CohortTooSmall: they are fewer than the quorum; names the sites that failed and why.
    """
    if len(intake.updates) >= cohort.quorum:
        return
    study.folder.log(RoundFailed(**dict(make_record(cohort, intake, sending))))
    usable = f"{len(intake.updates)} of {len(cohort.sites)} sites sent a usable update"
    raise CohortTooSmall(
        f"round {cohort.round}: {usable}, expected {cohort.quorum}; {reasons(intake.details)}", intake.rejected
    )


def remember(
    study: Study, state: ServerState, cohort: Cohort, intake: Intake, sending: Sending, aggregation: Aggregation
) -> ServerState:
    """Return the state after a round, with the sites asked, those accepted, and the weights that the sites hold."""
    accepted = {**state.accepted, **{site: cohort.round - intake.sites[site].stale for site in intake.accepted}}
    strikes = counted(state.strikes, accepted=intake.accepted, rejected=intake.rejected)
    against = counts_after(study.config, state.against, intake.directions)
    after = replace(aggregation.state, asked=cohort.asked, accepted=accepted, strikes=strikes, against=against)
    say_set_aside(study, state, after, intake.rejected)
    if not study.config.downlink:
        return after
    return replace(after, held=sending.held, link=sending.memory, holders=frozenset(intake.accepted))
