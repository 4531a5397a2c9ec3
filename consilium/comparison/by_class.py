"""Masks class by class: how well each row's masks fit, as a mean over the sites with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from consilium.comparison.comparison import Comparison
from consilium.comparison.mask_scores import MaskScores
from consilium.comparison.rows import Row
from consilium.comparison.summary import summarise
from consilium.findings import Interval


@dataclass(frozen=True)
class ClassLine:
    """One class in one row of the table.

    Args:
        row: its name.
        numbers: per metric of masks the mean over sites; None where a site has no picture with the class.
    """

    row: str
    name: str
    numbers: Mapping[str, Interval | None]

    def as_json(self) -> dict[str, Any]:
        """Return the line's numbers, each with its interval."""
        return {
            "row": self.row,
            "class": self.name,
            **{metric: one and [one.value, one.low, one.high] for metric, one in self.numbers.items()},
        }


def lines_of_classes(comparison: Comparison, rows: Sequence[Row]) -> list[ClassLine]:
    """Return a line for every class but the background and every row; none where labels are no masks.

    Intervals are over the test patients, who are drawn anew with all their pictures; over several splits there are
    none.
    """
    if comparison.task.label_kind != "masks":
        return []
    return [
        ClassLine(row.name, name, {metric: _mean(comparison, row, f"{metric}.{name}") for metric in MaskScores.METRICS})
        for name in comparison.task.classes[1:]
        for row in rows
    ]


def _mean(comparison: Comparison, row: Row, metric: str) -> Interval | None:
    own = replace(comparison, metric=metric, evidence={})
    one = summarise(own, row).over["mean"]
    return one if one is None or len(row.places) == 1 else Interval(one.value)
