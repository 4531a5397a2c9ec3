"""Options of `simulate`, `rounds` and `compare` that say what the clients' data are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

Scaling = Literal["federation", "site"]
Missing = Literal["refuse", "drop_row", "impute"]


class DataOptions(TypedDict, total=False):
    """What the clients' data are, where they do not say it themselves."""

    label: str
    """Of DataFrames: the column with the class or the number to learn."""
    columns: Sequence[str]
    """Of DataFrames: the columns to learn from; without it all others, if none is doubtful."""
    classes: Sequence[str]
    """The classes by name, in the order in which whole numbers count them from 0; without it, the labels there are."""
    tolerance: float
    """The label is a number, and an answer that is off by this or less counts as right."""
    missing: Missing
    """Of DataFrames: what becomes of a row with a missing value; without it none may be missing."""
    weights_dir: str | Path | None
    """The folder of pretrained weights, for a study whose `model.pretrained` names a file."""
    scale: Scaling
    """By whose training rows numbers are standardised; without it a DataFrame's by all sites', arrays by nobody's."""


def task_options(options: DataOptions) -> dict[str, Any]:
    """Return those options that are settings of a task in the same words."""
    return {name: options[name] for name in ("missing", "scale") if options.get(name) is not None}
