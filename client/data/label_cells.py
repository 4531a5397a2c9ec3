"""Reads the label of one row of a table that names pictures or holds texts: a time and an event, or several labels."""

from collections.abc import Mapping

import numpy as np

from consilium.client.data.columns import Column, Floats
from consilium.client.data.several_labels import label_columns, together
from consilium.client.data.times import time_columns, with_signs
from consilium.common.data.words import DecimalSign
from consilium.common.study.task_base import TaskBase


def columns_of_labels(task: TaskBase) -> dict[str, Column]:
    """Return what reads the cells of each column of the label; nothing where the label is a class or a number."""
    if task.survival_times is not None:
        return time_columns(task.survival_times)
    return label_columns(task.label_names, lambda name: ())


class LabelCells:
    """Reads labels that are in several columns."""

    def __init__(self, task: TaskBase) -> None:
        self._columns, self._several = columns_of_labels(task), len(task.label_names)

    def __call__(self, cells: Mapping[str, str], decimal: DecimalSign = ".") -> Floats | str:
        """Return the label `()`, or several `(L,)`, or what is wrong, with the column and never with the value."""
        read = {name: column.encoded([cells[name]], decimal) for name, column in self._columns.items()}
        for name, of in read.items():
            if of.bad[0]:
                return str(self._columns[name].problem(cells[name]))
            if of.missing[0] and not self._several:
                return f"label column '{name}': the value is missing"
        values = [of.values[:, 0] for of in read.values()]
        if not self._several:
            return np.asarray(with_signs(values)[0], dtype=np.float64)
        found = np.asarray(together(values)[0], dtype=np.float64)
        return f"none of its {self._several} labels is known" if np.isnan(found).all() else found
