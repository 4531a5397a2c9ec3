"""Metrics of a model's answers on a test split, and how many examples each class has.

They are scikit-learn's numbers, computed here: it takes seconds to import, and milliseconds to look at each argument.

A number that a split does not define (one class only, say) is None, never a stand-in.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from consilium.common.intervals.rare import carried_by, patients_of
from consilium.common.weights.arrays import Array
from consilium.comparison.class_draws import COUNTED, RANKED, in_draws, times_of

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

CALIBRATION_BINS = 15
IN_UNITS = frozenset({"mae", "rmse", "median_error", "hd95"})
"""Metrics in the label's own units."""
SMALLER_IS_BETTER = IN_UNITS | {"brier", "brier_at_horizon", "calibration_error"}
UNBOUNDED = IN_UNITS | {"r2"}
"""Metrics that may leave [0, 1]."""


class Scores(ABC):
    """A model's answers on one test split, of one kind of task.

    Args:
        METRICS: names of what can be measured, the one that sentences are about first.
        y: the labels `(N,)`.
    """

    METRICS: ClassVar[tuple[str, ...]]
    y: Array

    def __len__(self) -> int:
        return len(self.y)

    @property
    def measured(self) -> tuple[str, ...]:
        """Return those of `METRICS` that a study of this kind measures."""
        return self.METRICS

    @property
    def support(self) -> list[int]:
        """Return how many test examples each class has; nothing where there are no classes."""
        return []

    @property
    def label_support(self) -> dict[str, tuple[int, int]] | None:
        """Return of each of several labels how many test examples have it, and how many have it not; else None."""
        return None

    @abstractmethod
    def taken(self, rows: Labels) -> "Scores":
        """Return the scores of some rows; a row may be there twice."""

    @abstractmethod
    def per_example(self, name: str) -> Floats | None:
        """Return what each example adds `(N,)` to a metric that is the mean of these; None for others."""

    @abstractmethod
    def measure(self, name: str) -> float | None:
        """Return one metric; None where this split does not define it.

        Raises:
            ValueError: there is no such metric for this kind of task.
        """

    def measure_all(self) -> dict[str, float | None]:
        """Return every metric."""
        return {name: self.measure(name) for name in self.measured}

    def in_draws(self, name: str, drawn: Sequence[Labels]) -> Floats:
        """Return a metric in draws of the rows `(draws,)`; NaN where one does not define it."""
        values = [self.taken(rows).measure(name) for rows in drawn]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def carriers(self, name: str, groups: Labels | None) -> float:
        """Return how many patients a metric hangs on, where some of its parts hang on few; else infinity.

        Args:
            groups: the patient of each row `(N,)`; None: every row is one.
        """
        return math.inf


@dataclass(frozen=True)
class ClassScores(Scores):
    """Answers where the label is a class.

    Args:
        y: the classes `(N,)`, 0 to C - 1.
        probabilities: `(N, C)`, rows add up to 1.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        "accuracy",
        "balanced_accuracy",
        "auroc",
        "auprc",
        "sensitivity",
        "specificity",
        "f1",
        "brier",
        "calibration_error",
    )

    y: Labels
    probabilities: Floats

    @classmethod
    def of_logits(cls, y: Array, logits: Array) -> "ClassScores":
        """Return the scores of logits `(N, C)`, or `(N, 1)` for two classes."""
        wide = logits.astype(np.float64)
        if wide.shape[1] == 1:  # one logit is the second class's, with a 0 for the first
            wide = np.concatenate([np.zeros_like(wide), wide], axis=1)
        shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
        return cls(y.astype(np.int64), shifted / shifted.sum(axis=1, keepdims=True))

    @classmethod
    def of_majority(cls, y: Array, majority: int, num_classes: int) -> "ClassScores":
        """Return the scores of a model that always answers one class."""
        return cls(y.astype(np.int64), np.tile(np.eye(num_classes)[majority], (len(y), 1)))

    @property
    def predicted(self) -> Labels:
        """Return the most probable class of each example `(N,)`; of equals, the first."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def support(self) -> list[int]:
        """Return how many test examples each class has."""
        return [int(count) for count in np.bincount(self.y, minlength=self.probabilities.shape[1])]

    def taken(self, rows: Labels) -> "ClassScores":
        """Return the scores of some rows; a row may be there twice."""
        return ClassScores(self.y[rows], self.probabilities[rows])

    def in_draws(self, name: str, drawn: Sequence[Labels]) -> Floats:
        """Return a metric in draws of the rows `(draws,)`; NaN where one does not define it."""
        if name in (*RANKED, *COUNTED):
            return in_draws(name, self.y, self.probabilities, times_of(drawn, len(self)))
        return super().in_draws(name, drawn)

    def carriers(self, name: str, groups: Labels | None) -> float:
        """Return for AUROC and AUPRC how many patients they hang on: of each class those of it, or of the others."""
        if name not in ("auroc", "auprc"):
            return math.inf
        of_class = [self.y == one for one in range(self.probabilities.shape[1])]
        parts = of_class[1:] if len(of_class) == 2 else of_class  # of two classes there is one curve
        return carried_by(min(patients_of(rows, groups) for rows in (of, ~of)) for of in parts)

    def per_example(self, name: str) -> Floats | None:
        """Return which predictions are correct, or their squared errors, `(N,)`; None for other metrics."""
        return self._of_rows(name) if name in ("accuracy", "brier") else None

    def _of_rows(self, name: str) -> Floats:
        if name == "accuracy":
            return np.asarray(self.predicted == self.y, dtype=np.float64)
        truth = np.eye(self.probabilities.shape[1])[self.y]
        return np.asarray(np.square(truth - self.probabilities).sum(axis=1) / 2, dtype=np.float64)

    def measure(self, name: str) -> float | None:
        """Return one of `METRICS`, in [0, 1]; None where this split does not define it.

        With two classes the second is the positive one, for sensitivity, specificity, F1, AUROC and AUPRC. With more,
        these are means over the classes, one against the rest (macro). Balanced accuracy is the mean over the classes
        that occur. Brier is the mean squared error of the probabilities, over all classes, halved (so in [0, 1];
        Brier 1950).

        Raises:
            ValueError: there is no such metric.
        """
        match name:
            case "accuracy" | "brier":
                return float(self._of_rows(name).mean())
            case "calibration_error":
                return _calibration_error(self.predicted == self.y, self.probabilities.max(axis=1))
            case "auroc" | "auprc" | "balanced_accuracy" | "f1":
                (found,) = in_draws(name, self.y, self.probabilities, np.ones((1, len(self))))
                return None if np.isnan(found) else float(found)
            case "sensitivity" | "specificity":
                return self._recall(of_others=name == "specificity")
        raise unknown(name, self.METRICS)

    def _recall(self, *, of_others: bool) -> float | None:
        """Return the share of right answers among examples of a class, or of all others; a mean over the classes."""
        count = self.probabilities.shape[1]
        true, said = (np.eye(count, dtype=bool)[of] for of in (self.y, self.predicted))
        if of_others:
            true, said = ~true, ~said
        there, right = true.sum(axis=0), (true & said).sum(axis=0)
        parts = slice(1, 2) if count == 2 else slice(None)
        return float(np.mean(right[parts] / there[parts])) if there[parts].all() else None


def unknown(name: str, known: tuple[str, ...]) -> ValueError:
    """Return the error for a metric that a kind of answers does not have."""
    return ValueError(f"no metric '{name}', expected one of {', '.join(known)}")


def _calibration_error(right: NDArray[np.bool_], confidence: Floats) -> float:
    """Return the gap between confidence and accuracy, as a mean over equal bins (ECE, Guo 2017, arXiv:1706.04599)."""
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    gaps = np.bincount(np.searchsorted(edges[1:-1], confidence), weights=right - confidence)
    return float(np.abs(gaps).sum() / len(right))
