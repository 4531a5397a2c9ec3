"""What the labels of all clients are: classes, or a number; and how a study writes them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.api.arrays import Array
from consilium.api.options import DataOptions
from consilium.common.errors import ConfigError, clean, listed

MOST_CLASSES = 20
"""Whole numbers with more different values may be numbers as well as classes: the caller says which."""
USUAL_TOLERANCE = 0.5
"""Default of `tolerance`, in standard deviations of the label."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of all clients.

    Args:
        task: the settings of the task that say what they are: `classes`, or `regression`.
        values: per client the numbers of the classes, or the numbers themselves.
        notes: what was assumed, in sentences.
    """

    task: Mapping[str, Any]
    values: Mapping[str, Array]
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none where the label is a number."""
        return tuple(self.task.get("classes", ()))


def read_labels(given: Mapping[str, Array], options: DataOptions, *, what: str = "y") -> Labels:
    """Return what the labels `(N,)` of all clients are.

    Texts, truth values and up to 20 different whole numbers are classes; other numbers are numbers.

    Raises:
        ConfigError: labels are missing, of different kinds, or can be read in two ways.
    """
    for name, labels in given.items():
        if missing := _num_missing(labels):
            raise ConfigError(
                f"client '{name}': {missing} of {len(labels)} labels ({what}) are missing: leave them out"
            )
    kinds = {name: _kind(labels) for name, labels in given.items()}
    if len(set(kinds.values())) > 1:
        one, of_one = next(iter(kinds.items()))
        other, of_other = next((name, kind) for name, kind in kinds.items() if kind != of_one)
        raise ConfigError(
            f"labels ({what}) of client '{one}' are {of_one}, those of client '{other}' are {of_other}; expected "
            "one kind"
        )
    kind = next(iter(kinds.values()))
    if options.get("tolerance") is not None:
        return _numbers(given, options["tolerance"], kind, what)
    if kind == "numbers" and options.get("classes") is None:
        return _numbers(given, None, kind, what)
    return _classes(given, options.get("classes"), kind, what)


def _num_missing(labels: Array) -> int:
    if labels.dtype.kind == "f":
        return int(np.isnan(labels).sum())
    return int((labels == "").sum()) if labels.dtype.kind == "U" else 0


def _kind(labels: Array) -> str:
    names = {"U": "texts", "b": "truth values", "i": "whole numbers", "u": "whole numbers"}
    return names.get(labels.dtype.kind, "numbers")


def _numbers(given: Mapping[str, Array], tolerance: float | None, kind: str, what: str) -> Labels:
    if kind in ("texts", "truth values"):
        raise ConfigError(f"tolerance: is for labels that are numbers, but {what} holds {kind}")
    values = {name: labels.astype(np.float64) for name, labels in given.items()}
    for name, labels in values.items():
        if bad := int((~np.isfinite(labels)).sum()):
            raise ConfigError(f"client '{name}': {bad} of {len(labels)} labels ({what}) are no finite numbers")
    whole = np.concatenate(list(values.values()))
    different = np.unique(whole)
    if tolerance is None and len(different) <= MOST_CLASSES and (different == different.round()).all():
        shown = listed([f"{value:g}" for value in different], 5)
        raise ConfigError(
            f"{what} holds whole numbers written as decimals ({shown}), which may be classes or a number: give "
            "integers for classes, or tolerance=... for a number"
        )
    spread = float(whole.std())
    if not spread:
        raise ConfigError(f"{what}: all labels are {different[0]:g}, so there is nothing to learn")
    scale = float(f"{spread:.3g}")
    center = round(float(whole.mean()), 2 - math.floor(math.log10(scale)))
    usual = float(f"{USUAL_TOLERANCE * spread:.2g}")
    notes = (
        ()
        if tolerance is not None
        else (
            f"the label is a number: an answer that is off by {usual:g} or less counts as right (half a standard "
            "deviation; tolerance=... changes it)",
        )
    )
    regression = {"center": center, "scale": scale, "tolerance": usual if tolerance is None else tolerance}
    return Labels({"regression": regression}, values, notes)


def _classes(given: Mapping[str, Array], names: Sequence[str] | None, kind: str, what: str) -> Labels:
    if names is not None:
        return _named(given, [str(name) for name in names], kind, what)
    different = sorted(set().union(*(set(labels.tolist()) for labels in given.values())))
    if kind == "whole numbers" and len(different) > MOST_CLASSES:
        raise ConfigError(
            f"{what} holds {len(different)} different whole numbers, which may be classes or a number: say "
            "classes=[...] by their names, or tolerance=... for a number"
        )
    if len(different) < 2:
        raise ConfigError(f"{what}: every label is '{clean(str(different[0]), 60)}', expected two classes or more")
    place = {value: number for number, value in enumerate(different)}
    values = {name: np.array([place[one] for one in labels.tolist()], dtype=np.int64) for name, labels in given.items()}
    return Labels({"classes": [_text(value) for value in different]}, values)


def _named(given: Mapping[str, Array], names: Sequence[str], kind: str, what: str) -> Labels:
    place = {name: number for number, name in enumerate(names)}
    texts = all(_text(value) in place for labels in given.values() for value in np.unique(labels).tolist())
    values = {}
    for client, labels in given.items():
        if kind == "texts" or texts:
            codes = [place.get(_text(value), -1) for value in labels.tolist()]
        else:
            codes = [int(value) if value == int(value) else -1 for value in labels.tolist()]
        values[client] = np.array(codes, dtype=np.int64)
        if wrong := [row for row, code in enumerate(codes) if not 0 <= code < len(names)]:
            shown = clean(str(labels.tolist()[wrong[0]]), 60)
            raise ConfigError(
                f"client '{client}': label '{shown}' ({what}) is none of the classes {listed(names, 10)}, nor a number "
                f"from 0 to {len(names) - 1}"
            )
    return Labels({"classes": list(names)}, values)


def _text(value: Any) -> str:
    return str(value).strip()
