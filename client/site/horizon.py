"""Brier scores at a study's horizon: what leaves a site of them, and the hazards that stay in its folder.

A Cox model tells who is at more risk. When, says a hazard of the site's own training patients (Breslow), which never
leaves the site.
"""

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from consilium.client.data import Examples
from consilium.client.site.learner import Learner
from consilium.client.training.evaluation import evaluate
from consilium.common.protocol.counts import Estimates
from consilium.common.protocol.estimates import estimates_of
from consilium.common.survival.curves import brier_losses, log_hazard, survival_at
from consilium.common.survival.evidence import evidence_of_losses
from consilium.common.survival.times import Floats, Times

CONSTANT = "majority"
"""The constant answer: the same risk for all."""


def horizon_of(learner: Learner) -> float | None:
    """Return the time at which the study measures Brier scores; None: it does not."""
    survival = learner.study.task.survival_times
    return None if survival is None else survival.horizon


def hazard_of(module: nn.Module, train: Examples, horizon: float) -> float:
    """Return the log of a model's hazard until a time, by its answers to training rows and their times."""
    return log_hazard(horizon, _times(train), _risks(evaluate(module, train).logits))


def brier_scores(
    learner: Learner, horizon: float, outputs: Mapping[str, Tensor], hazards: Mapping[str, float]
) -> Estimates:
    """Return the Brier score of each model on the test rows, and of the constant answer, with standard errors.

    Args:
        outputs: of each model for the test rows `(N, 1)`, by its name in `Estimates`.
        hazards: of each model, by the same names.
    """
    test, training = learner.data.test, _times(learner.data.train)
    risks = {name: _risks(of) for name, of in outputs.items()} | {CONSTANT: np.zeros(len(test))}
    constant = log_hazard(horizon, training, np.zeros(len(training)))
    told = {
        name: brier_losses(horizon, _times(test), survival_at(hazard, risks[name]), training=training)
        for name, hazard in {**hazards, CONSTANT: constant}.items()
    }
    known = {name: losses for name, losses in told.items() if losses is not None}
    groups = None if test.groups is None else test.groups.numpy()
    return estimates_of(evidence_of_losses(known, groups), neutral=math.nan)


def _times(part: Examples) -> Times:
    return Times.of_labels(part.y.cpu().numpy())


def _risks(outputs: Tensor) -> Floats:
    return np.asarray(outputs[:, 0].double().cpu().numpy(), dtype=np.float64)
