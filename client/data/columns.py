"""Turns the cells of one column of a table into values: numbers, categories, or the label."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from consilium.common.data.words import (
    MISSING_IN_NUMBERS,
    BoolTexts,
    DecimalSign,
    has_comma,
    number_in,
    same_value,
    truth_in,
    with_point,
)
from consilium.common.study.task import Regression

_LARGEST = torch.finfo(torch.float32).max
_MOST_TEXTS = 4096
_MISSING, _BAD = -1, -2

Places = Mapping[str | float, int]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class MissingCell(Exception):
    """A needed cell is empty."""


class BadCell(Exception):
    """A cell that cannot be used; the text says what was expected, never the value."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of one column: values `(N, W)`, and which of them `(N,)` are missing or cannot be used."""

    values: Floats
    missing: Mask
    bad: Mask


class Column(Protocol):
    """Turns the cells of one column into values."""

    def encoded(self, texts: Sequence[str], decimal: DecimalSign) -> Cells:
        """Return the cells' values."""

    def problem(self, text: str) -> BadCell:
        """Return why a cell cannot be used."""


class Numbers:
    """Numbers, or labels that are numbers, as the model answers them; true and false are 1 and 0."""

    def __init__(self, where: str, label: Regression | None, codes: Sequence[str], *, least: float = -math.inf) -> None:
        """Take what the column is called in sentences, how a label is answered, and the codes of missing values.

        Args:
            least: the smallest number that can be.
        """
        self._where, self._label, self._least = where, label, least
        read = [number_in(code) for code in codes]
        self._codes = [number for number in read if number is not None]
        self._words = {code.casefold() for code, number in zip(codes, read, strict=True) if number is None}

    def encoded(self, texts: Sequence[str], decimal: DecimalSign) -> Cells:
        """Return the cells' values `(N, 1)`, NaN where one is missing."""
        if decimal != ".":
            texts = [with_point(text, decimal) for text in texts]
        read = _floats(texts)
        missing = np.isin(read, self._codes)
        read[missing] = math.nan
        for place in np.flatnonzero(np.isnan(read)).tolist():
            low = texts[place].casefold()
            missing[place] = missing[place] or low in MISSING_IN_NUMBERS or low in self._words
        with np.errstate(over="ignore", invalid="ignore"):
            values = read if self._label is None else self._label.to_model(read)
        bad = ~missing & ~((np.abs(read) <= _LARGEST) & (np.abs(values) <= _LARGEST) & (read >= self._least))
        return Cells(values[:, None], missing, bad)

    def problem(self, text: str) -> BadCell:
        """Return why a cell is no number that can be used."""
        value = number_in(text)
        if has_comma(text):
            return BadCell(
                f"{self._where}: expected a number, got one with a comma, which may stand for a decimal point or for "
                "thousands (site.toml: data.decimal)"
            )
        if value is None:
            return BadCell(f"{self._where}: expected a number, got text")
        if not abs(value) <= _LARGEST:
            return BadCell(f"{self._where}: expected a finite number, got one that is infinite or too large")
        if value < self._least:
            return BadCell(f"{self._where}: expected a number of at least {self._least:g}, got a smaller one")
        if self._label is None or abs(self._label.to_model(value)) <= _LARGEST:
            return BadCell(f"{self._where}: expected a number with a decimal comma, as the file has, got a point")
        return BadCell(f"{self._where}: expected a number that task.regression.scale leaves finite, got a larger one")


class Values:
    """Categories, one-hot without the first, or classes by their whole number."""

    def __init__(
        self, where: str, values: tuple[str, ...], missing: Sequence[str], booleans: BoolTexts, *, whole: bool
    ) -> None:
        """Take what the column is called in sentences, its values, the codes of missing ones, and true and false."""
        self._where, self._values, self._missing, self._booleans = where, values, missing, booleans
        self._codes = _codes(values)
        known = np.arange(len(values), dtype=np.float64)[:, None] if whole else np.eye(len(values))[:, 1:]
        # The last two rows are those of cells that cannot be used (-2) and that are missing (-1).
        self._rows = np.concatenate([known, np.full((2, known.shape[1]), math.nan)])
        self._seen: dict[str, int] = {}

    def encoded(self, texts: Sequence[str], decimal: DecimalSign) -> Cells:
        """Return the cells' values `(N, W)`, NaN where one is missing."""
        for text in set(texts).difference(self._seen):
            self._seen[text] = self._place(text)
        places = np.fromiter(map(self._seen.__getitem__, texts), dtype=np.int64, count=len(texts))
        if len(self._seen) > _MOST_TEXTS:  # texts that are no categories must not pile up
            self._seen.clear()
        return Cells(self._rows[places], places == _MISSING, places == _BAD)

    def _place(self, text: str) -> int:
        if any(same_value(code, text) for code in self._missing):
            return _MISSING
        if text in self._codes:
            return self._codes[text]
        if text.casefold() in MISSING_IN_NUMBERS:
            return _MISSING
        number, truth = number_in(text), truth_in(text)
        if truth is not None:
            return self._place_of_truth(truth)
        return _BAD if number is None else self._codes.get(number, _BAD)

    def _place_of_truth(self, truth: bool) -> int:
        """Return the place of true or false, as a column of truth values has it in a Parquet file."""
        word = self._booleans[truth]
        return self._codes.get(word, self._codes.get(float(truth), _BAD))

    def problem(self, text: str) -> BadCell:
        """Return why a cell is none of the values."""
        same = [value for value in self._values if value.casefold() == text.casefold()]
        seen = "text" if number_in(text) is None else "a number"
        hint = f"; upper and lower case differ from '{same[0]}'" if same else ""
        return BadCell(f"{self._where}: expected one of {list(self._values)}, got {seen} that is not among them{hint}")


def _floats(texts: Sequence[str]) -> Floats:
    """Return the numbers that cells hold, 1 and 0 for true and false, NaN for texts."""
    try:
        if "_" not in "".join(texts):
            return np.array([float(text) if text else math.nan for text in texts], dtype=np.float64)
    except ValueError:
        pass
    return np.array([_number(text) for text in texts], dtype=np.float64)


def _number(text: str) -> float:
    number, truth = number_in(text), truth_in(text)
    if number is not None:
        return number
    return math.nan if truth is None else float(truth)


def _codes(values: tuple[str, ...]) -> Places:
    """Map each value, and the number it reads as, to its place: a cell "1.0" is the value "1"."""
    codes: dict[str | float, int] = {}
    for place, value in enumerate(values):
        number = number_in(value)
        if number is not None and math.isfinite(number):
            codes.setdefault(number, place)
    return codes | {value: place for place, value in enumerate(values)}
