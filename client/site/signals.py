"""The numbers that a site measures for the study's strategy and weighting; `SIGNALS` has one entry for each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from consilium.client.data import Examples
from consilium.client.site.learner import Learner
from consilium.client.site.received import Received
from consilium.client.training.evaluation import Evaluation, evaluate
from consilium.client.training.work import LocalWork
from consilium.common.study.signals import (
    CANDIDATES,
    EFFECTIVE_STEPS,
    RECEIVED_LOSS,
    START_LOSS,
    UPDATE_LOSS,
    WITHOUT_ERROR,
)
from consilium.common.weights.arrays import Array, Weights, is_float


@dataclass(frozen=True, eq=False)
class Moment:
    """A round of one site after its training: all that a signal is measured from.

    Args:
        personal: the personal arrays before the training.
        trained: all arrays that the training moved, shared and personal, as it left them.
        sent: shared arrays as this site trained them in the round before; empty if it does not know them.
        share: the part that these have in the weights received.
    """

    learner: Learner
    received: Received
    personal: Weights
    trained: Weights
    sent: Weights
    share: float
    work: LocalWork

    def evaluated(self, *parts: Weights, on: Examples) -> Evaluation:
        """Evaluate the model with the initial weights and `parts` over them."""
        with self.learner.holding(*parts) as module:
            return evaluate(module, on)


Signal = Callable[[Moment], float | None]
"""A number for the server; None where this site cannot measure it."""


def measure_signals(moment: Moment) -> dict[str, float]:
    """Measure what the study's strategy and weighting need, and nothing else."""
    needs = moment.learner.needs
    return {
        name: value for name, measure in SIGNALS.items() if name in needs and (value := measure(moment)) is not None
    }


def _effective_steps(moment: Moment) -> float:
    return moment.work.effective_steps


def _start_loss(moment: Moment) -> float:
    return moment.evaluated(moment.received.weights, moment.personal, on=moment.work.examples).loss


def _received_loss(moment: Moment) -> float | None:
    if not len(moment.work.validation):
        return None
    return moment.evaluated(moment.received.weights, moment.personal, on=moment.work.validation).loss


def _update_loss(moment: Moment) -> float | None:
    if not len(moment.work.validation):
        return None
    return moment.evaluated(moment.trained, on=moment.work.validation).loss


def _candidate_loss(name: str, moment: Moment) -> float | None:
    if name not in moment.received.candidates or not len(moment.work.validation):
        return None
    return moment.evaluated(moment.received.candidates[name], moment.personal, on=moment.work.validation).loss


def _without_error(moment: Moment) -> float | None:
    """Return the others' error rate; None where this site has a share in the weights but not what it sent for it."""
    if not len(moment.work.validation) or (moment.share != 0 and not moment.sent):
        return None
    others = leave_one_out(moment.received.weights, moment.sent, moment.share)
    accuracy = moment.evaluated(others, moment.personal, on=moment.work.validation).accuracy
    return None if math.isnan(accuracy) else 1 - accuracy


SIGNALS: Mapping[str, Signal] = {
    EFFECTIVE_STEPS: _effective_steps,
    START_LOSS: _start_loss,
    RECEIVED_LOSS: _received_loss,
    **{f"{name}.loss": partial(_candidate_loss, name) for name in CANDIDATES},
    WITHOUT_ERROR: _without_error,
    UPDATE_LOSS: _update_loss,
}
"""How each signal of `consilium.common.study.signals` is measured."""


def leave_one_out(weights: Weights, own: Weights, share: float) -> dict[str, Array]:
    """Return `(weights - share * own) / (1 - share)`: the mean of the others' (Jiang 2023, FedCE, section 3.2).

    Integer arrays are kept as they are, and so is all of it where the site had no part, or was alone.
    """
    if not 0 < share < 1 - 1e-9:
        return dict(weights)
    return {
        name: ((array.astype(np.float64) - share * own[name].astype(np.float64)) / (1 - share)).astype(array.dtype)
        if is_float(array)
        else array
        for name, array in weights.items()
    }
