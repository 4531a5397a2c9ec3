"""By what a table's number columns are scaled in a simulation: the training rows of the users that take part."""

from pathlib import Path

import numpy as np

from consilium.common.study.scale import ColumnScale, Moments, Scale, combine, joined
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import CategoryColumn, TableTask
from consilium.devices.population import OFFSETS, X, mapped
from consilium.devices.rows import held_out

_ROWS = 65_536


def scale_of_table(folder: Path, study: StudyConfig, task: TableTask) -> Scale:
    """Return the mean and deviation of each number column, from the arrays of a table as they were read.

    Args:
        folder: with `x.npy`, not scaled, and `offsets.npy`.
    """
    assert study.devices is not None
    offsets, x = np.load(folder / OFFSETS), mapped(folder / X)
    offsets = offsets[: (study.devices.users or len(offsets)) + 1]
    ends = offsets[1:] - held_out(np.diff(offsets), study.split.test)
    numbers = np.array(
        [
            not isinstance(column, CategoryColumn)
            for column in task.columns.values()
            for _ in (column.values[1:] if isinstance(column, CategoryColumn) else (column,))
        ]
    )
    moments = np.zeros((3, int(numbers.sum())))
    for begin in range(0, int(offsets[-1]), _ROWS):
        rows = np.arange(begin, min(begin + _ROWS, int(offsets[-1])))
        trained = rows < ends[np.searchsorted(offsets, rows, side="right") - 1]
        part = x[begin : begin + len(rows)][trained][:, numbers].astype(np.float64)
        moments += np.stack([np.full(part.shape[1], len(part)), part.sum(axis=0), np.square(part).sum(axis=0)])
    counts, sums, squares = moments.tolist()
    told = Moments(counts=tuple(map(int, counts)), sums=tuple(sums), squares=tuple(squares))
    return joined([one or ColumnScale(mean=0, std=1) for one in combine([told])])
