"""Reads several labels of an example: from the cells of a row, or from an array `(N, L)`."""

from collections.abc import Callable, Sequence

import numpy as np

from consilium.client.data.columns import BadCell, Cells, Column, Floats, Values
from consilium.common.data.npz import Array
from consilium.common.data.words import DecimalSign, number_in
from consilium.common.errors import DataError

_WORDS = {"yes": "1", "no": "0"}
THERE = ("0", "1")
"""Values of a column that says whether an example has a label."""
UNKNOWN = -1
"""In an array of whole numbers, a label that is not known; in one of floats NaN is too."""
NAMES = "labels"
"""The array of the labels' names, where a file has them."""


def label_columns(names: Sequence[str], codes: Callable[[str], Sequence[str]]) -> dict[str, Column]:
    """Return what reads the cells of each label.

    Args:
        codes: the codes that mean a missing value in a column.
    """
    return {name: Finding(f"label column '{name}'", codes(name)) for name in names}


class Finding:
    """Reads the cells of one label: 1 or 0, true or false, yes or no in any case; others are unknown or bad."""

    def __init__(self, where: str, codes: Sequence[str]) -> None:
        """Take what the column is called in sentences, and the codes of missing values."""
        self._where = where
        self._words = {word: number for word, number in _WORDS.items() if word not in map(str.casefold, codes)}
        self._values = Values(where, THERE, codes, {True: "1", False: "0"}, whole=True)

    def encoded(self, texts: Sequence[str], decimal: DecimalSign) -> Cells:
        """Return 1, 0, or NaN where a cell is missing `(N, 1)`."""
        return self._values.encoded([self._words.get(text.casefold(), text) for text in texts], decimal)

    def problem(self, text: str) -> BadCell:
        """Return why a cell is none of the values."""
        seen = "text" if number_in(text) is None else "a number"
        return BadCell(
            f"{self._where}: expected 1 or 0, true or false, yes or no, or nothing where it is not known, got {seen} "
            "that is none of these (a code that means unknown goes into task.missing_values)"
        )


def together(labels: Sequence[Floats]) -> Floats:
    """Return labels `(N, L)`, given each `(N,)`."""
    return np.stack(labels, axis=1)


def labels_in_array(y: Array, names: Sequence[str], count: int, *, each: str, where: str) -> Floats:
    """Return labels `(count, L)`: 1, 0, NaN where one is not known; infinite where it is none of these.

    Args:
        each: what labels are of, for the sentence.

    Raises:
        DataError: an array of another shape or type.
    """
    if y.dtype.kind not in "fiub" or y.shape != (count, len(names)):
        raise DataError(
            f"{where}: array 'y' has type {y.dtype} and shape {y.shape}, expected numbers of shape ({count}, "
            f"{len(names)}): one for each {each} and label, 1, 0, or {UNKNOWN} where it is not known"
        )
    found = y.astype(np.float64)
    known = (found == 0) | (found == 1)
    return np.where(known, found, np.where(np.isnan(found) | (found == UNKNOWN), np.nan, np.inf))


def check_names(held: Array | None, names: Sequence[str], *, where: str) -> None:
    """Refuse labels' names that differ from the study's: in another order, every label would be wrong."""
    if held is not None and (held.dtype.kind != "U" or held.ravel().tolist() != list(names)):
        raise DataError(f"{where}: array '{NAMES}' differs from the study's labels {list(names)[:20]}")
