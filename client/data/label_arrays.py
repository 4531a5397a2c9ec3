"""Labels in the arrays of an `.npz` file: class numbers or numbers `y`, or times and whether an event was seen."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from consilium.client.data.several_labels import NAMES, UNKNOWN, check_names, labels_in_array
from consilium.client.data.times import times_in_arrays
from consilium.common.data.npz import Array
from consilium.common.errors import DataError
from consilium.common.study.task_base import TaskBase

_LARGEST = float(np.finfo(np.float32).max)
LABEL = "y"
"""The array of labels, where these are one."""


@dataclass(frozen=True, eq=False)
class ArrayLabels:
    """Labels of N examples.

    Args:
        values: as the model answers them `(N,)`: class numbers, or numbers; of several labels `(N, L)`.
        usable: which are labels of the task `(N,)`.
        problem: what is wrong with one that is not, in words.
        whole: whether they are class numbers.
    """

    values: Array
    usable: npt.NDArray[np.bool_]
    problem: str
    whole: bool

    def taken(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the labels of some rows, all usable: int64 or float32."""
        return torch.from_numpy(self.values[rows].astype(np.int64 if self.whole else np.float32))


def label_arrays(task: TaskBase) -> tuple[str, ...]:
    """Return the names of the arrays that hold a task's labels."""
    return (LABEL,) if task.survival_times is None else tuple(task.survival_times.columns)


def name_arrays(task: TaskBase, present: Collection[str]) -> tuple[str, ...]:
    """Return the arrays of a file that name the classes or the labels, by which their order is checked."""
    wanted = ("classes", NAMES) if task.label_names else ("classes",)
    return tuple(name for name in wanted if name in present)


def read_labels(held: Mapping[str, Array], task: TaskBase, count: int, *, each: str, where: str) -> ArrayLabels:
    """Return the labels of `count` examples.

    Args:
        held: the arrays by name, those of `label_arrays` among them.
        each: what a label is of, for the sentence.

    Raises:
        DataError: an array of another shape or type.
    """
    if (survival := task.survival_times) is not None:
        values = times_in_arrays(held, survival, count, each=each, where=where)
        problem = (
            f"expected a finite number of at least 0 in '{survival.time}', and 0 or 1 in '{survival.event}' for its "
            "label"
        )
        return ArrayLabels(values, ~np.isnan(values), problem, whole=False)
    if names := task.label_names:
        check_names(held.get(NAMES), names, where=where)
        several = labels_in_array(held[LABEL], names, count, each=each, where=where)
        usable = np.asarray(~np.isinf(several).any(axis=1) & ~np.isnan(several).all(axis=1))
        problem = f"its labels in '{LABEL}' are not each 1, 0 or {UNKNOWN} (not known), or none of them is known"
        return ArrayLabels(several, usable, problem, whole=False)
    y, number = labels_of(held[LABEL], count, each=each, numbers=task.number is not None, where=where), task.number
    if number is not None:
        scaled = number.to_model(y.astype(np.float64))
        return ArrayLabels(scaled, np.abs(scaled) <= _LARGEST, f"its label in '{LABEL}' is not a finite number", False)
    last = len(task.classes) - 1
    return ArrayLabels(y, (y >= 0) & (y <= last), f"its label in '{LABEL}' is not one of 0..{last}", whole=True)


def labels_of(y: Array, count: int, *, each: str, numbers: bool = False, where: str) -> Array:
    """Return the labels `y` `(count,)`; refuse another shape or type.

    Args:
        each: what a label is of, for the sentence.
        numbers: labels are any numbers, in place of class numbers.
    """
    kinds, what = ("fiu", "numbers") if numbers else ("iu", "integer class numbers")
    if y.dtype.kind not in kinds:
        raise DataError(f"{where}: array 'y' has type {y.dtype}, expected {what}")
    if y.shape != (count,):
        raise DataError(f"{where}: array 'y' has shape {y.shape}, expected ({count},), one number for each {each}")
    return y
