"""Patterns of file names that a study may send to a site: regular expressions that are quick on every name."""

import re

_ONE = r"(?:\\[dwsDWS._()\[\]{}+*?^$|-]|\[\^?[\w .-]+\]|[\w .-])"
_TIMES = r"(?:[*+?]|\{\d{1,3}(?:,\d{0,3})?\})?"
_SOME = rf"(?:{_ONE}{_TIMES})"
_PATTERN = re.compile(rf"\^?{_SOME}*\({_SOME}+\){_SOME}*\$?", re.ASCII)
_REPEAT = re.compile(r"(?<!\\)(?:[*+?]|\{\d+,\d*\})")
_MOST_REPEATS = 4

EXAMPLE = "^(P[0-9]+)_"


def file_pattern(text: str) -> "re.Pattern[str] | None":
    """Return a regular expression with one pair of brackets; None if the text is not one that is safe to run.

    Letters, digits, `_`, `-`, `.`, blanks, classes such as `[0-9]` and `\\d`, each with `*`, `+`, `?` or `{2,4}` after
    it; `^` first and `$` last. Neither alternatives nor repeated brackets nor more than four repeats, with which a
    short text could keep a machine busy for years.
    """
    if not _PATTERN.fullmatch(text) or len(_REPEAT.findall(text)) > _MOST_REPEATS:
        return None
    try:
        return re.compile(text, re.ASCII)
    except re.error:
        return None
