"""Pools of numbers that are no pictures: rows of features, volumes, numbers as labels, and the task of each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.common.errors import ConfigError, DataError
from consilium.common.study.features_task import FeaturesTask
from consilium.common.study.load import load_study
from consilium.common.study.task import ImageTask
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool

N, SITES = 120, 3
RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(N, 5)), np.arange(N) % 3
CLASSES = np.array(["a", "b", "c"])
IID = SplitOptions("iid", sites=SITES)


def split(folder: Path, options: SplitOptions = IID, **arrays: Any) -> Path:
    """Write a pool, divide it, and return the federation's folder."""
    np.savez(folder / "pool.npz", **({"x": X, "y": Y} | arrays))
    split_pool(folder / "pool.npz", folder / "fed", options)
    return folder / "fed"


def task_of(federation: Path) -> FeaturesTask:
    """Return the task of a federation's study, which is one of features."""
    task = load_study(federation / "study.toml").task
    assert isinstance(task, FeaturesTask)
    return task


def held(federation: Path, name: str) -> Any:
    """Return an array of all sites, one after the other."""
    files = sorted(federation.glob("*/data/data.npz"))
    return np.concatenate([np.load(file, allow_pickle=False)[name] for file in files])


@pytest.mark.parametrize("dtype", ["float64", "float32", "int16", "uint8", "bool"])
def test_rows_of_numbers_are_features(tmp_path: Path, dtype: str) -> None:
    """`(N, D)` of any numbers: every row is at one site as it was, and the study scales by all sites' rows."""
    x = (np.abs(X) * 50).astype(dtype) if dtype != "bool" else X > 0
    federation = split(tmp_path, x=x, classes=CLASSES)
    task = task_of(federation)
    assert ((5,), "federation", ("a", "b", "c")) == (task.shape, task.scale, task.classes)
    rows, labels = held(federation, "x"), held(federation, "y")
    assert (x.dtype, x.shape) == (rows.dtype, rows.shape)
    assert sorted(map(tuple, np.c_[x, Y].tolist())) == sorted(map(tuple, np.c_[rows, labels].tolist()))


def test_volumes_are_features_and_pictures_stay_pictures(tmp_path: Path) -> None:
    """Five dimensions are no picture and are not scaled; three or four are pictures as before."""
    volumes = split(tmp_path, x=RNG.normal(size=(N, 1, 4, 5, 6)))
    assert ((1, 4, 5, 6), None, ("0", "1", "2")) == (
        task_of(volumes).shape,
        task_of(volumes).scale,
        task_of(volumes).classes,
    )
    (tmp_path / "pictures").mkdir()
    pictures = split(tmp_path / "pictures", x=RNG.random(size=(N, 6, 6)))
    assert isinstance(load_study(pictures / "study.toml").task, ImageTask)


def test_number_as_label_has_a_center_and_a_unit(tmp_path: Path) -> None:
    """With --tolerance: mean and standard deviation of the pool's labels, and no classes."""
    y = X @ np.arange(5) * 10 + 40
    federation = split(tmp_path, SplitOptions("iid", sites=SITES, tolerance=2), y=y)
    number = task_of(federation).regression
    assert number is not None
    assert (2, float(f"{y.std():.3g}")) == (number.tolerance, number.scale)
    assert abs(number.center - y.mean()) <= 0.01 * y.std()
    assert sorted(y) == sorted(held(federation, "y"))
    assert "classes" not in np.load(federation / "site-01" / "data" / "data.npz")


def test_copies_and_patients_stay_at_one_site(tmp_path: Path) -> None:
    """Equal rows, and rows of which an array says that they are one patient's."""
    who = np.repeat(np.arange(N // 4), 4)
    federation = split(tmp_path, SplitOptions("iid", sites=SITES, min_examples=5, group="who"), who=who)
    files = sorted(federation.glob("*/data/data.npz"))
    patients = [set(np.load(file)["who"].tolist()) for file in files]
    assert set(who.tolist()) == set.union(*patients)
    assert sum(map(len, patients)) == N // 4
    (tmp_path / "copies").mkdir()
    twice = split(tmp_path / "copies", x=np.vstack([X[: N // 2]] * 2), y=np.tile(Y[: N // 2], 2))
    rows = [set(map(tuple, np.load(file)["x"].tolist())) for file in sorted(twice.glob("*/data/data.npz"))]
    assert N // 2 == sum(map(len, rows)) == len(set.union(*rows))


def test_official_test_rows_are_everybodys(tmp_path: Path) -> None:
    """As of pictures: the same file at every site, and none of its rows among the sites' own."""
    part = np.where(np.arange(N) < 20, "test", "train")
    federation = split(tmp_path, SplitOptions("iid", sites=SITES, official_test=True), part=part, classes=CLASSES)
    tests = [file.read_bytes() for file in sorted(federation.glob("*/data/test.npz"))]
    assert (SITES, 1) == (len(tests), len(set(tests)))
    with np.load(federation / "site-01" / "data" / "test.npz") as arrays:
        np.testing.assert_array_equal(X[:20], arrays["x"])
    assert N - 20 == len(held(federation, "x"))
    assert "test.npz" == task_of(federation).test


@pytest.mark.parametrize(
    ("arrays", "options", "sentence"),
    [
        ({"x": X.astype(str)}, IID, "array 'x' has type <U32 and shape (120, 5), expected numbers"),
        ({"y": Y * 1.5}, IID, "the labels have type float64 and shape (120,), expected 120 whole numbers"),
        ({"y": Y - 1}, IID, "the labels are not all in 0..-1"),
        ({"who": Y[:5]}, SplitOptions("iid", sites=3, group="who"), "array 'who' has type int64 and shape (5,)"),
        (
            {"y": np.full(N, np.nan)},
            SplitOptions("iid", sites=3, tolerance=1),
            "array 'y' has type float64 and shape (120,), expected 120 finite numbers",
        ),
        ({"y": np.ones(N)}, SplitOptions("iid", sites=3, tolerance=1), "all labels are the same number"),
    ],
)
def test_pools_that_cannot_be_used(
    tmp_path: Path, arrays: dict[str, Any], options: SplitOptions, sentence: str
) -> None:
    """Each with what was seen and what was expected."""
    with pytest.raises(DataError) as error:
        split(tmp_path, options, **arrays)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            SplitOptions("column", column="a"),
            "--by column is for tables; features of an .npz file have no such columns",
        ),
        (SplitOptions("feature", sites=3), "--by feature is for images"),
        (SplitOptions("iid", sites=3, delimiter=";"), "--delimiter is for tables; an .npz file has no rows of text"),
        (SplitOptions("dirichlet", sites=3, tolerance=1), "--by dirichlet spreads classes"),
    ],
)
def test_options_that_do_not_go_with_features(tmp_path: Path, options: SplitOptions, sentence: str) -> None:
    """They are for pictures, for tables, or for classes."""
    with pytest.raises(ConfigError) as error:
        split(tmp_path, options)
    assert sentence in str(error.value)
