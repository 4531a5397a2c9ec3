"""Cells of a table that other programs open: no formula, no control character, quotes where they are needed."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from consilium.common.errors import clean

LINES_AT_ONCE = 4096
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_FORMULA = re.compile(r"""(^|;)(\s*["']*\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])""")
"""Where a formula may begin: at the beginning, or after a separator of other countries' spreadsheets."""


def text_cell(text: str) -> str:
    """Return a text from outside as it may stand in a cell.

    Control characters are written out. What a spreadsheet would take for a formula (`=`, `+`, `-`, `@` at the
    beginning, or after a `;`) gets an apostrophe before it; plain numbers, as -1.5, stay as they are.
    """
    plain = clean(text, max(len(text), 40))
    if _NUMBER.fullmatch(plain):
        return plain
    return _FORMULA.sub(r"\1'\2", plain)


def number_cell(value: float) -> str:
    """Return a number with all digits that a model in float32 knows."""
    return f"{value:.9g}"


def distinct(names: Sequence[str], *, taken: Sequence[str]) -> list[str]:
    """Return names as cells; one that is taken gets `data_` before it, until all differ."""
    used, found = set(taken), list[str]()
    for name in names:
        cell = text_cell(name)
        while cell in used:
            cell = f"data_{cell}"
        used.add(cell)
        found.append(cell)
    return found


def csv_lines(rows: Iterable[Sequence[str]]) -> Iterator[bytes]:
    """Yield rows of cells as CSV in UTF-8, some thousand lines at once."""
    left = iter(rows)
    while block := list(islice(left, LINES_AT_ONCE)):
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(block)
        yield file.getvalue().encode()
