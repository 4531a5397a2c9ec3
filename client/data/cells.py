"""Turns the cells of a table's rows into features and labels: for training, and for a finished model alike."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from consilium.client.data.base import Feature
from consilium.common.data.tables import MISSING, BoolTexts, number_in
from consilium.common.study.task import CategoryColumn, NumberColumn, Regression, TableTask

_LARGEST = torch.finfo(torch.float32).max
_ROWS_AT_ONCE = 4096
_MISSING, _BAD = -1, -2

Places = Mapping[str | float, int]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

T = TypeVar("T")


class MissingCell(Exception):
    """A needed cell is empty."""


class BadCell(Exception):
    """A cell that cannot be used; the text says what was expected, never the value."""


def features_of(task: TableTask) -> tuple[Feature, ...]:
    """Return the features that each column becomes, in the task's order."""
    features: list[Feature] = []
    start = 0
    for name, column in task.columns.items():
        category = isinstance(column, CategoryColumn)
        width = len(column.values) - 1 if isinstance(column, CategoryColumn) else 1
        features.append(Feature(name, start, width, category))
        start += width
    return tuple(features)


def booleans_of(task: TableTask, name: str) -> BoolTexts:
    """Return how a boolean is written: 1 or 0, or the study's own `true` and `false`, in its case, if it has them."""
    column = task.columns.get(name)
    if isinstance(column, NumberColumn):
        return {True: "1", False: "0"}
    values = column.values if isinstance(column, CategoryColumn) else task.classes
    by_case = {value.casefold(): value for value in reversed(values)}
    return {True: by_case.get("true", "1"), False: by_case.get("false", "0")}


def in_blocks(rows: Iterable[T]) -> Iterator[list[T]]:
    """Yield rows in lists that are short enough to be encoded at once."""
    left = iter(rows)
    while block := list(islice(left, _ROWS_AT_ONCE)):
        yield block


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded rows.

    Args:
        x: features `(N, F)`; NaN where a cell is missing, and anything in a row with a problem.
        labels: `(N,)`; zeros where rows have no label.
        problems: why a row cannot be used, by its place.
    """

    x: Floats
    labels: Floats
    problems: Mapping[int, MissingCell | BadCell]


class Encoder:
    """Turns the cells of rows into features and labels.

    Args:
        labelled: whether rows have a label; without it none is read.
    """

    def __init__(self, task: TableTask, *, labelled: bool = True) -> None:
        self._impute = task.missing == "impute"
        self._columns = {name: _column(column, f"column '{name}'") for name, column in task.columns.items()}
        where = f"label column '{task.label}'"
        label = _Numbers(where, task.regression) if task.regression else _Values(where, task.classes, whole=True)
        self._label = {task.label: label} if labelled else {}

    def __call__(self, cells: Mapping[str, Sequence[str]]) -> Encoded:
        """Return the features and labels of rows, given the cells `(N,)` of each column.

        A row has a problem, and the first of its columns is named, if a cell is missing that is not filled later, else
        if a value is no number, no known category or no known class.
        """
        held = {name: column.encoded(cells[name]) for name, column in (self._columns | self._label).items()}
        features = [held[name].values for name in self._columns]
        labels = next((held[name].values[:, 0] for name in self._label), np.zeros(len(features[0])))
        needed = [name for name in held if name in self._label or not self._impute]
        troubled = np.any([held[name].bad for name in held] + [held[name].missing for name in needed], axis=0)
        problems = {
            place: self._problem({name: cells[name][place] for name in held}, needed, held, place)
            for place in np.flatnonzero(troubled).tolist()
        }
        return Encoded(np.concatenate(features, axis=1), labels, problems)

    def _problem(
        self, row: Mapping[str, str], needed: Sequence[str], held: Mapping[str, "_Cells"], place: int
    ) -> MissingCell | BadCell:
        if missing := [name for name in needed if held[name].missing[place]]:
            return MissingCell(f"column '{missing[0]}': the value is missing")
        bad = next(name for name in held if held[name].bad[place])
        return (self._columns | self._label)[bad].problem(row[bad])


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells of one column: values `(N, W)`, and which of them `(N,)` are missing or cannot be used."""

    values: Floats
    missing: Mask
    bad: Mask


class _Column(Protocol):
    def encoded(self, texts: Sequence[str]) -> _Cells:
        """Return the cells' values."""

    def problem(self, text: str) -> BadCell:
        """Return why a cell cannot be used."""


def _column(column: NumberColumn | CategoryColumn, where: str) -> _Column:
    return _Numbers(where, None) if isinstance(column, NumberColumn) else _Values(where, column.values, whole=False)


@dataclass(frozen=True)
class _Numbers:
    """Numbers, or labels that are numbers, as the model answers them."""

    where: str
    label: Regression | None

    def encoded(self, texts: Sequence[str]) -> _Cells:
        read = _floats(texts)
        missing = np.zeros(len(texts), dtype=bool)
        for place in np.flatnonzero(np.isnan(read)).tolist():
            missing[place] = texts[place].casefold() in MISSING
        with np.errstate(over="ignore", invalid="ignore"):
            values = read if self.label is None else (read - self.label.center) / self.label.scale
        bad = ~missing & ~((np.abs(read) <= _LARGEST) & (np.abs(values) <= _LARGEST))
        return _Cells(values[:, None], missing, bad)

    def problem(self, text: str) -> BadCell:
        value = number_in(text)
        if value is None:
            return BadCell(f"{self.where}: expected a number, got text")
        if not abs(value) <= _LARGEST:
            return BadCell(f"{self.where}: expected a finite number, got one that is infinite or too large")
        return BadCell(f"{self.where}: expected a number that task.regression.scale leaves finite, got a larger one")


class _Values:
    """Categories, one-hot without the first, or classes by their whole number."""

    def __init__(self, where: str, values: tuple[str, ...], *, whole: bool) -> None:
        self._where, self._values = where, values
        self._codes = _codes(values)
        known = np.arange(len(values), dtype=np.float64)[:, None] if whole else np.eye(len(values))[:, 1:]
        # The last two rows are those of cells that cannot be used (-2) and that are missing (-1).
        self._rows = np.concatenate([known, np.full((2, known.shape[1]), math.nan)])
        self._seen: dict[str, int] = {}

    def encoded(self, texts: Sequence[str]) -> _Cells:
        for text in set(texts).difference(self._seen):
            self._seen[text] = self._place(text)
        places = np.fromiter(map(self._seen.__getitem__, texts), dtype=np.int64, count=len(texts))
        if len(self._seen) > _ROWS_AT_ONCE:  # texts that are no categories must not pile up
            self._seen.clear()
        return _Cells(self._rows[places], places == _MISSING, places == _BAD)

    def _place(self, text: str) -> int:
        if text in self._codes:
            return self._codes[text]
        if text.casefold() in MISSING:
            return _MISSING
        number = number_in(text)
        return _BAD if number is None else self._codes.get(number, _BAD)

    def problem(self, text: str) -> BadCell:
        same = [value for value in self._values if value.casefold() == text.casefold()]
        seen = "text" if number_in(text) is None else "a number"
        hint = f"; upper and lower case differ from '{same[0]}'" if same else ""
        return BadCell(f"{self._where}: expected one of {list(self._values)}, got {seen} that is not among them{hint}")


def _floats(texts: Sequence[str]) -> Floats:
    """Return the numbers that cells hold, NaN for texts."""
    try:
        if "_" not in "".join(texts):
            return np.array([float(text) if text else math.nan for text in texts], dtype=np.float64)
    except ValueError:
        pass
    numbers: Iterator[Any] = (number_in(text) for text in texts)
    return np.array([math.nan if number is None else number for number in numbers], dtype=np.float64)


def _codes(values: tuple[str, ...]) -> Places:
    """Map each value, and the number it reads as, to its place: a cell "1.0" is the value "1"."""
    codes: dict[str | float, int] = {}
    for place, value in enumerate(values):
        number = number_in(value)
        if number is not None and math.isfinite(number):
            codes.setdefault(number, place)
    return codes | {value: place for place, value in enumerate(values)}
