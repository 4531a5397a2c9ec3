"""Times and events in arrays, in a table that names pictures, and beside texts: what is read, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_site
from PIL import Image
from pydantic import ValidationError
from survival_files import SURVIVAL, write_pictures

from consilium.client.data import RawData, read_site
from consilium.client.data.inputs import read_inputs, rows_inputs
from consilium.client.operations.doctor.data import check_data
from consilium.common.errors import ConfigError, ConsiliumError, DataError
from consilium.common.study.load import load_site, parse_study
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import FeaturesTask, ImageTask, SeriesTask, TextTask

PICTURES: dict[str, Any] = {"kind": "images", "survival": SURVIVAL, "size": 8, "channels": 1}
FEATURES: dict[str, Any] = {"kind": "features", "survival": SURVIVAL, "shape": [2]}
TEXTS: dict[str, Any] = {
    "kind": "text",
    "survival": SURVIVAL,
    "length": 4,
    "tokens": {"kind": "words", "buckets": 64},
}
SERIES: dict[str, Any] = {"kind": "series", "survival": SURVIVAL, "channels": ["v"], "length": 2}
MODELS = {"series": "cnn1d", "images": "small_cnn", "features": "linear", "text": "text_mean"}


def _study(task: dict[str, Any], **split: Any) -> StudyConfig:
    settings = {"settings": {"vocabulary": 64, "width": 4}} if task["kind"] == "text" else {}
    values = {"name": "times", "sites": ["one"], "min_examples": 2, "task": task}
    values |= {"model": {"name": MODELS[task["kind"]]} | settings, "split": {"test": 0.4, "validation": 0.0} | split}
    return parse_study(values, source="test")


def _read(folder: Path, task: dict[str, Any], *, kind: str, data: str, max_skipped: int = 0, **split: Any) -> RawData:
    site = write_site(folder, "one", kind=kind, data=data)
    if max_skipped:
        site.write_text(site.read_text().replace("[data]", f"[data]\nmax_skipped = {max_skipped}"), encoding="utf-8")
    return read_site(load_site(site), _study(task, **split)).raw


def _arrays(folder: Path, **arrays: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    known: dict[str, Any] = {"x": x, "days": np.arange(8.0), "died": np.arange(8) % 2}
    np.savez(folder / "rows.npz", **(known | arrays))
    return folder


def test_series_hold_times_and_events_in_arrays_and_tables(tmp_path: Path) -> None:
    """A time of 0 that is censored keeps its sign; a series without a usable time or event says what was expected."""
    y = _read(_arrays(tmp_path / "a"), SERIES, kind="series", data="rows.npz").y
    lines = [f"s{row},{step},0.{row},{row},{row % 2}" for row in range(8) for step in (1, 0)]
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "rows.csv").write_text("\n".join(["series,time,v,days,died", *lines]), encoding="utf-8")
    assert y.tolist() == _read(tmp_path / "t", SERIES, kind="series", data="rows.csv").y.tolist()
    assert [float(time) for time in range(8)] == y.abs().tolist()
    assert [True, False] * 4 == torch.signbit(y).tolist()
    with pytest.raises(DataError, match="series 3: expected a finite number of at least 0 in 'days', and 0 or 1 in"):
        _read(_arrays(tmp_path / "b", died=[0, 1, 0, 2, 0, 1, 0, 1]), SERIES, kind="series", data="rows.npz")
    text = "\n".join(["series,time,v,days,died", *lines]).replace("s3,1,0.3,3,1", "s3,1,0.3,3,0")
    (tmp_path / "t" / "rows.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="column 'died' has 2 different values in its rows, expected one"):
        _read(tmp_path / "t", SERIES, kind="series", data="rows.csv")


def test_arrays_hold_times_and_events(tmp_path: Path) -> None:
    """Booleans, whole numbers and floats of 0 and 1 say whether the event was seen; a time of 0 has its sign."""
    for events in (np.arange(8) % 2 == 1, np.arange(8) % 2, (np.arange(8) % 2).astype(np.float32)):
        y = _read(_arrays(tmp_path, died=events), FEATURES, kind="features", data="rows.npz").y
        assert [float(time) for time in range(8)] == y.abs().tolist()
        assert [True, False] * 4 == torch.signbit(y).tolist()


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"days": -np.ones(8)}, "example 0: expected a finite number of at least 0 in 'days', and 0 or 1 in 'died'"),
        ({"days": np.full(8, np.nan)}, "example 0: expected a finite number of at least 0 in 'days'"),
        ({"days": np.full(8, 1e39)}, "example 0: expected a finite number of at least 0 in 'days'"),
        ({"died": np.full(8, 2)}, "example 0: expected a finite number of at least 0 in 'days', and 0 or 1 in 'died'"),
        ({"died": np.array(["yes"] * 8)}, r"array 'died' has type <U3 and shape \(8,\), expected 8 numbers"),
        ({"days": np.arange(7.0)}, r"array 'days' has type float64 and shape \(7,\), expected 8 numbers, one for each"),
        ({"days": np.ones((8, 1))}, r"array 'days' has type float64 and shape \(8, 1\), expected 8 numbers"),
    ],
)
def test_arrays_without_usable_times_are_refused(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    """Each says which example or which array, and what was expected."""
    with pytest.raises(DataError, match=sentence):
        _read(_arrays(tmp_path, **arrays), FEATURES, kind="features", data="rows.npz")


def test_examples_without_a_time_can_be_skipped(tmp_path: Path) -> None:
    """One that has no time counts as bad, as others do; an array that is not there is named."""
    days = np.arange(8.0)
    days[3] = np.nan
    raw = _read(_arrays(tmp_path, days=days), FEATURES, kind="features", data="rows.npz", max_skipped=1)
    assert (7, 1) == (len(raw.y), raw.num_skipped)
    other = FEATURES | {"survival": {"time": "months", "event": "died"}}
    with pytest.raises(DataError, match="has no array 'months'"):
        _read(tmp_path, other, kind="features", data="rows.npz")


def test_a_site_where_nothing_happened_is_told(tmp_path: Path) -> None:
    """All rows are read, and the check of the site says that nothing can be learned of them."""
    _arrays(tmp_path, died=np.zeros(8))
    site = write_site(tmp_path, "one", kind="features", data="rows.npz")
    finding = check_data(load_site(site), _study(FEATURES))
    assert "the event 'died' was seen in no row" in finding.message
    assert "WARN" == finding.status
    assert "for the test, so no report will say" in finding.message  # and nothing else is hidden by it
    assert "whether the column has 1 where it was seen" in finding.fix and "ask the coordinator for a" in finding.fix


def test_a_table_names_pictures_with_their_times(tmp_path: Path) -> None:
    """In the order of their names; pictures that it does not name are counted; rows that name none are skipped."""
    folder = write_pictures(tmp_path / "data", 6, seed=0)
    lines = (folder / "labels.csv").read_text().splitlines()
    rows = [*lines[1:5], "gone.png,3,1", lines[5].replace(",1", ",maybe").replace(",0", ",maybe")]
    (folder / "labels.csv").write_text("\n".join([lines[0], *rows]), encoding="utf-8")
    raw = _read(tmp_path, PICTURES, kind="images", data="data", max_skipped=2)
    assert (4, 2) == (len(raw.y), raw.num_skipped)
    assert "4 .png read; 2 pictures are not named in 'labels.csv'" in raw.reading[0]
    expected = {row.split(",")[0]: float(row.split(",")[1]) for row in lines[1:5]}
    assert [expected[name] for name in sorted(expected)] == raw.y.abs().tolist()


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("../one.png,3,1", "expected a path inside the folder of the table, got one that leads out of it"),
        ("/etc/passwd,3,1", "expected a path inside the folder of the table, got one that leads out of it"),
        (r"c:\one.png,3,1", "expected a path inside the folder of the table, got one that leads out of it"),
        ("ward0/../../x.png,3,1", "expected a path inside the folder of the table, got one that leads out of it"),
        (",3,1", "column 'file' is empty, expected the path of a picture"),
        (".,3,1", "column 'file' is empty, expected the path of a picture"),
        ("ward0,3,1", "there is no file 'ward0' below the folder of the table"),
        ("./ward0/000.png,3,1", "file 'ward0/000.png' is there a second time, expected each once"),
        ("labels.csv,3,1", "file 'labels.csv' is no picture, expected one of .bmp"),
        ("new.png,-3,1", "label column 'days': expected a number of at least 0, got a smaller one"),
        ("new.png,,1", "label column 'days': the value is missing"),
        ("new.png,3,", "label column 'died': the value is missing"),
        ("new.png,3,2", r"label column 'died': expected one of \['0', '1'\], got a number"),
        ("new.png,3", "expected 3 fields as in the header, got 2"),
        ("bad.png,3,1", "image 'bad.png' is corrupt"),
    ],
)
def test_rows_that_name_no_usable_picture_are_refused(tmp_path: Path, row: str, sentence: str) -> None:
    """Nothing outside the folder is opened, and no value is repeated."""
    folder = write_pictures(tmp_path / "data", 4, seed=0)
    Image.new("L", (8, 8)).save(folder / "new.png")
    (folder / "bad.png").write_bytes(b"no picture")
    with (folder / "labels.csv").open("a", encoding="utf-8") as file:
        file.write(row + "\n")
    with pytest.raises(DataError, match=sentence):
        _read(tmp_path, PICTURES, kind="images", data="data")


def test_a_table_says_whose_a_picture_is_and_what_for(tmp_path: Path) -> None:
    """By a column of it, by folders, by names, or by a file of parts."""
    folder = write_pictures(tmp_path / "data", 8, seed=0)
    lines = (folder / "labels.csv").read_text().splitlines()
    parts = ["train", "train", "test", "test"] * 2
    rows = [f"{line},{'abcd'[at % 4]},{parts[at]}" for at, line in enumerate(lines[1:])]
    (folder / "labels.csv").write_text("\n".join([f"{lines[0]},whose,part", *rows]), encoding="utf-8")
    read = _read(tmp_path, PICTURES, kind="images", data="data", group="whose", parts="part", copies="ignore")
    assert [0, 0, 0, 0, 2, 2, 2, 2] == np.asarray(read.parts).tolist()
    assert ["a", "a", "b", "b", "c", "c", "d", "d"] == list(read.patients or ())
    by_folder = _read(tmp_path, PICTURES, kind="images", data="data", group="folder")
    assert ["ward0", "ward0", "ward1", "ward1", "ward2", "ward2", "ward3", "ward3"] == list(by_folder.patients or ())
    (folder / "ward0" / "series").mkdir()
    name = lines[1].split(",")[0]
    (folder / name).rename(folder / "ward0" / "series" / Path(name).name)
    deeper = (folder / "labels.csv").read_text(encoding="utf-8").replace(name, f"ward0/series/{Path(name).name}")
    (folder / "labels.csv").write_text(deeper, encoding="utf-8")
    below = _read(tmp_path, PICTURES, kind="images", data="data", group="folder")
    assert list(by_folder.patients or ()) == list(below.patients or ())  # the first folder is the patient
    lines[1] = lines[1].replace(name, f"ward0/series/{Path(name).name}")
    by_name = _read(tmp_path, PICTURES, kind="images", data="data", group="00([0-9])")
    assert 8 == len(set(by_name.patients or ()))
    named = [line.split(",")[0] for line in lines[1:]]
    index = "\n".join(["file,part", *(f"{name},{part}" for name, part in zip(named, parts, strict=True))])
    (folder / "parts.csv").write_text(index, encoding="utf-8")
    assert [0, 0, 0, 0, 2, 2, 2, 2] == np.asarray(
        _read(tmp_path, PICTURES, kind="images", data="data", parts="parts.csv").parts
    ).tolist()
    with pytest.raises(DataError, match="has no column 'nobody'"):
        _read(tmp_path, PICTURES, kind="images", data="data", group="nobody")


def test_a_folder_without_the_table_is_refused(tmp_path: Path) -> None:
    """The sentence says which file is missing, and which column one that is there lacks."""
    folder = write_pictures(tmp_path / "data", 4, seed=0)
    (folder / "labels.csv").rename(folder / "other.csv")
    with pytest.raises(DataError, match=r"file 'labels\.csv' cannot be read"):
        _read(tmp_path, PICTURES, kind="images", data="data")
    (folder / "labels.csv").write_text("file,days\nward0/000.png,3\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"has no column 'died' \(task.survival.event\); its columns are 'file'"):
        _read(tmp_path, PICTURES, kind="images", data="data")
    (folder / "labels.csv").write_text("file,days,died\n", encoding="utf-8")
    with pytest.raises(DataError, match="has a header but no row below it"):
        _read(tmp_path, PICTURES, kind="images", data="data")
    site = write_site(tmp_path, "one", kind="images", data="data")
    site.write_text(site.read_text().replace("[data]", '[data]\nlabels = "other.csv"'), encoding="utf-8")
    assert 4 == len(read_site(load_site(site), _study(PICTURES)).raw.y)
    site.write_text(site.read_text().replace("[data]", "[data]\ndepth = 1"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data\.depth is for folders of classes"):
        read_site(load_site(site), _study(PICTURES))


def test_a_finished_model_reads_the_same_labels(tmp_path: Path) -> None:
    """From a folder with `labels.csv`, or from the table itself; rows that cannot be used are named."""
    folder = write_pictures(tmp_path / "data", 6, seed=0)
    raw, task = _read(tmp_path, PICTURES, kind="images", data="data"), ImageTask.model_validate(PICTURES)
    for path in (folder, folder / "labels.csv"):
        found = read_inputs(path, task, labelled=True)
        assert found.y is not None and torch.equal(raw.y, found.y)
        assert torch.equal(raw.x, found.x)
    with (folder / "labels.csv").open("a", encoding="utf-8") as file:
        file.write("gone.png,3,1\n")
    found = read_inputs(folder, task, labelled=True, group="folder")
    assert "there is no file 'gone.png'" in found.unread[0].reason
    assert found.groups is not None and [0, 0, 1, 1, 2, 3] == found.groups.tolist()
    assert 6 == len(read_inputs(folder, task, labelled=False))
    (folder / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"has no labels, expected a table, such as labels\.csv"):
        read_inputs(folder, task, labelled=True)


def _texts(folder: Path, rows: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.csv").write_text("\n".join(["text,days,died", *rows]) + "\n", encoding="utf-8")
    return folder


def test_texts_stand_beside_their_times(tmp_path: Path) -> None:
    """Rows of a table, in their order; the same from a data frame's rows."""
    rows = [f"word{number},{number},{number % 2}" for number in range(8)]
    raw = _read(_texts(tmp_path, rows), TEXTS, kind="text", data="rows.csv")
    assert [-0.0, 1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0] == raw.y.tolist()
    frame = [{"text": f"word{number}", "days": number, "died": bool(number % 2)} for number in range(8)]
    found = rows_inputs(frame, TextTask.model_validate(TEXTS), labelled=True)
    assert found.y is not None and torch.equal(raw.y, found.y)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("word,-1,1", "label column 'days': expected a number of at least 0, got a smaller one"),
        ("word,soon,1", "label column 'days': expected a number, got text"),
        ("word,,1", "label column 'days': the value is missing"),
        ("word,3,yes", r"label column 'died': expected one of \['0', '1'\], got text that is not among them"),
        (",3,1", "column 'text' is empty"),
    ],
)
def test_texts_without_a_usable_time_are_refused(tmp_path: Path, row: str, sentence: str) -> None:
    """The place is named, and never the value."""
    with pytest.raises(DataError, match=f"rows.csv', line 4: {sentence}"):
        _read(_texts(tmp_path, ["one,3,1", "two,4,0", row]), TEXTS, kind="text", data="rows.csv")


def test_a_folder_of_text_files_has_no_times(tmp_path: Path) -> None:
    """Folders are classes, which such a study has none of."""
    (tmp_path / "data" / "died").mkdir(parents=True)
    (tmp_path / "data" / "died" / "one.txt").write_text("word", encoding="utf-8")
    with pytest.raises(DataError, match=r"has no table \(.csv, .*\) with columns 'text', 'days', 'died'"):
        _read(tmp_path, TEXTS, kind="text", data="data")


@pytest.mark.parametrize(
    ("make", "values", "sentence"),
    [
        (ImageTask, PICTURES | {"classes": ["a", "b"]}, "survival says what the label is: leave 'classes' out"),
        (ImageTask, {"kind": "images"}, "give 'classes', at least two, 'survival' for times"),
        (FeaturesTask, FEATURES | {"regression": {"tolerance": 1.0}}, "survival says what the label is"),
        (FeaturesTask, FEATURES | {"survival": {"time": "t", "event": "t"}}, "time and event are both column 't'"),
        (TextTask, TEXTS | {"label": "other"}, "label 'other': survival says where the label is, leave 'label' out"),
        (TextTask, TEXTS | {"text": "died"}, "label 'died' is also the column of the texts"),
        (TextTask, TEXTS | {"next": "word"}, "one of 'classes': leave 'survival' out"),
        (SeriesTask, SERIES | {"label": "other"}, "label 'other': survival says where the label is, leave 'label' out"),
        (SeriesTask, SERIES | {"channels": ["days"]}, "days"),
        (SeriesTask, SERIES | {"next_step": 1}, "next_step learns a value, which is a number"),
    ],
)
def test_settings_that_contradict_survival_are_refused(make: Any, values: dict[str, Any], sentence: str) -> None:
    """What the label is, is said once."""
    with pytest.raises(ValidationError, match=sentence):
        make.model_validate(values)


def test_tasks_with_times_are_read_back_as_they_were_written() -> None:
    """A model's folder holds the task as JSON."""
    tasks = ((ImageTask, PICTURES), (FeaturesTask, FEATURES), (TextTask, TEXTS), (SeriesTask, SERIES))
    for make, values in tasks:
        task = make.model_validate(values)
        assert task == make.model_validate_json(task.model_dump_json())
        assert "concordance index" == task.score
    with pytest.raises(ConsiliumError, match="clips the gradient of each patient"):
        parse_study(_study(FEATURES).model_dump() | {"privacy": {"examples": {"noise": 1.0}}}, source="test")
