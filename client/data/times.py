"""Reads labels that are times until an event: from the cells of a row, or from two arrays."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from consilium.client.data.columns import Column, Floats, Numbers, Values
from consilium.common.data.npz import Array
from consilium.common.errors import DataError
from consilium.common.study.task_base import Survival

EVENT = ("0", "1")
"""Values of the column that says whether an event was seen."""
NOT_USABLE = np.nan
"""The label of a row whose time or event cannot be used, in an array."""
_LARGEST = float(np.finfo(np.float32).max)


def time_columns(survival: Survival, codes: Callable[[str], Sequence[str]] = lambda name: ()) -> dict[str, Column]:
    """Return what reads the cells of the time and of the event, in this order.

    Args:
        codes: the codes that mean a missing value in a column.
    """
    time, event = survival.time, survival.event
    return {
        time: Numbers(f"label column '{time}'", None, codes(time), least=0),
        event: Values(f"label column '{event}'", EVENT, codes(event), {True: "1", False: "0"}, whole=True),
    }


def with_signs(labels: Sequence[Floats]) -> Floats:
    """Return times `(N,)` with a minus sign where no event was seen, given times and events (1, else 0)."""
    times, events = labels
    return np.where(events == 1, times, -times)


def times_in_arrays(held: Mapping[str, Array], survival: Survival, count: int, *, each: str, where: str) -> Floats:
    """Return the labels `(count,)` of two arrays, NaN where a time or an event cannot be used.

    Args:
        each: what a label is of, for the sentence.

    Raises:
        DataError: an array of another shape or type.
    """
    for name in survival.columns:
        array = held[name]
        if array.dtype.kind not in "fiub" or array.shape != (count,):
            raise DataError(
                f"{where}: array '{name}' has type {array.dtype} and shape {array.shape}, expected {count} numbers, "
                f"one for each {each}"
            )
    times, events = (held[name].astype(np.float64) for name in survival.columns)
    usable = (times >= 0) & (times <= _LARGEST) & ((events == 0) | (events == 1))
    return np.where(usable, with_signs([times, events]), NOT_USABLE)
