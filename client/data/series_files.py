"""Finds the series of an `.npz` file, or of tables in long form: a row for each series and time."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from consilium.client.data.arrays import MAX_BYTES, check_classes, npz_file, parts_of, patients_of
from consilium.client.data.base import Bad
from consilium.client.data.label_arrays import label_arrays, labels_of
from consilium.client.data.parts import index_file
from consilium.client.data.series_base import LARGEST, Series, Values, Wanted, answer_of
from consilium.client.data.series_rows import series_of_tables
from consilium.client.data.times import times_in_arrays
from consilium.common.data.npz import Array, array_names, read_npz
from consilium.common.data.tables import SUFFIXES, TEXT_SUFFIXES, tables_in
from consilium.common.errors import DataError, clean
from consilium.common.study.series_task import SeriesTask


def series_of(path: Path, task: SeriesTask, wanted: Wanted, *, who: str) -> Iterator[Series | Bad]:
    """Yield every series of a file or folder, in the order in which they begin, or why one cannot be used.

    Raises:
        DataError: nothing is there, a file cannot be read as a whole, or an array or a column is missing.
    """
    tables = _tables(path, without=(task.test, index_file(wanted.split.parts)), who=who)
    if tables:
        yield from series_of_tables(tables, task, wanted, who=who)
    else:
        yield from _of_npz(npz_file(path, without=task.test, who=who), task, wanted, who=who)


def _tables(path: Path, *, without: Collection[str | None], who: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() in (*SUFFIXES, *TEXT_SUFFIXES) else []
    if not path.is_dir():
        raise DataError(f"{who}: data path '{clean(str(path))}' does not exist, expected a file or a folder")
    try:
        tables = tables_in(path, without=without)
        arrays = any(entry.suffix.lower() == ".npz" and entry.name not in without for entry in path.iterdir())
    except OSError as error:
        raise DataError(f"{who}: cannot list '{clean(str(path))}': {error.strerror or error}") from error
    if arrays:
        return []
    if not tables:
        raise DataError(
            f"{who}: data folder '{clean(str(path))}' has neither an .npz file nor a table ({', '.join(SUFFIXES)})"
        )
    return tables


def checked_series(x: Array, task: SeriesTask, *, where: str) -> Array:
    """Return an array of series as `(N, T, C)`; refuse another shape or type."""
    if x.dtype.kind not in "fiub":
        raise DataError(f"{where}: array 'x' has type {x.dtype}, expected numbers")
    count = len(task.channels)
    if x.ndim == 2 and count == 1:
        x = x[:, :, None]
    if x.ndim != 3 or x.shape[2] != count or 0 in x.shape:
        expected = "(N, T) or (N, T, 1)" if count == 1 else f"(N, T, {count})"
        raise DataError(
            f"{where}: array 'x' has shape {x.shape}, expected {expected}: N series of T steps of the "
            f"{count} channels of task.channels"
        )
    if (size := x.size * 8) > MAX_BYTES:
        raise DataError(f"{where}: array 'x' takes {size} bytes as numbers, at most {MAX_BYTES} are read; divide it")
    return x


def of_steps(values: Array, place: str) -> Values | Bad:
    """Return a series of an array `(T, C)`, without the steps at its end that are NaN in every channel."""
    exact = values.astype(np.float64)
    known = np.flatnonzero(~np.isnan(exact).all(axis=1))
    exact = exact[: known[-1] + 1] if len(known) else exact[:0]
    if not len(exact):
        return Bad(f"{place}: it has no step with a number")
    if not (np.abs(exact) <= LARGEST).all():
        return Bad(
            f"{place}: a number in 'x' is not finite, or too large; only steps at its end may be left out as NaN"
        )
    return exact


def _of_npz(file: Path, task: SeriesTask, wanted: Wanted, *, who: str) -> Iterator[Series | Bad]:
    names, group = array_names(file, who=who), wanted.split.group
    label = label_arrays(task) if wanted.labelled and task.next_step is None else ()
    classes = ["classes"] if "classes" in names and label else []
    more = [name for name in (group, wanted.part) if name is not None]
    held = read_npz(file, list(dict.fromkeys(["x", *label, *classes, *more, *wanted.keep])), who=who)
    where, shown = f"{who}: file '{clean(file.name)}'", clean(file.name)
    check_classes(held.get("classes"), task.classes, where=where)
    x = checked_series(held["x"], task, where=where)
    every = np.arange(len(x))
    patients = None if group is None else patients_of(held[group], group, every, len(x), where)
    kept = {name: patients_of(held[name], name, every, len(x), where) for name in wanted.keep}
    parts = None
    if wanted.part is not None:
        parts = parts_of(held, wanted.split, every, len(x), file=file, site=who.removeprefix("site '").rstrip("'"))
    answers = _answers(held, task, len(x), where=where) if label else None
    for row in range(len(x)):
        place = f"file '{shown}', series {row}"
        values = of_steps(x[row], place)
        answer = None if answers is None else answers[row]
        if isinstance(values, Bad):
            yield values
        elif answers is not None and answer is None:
            yield Bad(f"{place}: {_expected(task)}")
        else:
            yield Series(
                values,
                name=str(row),
                place=place,
                number=row,
                label=answer,
                patient=None if patients is None else patients[row],
                part=None if parts is None else int(parts[row]),
                kept={name: texts[row] for name, texts in kept.items()},
            )


def _answers(held: Mapping[str, Array], task: SeriesTask, count: int, *, where: str) -> list[float | None]:
    """Return the label of each series as the model answers it, None where it is none of the task."""
    if task.survival is not None:
        times = times_in_arrays(held, task.survival, count, each="series", where=where)
        return [None if np.isnan(time) else time for time in times.tolist()]
    y = labels_of(held["y"], count, each="series", numbers=task.regression is not None, where=where)
    return [answer_of(float(label), task) for label in y]


def _expected(task: SeriesTask) -> str:
    if (survival := task.survival) is not None:
        return f"expected a finite number of at least 0 in '{survival.time}', and 0 or 1 in '{survival.event}'"
    what = "a finite number" if task.regression is not None else f"one of 0..{len(task.classes) - 1}"
    return f"its label in 'y' is not {what}"
