"""A pool of series in a table of long form, a row for each series and time: divided by series, none of which is cut."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consilium.client.data.series_rows import time_of
from consilium.common.data.tables import Form
from consilium.common.data.words import MISSING_IN_NUMBERS
from consilium.common.errors import ConfigError, DataError, clean, listed
from consilium.common.study.series_task import MAX_STEPS, SeriesTask
from consilium.data.table_cells import is_number, read_cells
from consilium.data.table_pool import LongRows, TablePool, pool_of_rows, regression_of
from consilium.data.task import is_identifier

_MOST_GAPS = 0.1
"""A column that is no number in this part of the series or less is a channel, and these series are left out."""


@dataclass(frozen=True)
class SeriesColumns:
    """Which columns of a table of series say what.

    Args:
        others: columns that are no channels and the same in all rows of a series: the label first.
    """

    series: str
    time: str
    others: tuple[str, ...]


def read_series_table(
    path: Path, columns: SeriesColumns, *, label_is_number: bool = False, form: Form | None = None
) -> TablePool:
    """Read the pool of series in a table: one row for each series, with those of the table behind it (`long`).

    A series is left out, and counted, if a time stands there twice, or if a channel lacks a value, as at a site.

    Raises:
        DataError: the file cannot be read, a column is missing, or no channel or too few series are left.
    """
    who, label = f"pool '{path}'", columns.others[0]
    header, cells, told = read_cells(path, (label, columns.series, columns.time, *columns.others[1:]), form, who=who)
    at = {name: header.index(name) for name in header}
    found = dict[str, list[tuple[str, ...]]]()
    for row in cells:
        if not row[at[columns.series]]:
            raise DataError(f"{who}: column '{columns.series}' is empty in a row, expected which series it is of")
        found.setdefault(row[at[columns.series]], []).append(row)
    told_of = {
        name: [_constant(rows, at[other], other, who=who) for other in columns.others] for name, rows in found.items()
    }
    channels, sentences = _channels(header, cells, found, columns, who=who)
    kept, why = dict[str, tuple[tuple[str, ...], ...]](), Counter[str]()
    for name, rows in found.items():
        ordered = _ordered(rows, at[columns.time], [at[channel] for channel in channels])
        if isinstance(ordered, str):
            why[ordered] += 1
        else:
            kept[name] = ordered
    sentences += [f"{count} of {len(found)} series are left out: {reason}" for reason, count in why.items()]
    if len(kept) < 2:
        raise DataError(f"{who}: {len(kept)} series are usable, expected several; {'; '.join(sentences)}")
    ones = [(name, *told_of[name]) for name in kept]
    labelled = {name: _filled(rows, at[label], one[1]) for (name, rows), one in zip(kept.items(), ones, strict=True)}
    pool = pool_of_rows(
        (columns.series, *columns.others),
        ones,
        label,
        label_is_number=label_is_number,
        reading=(*([told] if told else []), *sentences),
        long=LongRows(header, labelled, channels, columns.time),
        who=who,
    )
    places = [at[channel] for channel in channels]
    return replace(pool, keys=tuple(_values(labelled[row[0]], places).tobytes() for row in pool.rows))


def series_task(pool: TablePool, *, tolerance: float | None) -> SeriesTask:
    """Return the task of a table of series: all steps of the longest one, scaled by those of all sites."""
    assert pool.long is not None
    lengths = [len(pool.long.rows[row[0]]) for row in pool.rows]
    length, number = min(max(lengths), MAX_STEPS), regression_of(pool.numbers, tolerance)
    return SeriesTask(
        channels=pool.long.channels,
        length=length,
        short="pad" if min(lengths) < length else "refuse",
        long="last" if max(lengths) > length else "refuse",
        series=pool.header[0],
        time=pool.long.time,
        label=pool.label,
        classes=pool.classes if number is None else (),
        regression=number,
        scale="federation",
    )


def _channels(
    header: Sequence[str],
    cells: Sequence[tuple[str, ...]],
    found: dict[str, list[tuple[str, ...]]],
    columns: SeriesColumns,
    *,
    who: str,
) -> tuple[tuple[str, ...], list[str]]:
    """Return the columns of numbers, and sentences about those that are left out."""
    channels, sentences = list[str](), list[str]()
    for place, name in enumerate(header):
        if name in (columns.series, columns.time, *columns.others):
            continue
        gaps = sum(not all(is_number(row[place]) for row in rows) for rows in found.values())
        held = [row[place] for row in cells]
        if is_identifier(name, [cell for cell in held if cell.casefold() not in MISSING_IN_NUMBERS]):
            sentences.append(f"column '{clean(name, 60)}' is left out of the study: it tells whose or which row it is")
        elif gaps > _MOST_GAPS * len(found):
            sentences.append(
                f"column '{clean(name, 60)}' is left out of the study: {gaps} of {len(found)} series have no number in "
                "some step of it"
            )
        else:
            channels.append(name)
    if not channels:
        shown = listed([f"'{clean(name, 60)}'" for name in header], 10)
        raise DataError(f"{who}: no column of {shown} is a channel, a number in every step; {'; '.join(sentences)}")
    return tuple(channels), sentences


def _ordered(rows: Sequence[tuple[str, ...]], time: int, channels: Sequence[int]) -> tuple[tuple[str, ...], ...] | str:
    """Return rows in the order of time, or why a site would refuse this series."""
    times = [time_of(row[time]) for row in rows]
    known = [one for one in times if one is not None]
    if len(known) < len(times):
        return "a time is neither a number nor a date"
    if len(set(known)) < len(known):
        return "a time stands there twice"
    if not all(is_number(row[place]) for row in rows for place in channels):
        return "a channel lacks a value"
    return tuple(rows[place] for place in sorted(range(len(rows)), key=known.__getitem__))


def _constant(rows: Sequence[tuple[str, ...]], place: int, name: str, *, who: str) -> str:
    """Return what a column says of a series; "" where it says nothing."""
    known = {row[place] for row in rows if row[place].casefold() not in MISSING_IN_NUMBERS}
    if len(known) > 1:
        raise DataError(f"{who}: column '{name}' has {len(known)} different values in one series, expected one")
    return known.pop() if known else ""


def _filled(rows: Sequence[tuple[str, ...]], place: int, value: str) -> tuple[tuple[str, ...], ...]:
    return tuple((*row[:place], value, *row[place + 1 :]) for row in rows)


def _values(rows: Sequence[tuple[str, ...]], channels: Sequence[int]) -> npt.NDArray[np.float64]:
    return np.array([[float(row[place]) for place in channels] for row in rows])


def columns_of(series: str | None, time: str | None, label: str | None, others: Sequence[str | None]) -> SeriesColumns:
    """Return which columns say what, by the options.

    Raises:
        ConfigError: there is no label, or one column is to be two things.
    """
    if label is None:
        raise ConfigError("a table needs --label, the column with the class or number to learn")
    names = [series or "series", time or "time", label]
    if len(set(names)) < len(names):
        raise ConfigError(f"series, time and label are the columns {names}, expected three")
    more = [name for name in others if name is not None and name not in names]
    return SeriesColumns(names[0], names[1], (label, *dict.fromkeys(more)))
