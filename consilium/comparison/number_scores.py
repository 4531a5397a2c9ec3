"""Metrics of answers that are numbers.

A number that a split does not define is None, never a stand-in.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from consilium.common.study.task import Regression
from consilium.common.weights.arrays import Array
from consilium.comparison.evaluation import Floats, Labels, Scores, unknown


@dataclass(frozen=True)
class NumberScores(Scores):
    """Answers where the label is a number.

    Args:
        y: the numbers `(N,)`, in the label's own units.
        predicted: the answers `(N,)`, likewise.
        right: mask `(N,)` of answers within the tolerance, as the sites count them.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("mae", "rmse", "median_error", "r2", "within_tolerance")

    y: Floats
    predicted: Floats
    right: NDArray[np.bool_]

    @classmethod
    def of_outputs(cls, y: Array, outputs: Array, of: Regression) -> "NumberScores":
        """Return the scores of a model's outputs `(N,)`; both are still `(number - center) / scale`."""
        off = np.abs(outputs.astype(np.float32) - y.astype(np.float32))
        known, answered = (of.to_label(values.astype(np.float64)) for values in (y, outputs))
        return cls(known, answered, off <= np.float32(of.reach))

    def taken(self, rows: Labels) -> "NumberScores":
        """Return the scores of some rows; a row may be there twice."""
        return NumberScores(self.y[rows], self.predicted[rows], self.right[rows])

    def per_example(self, name: str) -> Floats | None:
        """Return absolute errors, or the mask of answers within the tolerance, `(N,)`; None for other metrics."""
        match name:
            case "mae":
                return np.asarray(np.abs(self.predicted - self.y), dtype=np.float64)
            case "within_tolerance":
                return self.right.astype(np.float64)
        return None

    def measure(self, name: str) -> float | None:
        """Return one of `METRICS`: errors in the label's units, the coefficient of determination, a share in [0, 1].

        R2 is at most 1, and below 0 where the mean of these labels would have been the better answer; None where they
        are all the same.

        Raises:
            ValueError: there is no such metric.
        """
        off = self.predicted - self.y
        match name:  # in NumPy: sites are many, and scikit-learn looks for a millisecond at what it is given
            case "mae":
                return float(np.abs(off).mean())
            case "rmse":
                return float(np.sqrt((off**2).mean()))
            case "median_error":
                return float(np.median(np.abs(off)))
            case "r2":
                spread = float(((self.y - self.y.mean()) ** 2).sum())
                return 1.0 - float((off**2).sum()) / spread if len(np.unique(self.y)) > 1 else None
            case "within_tolerance":
                return float(self.right.mean())
        raise unknown(name, self.METRICS)
