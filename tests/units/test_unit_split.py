"""Parts in which each patient is drawn by itself: nobody's part, and nothing of anybody's inputs, hangs on others."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeStudy
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from PIL import Image

from consilium.client.data import UnscaledData, read_data
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.site import ArraysData, DataConfig, ImageFolderData, TableData
from consilium.common.study.task import ImageTask, TableTask, Task
from consilium.common.study.training import SplitConfig

TABLE = TableTask.model_validate(
    {
        "kind": "table",
        "classes": ["no", "yes"],
        "label": "ill",
        "missing": "impute",
        "columns": {"a": {"kind": "number"}, "c": {"kind": "category", "values": ["x", "y", "z"]}},
        "scale": {"a": {"mean": 3.0, "std": 2.0}},
    }
)
PICTURES = ImageTask(classes=("no", "yes"), size=4, channels=1)
SPLIT = SplitConfig(test=0.3, validation=0.3, seed=5)

Row = tuple[str, str, str, str]
"""Patient, number, category and label."""


def _read(config: DataConfig, task: Task, split: SplitConfig) -> UnscaledData:
    """Read a site's data; a draw that leaves a part all but empty is none of the examples that are tried."""
    try:
        return _private(config, task, split)
    except DataError as error:
        if ", expected at least" in str(error):
            reject()
        raise


def _private(config: DataConfig, task: Task, split: SplitConfig) -> UnscaledData:
    return read_data(config, task, split, site="lyon", min_examples=1, private=True)


def _table(folder: Path, rows: Sequence[Row], *, group: str | None = None) -> UnscaledData:
    path = folder / "data.csv"
    path.write_text("\n".join(["who,a,c,ill", *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return _read(TableData(path=path), TABLE, SPLIT.model_copy(update={"group": group}))


def _parts(data: UnscaledData, names: Sequence[str]) -> Mapping[str, set[str]]:
    """Return the parts that rows of each name lie in."""
    found: dict[str, set[str]] = {}
    for part in ("train", "validation", "test"):
        for row in getattr(data.parts, part):
            found.setdefault(names[row], set()).add(part)
    return found


def _rows(chance: np.random.Generator, count: int, *, patients: int) -> list[Row]:
    return [
        (
            f"p{chance.integers(patients)}",
            "" if chance.random() < 0.2 else f"{chance.integers(40)}",
            "xyz"[chance.integers(3)] if chance.random() < 0.8 else "",
            "yes" if chance.random() < 0.4 else "no",
        )
        for _ in range(count)
    ]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), gone=st.integers(0, 29))
def test_patient_who_leaves_a_table_changes_nobody_elses_part_and_inputs(tmp_path: Path, seed: int, gone: int) -> None:
    """Of a table by patients: without one of them, the others' parts and scaled rows are bit for bit what they were."""
    rows = _rows(np.random.default_rng(seed), 90, patients=30)
    left = [row for row in rows if row[0] != f"p{gone}"]
    whole, less = _table(tmp_path, rows, group="who"), _table(tmp_path, left, group="who")
    before, after = (_parts(of, [row[0] for row in all_rows]) for of, all_rows in ((whole, rows), (less, left)))
    assert {who: parts for who, parts in before.items() if who != f"p{gone}"} == after
    assert all(len(parts) == 1 for parts in before.values())
    one, other = (of.scaled(TABLE.fixed_scale) for of in (whole, less))
    kept = [place for place, row in enumerate(whole.parts.train) if rows[row][0] != f"p{gone}"]
    assert one.train.x[kept].equal(other.train.x)
    assert one.train.y[kept].equal(other.train.y)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), gone=st.integers(0, 39))
def test_row_that_leaves_a_table_changes_no_other_rows_part(tmp_path: Path, seed: int, gone: int) -> None:
    """Of a table without patients, in which many rows are equal: rows are units, and equal ones lie in one part."""
    rows = _rows(np.random.default_rng(seed), 40, patients=5)
    left = rows[:gone] + rows[gone + 1 :]
    texts, fewer = [",".join(row[1:]) for row in rows], [",".join(row[1:]) for row in left]
    before, after = _parts(_table(tmp_path, rows), texts), _parts(_table(tmp_path, left), fewer)
    assert {text: before[text] for text in fewer} == after
    assert all(len(parts) == 1 for parts in before.values())
    assert _table(tmp_path, rows).raw.groups is None


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), gone=st.integers(0, 11))
def test_picture_that_leaves_changes_no_other_pictures_part(tmp_path: Path, seed: int, gone: int) -> None:
    """Of an array file: pictures that are not copies keep their parts, and copies of one are one unit."""
    chance = np.random.default_rng(seed)
    x = chance.integers(0, 2, size=(40, 2, 2), dtype=np.uint8).repeat(2, axis=1).repeat(2, axis=2) * 255
    y = np.zeros(40, dtype=np.int64)
    names = [picture.tobytes().hex() for picture in x]
    left = [place for place, name in enumerate(names) if name != names[gone]]
    np.savez(tmp_path / "a.npz", x=x, y=y)
    whole = _read(ArraysData(path=tmp_path / "a.npz"), PICTURES, SPLIT)
    np.savez(tmp_path / "a.npz", x=x[left], y=y[left])
    less = _read(ArraysData(path=tmp_path / "a.npz"), PICTURES, SPLIT)
    before, after = _parts(whole, names), _parts(less, [names[place] for place in left])
    assert {name: parts for name, parts in before.items() if name != names[gone]} == after
    assert whole.raw.groups is not None
    assert len(np.unique(whole.raw.groups)) == len(set(names))


def test_file_that_leaves_a_folder_changes_no_other_files_part(tmp_path: Path) -> None:
    """Of a folder of images with a folder for each patient."""
    chance, names = np.random.default_rng(3), [f"{label}/p{number}" for label in ("no", "yes") for number in range(12)]
    for name in names:
        for shot in range(2):
            path = tmp_path / "images" / name / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chance.integers(0, 256, size=(4, 4), dtype=np.uint8)).save(path)
    split = SPLIT.model_copy(update={"group": "folder"})

    def parts() -> dict[str, str]:
        data = _read(ImageFolderData(path=tmp_path / "images"), PICTURES, split)
        assert data.raw.patients is not None
        return {
            data.raw.patients[row]: part
            for part in ("train", "validation", "test")
            for row in getattr(data.parts, part)
        }

    before = parts()
    for shot in range(2):
        (tmp_path / "images/no/p3" / f"{shot}.png").unlink()
        (tmp_path / "images/yes/p3" / f"{shot}.png").unlink()
    assert {who: part for who, part in before.items() if who != "p3"} == parts()


def test_parts_are_as_large_as_the_settings_say_on_average(tmp_path: Path) -> None:
    """Of 4,000 rows, 30 % are for test and 30 % of the rest for validation, within four standard deviations."""
    rows = [(f"p{number}", f"{number}", "x", "no") for number in range(4000)]
    parts = _table(tmp_path, rows).parts
    for found, share in ((parts.test, 0.3), (parts.validation, 0.7 * 0.3)):
        assert abs(len(found) - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5


def test_other_seeds_draw_other_parts(tmp_path: Path) -> None:
    """`split.seed` moves the test part, and `split.validation_seed` the validation part alone."""
    rows = [(f"p{number}", f"{number}", "x", "no") for number in range(200)]
    path = _table(tmp_path, rows).raw
    assert path.num_own == 200
    config = TableData(path=tmp_path / "data.csv")
    one, test, validation = (
        _read(config, TABLE, SPLIT.model_copy(update=more)).parts for more in ({}, {"seed": 6}, {"validation_seed": 1})
    )
    assert set(one.test) != set(test.test)
    assert set(one.test) == set(validation.test)
    assert set(one.validation) != set(validation.validation)


def test_study_without_a_promise_can_be_drawn_so_too(tmp_path: Path) -> None:
    """`split.draw = "each"` gives the parts of a private study, so that both can be compared on the same rows."""
    rows = _rows(np.random.default_rng(1), 60, patients=20)
    private = _table(tmp_path, rows, group="who").parts
    split = SPLIT.model_copy(update={"group": "who", "draw": "each"})
    plain = read_data(TableData(path=tmp_path / "data.csv"), TABLE, split, site="lyon", min_examples=1).parts
    assert private.test.tolist() == plain.test.tolist()
    assert private.train.tolist() == plain.train.tolist()


def test_missing_cells_of_a_private_study_are_filled_by_what_the_study_says(tmp_path: Path) -> None:
    """A number becomes the study's mean, 0 once scaled, and a category its first value."""
    rows = [(f"p{number}", "" if number % 2 else "9", "" if number % 2 else "z", "no") for number in range(40)]
    data = _table(tmp_path, rows, group="who").scaled(TABLE.fixed_scale)
    whole = {tuple(row) for part in (data.train, data.validation, data.test) for row in part.x.tolist()}
    assert whole == {(0.0, 0.0, 0.0), (3.0, 0.0, 1.0)}


def test_private_study_is_not_drawn_by_counts(make_study: MakeStudy) -> None:
    """The study is refused, with what to do."""
    with pytest.raises(ConfigError, match=r"split\.draw = 'counts' one patient more moves others"):
        make_study(privacy={"examples": {"epsilon": 1}}, split={"draw": "counts"})
