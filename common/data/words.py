"""What the texts of a table's cells mean: words for nothing, numbers with a point or a comma, true and false."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

DecimalSign = Literal[".", ","]
"""The sign between a number's whole part and its fraction."""

MISSING = frozenset(
    {
        *("", "?", "na", "n/a", "#n/a", "#n/a n/a", "#na", "<na>", "nan", "-nan", "null"),
        *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    }
)
"""Cells that are missing, in lower case: the words that pandas knows, and `?` as in UCI's files."""

MISSING_IN_NUMBERS = MISSING | {"none", "-", "."}
"""Cells that are missing in a column of numbers, in lower case; in one of texts they may be a category's value."""

TRUE, FALSE = "true", "false"
"""Truth values in lower case; 1 and 0 among numbers."""

BoolTexts = Mapping[bool, str]
ONE_OR_ZERO: BoolTexts = {True: "1", False: "0"}

_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_POINT = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")


def number_in(text: str) -> float | None:
    """Return the number that a cell holds, infinity and NaN included; None for text."""
    try:
        # Python reads "1_000" as a number; in a table it is more likely an identifier.
        return None if "_" in text else float(text)
    except ValueError:
        return None


def with_point(text: str, decimal: DecimalSign) -> str:
    """Return a number's text with a point before its fraction; a text that is no number in this writing stays one.

    With a decimal comma, a point has no place in a number: it would be read as something else than was meant.
    """
    if decimal == ".":
        return text
    if _COMMA.fullmatch(text):
        return text.replace(",", ".")
    return f"{text} with a point" if _POINT.fullmatch(text) else text


def has_comma(text: str) -> bool:
    """Return whether a text would be a number if its comma were a point."""
    return _COMMA.fullmatch(text) is not None


def decimal_of(cells: Iterable[str]) -> DecimalSign:
    """Return the decimal sign of a file, by cells of its number columns.

    It is a comma where some have a comma that can be no sign of thousands, as it can in 1,234, and none has a point.
    """
    commas = False
    for cell in cells:
        if _POINT.fullmatch(cell):
            return "."
        commas = commas or (_COMMA.fullmatch(cell) is not None and _THOUSANDS.fullmatch(cell) is None)
    return "," if commas else "."


def truth_in(text: str) -> bool | None:
    """Return the truth value that a cell holds; None where it holds none."""
    low = text.casefold()
    return low == TRUE if low in (TRUE, FALSE) else None


def same_value(one: str, other: str) -> bool:
    """Return whether two cells hold the same text or the same number."""
    if one == other:
        return True
    first, second = number_in(one), number_in(other)
    return first is not None and second is not None and math.isfinite(first) and first == second
