"""The command `predict`: a line for each row, every wrong input a sentence, and nothing that a spreadsheet executes."""

import csv
import io
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_models import AGES, PICTURES, TABLE, made_model
from PIL import Image
from typer.testing import CliRunner

from consilium.commands.main import app, main
from consilium.common.errors import ConfigError, ConsiliumError, DataError, ModelError, clean
from consilium.common.model import RECORD, WEIGHTS, Residuals, Temperature, read_record, write_record
from consilium.common.study.task import TableTask
from consilium.serving.cells import csv_lines, distinct, text_cell
from consilium.serving.find import find_model
from consilium.serving.predict import check_out, csv_of, order_of, predict, write_predictions

ROWS = "age,sex,ill\n1,f,no\n-2,m,no\n0.5,m,yes\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of tables: the logit of the second class is age + 2 [sex is m]."""
    return made_model(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three rows for it."""
    path = tmp_path / "patients.csv"
    path.write_text(ROWS, encoding="utf-8")
    return path


def table_of(model: Path, *data: Path, **options: Any) -> list[dict[str, str]]:
    """Return the lines of the predictions by their columns."""
    text = b"".join(csv_of(predict(model, data, **options))).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def sigmoid(logit: float) -> float:
    """Return the probability of a logit."""
    return 1 / (1 + math.exp(-logit))


def test_a_line_has_number_class_and_every_probability(model: Path, data: Path) -> None:
    """By hand: logits 1, 0 and 2.5; a logit of exactly 0 is the first class."""
    lines = table_of(model, data)
    assert ["row", "class", "probability_no", "probability_yes", "reason"] == list(lines[0])
    assert [("1", "yes"), ("2", "no"), ("3", "yes")] == [(line["row"], line["class"]) for line in lines]
    for line, logit in zip(lines, (1.0, 0.0, 2.5), strict=True):
        assert sigmoid(logit) == pytest.approx(float(line["probability_yes"]), abs=1e-9)
        assert 1 - sigmoid(logit) == pytest.approx(float(line["probability_no"]), abs=1e-9)


def test_columns_in_another_order_and_among_others_give_the_same(model: Path, data: Path, tmp_path: Path) -> None:
    """A file's columns are found by their names; labels are not needed, and an empty one does no harm."""
    other = tmp_path / "other.csv"
    other.write_text("sex,note,age\nf,a,1\nm,b,-2\nm,c,0.5\n", encoding="utf-8")
    assert table_of(model, data) == table_of(model, other)


def test_rows_that_cannot_be_read_stand_in_their_place_with_a_reason(model: Path, tmp_path: Path) -> None:
    """As many lines as rows, in their order, and the terminal counts and names the first."""
    path = tmp_path / "patients.csv"
    rows = ["1,f", "old,f", "2,x", "3,m", ",f", *(f"{number},f" for number in range(6, 13)), "nan,m"]
    path.write_text("\n".join(["age,sex", *rows]), encoding="utf-8")
    lines = table_of(model, path)
    assert list(map(str, range(1, 14))) == [line["row"] for line in lines]
    bad = {line["row"]: line for line in lines if line["reason"]}
    assert {"2", "3", "5", "13"} == set(bad)
    assert all(not line["class"] + line["probability_yes"] for line in bad.values())
    assert "row 3, column 'sex': " in bad["3"]["reason"]
    found = predict(model, [path])
    assert "4 of 13 cannot be read" in found.question.warnings[0]
    assert found.question.warnings[0].endswith("; and 1 more")
    assert ["2", "3", "5", "13"] == [one["name"] for one in found.as_json()["unread"]]


def test_rows_of_a_folder_have_their_file(model: Path, tmp_path: Path) -> None:
    """Row 10 of a file comes after row 9, and file b after file a."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("b.csv", "a.csv"):
        (folder / name).write_text("age,sex\n" + "1,f\n" * 9 + "x,f\n" + "1,f\n", encoding="utf-8")
    names = [line["row"] for line in table_of(model, folder)]
    assert [f"{name}:{row}" for name in ("a.csv", "b.csv") for row in range(1, 12)] == names


def test_kept_columns_go_through_and_have_names_of_their_own(model: Path, tmp_path: Path) -> None:
    """A kept column that is called as one of ours is told apart from it."""
    path = tmp_path / "patients.csv"
    path.write_text("class,age,sex,data_class\nC,1,f,D\n", encoding="utf-8")
    (line,) = table_of(model, path, keep=["class", "data_class", "age"])
    assert ("yes", "C", "D", "1") == tuple(line[name] for name in ("class", "data_class", "data_data_class", "age"))


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("@SUM(1)", "'@SUM(1)"),
        ("+49 221", "'+49 221"),
        ("-a", "'-a"),
        ('"=1"', '\'"=1"'),
        ("x;=1+1", "x;'=1+1"),
        ("\uff1d1", "'\uff1d1"),
        ("-1.5e3", "-1.5e3"),
        ("+1", "+1"),
        ("a=b", "a=b"),
        ("two\nlines\t\x1b[2J", r"two\nlines\t\x1b[2J"),
        ("\t=1", r"\t=1"),
        ("M\u00fcller", "M\u00fcller"),
    ],
)
def test_no_cell_is_a_formula_or_steers_a_terminal(text: str, cell: str) -> None:
    """What a spreadsheet would execute has an apostrophe; numbers and names stay as they are."""
    assert cell == text_cell(text)


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1))
def test_law_of_cells(rows: list[list[str]]) -> None:
    """Read again, every cell is the text that was written, on a line of its own row; none begins as a formula."""
    cells = [[text_cell(text) for text in row] for row in rows]
    text = b"".join(csv_lines(cells)).decode()
    assert len(rows) == text.count("\n")
    assert cells == list(csv.reader(io.StringIO(text, newline="")))
    for cell in (cell for row in cells for cell in row):
        assert clean(cell, max(len(cell), 40)) == cell
        if cell[:1] in tuple("=+-@"):
            float(cell)


@given(st.lists(st.sampled_from(["row", "class", "data_row", "=x", "'=x"]), unique=True))
def test_law_of_distinct_names(names: list[str]) -> None:
    """No two columns have one title, whatever the data calls its own."""
    found = distinct(names, taken=["row", "class"])
    assert len(names) == len({*found, "row", "class"}) - 2


def test_long_tables_are_written_in_pieces() -> None:
    """Pieces together are the whole."""
    rows = [[str(number)] for number in range(10_000)]
    pieces = list(csv_lines(rows))
    assert 3 == len(pieces)
    assert [number for (number,) in rows] == b"".join(pieces).decode().split()


def test_numbers_have_their_value_and_where_calibrated_an_interval(tmp_path: Path) -> None:
    """By hand: (2 weight + 1) 10 + 50, plus and minus the width of the record's calibration."""
    model = made_model(tmp_path / "ages", AGES, weight=[[2.0]], bias=[1.0])
    data = tmp_path / "weights.csv"
    data.write_text("weight\n1\n-3\n", encoding="utf-8")
    assert [{"row": "1", "value": "80", "reason": ""}, {"row": "2", "value": "0", "reason": ""}] == table_of(
        model, data
    )
    record = read_record(model)
    write_record(model, record.model_copy(update={"calibration": Residuals(level=0.9, width=2.5, num=20)}))
    lines = table_of(model, data)
    assert [("80", "77.5", "82.5"), ("0", "-2.5", "2.5")] == [(one["value"], one["low"], one["high"]) for one in lines]


def test_temperature_changes_probabilities_and_no_class(model: Path, data: Path) -> None:
    """Logits are divided by it."""
    before = table_of(model, data)
    of = Temperature(temperature=2.0, num=9, log_loss=(1.0, 0.5), calibration_error=(0.2, 0.1))
    write_record(model, read_record(model).model_copy(update={"calibration": of}))
    after = table_of(model, data)
    assert [line["class"] for line in before] == [line["class"] for line in after]
    assert sigmoid(0.5) == pytest.approx(float(after[0]["probability_yes"]), abs=1e-9)


# --- pictures ---------------------------------------------------------------------------------------


@pytest.fixture
def eye(tmp_path: Path) -> Path:
    """A model of pictures: the logit of "light" is the sum of 16 pixels less 8."""
    return made_model(tmp_path / "eye", PICTURES, weight=[[1.0] * 16], bias=[-8.0])


def picture(path: Path, level: int, *, size: int = 4, mode: str = "L") -> Path:
    """Write a picture of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), level if mode == "L" else (level,) * len(mode)).save(path)
    return path


def test_pictures_of_other_sizes_and_colours_are_made_to_fit(eye: Path, tmp_path: Path) -> None:
    """A folder with pictures of 4 and of 9 pixels, grey and coloured, in folders of folders; one file is broken."""
    folder = tmp_path / "new"
    picture(folder / "a.png", 255)
    picture(folder / "deep" / "er" / "b.png", 0, size=9)
    picture(folder / "c.png", 230, size=40, mode="RGB")
    (folder / "broken.png").write_bytes(b"no picture")
    lines = table_of(eye, folder)
    expected = [("a.png", "light"), ("broken.png", ""), ("c.png", "light"), ("deep/er/b.png", "dark")]
    assert expected == [(line["file"], line["class"]) for line in lines]
    assert "broken.png" in lines[1]["reason"]


def test_several_pictures_and_one_alone(eye: Path, tmp_path: Path) -> None:
    """As a shell hands them over: scans/*.png."""
    paths = [picture(tmp_path / name, level) for name, level in (("a.png", 0), ("b.png", 255))]
    assert ["dark", "light"] == [line["class"] for line in table_of(eye, *paths)]
    assert [("b.png", "light")] == [(line["file"], line["class"]) for line in table_of(eye, paths[1])]
    with pytest.raises(DataError, match=r"'.*model.json' is no picture"):
        predict(eye, [paths[0], eye / RECORD])
    with pytest.raises(DataError, match=r"gone.png' cannot be read: No such file"):
        predict(eye, [paths[0], tmp_path / "gone.png"])


def test_arrays_are_counted_from_0(eye: Path, tmp_path: Path) -> None:
    """An .npz file of pictures, of which one holds no number."""
    x = np.zeros((12, 4, 4), dtype=np.float32)
    x[3], x[5] = 1.0, np.nan
    np.savez(tmp_path / "x.npz", x=x)
    lines = table_of(eye, tmp_path / "x.npz")
    assert list(map(str, range(12))) == [line["row"] for line in lines]
    assert ["3"] == [line["row"] for line in lines if line["class"] == "light"]
    assert ["5"] == [line["row"] for line in lines if line["reason"]]


def test_order_of_names() -> None:
    """Numbers as numbers, names as names, and rows of files by both."""
    assert ["2", "10"] == sorted(["10", "2"], key=order_of(["10", "2"]))
    assert ["10.png", "2.png"] == sorted(["2.png", "10.png"], key=order_of(["2.png", "10.png"]))
    assert ["a:9", "a:10"] == sorted(["a:10", "a:9"], key=order_of(["a:10", "a:9"]))


# --- what is wrong ------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    """Write a file and return its path."""
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("weight,height\n1,2\n", r"no columns 'age', 'sex' \(the model of study 'hearts' reads the columns age, sex\)"),
        ("age\n1\n", r"no column 'sex'"),
        ("Age,sex\n1,f\n", r"has 'Age', expected 'age'"),
        ("age;sex\n", r"header but no row"),
        ("age,sex\n", r"header but no row"),
        ("", r"is empty"),
        ("age,sex\nx,f\n1,q\n", r"no row or picture can be read: row 1, column 'age'.*row 2, column 'sex'"),
    ],
)
def test_data_of_another_study_is_a_sentence(model: Path, tmp_path: Path, text: str, sentence: str) -> None:
    """What is missing, and what the model reads."""
    with pytest.raises(DataError, match=sentence):
        predict(model, [write(tmp_path / "data.csv", text)])


def test_data_of_another_kind_and_none_are_sentences(model: Path, eye: Path, data: Path, tmp_path: Path) -> None:
    """A table for a model of pictures, pictures for a model of tables, an empty folder, nothing."""
    (tmp_path / "empty").mkdir()
    for path, asked, sentence in (
        (data, eye, r"patients.csv' is no picture.*model is of study 'hearts'"),
        (picture(tmp_path / "scans" / "a.png", 0).parent, model, r"has no .csv, .tsv, .xlsx or .parquet file"),
        (tmp_path / "empty", model, r"has no .csv, .tsv, .xlsx or .parquet file"),
        (tmp_path / "empty", eye, r"has no picture"),
        (tmp_path / "missing", model, r"does not exist"),
    ):
        with pytest.raises(DataError, match=sentence):
            predict(asked, [path])
    with pytest.raises(DataError, match="got 2 files or folders, expected one"):
        predict(model, [data, data])
    with pytest.raises(DataError, match=r"no column 'id' \(to be kept\)"):
        predict(model, [data], keep=["id"])


def test_damaged_and_newer_models_are_sentences(model: Path, data: Path) -> None:
    """Weights of another length, and a record of a version to come."""
    with (model / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelError, match=r"weights.safetensors is damaged"):
        predict(model, [data])
    values = json.loads((model / RECORD).read_bytes())
    (model / RECORD).write_text(json.dumps(values | {"format": 7}))
    with pytest.raises(ModelError, match="a newer consilium wrote it"):
        predict(model, [data])


# --- which model ----------------------------------------------------------------------------------------


def test_folders_that_hold_a_model_stand_for_it(tmp_path: Path) -> None:
    """The folder, its record, a run of a coordinator, a site's folder: of its newest run the personal model."""
    plain = made_model(tmp_path / "plain")
    assert plain == find_model(plain) == find_model(plain / RECORD)
    assert tmp_path / "run" / "model" == find_model(made_model(tmp_path / "run" / "model").parent)
    site = tmp_path / "site"
    for run, created in (("run-2", "2026-01-01"), ("run-1", "2026-02-02")):
        for served in ("personal", "global", "local"):
            made_model(site / "state/hearts" / run / "models" / served, run=run, served=served, created=created)
    newest = site / "state/hearts/run-1/models"
    for path in (site, site / "state", site / "state/hearts", newest, newest.parent):
        assert newest / "personal" == find_model(path)
    assert site / "state/hearts/run-2/models/personal" == find_model(site / "state/hearts/run-2")
    shutil.rmtree(newest / "personal")
    with pytest.raises(ModelError, match=r"several models: '.*models/global', '.*models/local'; name one"):
        find_model(site)
    shutil.rmtree(newest / "local")
    assert newest / "global" == find_model(site)


def test_models_of_several_studies_or_sites_are_not_chosen_from(tmp_path: Path) -> None:
    """The sentence lists them; a folder without any says where models lie, and a damaged one is named."""
    made_model(tmp_path / "all/a/models/personal", study="hearts")
    made_model(tmp_path / "all/b/models/personal", study="lungs")
    with pytest.raises(ModelError, match=r"of several studies or sites: 'a/models/personal', 'b/models/personal'"):
        find_model(tmp_path / "all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"the folder has no model.json"):
        find_model(tmp_path / "empty")
    with pytest.raises(ModelError, match=r"there is no such folder"):
        find_model(tmp_path / "missing")
    (tmp_path / "all/a/models/personal" / RECORD).write_bytes(b"{")
    with pytest.raises(ModelError, match=r"is no JSON, or it is damaged"):
        find_model(tmp_path / "all")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_folders_without_permission_are_sentences(model: Path, data: Path) -> None:
    """A model and data that this person may not read."""
    data.chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        predict(model, [data])
    model.chmod(0)
    try:
        with pytest.raises(ModelError, match="Permission denied"):
            find_model(model)
    finally:
        model.chmod(0o700)


def test_folders_that_the_system_refuses_are_sentences(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system says of a folder is in the sentence."""

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ModelError, match=r"cannot read '.*model.json': Permission denied"):
        find_model(model)


# --- the command -----------------------------------------------------------------------------------------


def test_command_writes_the_file_for_its_owner_and_replaces_none(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """predictions.csv where the command runs; the second time it needs --force."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["predict", str(model), str(data)])
    assert 0 == done.exit_code, done.output
    for text in ("personal model of site porto, study hearts, run run-1", "3 examples", "written: predictions.csv"):
        assert text in done.output
    out = tmp_path / "predictions.csv"
    assert 0o600 == out.stat().st_mode & 0o777
    again = CliRunner().invoke(app, ["predict", str(model), str(data)])
    assert isinstance(again.exception, ConfigError)
    assert "exists already" in str(again.exception)
    out.write_text("old")
    assert 0 == CliRunner().invoke(app, ["predict", str(model), str(data), "--force"]).exit_code
    assert 4 == len(out.read_text().splitlines())


def test_command_writes_to_standard_output(model: Path, data: Path) -> None:
    """The table alone; what is for people goes to standard error. With --json there is no room for both."""
    done = CliRunner().invoke(app, ["predict", str(model), str(data), "--keep", "ill", "--out", "-"])
    assert 0 == done.exit_code, done.output
    assert "row,ill,class,probability_no,probability_yes,reason" == done.stdout.splitlines()[0]
    assert 4 == len(done.stdout.splitlines())
    assert "3 examples" in done.stderr
    both = CliRunner().invoke(app, ["predict", str(model), str(data), "--out", "-", "--json"])
    assert "both want standard output" in str(both.exception)


def test_command_tells_programs(model: Path, data: Path, tmp_path: Path) -> None:
    """One document: which model, how many, of which classes, what could not be read, where the file is."""
    out = tmp_path / "out" / "p.csv"
    done = CliRunner().invoke(app, ["predict", str(model), str(data), "--out", str(out), "--json"])
    document = json.loads(done.stdout)
    assert ({"no": 1, "yes": 2}, 3, [], str(out)) == tuple(
        document[name] for name in ("classes", "predicted", "unread", "out")
    )
    assert ("hearts", "porto") == (document["provenance"]["study"], document["provenance"]["site"])
    assert out.exists()


def test_file_among_the_data_is_refused(data: Path, tmp_path: Path) -> None:
    """It would be read as data the next time, or replace the data; a folder is no file."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for out, paths, sentence in (
        (data, [data], "would lie among the data"),
        (folder / "p.csv", [folder], "would lie among the data"),
        (folder / "deep" / "p.csv", [folder], "would lie among the data"),
        (folder, [data], "is a folder"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            check_out(out, paths, force=True)
    check_out(tmp_path / "p.csv", [data], force=False)


def test_nothing_readable_ends_with_the_code_of_data(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4, one sentence, and no file."""
    path = write(tmp_path / "data.csv", "age,sex\nx,f\n")
    monkeypatch.setattr(sys, "argv", ["consilium", "predict", str(model), str(path), "--out", str(tmp_path / "p.csv")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert DataError.exit_code == ended.value.code
    assert "DataError: no row or picture can be read: row 1, column 'age'" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


def test_full_disk_leaves_no_half_file(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file stays, and the sentence says what happened."""
    out = write(tmp_path / "p.csv", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    found = predict(model, [data])
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ConsiliumError, match="No space left on device"):
        write_predictions(found, out)
    assert "old" == out.read_text()
    assert {"p.csv", "model", "patients.csv"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("classes", [("=no", "@yes"), ("no\u00e9", "a,b"), ('say "x"', "y")])
def test_class_names_of_any_kind_are_cells(tmp_path: Path, data: Path, classes: tuple[str, str]) -> None:
    """Formulas, commas and quotes in names of classes."""
    task = TableTask(classes=classes, label="ill", columns=TABLE.columns)
    lines = table_of(made_model(tmp_path / "odd", task), data)
    assert [f"probability_{name}" for name in classes] == list(lines[0])[2:4]
    assert text_cell(classes[1]) == lines[0]["class"]


def test_model_show_says_what_it_is(model: Path) -> None:
    """For people a line each, for programs the record; a damaged one is refused."""
    done = CliRunner().invoke(app, ["model", "show", str(model)])
    for text in (
        "hearts",
        "site porto",
        "columns age, sex",
        "one of 2 classes: no, yes",
        "calibrated no",
        "weights.safe",
    ):
        assert text in " ".join(done.output.split()), text
    document = json.loads(CliRunner().invoke(app, ["model", "show", str(model), "--json"]).stdout)
    assert "hearts" == document["provenance"]["study"]
    assert "weights.safetensors" in {file["name"] for file in document["files"]}
    (model / WEIGHTS).write_bytes(b"")
    assert isinstance(CliRunner().invoke(app, ["model", "show", str(model)]).exception, ModelError)
