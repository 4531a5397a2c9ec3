"""Arrays as a task of a study: bytes are images, other numbers are features, as they are; and the sites' files."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from consilium.api.arrays import Array, Arrays
from consilium.api.labels import Labels, read_labels
from consilium.api.options import DataOptions, task_options
from consilium.common.data.npz import channels_last
from consilium.common.errors import ConfigError, DataError
from consilium.common.host.files import write_atomically
from consilium.common.study.features_task import FeaturesTask
from consilium.common.study.task import ImageTask, SeriesTask, TableTask, Task, TextTask

GROUPS = "patients"
"""The array that says whose an example is, where clients give one."""
FLAT_MODELS = ("mlp", "mlp_bn", "linear")
"""Models that take inputs of any shape; others take images with their channels first."""
_SIZES = range(4, 1025)


def arrays_task(
    clients: Mapping[str, Arrays], options: DataOptions, model: str
) -> tuple[dict[str, Any], dict[str, dict[str, Array]], tuple[str, ...]]:
    """Return the settings of the task of all clients' arrays, the arrays as they are written, and notes.

    Args:
        model: its name; "" for a module of somebody's own.

    Raises:
        ConfigError: shapes differ, or the labels are doubtful.
    """
    _check_alike(clients)
    if "missing" in options or "label" in options or "columns" in options:
        what = next(name for name in ("missing", "label", "columns") if name in options)
        raise ConfigError(f"{what}: is for DataFrames, but the clients give arrays")
    labels = read_labels({name: of.y for name, of in clients.items()}, options)
    inputs = {name: of.x for name, of in clients.items()}
    if all(x.dtype == np.uint8 for x in inputs.values()) and next(iter(inputs.values())).ndim > 2:
        task = _images(inputs, labels)
    else:
        if any(x.dtype == np.uint8 for x in inputs.values()):
            _same_type(inputs)
        if model and model not in FLAT_MODELS:
            inputs = {name: _channels_first(x) for name, x in inputs.items()}
        shape = list(next(iter(inputs.values())).shape[1:])
        task = {"kind": "features", "shape": shape, **labels.task}
    held = {name: {"x": x, "y": labels.values[name]} for name, x in inputs.items()}
    return task | task_options(options), _with_patients(held, clients), labels.notes


def as_the_study_says(clients: Mapping[str, Arrays], task: Task) -> dict[str, dict[str, Array]]:
    """Return arrays as they are written for a study whose task is known already.

    Raises:
        ConfigError: the task is about tables, or the labels are not of its kind.
    """
    if isinstance(task, TextTask):
        raise ConfigError("the study's task is about texts: give every client's rows as a DataFrame with a text column")
    if isinstance(task, TableTask):
        raise ConfigError("the study's task is a table: give every client's rows as a DataFrame")
    options: DataOptions = {"classes": task.classes} if task.classes else {"tolerance": 1.0}
    labels = read_labels({name: of.y for name, of in clients.items()}, options)
    held = {name: {"x": of.x, "y": labels.values[name]} for name, of in clients.items()}
    return _with_patients(held, clients)


def data_kind(task: Task) -> str:
    """Return `data.kind` of a site with arrays for this task."""
    if isinstance(task, TextTask):
        return "text"
    if isinstance(task, SeriesTask):
        return "series"
    return "features" if isinstance(task, FeaturesTask) else "arrays" if isinstance(task, ImageTask) else "table"


def array_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Return arrays as a site's `.npz` file."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type] # none is called allow_pickle
    return file.getvalue()


def write_if_new(path: Path, content: bytes) -> None:
    """Write a file, unless it holds this already: its time stays, and what was computed from it is in force.

    Raises:
        StateError: it cannot be written.
    """
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content, mode=0o600)


def _check_alike(clients: Mapping[str, Arrays]) -> None:
    first, expected = next(iter(clients.items()))
    for name, of in clients.items():
        if of.x.shape[1:] != expected.x.shape[1:]:
            raise ConfigError(
                f"client '{name}': an example has shape {of.x.shape[1:]}, but at client '{first}' "
                f"{expected.x.shape[1:]}; expected the same"
            )
        if (of.patients is None) != (expected.patients is None):
            raise ConfigError(
                "some clients say whose each example is, and others do not: expected (x, y, patients) of all"
            )


def _same_type(inputs: Mapping[str, Array]) -> None:
    types = {str(x.dtype) for x in inputs.values()}
    if len(types) > 1 and any(x.ndim > 2 for x in inputs.values()):
        raise ConfigError(
            f"x is of different types at the clients, {', '.join(sorted(types))}: bytes count as 0..255, so "
            "expected one type"
        )


def _images(inputs: Mapping[str, Array], labels: Labels) -> dict[str, Any]:
    name, x = next(iter(inputs.items()))
    try:
        shape = channels_last(x, where=f"client '{name}'").shape
    except DataError as error:
        raise ConfigError(f"{error}; images are bytes, and other numbers are given as floats") from error
    if labels.task.get("regression"):
        raise ConfigError(
            "images (bytes) have classes as labels, got numbers: give x as floats to learn a number from them"
        )
    _, height, width, channels = shape
    if height != width or height not in _SIZES:
        raise ConfigError(
            f"images have {height} x {width} pixels, expected squares of {_SIZES.start} to {_SIZES.stop - 1}: crop or "
            "resize them, or give x / 255 as floats to use them as they are"
        )
    return {"kind": "images", "size": height, "channels": channels, **labels.task}


def _channels_first(x: Array) -> Array:
    """Return pictures in floats `(N, C, H, W)`, as our models of images take them; anything else as it is."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        return np.ascontiguousarray(np.moveaxis(x, 3, 1))
    return x


def _with_patients(held: Mapping[str, dict[str, Array]], clients: Mapping[str, Arrays]) -> dict[str, dict[str, Array]]:
    owners = {name: of.patients for name, of in clients.items()}
    return {
        name: arrays if (own := owners[name]) is None else {**arrays, GROUPS: _names(own)}
        for name, arrays in held.items()
    }


def _names(patients: Array) -> Array:
    return patients if patients.dtype.kind in "iuU" else patients.astype(str)
