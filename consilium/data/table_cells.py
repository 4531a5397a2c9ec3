"""The cells of a pool that is a table: read as text, and written as sites read them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from consilium.common.data.tables import Form, Table, Wanted, found_in_words, open_table
from consilium.common.data.text_files import like
from consilium.common.data.words import (
    MISSING,
    MISSING_IN_NUMBERS,
    ONE_OR_ZERO,
    DecimalSign,
    number_in,
    truth_in,
    with_point,
)
from consilium.common.errors import DataError, clean, listed

_LARGEST = float(np.finfo(np.float32).max)
_MOST_OTHERS, _MOST_OTHER_TEXTS = 0.1, 10
"""A column of numbers may hold texts in this part of its known cells, and so many different ones."""


def read_cells(
    path: Path, names: tuple[str, ...], form: Form | None, *, who: str
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Return header and rows of a table's file, written as sites read them, and a sentence on how it was read.

    Args:
        names: columns that have to be there, the first one the label.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """
    table = open_table(path, Wanted(names, every=True), form, who=who)
    header = _header(table, names[0], who=who)
    for name in names[1:]:
        _header(table, name, who=who, option="")
    return header, _plain(header, _rows(table, len(header), who=who), table.decimal), found_in_words(path.name, table)


def is_number(text: str) -> bool:
    """Return whether a site reads a cell as a number: finite in float32, and not like an identifier."""
    number = number_in(text)
    return number is not None and abs(number) <= _LARGEST


def _header(table: Table, label: str, *, who: str, option: str = "--label") -> tuple[str, ...]:
    header = table.header
    if len(set(header)) == len(header) and label in header:
        return header
    twice = [name for name, count in Counter(header).items() if count > 1]
    no_header = sum(map(is_number, header)) * 2 >= len(header) > 0
    what = f"no column '{label}'" if no_header or not twice else f"two columns of one name, '{clean(twice[0], 60)}'"
    near = [name for name in header if like(name) == like(label) and name != label]
    if near and label not in header:
        shown = clean(near[0], 60)
        hint = f"; it has '{shown}'" + (f": {option} '{shown}'" if option else "")
    elif no_header:
        hint = (
            "; its first line holds numbers: with --no-header it is a row, and the columns are column_1, column_2, ..."
        )
    else:
        hint = f", its columns are {[clean(name, 60) for name in header[:50]]}"
    raise DataError(f"{who} has {what}{hint}")


def _rows(table: Table, width: int, *, who: str) -> list[tuple[str, ...]]:
    rows, wrong = list[tuple[str, ...]](), list[str]()
    for where, fields in table.rows:
        if len(fields) != width:
            wrong.append(f"{where} has {len(fields)}")
        rows.append(tuple(field.strip() for field in fields))
    if wrong:
        raise DataError(f"{who}: expected {width} fields in every row, as in the header; {listed(wrong, 10, 'rows')}")
    return rows


def _plain(header: Sequence[str], rows: list[tuple[str, ...]], decimal: DecimalSign) -> list[tuple[str, ...]]:
    """Return rows with a decimal point in columns of numbers, and 1 and 0 in those of true and false."""
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in header]
    for column in columns:
        known = [cell for cell in column if cell.casefold() not in MISSING_IN_NUMBERS]
        if known and all(truth_in(cell) is not None for cell in known):
            column[:] = [ONE_OR_ZERO[truth] if (truth := truth_in(cell)) is not None else cell for cell in column]
        elif decimal != ".":
            written = [with_point(cell, decimal) for cell in column]
            others = Counter(
                cell for cell in written if cell.casefold() not in MISSING_IN_NUMBERS and not is_number(cell)
            )
            if not others or are_few(others, known):
                column[:] = [point if is_number(point) else cell for cell, point in zip(column, written, strict=True)]
    return list(zip(*columns, strict=True))


def missing_words(cells: Sequence[str]) -> frozenset[str]:
    """Return the words for missing in a column: those of numbers where all or nearly all other cells are numbers."""
    known = [cell for cell in cells if cell.casefold() not in MISSING_IN_NUMBERS]
    others = Counter(cell for cell in known if not is_number(cell))
    return MISSING if known and others and not are_few(others, known) else MISSING_IN_NUMBERS


def are_few(others: Counter[str], known: Sequence[str]) -> bool:
    """Return whether texts are so few that the column is one of numbers all the same."""
    return others.total() <= _MOST_OTHERS * len(known) and len(others) <= _MOST_OTHER_TEXTS
