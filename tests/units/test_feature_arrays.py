"""Arrays of any shape: the reader, the task's rules, and the scale of rows of numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consilium.client.data import read_data
from consilium.client.data.inputs import pictures_inputs, read_inputs
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.features_task import FeaturesTask
from consilium.common.study.scale import Scale
from consilium.common.study.site import FeaturesData, TableData
from consilium.common.study.task import Regression, TableTask
from consilium.common.study.training import SplitConfig

N = 24
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, 3)) * [1, 10, 100]
Y = np.arange(N) % 3
TASK = FeaturesTask(shape=(3,), classes=("a", "b", "c"))


def read(
    folder: Path, task: Any = TASK, *, max_skipped: int = 0, split: SplitConfig | None = None, **arrays: Any
) -> Any:
    """Write the arrays, and return what is read of them."""
    np.savez(folder / "data.npz", **({"x": X, "y": Y} | arrays))
    config = FeaturesData(path=folder, max_skipped=max_skipped)
    return read_data(config, task, split or SplitConfig(), site="berlin", min_examples=2)


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    """Any shape and number type; float32 and unscaled, in the order of the file."""
    x = RNG.normal(size=(N, 2, 3, 4))
    unscaled = read(tmp_path, FeaturesTask(shape=(2, 3, 4), classes=("a", "b", "c")), x=x)
    assert torch.equal(torch.tensor(x, dtype=torch.float32), unscaled.raw.x)
    assert Y.tolist() == unscaled.raw.y.tolist()
    data = unscaled.scaled(None)
    assert data.scale is None
    assert (2, 3, 4) == data.input_shape
    assert N == len(data.train) + len(data.validation) + len(data.test)


def test_number_as_label_is_centred_and_scaled(tmp_path: Path) -> None:
    """(label - center) / scale, as of a table."""
    task = FeaturesTask(shape=(3,), regression=Regression(center=10, scale=4, tolerance=1))
    unscaled = read(tmp_path, task, y=np.arange(N) * 2.0)
    assert ((np.arange(N) * 2 - 10) / 4).tolist() == unscaled.raw.y.tolist()
    assert "share within 1 of the true number" == task.score


def test_own_scale_is_that_of_the_training_rows(tmp_path: Path) -> None:
    """Mean 0 and standard deviation 1 of the site's own training rows, in every feature."""
    task = TASK.model_copy(update={"scale": "site"})
    train = read(tmp_path, task).scaled(None).train.x.double()
    assert [0, 0, 0] == pytest.approx(train.mean(dim=0).tolist(), abs=1e-6)
    assert [1, 1, 1] == pytest.approx(train.std(dim=0, correction=0).tolist(), abs=1e-6)


def test_scale_of_all_sites_is_subtracted_and_divided_by(tmp_path: Path) -> None:
    """The scale that the server sends holds; its sums are those of the training rows."""
    task = TASK.model_copy(update={"scale": "federation"})
    unscaled = read(tmp_path, task)
    assert (("feature 0", "feature 1", "feature 2"), True) == (task.scaled_columns, task.agrees_on_scale)
    assert X[unscaled.parts.train].sum(axis=0) == pytest.approx(np.array(unscaled.moments(least=1).sums))
    data = unscaled.scaled(Scale(mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0)))
    wanted = (X[unscaled.parts.test] - [1, 2, 3]) / [2, 4, 8]
    np.testing.assert_allclose(wanted, data.test.x.numpy(), rtol=1e-6)


def test_copies_and_patients_stay_together(tmp_path: Path) -> None:
    """An exact copy is one patient's row with its original; `split.group` names an array."""
    x, y = np.vstack([X, X[:2]]), np.append(Y, Y[:2])
    assert 2 == read(tmp_path, x=x, y=y).raw.copies.num_copies
    grouped = read(tmp_path, split=SplitConfig(group="who"), who=np.arange(N) // 2)
    assert N // 2 == grouped.card.num_groups


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": X[:, :2]}, "array 'x' has shape (24, 2), expected (N, 3) as task.shape says"),
        ({"x": X.astype(str)}, "array 'x' has type <U32, expected numbers"),
        ({"y": Y[:-1]}, "array 'y' has shape (23,), expected (24,), one number for each example"),
        ({"y": Y * 1.0}, "array 'y' has type float64, expected integer class numbers"),
        ({"y": Y + 1}, "example 2: its label in 'y' is not one of 0..2"),
        ({"x": np.where(X == X[4], np.nan, X)}, "example 4: a number in 'x' is not finite, or too large"),
        ({"x": np.where(X == X[4], 1e300, X)}, "example 4: a number in 'x' is not finite, or too large"),
        ({"classes": np.array(["b", "a", "c"])}, "array 'classes' differs from the study's classes"),
    ],
)
def test_arrays_that_cannot_be_used(arrays: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    """Each names the site, the file, and the array or the example."""
    with pytest.raises(DataError) as error:
        read(tmp_path, **arrays)
    assert sentence in str(error.value)
    assert "site 'berlin'" in str(error.value)


def test_bad_examples_are_skipped_as_far_as_is_allowed(tmp_path: Path) -> None:
    """One that is not finite, with max_skipped = 1."""
    unscaled = read(tmp_path, max_skipped=1, x=np.where(X == X[4], np.nan, X))
    assert (N - 1, 1) == (len(unscaled.raw.y), unscaled.raw.num_skipped)


def test_task_refuses_what_does_not_go_together() -> None:
    """Classes or a number; a scale for rows of numbers only."""
    for values, sentence in (
        ({"shape": [3]}, "give either 'classes'"),
        ({"shape": [3], "classes": ["a"]}, "give either 'classes'"),
        ({"shape": [], "classes": ["a", "b"]}, "at least 1 item"),
        ({"shape": [0], "classes": ["a", "b"]}, "greater than or equal to 1"),
        ({"shape": [3, 4], "classes": ["a", "b"], "scale": "site"}, "standardises the features of a row"),
    ):
        with pytest.raises(ValueError, match=sentence):
            FeaturesTask.model_validate(values)


def test_data_of_another_kind_is_refused(tmp_path: Path) -> None:
    """A table's task over arrays, and arrays' task over a table."""
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    table = TableTask(label="y", classes=("a", "b"), columns={"c": {"kind": "number"}})  # type: ignore[dict-item]  # pydantic makes a column of it
    for config, task in ((FeaturesData(path=tmp_path), table), (TableData(path=tmp_path), TASK)):
        with pytest.raises(ConfigError, match=r"data\.kind is"):
            read_data(config, task, SplitConfig(), site="berlin", min_examples=2)


def test_finished_model_is_asked_about_the_same_inputs(tmp_path: Path) -> None:
    """Of a file and of an array, bit for bit what the reader gives; what cannot be read is named."""
    raw = read(tmp_path, x=np.where(X == X[4], np.nan, X), max_skipped=1).raw
    from_file = read_inputs(tmp_path / "data.npz", TASK, labelled=True)
    from_array = pictures_inputs(np.where(X == X[4], np.nan, X), TASK)
    assert torch.equal(raw.x, from_file.x)
    assert torch.equal(raw.x, from_array.x)
    assert from_file.y is not None
    assert torch.equal(raw.y, from_file.y)
    assert ["4"] == [one.name for one in from_array.unread] == [one.name for one in from_file.unread]
    assert "5" == from_array.names[4]
