"""Pieces of a page in Markdown."""

import inspect
import textwrap
from collections.abc import Iterable
from typing import Any

NOTE = "<!-- Written by `python -m docs.generate` from the code: change it there. -->"


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return a table's lines, with an empty one after it."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *lines, ""]


def paragraph(text: str) -> list[str]:
    """Return a paragraph's lines of at most 120 characters, with an empty one after it; none for no text."""
    if not text.strip():
        return []
    return [*textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False), ""]


def page(lines: Iterable[str]) -> str:
    """Return a page of its lines."""
    return "\n".join([NOTE, *lines]).rstrip() + "\n"


def summary(thing: type[Any]) -> str:
    """Return the first paragraph of a docstring as one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
