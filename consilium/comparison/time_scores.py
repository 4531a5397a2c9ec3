"""Metrics of risks on a test split: Harrell's and Uno's concordance, and the Brier score at the study's horizon."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from consilium.common.survival.concordance import censoring_weights, harrell, of_draws, uno
from consilium.common.survival.curves import brier_losses, log_hazard, survival_at
from consilium.common.survival.evidence import carriers
from consilium.common.survival.times import Times
from consilium.common.weights.arrays import Array
from consilium.comparison.evaluation import Floats, Labels, Scores, unknown

BRIER = "brier_at_horizon"
"""The Brier score at `task.survival.horizon`, with weights for who is censored (Graf 1999)."""


@dataclass(frozen=True)
class TimeScores(Scores):
    """Answers where the label is a time until an event.

    Args:
        y: the times `(N,)`, with a minus sign where they are censored.
        risks: the log of each patient's risk `(N,)`.
        training: the times of the training patients, in the same form; None where they are not known.
        horizon: the time at which the Brier score is measured; None: it is not.
        hazard: the log of the model's hazard until then (`log_hazard`); None where it is not known.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("c_index", "uno_c", BRIER)

    y: Array
    risks: Floats
    training: Array | None = None
    horizon: float | None = None
    hazard: float | None = None

    @classmethod
    def of_same_risk(cls, y: Array, training: Array | None, horizon: float | None) -> "TimeScores":
        """Return the scores of the constant answer: the same risk for all, and a hazard as the training patients'."""
        hazard = None
        if training is not None and horizon is not None:
            hazard = log_hazard(horizon, Times.of_labels(training), np.zeros(len(training)))
        return cls(y, np.zeros(len(y)), training, horizon, hazard)

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the metrics of this study: without a horizon there is no Brier score."""
        return metrics_at(self.horizon)

    def taken(self, rows: Labels) -> "TimeScores":
        """Return the scores of some rows; a row may be there twice."""
        return replace(self, y=self.y[rows], risks=self.risks[rows])

    def per_example(self, name: str) -> Floats | None:
        """Return what each patient adds to the Brier score `(N,)`; None where it is not defined, and for others."""
        if name != BRIER or self.training is None or self.horizon is None or self.hazard is None:
            return None
        survival = survival_at(self.hazard, self.risks)
        return brier_losses(self.horizon, Times.of_labels(self.y), survival, training=Times.of_labels(self.training))

    def carriers(self, name: str, groups: Labels | None) -> float:
        """Return for concordances how many patients they hang on: those whose event was seen."""
        return math.inf if name == BRIER else carriers(Times.of_labels(self.y), groups)

    def measure(self, name: str) -> float | None:
        """Return one of `METRICS`: Harrell's c, or Uno's by the training patients' censoring, or the Brier score.

        Concordances are in [0, 1]. The Brier score is at least 0, and smaller is better.

        Raises:
            ValueError: there is no such metric.
        """
        of = Times.of_labels(self.y)
        match name:
            case "c_index":
                return harrell(of, self.risks)
            case "uno_c":
                return None if self.training is None else uno(of, self.risks, training=Times.of_labels(self.training))
            case "brier_at_horizon":
                losses = self.per_example(name)
                return None if losses is None else float(losses.mean())
        raise unknown(name, self.METRICS)

    def in_draws(self, name: str, drawn: Sequence[Labels]) -> Floats:
        """Return a metric in draws of the rows `(draws,)`; NaN where one does not define it. All pairs at once."""
        of, weights = Times.of_labels(self.y), np.ones(len(self.y))
        if name == "uno_c":
            known = None if self.training is None else censoring_weights(of, training=Times.of_labels(self.training))
            if known is None:
                return np.full(len(drawn), np.nan)
            weights = known
        times_drawn = np.stack([np.bincount(rows, minlength=len(of)) for rows in drawn]).astype(np.float64)
        return of_draws(of, self.risks, times_drawn, weights)


def metrics_at(horizon: float | None) -> tuple[str, ...]:
    """Return the metrics of a study of times: without a horizon there is no Brier score."""
    return tuple(name for name in TimeScores.METRICS if name != BRIER or horizon is not None)
