"""A pool that is a table: its rows as text, what each column holds, and which cells are missing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consilium.common.data.groups import Copies, Values, codes_of, copies_of_rows
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
from consilium.common.errors import ConfigError, DataError, clean, is_clean, listed
from consilium.common.study.names import MAX_CLASS_NAME

Labels = npt.NDArray[np.int64]

_LARGEST = float(np.finfo(np.float32).max)
_MOST_OTHERS, _MOST_OTHER_TEXTS = 0.1, 10
"""A column of numbers may hold texts in this part of its known cells, and so many different ones."""


@dataclass(frozen=True, eq=False)
class ColumnCells:
    """The cells of a column, "" where one is missing.

    Args:
        number: whether it is a column of numbers.
        others: texts among the numbers, which count as missing, and how often each is there.
        doubtful: words such as "none" and "-" among texts, which count as values.
    """

    cells: Sequence[str]
    number: bool
    others: Counter[str] = field(default_factory=Counter)
    doubtful: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TablePool:
    """Rows of text under a header; `y` of shape `(N,)` numbers the classes in the column `label`.

    Numbers have a point before their fraction, and true and false are 1 and 0, whatever the file has. Where the label
    is a number, `numbers` has it `(N,)`, and all rows are one class, called as the label.

    Args:
        reading: sentences on how the file was read.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    label: str
    y: Labels
    classes: tuple[str, ...]
    num_unlabelled: int
    numbers: npt.NDArray[np.float64] | None = None
    reading: tuple[str, ...] = ()

    def column(self, name: str) -> list[str]:
        """Return the cells of a column, '' where one is missing; texts among numbers are kept.

        Raises:
            ConfigError: there is no such column.
        """
        if name not in self.header:
            raise ConfigError(f"the table has no column '{name}', its columns are {list(self.header)}")
        place = self.header.index(name)
        cells = [row[place] for row in self.rows]
        missing = _missing_words(cells)
        return ["" if cell.casefold() in missing else cell for cell in cells]

    def feature(self, name: str) -> ColumnCells:
        """Return a column as something to learn from: few texts among numbers count as missing.

        Raises:
            ConfigError: there is no such column.
        """
        cells = self.column(name)
        known = [cell for cell in cells if cell]
        others = Counter(cell for cell in known if not is_number(cell))
        if not others or _are_few(others, known):
            return ColumnCells(["" if cell in others else cell for cell in cells], bool(known), others)
        doubtful = [word for word in others if word.casefold() in MISSING_IN_NUMBERS]
        return ColumnCells(cells, False, doubtful=tuple(doubtful))

    @cached_property
    def copies(self) -> Copies:
        """Return which rows are exact copies."""
        values = Values()
        values.start(self.header)
        return copies_of_rows(codes_of([values.of(row) for row in self.rows]))

    def whose(self, group: str) -> list[str]:
        """Return whose each row is.

        Raises:
            ConfigError: there is no such column.
            DataError: a row has no value in it.
        """
        patients = self.column(group)
        if gaps := patients.count(""):
            raise DataError(f"{gaps} rows have no value in column '{group}', so it is not known whose they are")
        return patients


def read_table(path: Path, label: str, *, label_is_number: bool = False, form: Form | None = None) -> TablePool:
    """Read the pool of rows in a table's file.

    Args:
        form: how the file is to be read; what it leaves open is found in the file.

    Raises:
        DataError: the file cannot be read, has no such column, or the column holds no classes, or no numbers.
    """
    who = f"pool '{path}'"
    table = open_table(path, Wanted((label,), every=True), form, who=who)
    header = _header(table, label, who=who)
    cells = _plain(header, _rows(table, len(header), who=who), table.decimal)
    place = header.index(label)
    missing = _missing_words([row[place] for row in cells])
    rows = tuple(row for row in cells if row[place].casefold() not in missing)
    empty = np.zeros(len(rows), np.int64)
    reading = found_in_words(path.name, table)
    pool = TablePool(header, rows, label, empty, (label,), len(cells) - len(rows), reading=(reading,) * bool(reading))
    return _with_numbers(pool, who=who) if label_is_number else _with_classes(pool, who=who)


def is_number(text: str) -> bool:
    """Return whether a site reads a cell as a number: finite in float32, and not like an identifier."""
    number = number_in(text)
    return number is not None and abs(number) <= _LARGEST


def in_order(texts: set[str]) -> tuple[str, ...]:
    """Return texts in the order of the numbers they are, or of the alphabet."""
    try:
        return tuple(sorted(texts, key=lambda text: (float(text), text)))
    except ValueError:
        return tuple(sorted(texts))


def check_names(classes: Sequence[str], *, who: str) -> None:
    """Refuse names that no study can have, for they are shown in everybody's tables and logs."""
    for name in classes:
        if not is_clean(name) or len(name) > MAX_CLASS_NAME:
            what = "a control character in it" if not is_clean(name) else f"{len(name)} characters"
            most = f"none, and at most {MAX_CLASS_NAME} characters"
            raise DataError(f"{who}: class '{clean(name, 80)}' has {what}, expected {most}")


def _with_numbers(pool: TablePool, *, who: str) -> TablePool:
    place = pool.header.index(pool.label)
    wrong = Counter(row[place] for row in pool.rows if not is_number(row[place]))
    if wrong:
        raise DataError(
            f"{who}: column '{pool.label}' has text in it or a number that is too large, expected numbers: "
            f"{wrong.total()} of {len(pool.rows)} rows"
        )
    numbers = np.array([float(row[place]) for row in pool.rows], dtype=np.float64)
    if len(np.unique(numbers)) < 2:
        raise DataError(f"{who}: column '{pool.label}' is the same in every row, expected different numbers")
    return replace(pool, numbers=numbers)


def _with_classes(pool: TablePool, *, who: str) -> TablePool:
    label, place = pool.label, pool.header.index(pool.label)
    classes = in_order({row[place] for row in pool.rows})
    if len(classes) < 2:
        values = "a single value" if classes else "no value"
        raise DataError(f"{who}: column '{label}' has {values}, expected at least two classes")
    if len(classes) > max(20, len(pool.rows) // 10):
        raise DataError(
            f"{who}: column '{label}' has {len(classes)} different values in {len(pool.rows)} rows, expected classes; "
            "if it is a number to predict, say with --tolerance how far an answer may be from it"
        )
    check_names(classes, who=who)
    codes = {name: number for number, name in enumerate(classes)}
    return replace(pool, classes=classes, y=np.array([codes[row[place]] for row in pool.rows], dtype=np.int64))


def _header(table: Table, label: str, *, who: str) -> tuple[str, ...]:
    header = table.header
    if len(set(header)) == len(header) and label in header:
        return header
    twice = [name for name, count in Counter(header).items() if count > 1]
    no_header = sum(map(is_number, header)) * 2 >= len(header) > 0
    what = f"no column '{label}'" if no_header or not twice else f"two columns of one name, '{clean(twice[0], 60)}'"
    near = [name for name in header if like(name) == like(label) and name != label]
    if near and label not in header:
        hint = f"; it has '{clean(near[0], 60)}': --label '{clean(near[0], 60)}'"
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
            if not others or _are_few(others, known):
                column[:] = [point if is_number(point) else cell for cell, point in zip(column, written, strict=True)]
    return list(zip(*columns, strict=True))


def _missing_words(cells: Sequence[str]) -> frozenset[str]:
    """Return the words for missing in a column: those of numbers where all or nearly all other cells are numbers."""
    known = [cell for cell in cells if cell.casefold() not in MISSING_IN_NUMBERS]
    others = Counter(cell for cell in known if not is_number(cell))
    return MISSING if known and others and not _are_few(others, known) else MISSING_IN_NUMBERS


def _are_few(others: Counter[str], known: Sequence[str]) -> bool:
    """Return whether texts are so few that the column is one of numbers all the same."""
    return others.total() <= _MOST_OTHERS * len(known) and len(others) <= _MOST_OTHER_TEXTS
