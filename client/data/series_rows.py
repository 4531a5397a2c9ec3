"""Finds the series of tables in long form: a row for each series and time, in any order."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from consilium.client.data.base import Bad
from consilium.client.data.label_cells import LabelCells
from consilium.client.data.parts import KNOWN, part_of
from consilium.client.data.series_base import LARGEST, Series, Values, Wanted, answer_of
from consilium.common.data.tables import Table, open_table
from consilium.common.data.tables import Wanted as WantedColumns
from consilium.common.data.words import number_in, with_point
from consilium.common.errors import DataError, clean, listed
from consilium.common.study.series_task import SeriesTask

_MOST_NAMED = 20
_WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass(eq=False)
class _Rows:
    """The rows of one series of a table, as they are read."""

    name: str
    place: str
    number: int
    times: list[str] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)


def series_of_tables(files: Sequence[Path], task: SeriesTask, wanted: Wanted, *, who: str) -> Iterator[Series | Bad]:
    """Yield every series of these files, in the order in which they begin, or why one cannot be used.

    A series may have rows in several files.

    Raises:
        DataError: a file cannot be read, a column is missing, or a row says not which series it is of.
    """
    label = [*task.label_columns] if wanted.labelled and task.next_step is None else []
    more = [name for name in (*label, wanted.split.group, wanted.part, *wanted.keep) if name is not None]
    needed = tuple(dict.fromkeys([task.series, task.time, *task.channels, *more]))
    found: dict[str, _Rows] = {}
    for file in files:
        _gather(file, found, task, needed, label, who=who)
    if not found:
        names = listed([f"'{clean(file.name)}'" for file in files], _MOST_NAMED)
        raise DataError(f"{who}: no row in {names}, expected one for each series and time")
    for rows in found.values():
        yield _in_order(rows, task, wanted, label)


def _gather(
    file: Path, found: dict[str, _Rows], task: SeriesTask, needed: Sequence[str], label: Sequence[str], *, who: str
) -> None:
    """Add the rows of a file to their series."""
    numbers = [*task.channels, *(label if task.number is not None else ())]
    table = open_table(file, WantedColumns(names=needed, numbers=numbers, others=False), who=who)
    shown = clean(file.name)
    at = _places(table, needed, where=f"{who}: file '{shown}'")
    others = [name for name in needed if name not in (task.series, task.time, *task.channels)]
    for place, cells in table.rows:
        where = f"file '{shown}', {place}"
        if len(cells) != len(table.header):
            expected = len(table.header)
            raise DataError(f"{who}: {where}: expected {expected} fields as in the header, got {len(cells)}")
        if not (name := cells[at[task.series]].strip()):
            raise DataError(f"{who}: {where}: column '{task.series}' is empty, expected which series the row is of")
        rows = found.setdefault(name, _Rows(name, f"the series that begins in {where}", len(found)))
        rows.times.append(cells[at[task.time]].strip())
        rows.values.append([_number(cells[at[channel]], table) for channel in task.channels])
        for other in others:
            cell = cells[at[other]].strip()
            rows.texts.setdefault(other, []).append(with_point(cell, table.decimal) if other in numbers else cell)


def _number(cell: str, table: Table) -> float:
    number = number_in(with_point(cell.strip(), table.decimal))
    return np.nan if number is None else number


def _places(table: Table, needed: Sequence[str], *, where: str) -> dict[str, int]:
    """Return where each column stands that is needed; refuse a header that lacks one or has one twice."""
    header = table.header
    if absent := [f"'{clean(name)}'" for name in needed if name not in header]:
        known = listed([f"'{clean(name, 60)}'" for name in header], _MOST_NAMED)
        raise DataError(f"{where} has no column {listed(absent, _MOST_NAMED)}; its columns are {known}")
    if twice := [name for name in needed if header.count(name) > 1]:
        raise DataError(f"{where}: column '{twice[0]}' stands {header.count(twice[0])} times in the header")
    return {name: header.index(name) for name in needed}


def _in_order(rows: _Rows, task: SeriesTask, wanted: Wanted, label: Sequence[str]) -> Series | Bad:
    """Return the series of these rows, ordered by time, or why it cannot be used."""
    times = [time_of(cell) for cell in rows.times]
    known = [time for time in times if time is not None]
    values = np.array(rows.values, dtype=np.float64)
    if why := _wrong_times(times, known, task) or _wrong_values(values, task):
        return Bad(f"{rows.place}: {why}")
    order = sorted(range(len(known)), key=known.__getitem__)
    if task.interval is not None:
        apart = [float(later - earlier) for earlier, later in pairwise(sorted(known))]
        gaps = sum(not 0.5 < one / task.interval < 1.5 for one in apart)
        if gaps:
            return Bad(
                f"{rows.place}: column '{task.time}': {gaps} of its {len(known)} times are not followed by one "
                f"{task.interval:g} later, as task.interval says"
            )
    one = _constants(rows, task, wanted, label)
    if isinstance(one, str):
        return Bad(f"{rows.place}: {one}")
    answer, patient, part = one
    kept = {name: rows.texts[name][0] for name in wanted.keep}
    return Series(values[order], rows.name, rows.place, rows.number, answer, patient, part, kept)


def _wrong_times(times: Sequence[float | None], known: Sequence[float], task: SeriesTask) -> str:
    what = f"column '{task.time}'"
    if len(known) < len(times):
        return f"{what}: {len(times) - len(known)} of its {len(times)} times are neither numbers nor dates"
    if again := len(known) - len(set(known)):
        return f"{what}: {again} of its {len(times)} times stand there before, expected each time once"
    return ""


def _wrong_values(values: Values, task: SeriesTask) -> str:
    for channel, name in enumerate(task.channels):
        if wrong := int((~(np.abs(values[:, channel]) <= LARGEST)).sum()):
            return f"column '{name}': {wrong} of its {len(values)} values are missing or no finite numbers"
    return ""


def time_of(cell: str) -> float | None:
    """Return a time as a number, whole ones exactly, of dates in seconds; None where it is neither."""
    if _WHOLE.fullmatch(cell) and len(cell) < 40:
        return int(cell)
    number = number_in(cell)
    if number is not None:
        return number if np.isfinite(number) else None
    try:
        date = datetime.fromisoformat(cell)
    except ValueError:
        return None
    return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()


def _constants(
    rows: _Rows, task: SeriesTask, wanted: Wanted, label: Sequence[str]
) -> tuple[float | None, str | None, int | None] | str:
    """Return label, patient and part of a series, which are the same in all its rows; or what is wrong with one."""
    texts: dict[str, str] = {}
    for name in (*label, wanted.split.group, wanted.part):
        if name is None:
            continue
        known = {cell for cell in rows.texts[name] if cell}
        if len(known) != 1:
            return f"column '{name}' has {len(known)} different values in its rows, expected one"
        (texts[name],) = known
    answer = None
    if task.survival is not None and label:
        read = LabelCells(task)({name: texts[name] for name in label})
        if isinstance(read, str):
            return read
        answer = float(read)
    elif label:
        number = _class_or_number(texts[task.label], task)
        answer = None if number is None else answer_of(number, task)
        if answer is None:
            what = "a finite number" if task.regression is not None else f"one of {list(task.classes)}"
            return f"column '{task.label}': expected {what}, got something else"
    part = None
    if wanted.part is not None and (part := part_of(texts[wanted.part])) is None:
        return f"column '{wanted.part}' (split.parts): expected {KNOWN}, got another word"
    return answer, texts.get(wanted.split.group or ""), part


def _class_or_number(cell: str, task: SeriesTask) -> float | None:
    if task.regression is not None:
        return number_in(cell)
    return task.classes.index(cell) if cell in task.classes else None
