"""What a study can learn from a table: which columns, and what each holds."""

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from consilium.common.errors import DataError
from consilium.common.study.task import CategoryColumn, Column, NumberColumn, Regression, TableTask
from consilium.data.partition import (
    Rows,
)
from consilium.data.pool import TablePool, in_order, is_number

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

    A column whose known cells are all numbers is a number, one of up to 20 different texts a category. One that names
    or numbers patients is left out: a model would learn from it which rows stood together in a file. Where the label
    is a number, it is centred and scaled by mean and standard deviation of the pool's, to three digits of the latter.

    Raises:
        DataError: no column is left.
    """
    columns: dict[str, Column] = {}
    sentences, gaps = [], False
    for name in pool.header:
        if name in (pool.label, *leave_out):
            continue
        cells = pool.column(name)
        column, reason = _column(name, cells)
        if reason := reason or _identifies(name, cells):
            column = None
        if column is None:
            sentences.append(f"column '{name}' is left out of the study: {reason}")
            continue
        columns[name] = column
        gaps = gaps or "" in cells
        empty = [f"'{site}'" for site, rows in parts.items() if not any(cells[row] for row in rows)]
        if empty:
            sentences.append(f"column '{name}' has no value at {', '.join(empty)}, which cannot fill it: leave it out")
    if not columns:
        raise DataError("the table has no column to learn from besides the label")
    missing: Literal["refuse", "impute"] = "impute" if gaps else "refuse"
    if pool.numbers is None or tolerance is None:
        return TableTask(classes=pool.classes, label=pool.label, columns=columns, missing=missing), sentences
    scale = float(f"{pool.numbers.std():.3g}")
    center = round(float(pool.numbers.mean()), 2 - math.floor(math.log10(scale)))
    number = Regression(center=center, scale=scale, tolerance=tolerance)
    return TableTask(label=pool.label, regression=number, columns=columns, missing=missing), sentences


def _column(name: str, cells: Sequence[str]) -> tuple[Column | None, str]:
    values = {cell for cell in cells if cell}
    if not name:
        return None, "it has no name"
    if len(values) < 2:
        return None, "it has one value only" if values else "it has no value"
    if all(is_number(value) for value in values):
        return NumberColumn(), ""
    if len(values) > _MOST_VALUES:
        return None, f"it has {len(values)} different texts, more than {_MOST_VALUES}"
    return CategoryColumn(values=in_order(values)), ""


_ID = re.compile(
    r"(?i:(^|[_\W])(id|ids|uid|guid|uuid|mrn|nr|index|idx|identifier)$)|[a-z](Id|ID)$"
    r"|(?i:^(patient|subject|case)([_\W]?(no|num|number|name|code))?$)"
)
"""Names of columns that say whose a row is, or which."""


def is_identifier(name: str, cells: Sequence[str]) -> bool:
    """Return whether a column of texts, "" where nothing is known, tells whose or which row it is."""
    return bool(_identifies(name, cells))


def _identifies(name: str, cells: Sequence[str]) -> str:
    """Return why a column tells whose or which row it is, and nothing of health; '' where it does not."""
    known = [cell for cell in cells if cell]
    different = len(set(known))
    if any("." in cell for cell in known):
        return ""
    if _ID.search(name) is None:
        steps = {int(b) - int(a) for a, b in itertools.pairwise(known)} if all(map(_is_whole, known)) else set()
        return "it numbers the rows" if steps == {1} and different > _MOST_VALUES else ""
    if different == len(known):
        return "it is an identifier, different in every row"
    return (
        f"it is an identifier of {different} different values in {len(known)} rows; if these are patients, "
        f"'--group {name}' keeps a patient's rows together"
    )


def _is_whole(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) <= 18
