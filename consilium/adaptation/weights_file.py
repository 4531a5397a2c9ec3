"""Reads a run's weights file, and checks it against the study."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from consilium.common.errors import ModelError, UpdateRejected
from consilium.common.study.scale import Scale
from consilium.common.study.sentences import describe
from consilium.common.study.task import Task
from consilium.common.weights.arrays import Weights
from consilium.common.weights.checks import check_finite, check_like


@dataclass(frozen=True)
class WeightsFile:
    """A weights file as it was read: its arrays, what its header says, and its sha256."""

    path: Path
    arrays: Weights
    notes: Mapping[str, Any]
    sha256: str

    @property
    def round(self) -> int | None:
        """Return the round that the weights are of, where the header says it."""
        number = self.notes.get("round")
        return number if isinstance(number, int) else None

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a report says of the file."""
        return {"file": self.path.name, "sha256": self.sha256, "round": self.round}


def read_weights(path: Path, *, study: str) -> WeightsFile:
    """Return the weights file of a run of a study.

    Raises:
        ModelError: it cannot be read, is no safetensors file, or is of another study.
    """
    who = f"weights file '{path}'"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{who}: cannot be read: {error.strerror or error}") from error
    try:
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:  # KeyError: a dtype that NumPy lacks
        raise ModelError(f"{who}: is not a safetensors file like a run's global.safetensors") from error
    notes = _notes_in(content)
    if notes.get("study", study) != study:
        raise ModelError(f"{who}: is of study '{notes['study']}', the study.toml is of '{study}'")
    return WeightsFile(path, arrays, notes, hashlib.sha256(content).hexdigest())


def scale_in(file: WeightsFile, task: Task) -> tuple[Scale | None, list[str]]:
    """Return the scale of the federation's inputs (None: of the site's own rows), and a note where it is not known.

    Raises:
        ModelError: the header's scale is none of this task.
    """
    if not task.agrees_on_scale:
        return task.fixed_scale, []
    if "scale" not in file.notes:
        return None, [
            "the inputs are scaled by this site's own training rows: the weights file names no scale of all sites"
        ]
    try:
        scale = Scale.model_validate(file.notes["scale"])
    except ValidationError as error:
        raise ModelError(describe(error, f"scale in weights file '{file.path}'")) from error
    if len(scale.mean) != (expected := len(task.scaled_columns)):
        raise ModelError(
            f"weights file '{file.path}': its scale is of {len(scale.mean)} columns, the study has {expected}"
        )
    return scale, []


def check_weights(file: WeightsFile, like: Weights, *, study: str) -> None:
    """Check that the arrays are those of `like`, in name, shape and dtype.

    Raises:
        ModelError: they are not, or a number is not finite.
    """
    who, arrays = f"weights file '{file.path}'", file.arrays
    lists = {"lacks": sorted(like.keys() - arrays.keys()), "has unexpected": sorted(arrays.keys() - like.keys())}
    if faults := [f"{what} '{names[0]}'{_more(names)}" for what, names in lists.items() if names]:
        raise ModelError(f"{who}: does not hold what study '{study}' shares: it {' and '.join(faults)}")
    try:
        check_like(arrays, like, who=who)
        check_finite(arrays, who=who)
    except UpdateRejected as error:
        raise ModelError(str(error)) from error


def _notes_in(content: bytes) -> dict[str, Any]:
    """Return what the server wrote into the header of a (valid) safetensors file: study, round, scale; else nothing."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    try:
        notes = json.loads(header.get("__metadata__", {}).get("consilium", "{}"))
    except (ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
