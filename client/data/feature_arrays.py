"""Reads arrays of any shape from one `.npz` file: `x` of numbers, and labels: `y`, or times and events."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consilium.client.data.arrays import check_classes, npz_file, parts_of, patients_of
from consilium.client.data.base import Bad, Feature, Inputs, RawData, Unread, keep_usable, kind_mismatch
from consilium.client.data.label_arrays import ArrayLabels, label_arrays, name_arrays, read_labels
from consilium.client.data.parts import index_file
from consilium.common.data.groups import coded, copies_of_pictures, copies_of_rows
from consilium.common.data.npz import Array, array_names, read_npz
from consilium.common.errors import DataError
from consilium.common.study.features_task import FeaturesTask
from consilium.common.study.site import DataConfig, FeaturesData
from consilium.common.study.task import Task
from consilium.common.study.training import SplitConfig

_LARGEST = torch.finfo(torch.float32).max
MAX_CODED = 1_000
"""Rows of up to this many features are compared as those of a table, longer ones as pictures are."""


def read_features(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read `x` and `y` of an `.npz` file, in the order of the file.

    `x` has shape `(N, *task.shape)`, `y` has shape `(N,)`: integers that index the study's classes, or numbers where
    the label is one; with `task.survival` there are two arrays of that shape in its place, as the study names them. If
    the file also has an array `classes` (names), it must equal the study's classes. Nothing is scaled, unless by
    `task.scale`.

    Raises:
        ConfigError: the study's task is not about such arrays.
        DataError: no such file, a file or array that cannot be used, or more than `max_skipped` examples with a
            number that is not finite, or with a label that is no class.
    """
    if not (isinstance(config, FeaturesData) and isinstance(task, FeaturesTask)):
        raise kind_mismatch(config, task, site=site)
    who = f"site '{site}'"
    file = npz_file(config.path, without=task.test, who=who)
    names = array_names(file, who=who)
    own = None if index_file(split.parts) else split.parts
    more = [*name_arrays(task, names), *(name for name in (split.group, own) if name is not None)]
    held = read_npz(file, ["x", *label_arrays(task), *more], who=who)
    where = f"{who}: file '{file.name}'"
    check_classes(held.get("classes"), task.classes, where=where)
    x = checked(held["x"], task, where=where)
    y = read_labels(held, task, len(x), each="example", where=where)
    usable, num_skipped = keep_usable(_usable(x, y, name=file.name), site=site, max_skipped=config.max_skipped)
    if not usable:
        raise DataError(f"{where}: no usable example, {num_skipped} skipped")
    rows = np.array(usable, dtype=np.int64)
    inputs, labels = _as_trained(x[rows], task), y.taken(rows)
    return RawData(
        x=inputs,
        y=labels,
        num_skipped=num_skipped,
        copies=copies_of_rows(coded(inputs.numpy(), labels.numpy()))
        if in_columns(task)
        else copies_of_pictures(np.ascontiguousarray(inputs.numpy())),
        features=_columns(task),
        patients=None if split.group is None else patients_of(held[split.group], split.group, rows, len(x), where),
        parts=parts_of(held, split, rows, len(x), file=file, site=site),
    )


def in_columns(task: FeaturesTask) -> bool:
    """Return whether examples are told apart feature by feature, as rows of a table are."""
    return len(task.shape) == 1 and task.shape[0] <= MAX_CODED


def read_feature_inputs(
    path: Path, task: FeaturesTask, *, labelled: bool, keep: Sequence[str], group: str | None
) -> Inputs:
    """Read what a finished model is asked about: an `.npz` file, or a folder with exactly one.

    Raises:
        DataError: no such file, or an array in it that cannot be used.
    """
    who = "the data"
    file = npz_file(path, without=task.test, who=who)
    more = [*keep, *([group] if group is not None else []), *(label_arrays(task) if labelled else ())]
    held = read_npz(file, list(dict.fromkeys(["x", *more])), who=who)
    where = f"{who}: file '{file.name}'"
    x = checked(held["x"], task, where=where)
    every = np.arange(len(x))
    texts = {name: patients_of(held[name], name, every, len(x), where) for name in {*keep, *([group] if group else [])}}
    y = read_labels(held, task, len(x), each="example", where=where) if labelled else None
    return _inputs(x, y, task, name=file.name, keep={name: texts[name] for name in keep}, owners=texts.get(group or ""))


def of_features(array: npt.NDArray[Any], task: FeaturesTask) -> Inputs:
    """Take an array `(N, *task.shape)`.

    Raises:
        DataError: another shape or type, or no example.
    """
    return _inputs(checked(np.asarray(array), task, where="the array"), None, task, name="")


def checked(x: Array, task: FeaturesTask, *, where: str) -> Array:
    """Return the inputs; refuse another shape or type."""
    if x.dtype.kind not in "fiub":
        raise DataError(f"{where}: array 'x' has type {x.dtype}, expected numbers")
    if x.shape[1:] != task.shape or not x.ndim:
        expected = ", ".join(map(str, task.shape))
        raise DataError(f"{where}: array 'x' has shape {x.shape}, expected (N, {expected}) as task.shape says")
    if not len(x):
        raise DataError(f"{where}: array 'x' has no example, expected at least one")
    return x


def _usable(x: Array, y: ArrayLabels | None, *, name: str) -> Iterator[int | Bad]:
    """Yield the number of each example, or why it cannot be used; without labels none is looked at."""
    finite = np.array([bool(np.isfinite(row).all() and (np.abs(row) <= _LARGEST).all()) for row in x])
    for row in range(len(x)):
        where = f"file '{name}', example {row}" if name else f"example {row}"
        if y is not None and not y.usable[row]:
            yield Bad(f"{where}: {y.problem}")
        elif not finite[row]:
            yield Bad(f"{where}: a number in 'x' is not finite, or too large")
        else:
            yield row


def _inputs(
    x: Array,
    y: ArrayLabels | None,
    task: FeaturesTask,
    *,
    name: str,
    keep: dict[str, list[str]] | None = None,
    owners: list[str] | None = None,
) -> Inputs:
    found = list(_usable(x, y, name=name))
    rows = [one for one in found if not isinstance(one, Bad)]
    numbers: dict[str, int] = {}
    groups = None if owners is None else torch.tensor([numbers.setdefault(owners[row], len(numbers)) for row in rows])
    return Inputs(
        x=_as_trained(x[rows], task),
        names=tuple(map(str, rows)),
        y=None if y is None else y.taken(np.array(rows, dtype=np.int64)),
        groups=groups,
        unread=tuple(Unread(str(row), one.reason) for row, one in enumerate(found) if isinstance(one, Bad)),
        kept={column: tuple(texts[row] for row in rows) for column, texts in (keep or {}).items()},
        features=_columns(task),
    )


def _as_trained(x: Array, task: FeaturesTask) -> torch.Tensor:
    """Return inputs as float32, or as float64 where they are still to be scaled."""
    return torch.from_numpy(np.ascontiguousarray(x).astype(np.float32 if task.scale is None else np.float64))


def _columns(task: FeaturesTask) -> tuple[Feature, ...]:
    return tuple(Feature(name, place, 1, False) for place, name in enumerate(task.scaled_columns))
