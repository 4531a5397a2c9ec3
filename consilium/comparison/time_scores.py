"""Metrics of risks on a test split: Harrell's and Uno's concordance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from consilium.common.survival.concordance import censoring_weights, harrell, of_draws, uno
from consilium.common.survival.times import Times
from consilium.common.weights.arrays import Array
from consilium.comparison.evaluation import Floats, Labels, Scores, unknown


@dataclass(frozen=True)
class TimeScores(Scores):
    """Answers where the label is a time until an event.

    Args:
        y: the times `(N,)`, with a minus sign where they are censored.
        risks: the log of each patient's risk `(N,)`.
        training: the times of the training patients, in the same form; None where they are not known.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("c_index", "uno_c")

    y: Array
    risks: Floats
    training: Array | None = None

    def taken(self, rows: Labels) -> "TimeScores":
        """Return the scores of some rows; a row may be there twice."""
        return TimeScores(self.y[rows], self.risks[rows], self.training)

    def per_example(self, name: str) -> Floats | None:
        """Return None: no metric of times is a mean of what each patient adds."""
        return None

    def measure(self, name: str) -> float | None:
        """Return one of `METRICS`, in [0, 1]: Harrell's c, or Uno's by the training patients' censoring.

        Raises:
            ValueError: there is no such metric.
        """
        of = Times.of_labels(self.y)
        match name:
            case "c_index":
                return harrell(of, self.risks)
            case "uno_c":
                return None if self.training is None else uno(of, self.risks, training=Times.of_labels(self.training))
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
