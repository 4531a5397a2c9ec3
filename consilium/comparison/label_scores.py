"""Metrics of answers to several labels on a test split: of each over the rows that know it, and means of these."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expit

from consilium.common.labels.evidence import aurocs, carriers, mean_in_draws, mean_of
from consilium.common.labels.ranking import precision_in_draws
from consilium.common.weights.arrays import Array
from consilium.comparison.class_draws import times_of
from consilium.comparison.evaluation import Floats, Labels, Scores, unknown

PER_LABEL = ("auroc", "auprc")
"""Metrics that are kept of each label too."""


@dataclass(frozen=True)
class LabelScores(Scores):
    """Answers where an example may have several labels.

    Args:
        y: the labels `(N, L)`: 1, 0, or NaN where one is not known.
        logits: of each label's probability `(N, L)`.
        names: of the labels.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("auroc", "auprc", "brier", "accuracy")

    y: Array
    logits: Floats
    names: tuple[str, ...]

    @property
    def label_support(self) -> dict[str, tuple[int, int]]:
        """Return of each label how many test rows have it, and how many have it not."""
        there, absent = ((self.y == value).sum(axis=0).tolist() for value in (1, 0))
        return dict(zip(self.names, zip(there, absent, strict=True), strict=True))

    def taken(self, rows: Labels) -> "LabelScores":
        """Return the scores of some rows; a row may be there twice."""
        return LabelScores(self.y[rows], self.logits[rows], self.names)

    def in_draws(self, name: str, drawn: Sequence[Labels]) -> Floats:
        """Return a metric in draws of the rows `(draws,)`; NaN where one does not define it."""
        if name != "auroc":
            return super().in_draws(name, drawn)
        return mean_in_draws(self.y.astype(np.float64), self.logits, times_of(drawn, len(self)))

    def only(self, place: int) -> "LabelScores":
        """Return the scores of one label."""
        return LabelScores(self.y[:, [place]], self.logits[:, [place]], self.names[place : place + 1])

    def per_example(self, name: str) -> Floats | None:
        """Return None: labels are known of different rows, so that no metric is a mean over all rows."""
        return None

    def carriers(self, name: str, groups: Labels | None) -> float:
        """Return for AUROC and AUPRC how many patients their mean over labels hangs on."""
        return carriers(self.y.astype(np.float64), groups) if name in PER_LABEL else math.inf

    def of_each(self, name: str) -> list[float | None]:
        """Return a metric of each label; None where the rows that know it do not define it.

        Raises:
            ValueError: there is no such metric.
        """
        match name:
            case "auroc":
                return aurocs(self.y.astype(np.float64), self.logits)
            case "auprc" | "brier" | "accuracy":
                return [self._of_one(name, place) for place in range(self.y.shape[1])]
        raise unknown(name, self.METRICS)

    def _of_one(self, name: str, place: int) -> float | None:
        known = ~np.isnan(self.y[:, place])
        y, logits = self.y[known, place] == 1, self.logits[known, place]
        if not len(y) or (name == "auprc" and y.all() == y.any()):
            return None
        if name == "auprc":
            return float(precision_in_draws(y, logits, np.ones((1, len(y))))[0])
        return float(np.mean((expit(logits) - y) ** 2 if name == "brier" else (logits > 0) == y))

    def measure(self, name: str) -> float | None:
        """Return one of `METRICS`, in [0, 1]: the mean over the labels for which it is defined; None where none is.

        AUROC and AUPRC (average precision) need rows that have the label and rows that have it not. Brier is the mean
        squared error of a label's probability, accuracy the share of rows for which it is on the right side of 1/2.

        Raises:
            ValueError: there is no such metric.
        """
        return mean_of([one for one in self.of_each(name) if one is not None])

    def measure_all(self) -> dict[str, float | None]:
        """Return every metric, and AUROC and AUPRC of each label by `<metric>.<label>`."""
        of_labels = {name: dict(zip(self.names, self.of_each(name), strict=True)) for name in PER_LABEL}
        told = {f"{name}.{label}": value for name, of in of_labels.items() for label, value in of.items()}
        return super().measure_all() | told
