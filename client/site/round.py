"""A round at a site: receive, train, measure signals, serve, train alone, encode."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from consilium.client.methods import Outcome, serves_as_held
from consilium.client.models import get_weights
from consilium.client.privacy.clipping import shortened
from consilium.client.site.baseline import CATCH_UP_PART, serving_alone, train_alone
from consilium.client.site.kept import Alone, Best, Held, Kept
from consilium.client.site.learner import Learner, check_metrics
from consilium.client.site.received import Received, receive, receive_difference
from consilium.client.site.signals import Moment, measure_signals
from consilium.client.training.work import LocalWork
from consilium.common.codecs import Identity, Payload, build_chain
from consilium.common.protocol.plans import CONTROL, RoundPlan
from consilium.common.seeds import seed_for
from consilium.common.study.signals import EFFECTIVE_STEPS, WITHOUT_ERROR
from consilium.common.weights.arithmetic import subtract
from consilium.common.weights.arrays import Array, Weights, with_prefix
from consilium.common.weights.checks import check_finite

Metrics = dict[str, float]

OF_NO_DATA = frozenset({EFFECTIVE_STEPS})
"""Metrics that a private study is told, and one whose sums hide whole sites: they follow from its settings and from
announced numbers. What a codec loses of an update that has noise already is told too.
"""


@dataclass(frozen=True, eq=False)
class RoundResult:
    """What a round leaves: at the site, for the server, and as numbers in the reply."""

    kept: Kept
    payload: bytes
    metrics: Metrics


@dataclass(frozen=True, eq=False)
class Round:
    """What the steps of a round work on, once its weights are received."""

    learner: Learner
    plan: RoundPlan
    kept: Kept
    received: Received
    work: LocalWork

    @property
    def measuring(self) -> bool:
        """Whether models are measured in this round."""
        return self.learner.measures_in(self.plan.round)


@dataclass(frozen=True, eq=False)
class Training:
    """The arrays that the federated training moved, and what else the method leaves."""

    shared: dict[str, Array]
    personal: dict[str, Array]
    outcome: Outcome
    metrics: Metrics


@dataclass(frozen=True, eq=False)
class Coded:
    """An update's payload, what the codec has left out of it, and metrics that say how much that is."""

    payload: bytes
    residual: Weights
    metrics: Metrics


def play_round(
    learner: Learner,
    plan: RoundPlan,
    payload: Payload | None,
    kept: Kept,
    *,
    before: Callable[[], None] | None = None,
) -> RoundResult:
    """Do what a round asks of a site, with what it kept before; nothing is written to its disk here.

    Args:
        before: is called once the weights from the server have been found usable, before training.

    Raises:
        ConsiliumError: the weights from the server cannot be used, or training has diverged.
    """
    received = received_in(learner, plan, payload, kept)
    if before is not None:
        before()
    now = Round(learner, plan, kept, received, learner.work(plan.round, control=received.control))
    training = _train(now)
    signals = measure_signals(_moment(now, training))
    served, best = _serve(now, training)
    alone, compared, best_alone = _train_alone(now)
    metrics = signals | training.metrics | served | compared
    if learner.private or learner.study.privacy.hides_sites:
        metrics = {name: value for name, value in metrics.items() if name in OF_NO_DATA}
    check_metrics(metrics)
    coded = _encode(now, _clipped(now, training))
    after = Kept(
        personal=training.personal,
        method=training.outcome.memory,
        alone=alone,
        sent=training.shared if WITHOUT_ERROR in learner.needs else {},
        residual=coded.residual,
        held=_held(now) if learner.study.downlink else None,
        best=best,
        best_alone=best_alone,
    )
    return RoundResult(after, coded.payload, metrics | coded.metrics)


def received_in(learner: Learner, plan: RoundPlan, payload: Payload | None, kept: Kept) -> Received:
    """Return what a round's plan brings: weights in full, or those of an earlier round with a difference added.

    Raises:
        ConsiliumError: it cannot be used.
    """
    if plan.base is None:
        return receive(learner, payload)
    return receive_difference(learner, payload, kept.held, base=plan.base)


def _train(now: Round) -> Training:
    """Train from the received and the personal weights; where nothing is personal, measure these first."""
    learner, names, metrics = now.learner, now.learner.names, Metrics()
    with learner.holding(now.received.weights, now.kept.personal) as module:
        if now.measuring and not names.personal:
            metrics |= learner.measured("global", module)
        outcome = learner.method.train(learner.model, now.kept.method, now.work)
        after = get_weights(module, names.moving)
    shared = {name: after[name] for name in sorted(names.shared)}
    # In a private study a site does not fail by what has no noise: that it did would tell of single patients.
    for arrays in (shared, outcome.control) if learner.private else (after, outcome.memory, outcome.control):
        check_finite(arrays, who="weights after training")
    return Training(
        shared=shared,
        personal={name: after[name] for name in names.personal},
        outcome=outcome,
        metrics=metrics | {"train.loss": outcome.loss, **outcome.metrics},
    )


def _moment(now: Round, training: Training) -> Moment:
    return Moment(
        learner=now.learner,
        received=now.received,
        personal=now.kept.personal,
        trained=training.shared | training.personal,
        sent=now.kept.sent,
        share=now.plan.share,
        work=now.work,
    )


def _serve(now: Round, training: Training) -> tuple[Metrics, Best | None]:
    """Measure what this site serves: the received and its new personal weights, as the method personalises them."""
    learner, best = now.learner, now.kept.best
    if not now.measuring:
        return {}, best
    if serves_as_held(learner.method) and not learner.names.personal:  # the model that was measured as it came
        metrics = {
            f"personal.{name.removeprefix('global.')}": value
            for name, value in training.metrics.items()
            if name.startswith("global.")
        }
        if _is_better(learner, best, metrics.get("personal.loss")):
            with learner.holding(now.received.weights) as module:
                return metrics, _better(learner, best, module, metrics.get("personal.loss"))
        return metrics, best
    with learner.holding(now.received.weights, training.personal) as module:
        served = learner.method.personalise(learner.model, training.outcome.memory, now.work)
        metrics = learner.measured("personal", served)
        if served is not module:  # more than the arrays of the model, so none of its rounds is kept
            return metrics, None
        return metrics, _better(learner, best, module, metrics.get("personal.loss"))


def _train_alone(now: Round) -> tuple[Alone, Metrics, Best | None]:
    """Train the local-only model with the same budget, and measure it, where the study has that baseline."""
    learner, kept = now.learner, now.kept
    if not learner.study.local_baseline:
        return Alone(), {}, None
    seconds = CATCH_UP_PART * learner.study.round_timeout_seconds
    alone = train_alone(learner, kept.alone, rounds=now.plan.asked, seconds=seconds)
    if not now.measuring:
        return alone, {}, kept.best_alone
    with serving_alone(learner, alone, now.work) as module:
        metrics = learner.measured("local", module)
        return alone, metrics, _better(learner, kept.best_alone, module, metrics.get("local.loss"))


def _better(learner: Learner, best: Best | None, module: nn.Module, loss: float | None) -> Best | None:
    """Return the better of the best model so far and this one; the one so far where they are equal.

    Args:
        loss: of `module` on the validation examples; None without these.
    """
    if loss is None or not _is_better(learner, best, loss):
        return best
    return Best(get_weights(module, learner.names.moving), loss)


def _is_better(learner: Learner, best: Best | None, loss: float | None) -> bool:
    if not learner.study.keep_best or loss is None or not math.isfinite(loss):
        return False
    return best is None or loss < best.loss


def _clipped(now: Round, training: Training) -> Training:
    """Return the training with shared weights as near to those received as site-level privacy asks for."""
    if (privacy := now.learner.study.privacy.sites) is None:
        return training
    return replace(training, shared=shortened(training.shared, now.received.weights, privacy.clip))


def _encode(now: Round, training: Training) -> Coded:
    """Code the difference that training made to the shared weights, and the control variate along with it."""
    learner, weights = now.learner, now.received.weights
    along = with_prefix(training.outcome.control, CONTROL)
    if not learner.study.uplink:
        return Coded(Identity().encode(subtract(training.shared, weights) | along), {}, {})
    chain = build_chain(learner.study.uplink, exact=learner.buffers)
    nothing = {name: np.zeros_like(array) for name, array in along.items()}
    seed = seed_for(learner.study.seed, "uplink", now.plan.round, learner.site)
    coded = chain.encode({**training.shared, **along}, {**weights, **nothing}, memory=now.kept.residual, seed=seed)
    return Coded(coded.payload, coded.memory, {} if coded.nmse is None else {"uplink.nmse": coded.nmse})


def _held(now: Round) -> Held:
    """Return copies of the weights received, which are views of the payload."""
    return Held({name: array.copy() for name, array in now.received.weights.items()}, now.plan.round)
