"""Makes examples of series: each as a whole, or windows of it with the value that follows them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consilium.client.data.arrays import MAX_BYTES
from consilium.client.data.base import Bad, Inputs, RawData, Unread, keep_usable, kind_mismatch
from consilium.client.data.parts import beside, index_file, parts_in_file
from consilium.client.data.series_base import LARGEST, Series, Values, Wanted
from consilium.client.data.series_files import checked_series, of_steps, series_of
from consilium.common.data.groups import Copies, Ints, copies_of_pictures, first_of
from consilium.common.errors import DataError
from consilium.common.study.series_task import SeriesTask
from consilium.common.study.site import DataConfig, SeriesData
from consilium.common.study.task import Task
from consilium.common.study.training import SplitConfig


@dataclass(frozen=True, eq=False)
class _Example:
    """What a model is given, `(length, C)`, NaN in steps before the first one; the label as it answers it.

    Args:
        start: the step of the series that is the first one here.
    """

    values: Values
    label: float
    of: Series
    start: int = 0


def read_series(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read series as examples `(N, length, C)`, in the order in which they begin in the files.

    `x` is float64 and not scaled yet; steps that a short series lacks are NaN, before its first one. The same series
    in an `.npz` file and in a table give the same tensors. Windows of one series, and of series that are copies, are
    one patient's.

    Raises:
        ConfigError: the study's task is not about series.
        DataError: no file, a missing array or column, or more than `max_skipped` series that cannot be used.
    """
    if not (isinstance(config, SeriesData) and isinstance(task, SeriesTask)):
        raise kind_mismatch(config, task, site=site)
    who = f"site '{site}'"
    found = list(series_of(config.path, task, Wanted(True, split), who=who))
    made, num_skipped = keep_usable(_examples(found, task), site=site, max_skipped=config.max_skipped)
    examples = [one for of_one in made for one in of_one]
    if not examples:
        raise DataError(f"{who}: no usable series in '{config.path}', {num_skipped} skipped")
    windows = task.next_step is not None
    if windows and split.group is None and len(made) < 2:
        raise DataError(
            f"{who}: its windows are all of one series, and those of one series are not divided into training and "
            "test: expected several series, such as one for each patient, device or day"
        )
    x = _stacked(examples, task, who=who)
    return RawData(
        x=torch.from_numpy(x),
        y=_labels([one.label for one in examples], task),
        num_skipped=num_skipped,
        copies=_copies_of_windows(examples) if windows else copies_of_pictures(x),
        patients=_patients(examples, split, windows=windows),
        parts=_parts(examples, len(found), config.path, split, site=site),
    )


def _stacked(examples: Sequence[_Example], task: SeriesTask, *, who: str) -> Values:
    if (size := len(examples) * task.length * len(task.channels) * 8) > MAX_BYTES:
        raise DataError(f"{who}: {len(examples)} examples take {size} bytes, at most {MAX_BYTES}: raise task.step")
    if not examples:
        return np.zeros((0, *task.input_shape))
    return np.ascontiguousarray(np.stack([one.values for one in examples]))


def _patients(examples: Sequence[_Example], split: SplitConfig, *, windows: bool) -> list[str] | None:
    if split.group is not None:
        return [one.of.patient or "" for one in examples]
    return [str(one.of.number) for one in examples] if windows else None


def _copies_of_windows(examples: Sequence[_Example]) -> Copies:
    """Return which windows are copies: those at the same place of series that are equal as a whole."""
    whole = {id(one.of): one.of.values.tobytes() for one in examples}
    return Copies(first_of([(whole[id(one.of)], one.start) for one in examples]))


def _parts(examples: Sequence[_Example], count: int, path: Path, split: SplitConfig, *, site: str) -> Ints | None:
    if split.parts is None:
        return None
    if (index := index_file(split.parts)) is None:
        return np.array([one.of.part for one in examples], dtype=np.int64)
    numbers = [one.of.number for one in examples]
    keys = list(map(str, range(count)))
    return parts_in_file(beside(path) / index, keys, numbers, key="row", site=site)


def read_series_inputs(
    path: Path, task: SeriesTask, *, labelled: bool, keep: Sequence[str], group: str | None
) -> Inputs:
    """Read what a finished model is asked about: an `.npz` file, a table, or a folder of them.

    Where a later value is learned, a series without labels is one example: what follows its end. With labels it is cut
    into windows as for training.

    Raises:
        DataError: nothing is there, or an array or a column is missing.
    """
    wanted = Wanted(labelled, SplitConfig(group=group), tuple(dict.fromkeys(keep)))
    found = list(series_of(path, task, wanted, who="the data"))
    return _inputs(found, task, labelled=labelled, grouped=group is not None, keep=keep)


def of_series(array: npt.NDArray[Any], task: SeriesTask) -> Inputs:
    """Take an array of series `(N, T, C)`, or `(N, T)` of one channel.

    Raises:
        DataError: another shape or type, or no series.
    """
    x = checked_series(np.asarray(array), task, where="the array")
    found: list[Series | Bad] = []
    for row, steps in enumerate(x):
        values = of_steps(steps, f"series {row}")
        found.append(values if isinstance(values, Bad) else Series(values, str(row), f"series {row}", row))
    return _inputs(found, task, labelled=False, grouped=False, keep=())


def _inputs(
    found: Sequence[Series | Bad], task: SeriesTask, *, labelled: bool, grouped: bool, keep: Sequence[str]
) -> Inputs:
    made = list(_examples(found, task) if labelled or task.next_step is None else _ends(found, task))
    examples = [one for of_one in made if not isinstance(of_one, Bad) for one in of_one]
    numbers: dict[str, int] = {}
    owners = [numbers.setdefault(one.of.patient or "", len(numbers)) for one in examples]
    names = [one.name if isinstance(one, Series) else str(place) for place, one in enumerate(found)]
    return Inputs(
        x=torch.from_numpy(_stacked(examples, task, who="the data")),
        names=tuple(one.of.name for one in examples),
        y=_labels([one.label for one in examples], task) if labelled else None,
        groups=torch.tensor(owners, dtype=torch.int64) if grouped else None,
        unread=tuple(Unread(name, one.reason) for name, one in zip(names, made, strict=True) if isinstance(one, Bad)),
        kept={name: tuple(one.of.kept[name] for one in examples) for name in keep},
    )


def _examples(found: Iterable[Series | Bad], task: SeriesTask) -> Iterator[list[_Example] | Bad]:
    """Yield the examples of each series, or why it has none."""
    for series in found:
        if isinstance(series, Bad):
            yield series
        elif task.next_step is not None:
            yield _windows(series, task, task.next_step)
        else:
            values = _fitted(series, task)
            yield (
                values
                if isinstance(values, Bad)
                else [_Example(values, 0.0 if series.label is None else series.label, series)]
            )


def _ends(found: Iterable[Series | Bad], task: SeriesTask) -> Iterator[list[_Example] | Bad]:
    """Yield the end of each series, as the example of what follows it."""
    for series in found:
        if isinstance(series, Bad):
            yield series
        elif len(series.values) < task.length:
            yield _too_short(series, task.length)
        else:
            start = len(series.values) - task.length
            yield [_Example(series.values[start:], 0.0, series, start)]


def _windows(series: Series, task: SeriesTask, ahead: int) -> list[_Example] | Bad:
    """Return the windows of a series, `step` steps apart, each with the value that follows it `ahead` steps on."""
    number = task.regression
    assert number is not None  # as the task's settings are checked
    span, values = task.length + ahead, series.values
    if len(values) < span:
        return _too_short(series, span)
    targets = number.to_model(values[:, task.target_channel])
    if not (np.abs(targets) <= LARGEST).all():
        return Bad(f"{series.place}: a value is too large for task.regression.scale")
    starts = range(0, len(values) - span + 1, task.step or span)
    return [
        _Example(values[start : start + task.length], float(targets[start + span - 1]), series, start)
        for start in starts
    ]


def _fitted(series: Series, task: SeriesTask) -> Values | Bad:
    """Return `length` steps of a series, NaN before the first one where it is short."""
    values, missing = series.values, task.length - len(series.values)
    if missing > 0 and task.short == "refuse":
        return _too_short(series, task.length, " (task.short = 'pad' takes short ones)")
    if missing < 0 and task.long == "refuse":
        return Bad(
            f"{series.place}: it has {len(values)} steps, expected {task.length} as task.length says (task.long = "
            "'first' or 'last' takes long ones)"
        )
    if missing > 0:
        return np.concatenate([np.full((missing, values.shape[1]), np.nan), values])
    return values[: task.length] if task.long == "first" else values[len(values) - task.length :]


def _too_short(series: Series, least: int, hint: str = "") -> Bad:
    return Bad(f"{series.place}: it has {len(series.values)} steps, expected at least {least}{hint}")


def _labels(labels: Sequence[float], task: SeriesTask) -> torch.Tensor:
    return torch.tensor(labels, dtype=torch.int64 if task.number is None else torch.float32)
