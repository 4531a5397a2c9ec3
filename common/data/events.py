"""Columns that seem to say whether an event was seen, next to a label that may then be a censored time."""

import re
from collections.abc import Collection

from consilium.common.data.words import MISSING_IN_NUMBERS, number_in, truth_in

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SAY_IT = frozenset(["event", "status", "censored", "cens", "censor", "died", "death", "dead", "deceased"])
_WITH_THEM = frozenset(
    ["e", "is", "has", "was", "flag", "indicator", "vital", "survival", "overall", "os", "pfs", "dfs"]
)
"""Words that may stand beside one of those; `smoking_status` and `hospital_death` say something else."""


def names_event(column: str) -> bool:
    """Return whether a column's name says that it tells events from censored times, as `died` and `OS_STATUS` do."""
    words = {word.lower() for word in _WORD.findall(column)}
    return bool(words & _SAY_IT) and words <= _SAY_IT | _WITH_THEM


def seen_in(cell: str) -> str:
    """Return what a cell says of an event: `1` or `0`, "" where nothing is known, else the cell."""
    text = cell.strip()
    if text.casefold() in MISSING_IN_NUMBERS:
        return ""
    truth = truth_in(text)
    value = number_in(text) if truth is None else float(truth)
    return f"{value:.0f}" if value in (0, 1) else text


def tells_events(values: Collection[str]) -> bool:
    """Return whether values from `seen_in` are both 0 and 1, and nothing else that is known."""
    return {"0", "1"} == {*values} - {""}


def perhaps_censored(label: str, event: str) -> str:
    """Return the sentence about a label that is learned as a number where a column seems to tell events."""
    return (
        f"the label '{label}' may be a time that is censored: column '{event}' has only 0 and 1, and a regression "
        "takes the time at which somebody was last seen for that of the event"
    )
