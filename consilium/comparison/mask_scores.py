"""Metrics of masks on a test split: Dice and 95 % Hausdorff distance of each class, and their means."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from consilium.common.segmentation.evidence import carriers
from consilium.common.segmentation.overlap import DISTANCE, TRUE, dice, mean_of, of_classes
from consilium.common.weights.arrays import Array
from consilium.comparison.evaluation import Floats, Labels, Scores, unknown


@dataclass(frozen=True)
class MaskScores(Scores):
    """Answers where the label is a mask.

    Args:
        y: which classes each picture holds `(N, C)`.
        facts: pixels and distances of each picture and class but the background `(N, C - 1, 4)`, as
            `consilium.common.segmentation.overlap.measured` gives them.
        names: of all classes, the background first.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("dice", "hd95")

    y: NDArray[np.bool_]
    facts: Floats
    names: tuple[str, ...]

    @classmethod
    def of(cls, y: Array, facts: Array, names: tuple[str, ...]) -> "MaskScores":
        """Return the scores of arrays as a site keeps them."""
        return cls(y.astype(np.bool_), facts.astype(np.float64), names)

    @property
    def support(self) -> list[int]:
        """Return how many test pictures hold each class."""
        return [int(count) for count in self.y.sum(axis=0)]

    def taken(self, rows: Labels) -> "MaskScores":
        """Return the scores of some pictures; one may be there twice."""
        return MaskScores(self.y[rows], self.facts[rows], self.names)

    def per_example(self, name: str) -> Floats | None:
        """Return each picture's mean over the classes `(N,)`, where all pictures hold all; else None.

        Where the truth lacks a class in some pictures, classes are means over different pictures.
        """
        if not (self.facts[:, self._places(name), TRUE] > 0).all():
            return None
        return np.asarray(self._each(name).mean(axis=1), dtype=np.float64)

    def carriers(self, name: str, groups: Labels | None) -> float:
        """Return how many patients the mean over classes hangs on."""
        return carriers(self.facts[:, self._places(name), TRUE] > 0, groups)

    def of_each(self, name: str) -> list[float | None]:
        """Return a metric of each class but the background; None where no picture has it, nor an answer.

        Raises:
            ValueError: there is no such metric.
        """
        return [None if np.isnan(one) else float(one) for one in of_classes(self._each(name))]

    def measure(self, name: str) -> float | None:
        """Return one of `METRICS`, the mean over the defined classes, or `<metric>.<class>`; None where there is none.

        Dice is in [0, 1], HD95 in pixels of the study's size, 0 or more. Each class is a mean over the pictures whose
        truth or answer has it.

        Raises:
            ValueError: there is no such metric.
        """
        found = float(mean_of(of_classes(self._each(name))))
        return None if np.isnan(found) else found

    def measure_all(self) -> dict[str, float | None]:
        """Return every metric, and each of every class by `<metric>.<class>`."""
        told = dict[str, float | None]()
        for name in self.METRICS:
            told |= {f"{name}.{of}": one for of, one in zip(self.names[1:], self.of_each(name), strict=True)}
        return super().measure_all() | told

    def _each(self, name: str) -> Floats:
        """Return the metric of each picture `(N, classes)`."""
        facts = self.facts[:, self._places(name)]
        return dice(facts) if name.partition(".")[0] == "dice" else facts[..., DISTANCE]

    def _places(self, name: str) -> list[int]:
        """Return which classes a metric is of, the first one that is no background as 0."""
        metric, dot, of = name.partition(".")
        if metric not in self.METRICS or (dot and of not in self.names[1:]):
            raise unknown(name, self.METRICS)
        return [self.names.index(of) - 1] if dot else list(range(len(self.names) - 1))
