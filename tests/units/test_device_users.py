"""Users' data for simulations of devices: what is read, what is refused, and what is made up."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_data import FEATURES, device_study, simulated, write_users

from consilium.common.errors import ConfigError, DataError
from consilium.common.study.load import load_device_study, load_study
from consilium.devices.convert import open_users
from consilium.devices.made.make import KINDS, make_users
from consilium.devices.population import checked


def _spoiled(folder: Path, **arrays: Any) -> Path:
    write_users(folder, 30)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


ROWS = 415
"""How many rows the 30 users of these tests have."""


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"offsets": np.arange(31) * 1000}, f"offsets.npy ends at row 30000, but x.npy has {ROWS} rows"),
        ({"offsets": np.array([0, 5, 5, 9])}, "user 1 has no rows in offsets.npy, which must rise from user to user"),
        ({"offsets": np.array([0, 9, 5])}, "user 1 has an offset below the one before"),
        ({"offsets": np.array([1, 5])}, "the first of offsets.npy is 1, expected 0"),
        ({"offsets": np.array([0])}, "expected whole numbers, one more than there are users, and a user at least"),
        ({"offsets": np.array([0.0, 5.0])}, "offsets.npy has type float64"),
        ({"x": np.full((ROWS, FEATURES), np.nan)}, "row 0 of x.npy has a number that is not finite"),
        ({"x": np.zeros((ROWS, 2))}, "rows of shape (2,), expected numbers of shape (6,)"),
        ({"x": np.full((ROWS, FEATURES), "a")}, "x.npy has type <U1"),
        ({"y": np.full(ROWS, 3)}, "the label of row 0 is 3, expected 0 to 2"),
        ({"y": np.zeros(ROWS)}, "y.npy has type float64"),
        ({"y": np.zeros(5, int)}, f"{ROWS} rows in x.npy and 5 labels in y.npy, expected as many"),
        ({"region": np.zeros(4, int)}, "'region.npy' (devices.groups) has type int64 and shape (4,), expected 30"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_users_that_cannot_be_used_are_refused(arrays: dict[str, Any], expected: str, tmp_path: Path) -> None:
    """The sentence says which file, what was seen and what was expected."""
    study = device_study(3, devices={"groups": "region"})
    with pytest.raises(DataError) as caught:
        checked(_spoiled(tmp_path, **arrays), study)
    assert expected in str(caught.value)


def test_pickled_objects_are_never_opened(tmp_path: Path) -> None:
    """In a folder and in an .npz file alike."""
    objects = np.array([{"a": 1}] * 4, dtype=object)
    np.save(_spoiled(tmp_path / "folder") / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "users.npz", x=objects, y=np.zeros(4, int), offsets=np.array([0, 2, 4]))
    for data in (tmp_path / "folder", tmp_path / "users.npz"):
        with pytest.raises(DataError, match="holds Python objects, which are never unpickled"):
            open_users(data, device_study(2), tmp_path / "arrays")


def test_npz_of_rows_with_their_users_is_read_once(tmp_path: Path) -> None:
    """Users in rising order give the same places as offsets; out of order, the sentence says where."""
    users = write_users(tmp_path / "users", 30)
    x, y, offsets = (np.load(users / f"{name}.npy") for name in ("x", "y", "offsets"))
    user = np.repeat(np.arange(30) * 3, np.diff(offsets))
    np.savez_compressed(tmp_path / "rows.npz", x=x, y=y, user=user)
    population = open_users(tmp_path / "rows.npz", device_study(2), tmp_path / "arrays")
    assert offsets.tolist() == np.load(tmp_path / "arrays/offsets.npy").tolist()
    assert (30, len(y)) == (population.users, population.rows)
    before = (tmp_path / "arrays/x.npy").stat().st_mtime_ns
    open_users(tmp_path / "rows.npz", device_study(2), tmp_path / "arrays")
    assert before == (tmp_path / "arrays/x.npy").stat().st_mtime_ns
    user[-1] = 0
    np.savez(tmp_path / "rows.npz", x=x, y=y, user=user)
    with pytest.raises(DataError, match="user 0 comes after user 87: expected users in rising order"):
        open_users(tmp_path / "rows.npz", device_study(2), tmp_path / "arrays")
    make_users(str(tmp_path / "rows.npz"), tmp_path / "sorted", users=1, rows=5, seed=0)
    assert len(y) == int(np.load(tmp_path / "sorted/users/offsets.npy")[-1])


def test_damaged_and_strange_files_are_refused(tmp_path: Path) -> None:
    """No zip, a file of another kind, an array that is not there, and none at all."""
    (tmp_path / "a.npz").write_bytes(b"nothing")
    (tmp_path / "b.csv").write_text("x,y\n")
    np.savez(tmp_path / "c.npz", x=np.zeros((4, 6)), y=np.zeros(4, int))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for name in ("x", "y", "offsets"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY")
    for name, expected in {
        "a.npz": "is not an .npz file",
        "b.csv": "ends in '.csv', expected a folder of arrays, an .npz or .parquet",
        "c.npz": "has neither an array 'offsets'",
        "d.npz": "is damaged or no .npy array",
        "e.npz": "does not exist",
    }.items():
        with pytest.raises(DataError) as caught:
            open_users(tmp_path / name, device_study(2), tmp_path / "arrays")
        assert expected in str(caught.value)


def test_parquet_is_read_by_its_user_column(tmp_path: Path) -> None:
    """Numbers, a category and a text label by user; a file without the column, or out of order, is refused."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    task = {
        "kind": "table",
        "label": "home",
        "classes": ["no", "yes"],
        "columns": {"motion": {"kind": "number"}, "day": {"kind": "category", "values": ["week", "end"]}},
    }
    study = device_study(2, task=task, devices={"groups": "town"})
    cells: dict[str, Any] = {
        "user": ["a", "a", "b", "b", "b"],
        "motion": [1.0, 2.0, 3.0, 4.0, 5.0],
        "day": ["week", "end", "week", "week", "end"],
        "home": ["no", "yes", "yes", "no", "no"],
        "town": ["x", "x", "y", "y", "y"],
    }
    parquet.write_table(pa.table(cells), tmp_path / "rows.parquet")
    population = open_users(tmp_path / "rows.parquet", study, tmp_path / "arrays")
    assert [0, 2, 5] == np.load(tmp_path / "arrays/offsets.npy").tolist()
    assert ("x", "y") == population.group_names
    scaled = (np.array([1.0, 2.0, 3.0, 4.0, 5.0]) - 3) / np.sqrt(2)
    np.testing.assert_allclose(population.inputs(np.arange(5))[:, 0], scaled, rtol=1e-6)
    assert [0.0, 1.0, 0.0, 0.0, 1.0] == population.inputs(np.arange(5))[:, 1].tolist()
    assert [0, 1, 1, 0, 0] == population.labels(np.arange(5)).tolist()
    for change, expected in (
        ({"user": ["a", "b", "a", "b", "b"]}, "row 3: user a comes after user b"),
        ({"user": [None, "a", "b", "b", "b"]}, "row 1: column 'user' is empty"),
        ({"motion": [1.0, None, 3.0, 4.0, 5.0]}, "row 2: column 'motion' is empty or no finite number"),
        ({"day": ["week", "x", "week", "week", "end"]}, "row 2: column 'day' is none of ['week', 'end']"),
    ):
        parquet.write_table(pa.table(cells | change), tmp_path / "rows.parquet")
        with pytest.raises(DataError) as caught:
            open_users(tmp_path / "rows.parquet", study, tmp_path / "arrays")
        assert expected in str(caught.value)
    del cells["user"]
    parquet.write_table(pa.table(cells), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="has no column 'user', it has 'day', 'home', 'motion', 'town'"):
        open_users(tmp_path / "rows.parquet", study, tmp_path / "arrays")


def test_parquet_is_scaled_by_training_rows_of_those_who_take_part(tmp_path: Path) -> None:
    """The last fifth of a user's rows moves no scale, nor does a user beyond the number, which may change."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "day": {"kind": "category", "values": ["week", "end", "feast"]},
        "motion": {"kind": "number"},
        "heat": {"kind": "number"},
    }
    task = {"kind": "table", "label": "home", "classes": ["no", "yes"], "columns": columns}
    motion, heat = np.arange(15.0), np.arange(15.0)[::-1] ** 2
    motion[[4, 9]] = 1e6
    cells = {"user": np.repeat([1, 2, 3], 5), "motion": motion, "heat": heat, "day": ["week"] * 15, "home": ["no"] * 15}
    parquet.write_table(pa.table(cells), tmp_path / "rows.parquet")
    for users, trained in ((2, [0, 1, 2, 3, 5, 6, 7, 8]), (3, [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13])):
        study = device_study(2, task=task, devices={"users": users})
        scale = open_users(tmp_path / "rows.parquet", study, tmp_path / "arrays").scale
        assert scale is not None
        assert [motion[trained].mean(), heat[trained].mean()] == pytest.approx(scale.mean)
        assert [motion[trained].std(), heat[trained].std()] == pytest.approx(scale.std)


def test_studies_of_devices_are_for_simulations_alone(tmp_path: Path) -> None:
    """`consilium run` and the others refuse them; a simulation needs a cohort, and no more users than there are."""
    path = tmp_path / "study.toml"
    path.write_text(
        'name = "x"\n[task]\nkind = "features"\nshape = [6]\nclasses = ["a", "b", "c"]\n[devices]\ncohort = 60\n'
    )
    with pytest.raises(ConfigError, match="is simulated: consilium simulate"):
        load_study(path)
    assert 100 == load_device_study(path, users=None, cohort=100).cohort_size
    path.write_text(path.read_text().split("[devices]")[0])
    with pytest.raises(ConfigError, match="has no \\[devices\\]"):
        load_device_study(path, users=None)
    users = write_users(tmp_path / "users", 30)
    with pytest.raises(DataError, match=r"has 30 users, and devices\.cohort takes 31"):
        simulated(device_study(31), users, tmp_path / "run")
    with pytest.raises(DataError, match="has 30 users, and the study wants 40"):
        simulated(device_study(3, devices={"users": 40}), users, tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_made_users_are_learned_from(kind: str, tmp_path: Path) -> None:
    """Each kind makes the same users from a seed, and a study of them runs and beats the constant answer."""
    made = make_users(kind, tmp_path / "made", users=60, rows=25, seed=1)
    make_users(kind, tmp_path / "again", users=60, rows=25, seed=1)
    assert (tmp_path / "made/users/x.npy").read_bytes() == (tmp_path / "again/users/x.npy").read_bytes()
    study = load_device_study(made["study"], users=None, private=False)
    result = simulated(study, made["data"], tmp_path / "run")
    assert result.constant is not None
    assert result.measured["global"].score > result.constant.score
    assert 2 <= len(result.groups)
