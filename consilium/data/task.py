"""What a study can learn from a table: which columns, and what each holds."""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from consilium.common.data.events import names_event, perhaps_censored, seen_in, tells_events
from consilium.common.data.identifiers import names_identifiers
from consilium.common.data.oddities import codes_in
from consilium.common.errors import DataError, clean
from consilium.common.study.task import CategoryColumn, Column, NumberColumn, Survival, TableTask
from consilium.data.partition import (
    Rows,
)
from consilium.data.table_cells import is_number
from consilium.data.table_pool import ColumnCells, TablePool, in_order, regression_of

_MOST_VALUES = 20
"""A column of text with more different values is a name or a remark, not a category."""


def table_task(
    pool: TablePool,
    parts: Mapping[str, Rows],
    *,
    leave_out: Collection[str | None] = (),
    tolerance: float | None = None,
) -> tuple[TableTask, list[str]]:
    """Return the task of a table, and sentences about columns that are left out or that a site has no value in.

    A column whose known cells are numbers is a number, also where few are other texts, which the study then counts as
    missing; one of up to 20 different texts is a category. One that names or numbers patients is left out: a model
    would learn from it which rows stood together in a file. Where the label is a number, it is centred and scaled by
    mean and standard deviation of the pool's, to three digits of the latter.

    Raises:
        DataError: no column is left.
    """
    columns: dict[str, Column] = {}
    sentences, gaps, codes = list[str](), False, dict[str, tuple[str, ...]]()
    for name in pool.header:
        if name in (pool.label, *pool.labels, pool.event, *leave_out):
            continue
        held = pool.feature(name)
        column, reason = _column(name, held)
        if reason := reason or _identifies(name, pool.column(name)):
            column = None
        if column is None:
            sentences.append(f"column '{name}' is left out of the study: {reason}")
            continue
        columns[name] = column
        gaps = gaps or "" in held.cells
        if held.others:
            codes[name] = tuple(in_order({*held.others}))
        sentences += _remarks(name, held, parts)
    if not columns:
        raise DataError(
            f"the table has no column to learn from besides the label ({'; '.join(sentences)}); --text COLUMN makes a "
            "study that learns from what is written as text"
        )
    missing: Literal["refuse", "impute"] = "impute" if gaps else "refuse"
    known: dict[str, Any] = {"label": pool.label, "columns": columns, "missing": missing, "missing_values": codes}
    task = TableTask(**known, **_learned(pool, tolerance))
    return task, sentences + (_about_events(pool) if task.regression is not None else [])


def _learned(pool: TablePool, tolerance: float | None) -> dict[str, Any]:
    """Return what is learned of each row, as a task has it."""
    if pool.labels:
        return {"labels": pool.labels}
    if pool.event is not None:
        return {"survival": Survival(time=pool.label, event=pool.event)}
    number = regression_of(pool.numbers, tolerance)
    return {"classes": pool.classes} if number is None else {"regression": number}


def _about_events(pool: TablePool) -> list[str]:
    """Return a sentence where a column seems to say which labels, all at least 0, are censored times."""
    if pool.numbers is None or (pool.numbers < 0).any():
        return []
    names = [name for name in pool.header if name != pool.label and names_event(name)]
    found = [name for name in names if tells_events({*map(seen_in, pool.column(name))})]
    advice = f"if so, name it with --event '{clean(found[0], 60)}' in place of --tolerance" if found else ""
    return [f"{perhaps_censored(pool.label, clean(found[0], 60))}; {advice}"] if found else []


def _remarks(name: str, held: ColumnCells, parts: Mapping[str, Rows]) -> Iterator[str]:
    """Yield sentences about a column that is kept: texts among its numbers, doubtful words, sites without a value."""
    if held.others:
        times = [f"'{clean(text, 40)}' ({count} {_rows(count)})" for text, count in held.others.most_common()]
        yield (
            f"column '{name}' is one of numbers: {', '.join(times)} in it count{'s' * (len(times) == 1)} as missing "
            "(task.missing_values)"
        )
    elif held.number:
        for code in codes_in(np.array([float(cell) if cell else math.nan for cell in held.cells])):
            yield (
                f"column '{name}' has {code.words}: if it means that nothing is known, list it in the study, "
                f'task.missing_values = {{ "{name}" = [{code.value:g}] }}'
            )
    if held.doubtful:
        words = ", ".join(f"'{word}'" for word in held.doubtful)
        yield (
            f"column '{name}' has {words} among its texts, which counts as a value; list it in task.missing_values "
            "and take it out of the column's values if it means that nothing is known"
        )
    if empty := [f"'{site}'" for site, rows in parts.items() if not any(held.cells[row] for row in rows)]:
        yield f"column '{name}' has no value at {', '.join(empty)}, which cannot fill it: leave it out"


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _column(name: str, held: ColumnCells) -> tuple[Column | None, str]:
    values = {cell for cell in held.cells if cell}
    if not name:
        return None, "it has no name"
    if len(values) < 2:
        return None, "it has one value only" if values else "it has no value"
    if held.number:
        return NumberColumn(), ""
    if len(values) > _MOST_VALUES:
        share = sum(map(is_number, held.cells)) / sum(map(bool, held.cells))
        numbers = f", and numbers in {share:.0%} of the rows that have a value" if share > 0 else ""
        return None, f"it has {len(values)} different texts, more than {_MOST_VALUES}{numbers}"
    return CategoryColumn(values=in_order(values)), ""


_NEARLY, _LEAST_ROWS = 0.95, 50
"""Whole numbers that differ in this part of so many rows number them, as no measurement does."""


def is_identifier(name: str, cells: Sequence[str]) -> bool:
    """Return whether a column of texts, "" where nothing is known, tells whose or which row it is."""
    return bool(_identifies(name, cells))


def _identifies(name: str, cells: Sequence[str]) -> str:
    """Return why a column tells whose or which row it is, and nothing of health; '' where it does not."""
    known = [cell for cell in cells if cell]
    different = len(set(known))
    if any("." in cell for cell in known):
        return ""
    if not names_identifiers(name):
        return _numbers_rows(known)
    if different == len(known):
        return "it is an identifier, different in every row"
    return (
        f"it is an identifier of {different} different values in {len(known)} rows; if these are patients, "
        f"'--group {name}' keeps a patient's rows together"
    )


def _numbers_rows(known: Sequence[str]) -> str:
    """Return why a column whose name says nothing tells which row it is; '' where it does not."""
    different = len(set(known))
    if not known or not all(map(_is_whole, known)):
        return ""
    steps = {int(b) - int(a) for a, b in itertools.pairwise(known)}
    if steps == {1} and different > _MOST_VALUES:
        return "it numbers the rows"
    if len(known) < _LEAST_ROWS or different < _NEARLY * len(known):
        return ""
    return (
        f"it has whole numbers that differ in {different} of {len(known)} rows, as identifiers do; if it is a "
        'measurement, add it to the study: task.columns.NAME = { kind = "number" }'
    )


def _is_whole(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) <= 18
