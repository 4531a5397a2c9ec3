"""One series in the form in which readers find it, and what they are asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from consilium.client.data.parts import index_file
from consilium.common.study.series_task import SeriesTask
from consilium.common.study.training import SplitConfig

Values = npt.NDArray[np.float64]
LARGEST = float(torch.finfo(torch.float32).max)
"""The largest number of a series."""


@dataclass(frozen=True, eq=False)
class Series:
    """One series in the order of time.

    Args:
        values: `(T, C)`, all finite.
        name: its number in an array, or what a table calls it.
        place: where it stands, for sentences.
        number: among all series of the site, from 0.
        label: as the model answers it; None where none was asked for.
        kept: the texts of further columns.
    """

    values: Values
    name: str
    place: str
    number: int
    label: float | None = None
    patient: str | None = None
    part: int | None = None
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of each series besides its values.

    Args:
        split: `split.group` and `split.parts`.
        keep: further columns, or arrays.
    """

    labelled: bool
    split: SplitConfig
    keep: tuple[str, ...] = ()

    @property
    def part(self) -> str | None:
        """The column or the array with the part of each series."""
        return None if index_file(self.split.parts) else self.split.parts


def answer_of(label: float, task: SeriesTask) -> float | None:
    """Return a label as the model answers it: a class number, or a number less center, over scale; None: neither."""
    if task.regression is None:
        return label if 0 <= label < len(task.classes) else None
    answer = task.regression.to_model(label)
    return answer if abs(answer) <= LARGEST else None
