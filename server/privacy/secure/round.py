"""One round of secure sums: plan, ask, add up what cannot be read, unmask the sum, aggregate, record.

Each masked update is added to the sum as it arrives, and forgotten: no file and no variable holds one in the clear. The
strategy gets the weighted mean in the place of every site's update, which gives what its own mean would: it takes no
more of the updates than their mean, weighted or not, and the sum of control variates (`StrategySettings.of_sums`).

Shares in the record are computed from what sites tell of themselves, as they compute their own weights; the server
cannot check that a site did.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from consilium.common.errors import CohortTooSmall, ProtocolError, UpdateRejected
from consilium.common.events.run import RoundFailed, RunWarning
from consilium.common.privacy.secure.fixed import Layout, Mean, to_mean
from consilium.common.privacy.secure.masks import Words
from consilium.common.privacy.secure.noise import noise_share
from consilium.common.privacy.secure.payload import from_payload, payload_bytes
from consilium.common.privacy.secure.sizes import LEAST_SITES, threshold
from consilium.common.privacy.secure.weights import per_step, reference_loss, reference_steps
from consilium.common.protocol.plans import CONTROL, SecureRound
from consilium.common.protocol.replies import RoundReply
from consilium.common.results import RoundRecord
from consilium.common.study.signals import UPDATE_LOSS
from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import under
from consilium.server.privacy.noise import multiplier_of_sums
from consilium.server.privacy.secure.attempts import Attempt, keep, next_attempt
from consilium.server.privacy.secure.unmask import unmask
from consilium.server.strategies import ServerState, Update
from consilium.server.study.applying import aggregate, weigh
from consilium.server.study.check import check_reply, check_round, check_signals
from consilium.server.study.context import Study
from consilium.server.study.downlink import Sending, send
from consilium.server.study.exchange import Answer
from consilium.server.study.hold import Hold, RoundShort
from consilium.server.study.record import Aggregation, Cohort, Intake, make_record
from consilium.server.study.round import choose, make_plans, remember, send_plans
from consilium.server.study.sentences import reasons
from consilium.server.study.taking import accept, reject

LEAST_LOSS = "sum/loss"
"""Number in the weighting's memory: the least `update.loss` of the round before."""


@dataclass(eq=False)
class Summing:
    """A sum that is being made.

    Args:
        sealed: the sealed shares that each site has sent along with its words.
    """

    total: Words
    sealed: dict[str, tuple[bytes, ...]] = field(default_factory=dict)


def run_secure_round(study: Study, state: ServerState) -> tuple[ServerState, RoundRecord]:
    """Run one round, again and again while sites are missing that may come back, and return the new state.

    Raises:
        CohortTooSmall: fewer usable updates than the quorum, or than a sum takes; names the sites that failed and why.
        UpdateRejected: the sum is not one that the sites' updates can have.
    """
    hold = Hold(study, state.round + 1, study.quorum)
    while True:
        try:
            done = _try_round(study, state)
        except RoundShort as short:
            hold.quorum = short.needed
            waits = hold.can_wait(short.problems, usable=short.usable)
            if waits and hold.wait(short.problems, usable=short.usable):
                continue
            if short.record is not None:
                study.folder.log(RoundFailed(**dict(short.record)))
            raise CohortTooSmall(str(short)) from short
        hold.over()
        return done


def _try_round(study: Study, state: ServerState) -> tuple[ServerState, RoundRecord]:
    """Try a round once.

    Raises:
        RoundShort: too few answers at one of its steps.
    """
    cohort, intake = choose(study, state), Intake()
    cohort, attempt = _begin(study, state, cohort, intake)
    sending = send(study.config, state)
    layout = layout_of(study, state)
    plans = make_plans(study, state, cohort, in_part=sending.differences)
    asked = _secure(study, state, attempt)
    secure_plans = {site: plan.model_copy(update={"secure": asked}) for site, plan in plans.items()}
    answers = send_plans(study, secure_plans, sending, most_bytes=payload_bytes(layout, sites=len(attempt.cohort)))
    sending = sending.without_payloads()
    summing = _receive(study, state, answers, attempt, layout, intake)
    _check_enough(study, cohort, attempt, intake, sending)
    attempt = keep(study.folder.path, attempt.model_copy(update={"survivors": intake.accepted}))
    unmask(study, attempt, summing.total, summing.sealed, intake)
    divisor = _divisor(study, state, asked, intake)
    mean = to_mean(layout, summing.total, sites=len(intake.accepted), least=divisor)
    aggregation = _aggregate(study, state, _divided(mean, state, divisor), intake)
    after = remember(study, state, cohort, intake, sending, aggregation)
    return after, make_record(cohort, intake, sending, aggregation)


def exchange_keys(study: Study) -> None:
    """Have all sites of a run exchange their keys, before its first round.

    Raises:
        ConsiliumError: the sentence of the first site that could not.
    """
    problems = study.ring.prepare(study.exchange, study.config, study.run, sorted(study.train_sizes))
    for _, error in sorted(problems.items()):
        raise error


def layout_of(study: Study, state: ServerState) -> Layout:
    """Return which word of a round's sum stands for what."""
    config, control = study.config, under(state.along, CONTROL)
    share = noise_share(config, multiplier_of_sums(config))
    return Layout.of(state.weights, control, bound=config.privacy.longest, sites=len(config.sites), share=share)


def _begin(study: Study, state: ServerState, cohort: Cohort, intake: Intake) -> tuple[Cohort, Attempt]:
    """Return the sites that are asked, those that have all keys, and which attempt at the round it is.

    Raises:
        RoundShort: too few have, or of a round that was to be unmasked before not all.
    """
    for site, error in study.ring.prepare(study.exchange, study.config, study.run, cohort.sites).items():
        reject(study, state, intake, site, UpdateRejected("keys", str(error)))
    ready = tuple(site for site in cohort.sites if site not in intake.rejected)
    away = dict.fromkeys(set(cohort.sites) - set(ready) - study.exchange.connected(), "gone")
    if len(ready) < LEAST_SITES:
        raise RoundShort(
            f"round {cohort.round}: {len(ready)} of {len(cohort.sites)} sites have the keys of the others, expected "
            f"{LEAST_SITES}; {reasons(intake.details)}",
            intake.rejected | away,
            usable=len(ready),
            needed=LEAST_SITES,
        )
    attempt = next_attempt(study.folder.path, round_number=cohort.round, cohort=ready)
    if attempt.survivors is None:
        return replace(cohort, sites=ready), attempt
    if missing := sorted(set(attempt.survivors) - set(ready)):
        raise RoundShort(
            f"round {cohort.round}: its sum was to be unmasked when the server ended, and only that sum can still be "
            f"had, for which site '{missing[0]}' must send its update again; go on when it is there",
            dict.fromkeys(missing, "gone"),
            usable=len(attempt.survivors) - len(missing),
            needed=len(attempt.survivors),
        )
    return replace(cohort, sites=attempt.survivors, quorum=len(attempt.survivors)), attempt


def _secure(study: Study, state: ServerState, attempt: Attempt) -> SecureRound:
    return SecureRound(
        attempt=attempt.number,
        cohort=attempt.cohort,
        examples=max(1, *(study.train_sizes[site] for site in attempt.cohort)),
        loss=reference_loss(study.config.weights_by, state.weighting.get(LEAST_LOSS)),
        steps=_reference_steps(study, attempt),
        noise=multiplier_of_sums(study.config),
    )


def _reference_steps(study: Study, attempt: Attempt) -> float | None:
    if not study.config.strategy.per_step:
        return None
    return reference_steps(study.config.training, min(study.train_sizes[site] for site in attempt.cohort))


def _receive(
    study: Study, state: ServerState, answers: Iterator[Answer], attempt: Attempt, layout: Layout, intake: Intake
) -> Summing:
    """Check every answer as it arrives, and add its words to the sum."""
    summing = Summing(Words.zeros(layout.narrow, layout.wide))
    for answer in answers:
        intake.arrived(answer)
        began = time.monotonic()
        try:
            reply = _add(study, state, answer, layout, summing, sites=len(attempt.cohort))
        except UpdateRejected as error:
            reject(study, state, intake, answer.site, error)
            continue
        intake.checking_seconds += time.monotonic() - began
        accept(study, intake, reply)
    return summing


def _add(
    study: Study, state: ServerState, answer: Answer, layout: Layout, summing: Summing, *, sites: int
) -> RoundReply:
    """Add a masked update to the sum.

    Raises:
        UpdateRejected: it is none, or not this round's.
    """
    reply, payload = check_reply(answer)
    check_round(reply, state, study, site=answer.site)
    check_signals(reply, study, who=f"site '{answer.site}'")
    try:
        masked = from_payload(payload, layout, sites=sites)
    except ProtocolError as error:
        raise UpdateRejected("protocol", f"site '{answer.site}': {error}") from error
    summing.total.add(masked.words)
    summing.sealed[answer.site] = masked.sealed
    if answer.file is not None:
        answer.file.close()
    return reply


def _check_enough(study: Study, cohort: Cohort, attempt: Attempt, intake: Intake, sending: Sending) -> None:
    """Check that enough updates are in the sum for the study, and for the sites to unmask it.

    Raises:
        RoundShort: they are too few; names the sites that failed and why.
    """
    least = max(cohort.quorum, threshold(len(attempt.cohort)), LEAST_SITES)
    if len(intake.sites) >= least:
        return
    raise RoundShort(
        f"round {cohort.round}: {len(intake.sites)} of {len(attempt.cohort)} sites sent a usable update, a secure sum "
        f"of this round needs {least}; {reasons(intake.details)}",
        intake.rejected,
        usable=len(intake.sites),
        needed=least,
        record=make_record(cohort, intake, sending),
    )


def _divisor(study: Study, state: ServerState, asked: SecureRound, intake: Intake) -> float:
    """Return what the mean of updates that sites have divided by their steps is to be divided by: sum of p steps / a.

    It follows from what sites tell of themselves, as their shares do.
    """
    if asked.steps is None:
        return 1.0
    told = [Update(site, {}, of.num_examples, of.metrics) for site, of in sorted(intake.sites.items())]
    shares = weigh(study, state, told).shares
    return math.fsum(shares[update.site] * per_step(update.metrics, asked.steps) for update in told)


def _divided(mean: Mean, state: ServerState, divisor: float) -> Mean:
    """Return a mean whose arrays that gradients move are divided by a number."""
    if divisor == 1:
        return mean
    moved = {name: mean.delta[name] for name in state.optimised}
    zeros = {name: np.zeros_like(array) for name, array in moved.items()}
    return replace(mean, delta={**mean.delta, **add_scaled(zeros, moved, 1 / divisor)})


def _aggregate(study: Study, state: ServerState, mean: Mean, intake: Intake) -> Aggregation:
    """Give the strategy the mean in the place of each site's update."""
    updates = [
        Update(site, mean.delta, of.num_examples, of.metrics, mean.control) for site, of in sorted(intake.sites.items())
    ]
    if mean.shortened:
        message = (
            f"round {state.round + 1}: {mean.shortened} of {len(updates)} updates were longer than privacy.bound = "
            f"{study.config.privacy.bound:g} and were shortened to it"
        )
        study.folder.log(RunWarning(message=message))
    aggregation = aggregate(study, state, updates)
    losses = [update.metrics[UPDATE_LOSS] for update in updates if UPDATE_LOSS in update.metrics]
    if not losses:
        return aggregation
    after = replace(aggregation.state, weighting={**aggregation.state.weighting, LEAST_LOSS: min(losses)})
    return replace(aggregation, state=after)
