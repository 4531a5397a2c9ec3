"""A model's folder of somebody else: whatever it says, loading it ends with a model, or with a sentence."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_models import PICTURES, TABLE, made_model
from safetensors.numpy import save_file

from consilium.client.data.base import Inputs
from consilium.client.served import load_model
from consilium.client.served.summary import read_summary
from consilium.common.errors import ModelError
from consilium.common.model import RECORD, SUMMARY, WEIGHTS, read_record
from consilium.serving.find import find_model

_NUMBERS = {
    "name": "column 'age'",
    "known": 10,
    "missing": 0,
    "points": [*range(9)],
    "below": [0] * 9,
    "up_to": [1] * 9,
}
KNN = {"model.weight": np.ones((1, 2), np.float32), "model.bias": np.zeros(1, np.float32)}


def forged(folder: Path, change: Callable[[dict[str, Any]], object], **arrays: Any) -> Path:
    """Write a model's folder with other arrays and a changed record, whose digests are right."""
    made_model(folder)
    if arrays:
        save_file({name: np.asarray(array) for name, array in arrays.items()}, folder / WEIGHTS)
    values = json.loads((folder / RECORD).read_text())
    del values["sha256"]
    values["files"][WEIGHTS] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    change(values)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    (folder / RECORD).write_text(json.dumps(values | {"sha256": hashlib.sha256(text.encode()).hexdigest()}))
    return folder


def refused(folder: Path) -> str:
    """Return the sentence with which a folder is refused."""
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    return str(caught.value)


def test_forged_folder_is_one_that_would_be_taken(tmp_path: Path) -> None:
    """Without a change it is loaded: what the other tests see is refused for what they changed."""
    assert load_model(forged(tmp_path / "m", lambda values: None)).record.classes == ("no", "yes")


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_arrays_that_are_not_finite_answer_nothing(number: float, tmp_path: Path) -> None:
    """The most probable class of no numbers would be the first one, of every patient."""
    folder = forged(tmp_path / "m", lambda values: None, weight=[[number, 1.0]], bias=[0.0])
    with np.errstate(over="ignore"):
        assert "array 'weight' holds numbers that are not finite" in refused(folder)


def test_buffers_may_be_infinite(tmp_path: Path) -> None:
    """As those that hide a place from attention; answers that are not finite are refused all the same."""
    near = {"features": np.array([[np.inf, 1]], np.float32), "classes": np.array([0]), "mix": np.array(0.5)}
    model = load_model(forged(tmp_path / "m", _set("method", {"kind": "knn_per"}), **KNN, **near))
    with pytest.raises(ModelError, match="answers with numbers that are not finite"):
        model.logits(torch.zeros(1, 2))


def test_answers_that_are_not_finite_are_none(tmp_path: Path) -> None:
    """Finite arrays and finite inputs whose sum is infinite less infinite."""
    big = np.float32(3e38)
    model = load_model(forged(tmp_path / "m", lambda values: None, weight=np.array([[big, -big]]), bias=np.zeros(1)))
    x = np.array([[10.0, 10.0]])
    with pytest.raises(ModelError, match="answers with numbers that are not finite"):
        model.answers(model.prepared(Inputs(x=torch.from_numpy(x), names=("1",))))


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets the value at a path of a record."""
    *keys, last, value = path

    def change(values: dict[str, Any]) -> None:
        for key in keys:
            values = values[key]
        values[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_set("files", {}), f"does not say which {WEIGHTS} belongs to it"),
        (_set("files", "../x", "0" * 64), "must be the name of a file or folder without a path"),
        (
            _set("model", {"name": "mlp", "hidden": [200_000] * 3}),
            "a model of 80001200001 numbers, its weights have 3",
        ),
        (_set("model", {"name": "mlp", "hidden": [10**18]}), "describes a model of 4000000000000000001 numbers"),
        (_set("model", {"name": "mlp", "hidden": [10**30]}), "cannot be built as its record and its arrays say"),
        (_set("task", {"kind": "features", "classes": ["a", "b"], "shape": [10**15] * 6}), "cannot be built"),
        (_set("model", "name", "\x1b[31m"), "model.name: must hold no control character"),
        (_set("provenance", "run", "x\x1b[31m"), "provenance.run: must be"),
        (_set("provenance", "created", "\x1b]0;x\x07"), "provenance.created: must hold no control character"),
        (_set("provenance", "consilium", "\n"), "provenance.consilium: must hold no control character"),
        (_set("scores", [{"name": "\u202e", "num": 1, "patients": 1, "value": 0}]), "must hold no control character"),
        (_set("task", "columns", "sex", "values", ["f", "\x1b[31m"]), "must hold no control character"),
        (_set("calibration", {"kind": "residuals", "width": 1, "num": 5}), "is of another kind of answer"),
        (
            _set(
                "calibration",
                {
                    "kind": "temperature",
                    "temperature": 1e-320,
                    "num": 5,
                    "log_loss": [1, 1],
                    "calibration_error": [1, 1],
                },
            ),
            "temperature: must be at least 0.01",
        ),
        (_set("method", {"kind": "knn_per"}), "array 'classes' is not there"),
    ],
)
def test_what_a_record_says_is_refused_with_a_sentence(
    change: Callable[[dict[str, Any]], None], sentence: str, tmp_path: Path
) -> None:
    """Sizes that no machine holds, names that lead out or steer a terminal, digests left out."""
    assert sentence in refused(forged(tmp_path / "m", change))


@pytest.mark.parametrize(
    ("features", "classes", "mix"),
    [
        (np.ones((2, 3)), [0, 1], 0.5),
        (np.ones((2, 2)), [0, -9], 0.5),
        (np.ones((2, 2)), [0, 7], 0.5),
        (np.ones((2, 2)), [0, 1], 7.5),
        (np.ones((0, 2)), [], 0.5),
        (np.ones((2, 2)), [0.0, 1.0], 0.5),
    ],
)
def test_examples_of_neighbours_that_are_none_are_refused(
    features: Any, classes: Any, mix: float, tmp_path: Path
) -> None:
    """Of another width, of classes that there are not, with a share beyond the whole."""
    near = {"features": features.astype(np.float32), "classes": np.array(classes, dtype=None if classes else np.int64)}
    folder = forged(tmp_path / "m", _set("method", {"kind": "knn_per"}), **KNN, **near, mix=np.array(mix))
    assert "model '" in refused(folder)


def test_pipe_that_is_called_as_a_record_is_none(tmp_path: Path) -> None:
    """A folder is searched for models without waiting for somebody who writes into the pipe."""
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / RECORD)
    made_model(tmp_path / "b")
    assert find_model(tmp_path) == tmp_path / "b"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_files_without_an_end_are_not_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    """A pipe and a device in the place of the arrays, and of the summary."""
    folder = made_model(tmp_path / "m")
    make(folder / SUMMARY)
    assert read_summary(folder) is None
    (folder / WEIGHTS).unlink()
    make(folder / WEIGHTS)
    with pytest.raises(ModelError, match=f"{WEIGHTS} is no ordinary file"):
        read_record(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": json.loads(PICTURES.model_dump_json())}, "is of another task than the model"),
        ({"shares": [{"name": "column 'sex'", "missing": 0, "counts": {"f": 1e300}}]}, "must be at most"),
        ({"shares": [{"name": "column 'sex'", "missing": 0, "counts": {"f": -1}}]}, "must be at least 0"),
        ({"numbers": [_NUMBERS | {"known": 0}]}, "points are of patients with a value, of whom there are none"),
        ({"numbers": [_NUMBERS | {"name": "\x1b[31m"}]}, "must hold no control character"),
    ],
)
def test_summary_that_cannot_be_is_a_sentence(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    """Of another task, with less than nobody, with more than there are, with a name that steers a terminal."""
    summary = {"task": json.loads(TABLE.model_dump_json()), "num": 10, "patients": 10, "numbers": [_NUMBERS]}
    (tmp_path / SUMMARY).write_text(json.dumps(summary))
    assert read_summary(tmp_path, TABLE) is not None
    (tmp_path / SUMMARY).write_text(json.dumps(summary | change))
    with pytest.raises(ModelError, match=sentence):
        read_summary(tmp_path, TABLE)
