"""A pool that is a table: its rows as text, what each column holds, and which cells are missing."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.common.data.groups import Copies, Values, codes_of, copies_of_rows, first_of
from consilium.common.data.tables import Form
from consilium.common.data.words import MISSING_IN_NUMBERS
from consilium.common.errors import ConfigError, DataError, clean, is_clean
from consilium.common.study.names import MAX_CLASS_NAME
from consilium.common.study.task_base import Regression
from consilium.data.table_cells import are_few, is_number, missing_words, read_cells

Labels = npt.NDArray[np.int64]


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
class LongRows:
    """The table behind a pool of series: a row for each series and time.

    Args:
        rows: those of each series, by its name, in the order of time.
        channels: the columns with the values.
        time: the column with the time.
    """

    header: tuple[str, ...]
    rows: Mapping[str, tuple[tuple[str, ...], ...]]
    channels: tuple[str, ...]
    time: str


@dataclass(frozen=True, eq=False)
class TablePool:
    """Rows of text under a header; `y` of shape `(N,)` numbers the classes in the column `label`.

    Numbers have a point before their fraction, and true and false are 1 and 0, whatever the file has. Where the label
    is a number, `numbers` has it `(N,)`, and all rows are one class, called as the label.

    Args:
        reading: sentences on how the file was read.
        text: the column with the text to learn from; None where the other columns are learned from.
        group: the column that says whose a row is, where it is not called as the group that was asked for.
        keys: what tells whether rows are copies `(N,)`; None: the whole record.
        long: rows are series, called as their first cells, and these are the rows of each; None where they are rows.
        labels: the columns of several labels, of which `y` has the rarest one of each row; none where a row has one.
        truths: these labels `(N, L)`: 1, 0, NaN where one is not known; None where a row has one.
        event: the column that says whether an event was seen at the time in `label`; None where that is no time. `y`
            has 1 where it was seen.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    label: str
    y: Labels
    classes: tuple[str, ...]
    num_unlabelled: int
    numbers: npt.NDArray[np.float64] | None = None
    reading: tuple[str, ...] = ()
    text: str | None = None
    group: str | None = None
    keys: tuple[Hashable, ...] | None = None
    long: LongRows | None = None
    labels: tuple[str, ...] = ()
    truths: npt.NDArray[np.float64] | None = None
    event: str | None = None

    def column(self, name: str) -> list[str]:
        """Return the cells of a column, '' where one is missing; texts among numbers are kept.

        Raises:
            ConfigError: there is no such column.
        """
        if name not in self.header:
            raise ConfigError(f"the table has no column '{name}', its columns are {list(self.header)}")
        place = self.header.index(name)
        cells = [row[place] for row in self.rows]
        missing = missing_words(cells)
        return ["" if cell.casefold() in missing else cell for cell in cells]

    def feature(self, name: str) -> ColumnCells:
        """Return a column as something to learn from: few texts among numbers count as missing.

        Raises:
            ConfigError: there is no such column.
        """
        cells = self.column(name)
        known = [cell for cell in cells if cell]
        others = Counter(cell for cell in known if not is_number(cell))
        if not others or are_few(others, known):
            return ColumnCells(["" if cell in others else cell for cell in cells], bool(known), others)
        doubtful = [word for word in others if word.casefold() in MISSING_IN_NUMBERS]
        return ColumnCells(cells, False, doubtful=tuple(doubtful))

    @property
    def texts(self) -> list[str]:
        """Return the texts to learn from, as they are written."""
        place = self.header.index(self.text or "")
        return [row[place] for row in self.rows]

    @cached_property
    def copies(self) -> Copies:
        """Return which rows are exact copies; texts are where they have the same words, whatever their label."""
        if self.keys is not None:
            return Copies(first_of(self.keys))
        if self.text is not None:
            return Copies(first_of([" ".join(text.lower().split()) for text in self.texts]))
        values = Values()
        values.start(self.header)
        return copies_of_rows(codes_of([values.of(row) for row in self.rows]))

    def whose(self, group: str) -> list[str]:
        """Return whose each row is.

        Raises:
            ConfigError: there is no such column.
            DataError: a row has no value in it.
        """
        patients = self.column(self.group or group)
        if gaps := patients.count(""):
            raise DataError(f"{gaps} rows have no value in column '{group}', so it is not known whose they are")
        return patients


def read_table(
    path: Path, label: str, *, label_is_number: bool = False, form: Form | None = None, text: str | None = None
) -> TablePool:
    """Read the pool of rows in a table's file.

    Args:
        form: how the file is to be read; what it leaves open is found in the file.
        text: the column with the text to learn from; rows without one are left out.

    Raises:
        DataError: the file cannot be read, has no such column, or the column holds no classes, or no numbers.
    """
    who = f"pool '{path}'"
    header, cells, told = read_cells(path, (label,) if text is None else (label, text), form, who=who)
    reading = [told] if told else []
    if text is not None:
        full = [row for row in cells if row[header.index(text)]]
        reading += [f"{len(cells) - len(full)} rows without a text are left out"] * (len(full) < len(cells))
        cells = full
    return pool_of_rows(
        header, cells, label, label_is_number=label_is_number, reading=tuple(reading), text=text, who=who
    )


def pool_of_rows(
    header: tuple[str, ...],
    cells: Sequence[tuple[str, ...]],
    label: str,
    *,
    label_is_number: bool = False,
    who: str,
    **more: Any,
) -> TablePool:
    """Return the pool of rows, of which those without a label are left out and counted.

    Args:
        more: further fields of the pool.

    Raises:
        DataError: the column `label` holds no classes, or no numbers.
    """
    place = header.index(label)
    missing = missing_words([row[place] for row in cells])
    rows = tuple(row for row in cells if row[place].casefold() not in missing)
    empty = np.zeros(len(rows), np.int64)
    pool = TablePool(header, rows, label, empty, (label,), len(cells) - len(rows), **more)
    return _with_numbers(pool, who=who) if label_is_number else _with_classes(pool, who=who)


def regression_of(numbers: npt.NDArray[np.float64] | None, tolerance: float | None) -> Regression | None:
    """Return how a label that is a number is centred and scaled; None where it is a class.

    Mean and standard deviation are those of all numbers, to three digits of the latter.
    """
    if numbers is None or tolerance is None:
        return None
    unit = float(f"{numbers.std():.3g}")
    center = round(float(numbers.mean()), 2 - math.floor(math.log10(unit)))
    return Regression(center=center, scale=unit, tolerance=tolerance)


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
