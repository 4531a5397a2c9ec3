"""What a finished model is asked about: files, folders, rows and pictures, read as they were for training."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from consilium.client.data.arrays import read_arrays
from consilium.client.data.base import RawData
from consilium.client.data.cells import Encoder
from consilium.client.data.images import read_images
from consilium.client.data.inputs import Inputs, image_inputs, pictures_inputs, read_inputs, rows_inputs
from consilium.client.data.table import read_table
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.site import ArraysData, ImageFolderData, TableData
from consilium.common.study.task import CategoryColumn, FeaturesTask, ImageTask, NumberColumn, Regression, TableTask
from consilium.common.study.training import SplitConfig

TABLE = TableTask(
    classes=("no", "yes"),
    label="ill",
    columns={
        "age": NumberColumn(),
        "sex": CategoryColumn(values=("0", "1")),
        "pain": CategoryColumn(values=("a", "b", "c")),
    },
    missing="impute",
)
STRICT = TABLE.model_copy(update={"missing": "refuse"})
PICTURES = ImageTask(classes=("cat", "dog"), size=8, channels=1, mean=(0.3,), std=(0.7,), pixel_max=2.0)
HEADER = ("id", "age", "sex", "pain", "ill")


def table(path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = HEADER) -> Path:
    """Write a table as .csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def patients(count: int, *, seed: int = 0) -> list[list[object]]:
    """Rows of a table, some with missing cells."""
    chance = np.random.default_rng(seed)
    made: list[list[object]] = []
    for number in range(count):
        cells: list[object] = [chance.normal(50, 9), chance.choice(["0", "1", "1.0"]), chance.choice(["a", "b", "c"])]
        blanked = [cell if chance.random() > 0.1 else "" for cell in cells]
        made.append([f"p{number // 2}", *blanked, chance.choice(["no", "yes"])])
    return made


def picture(*shape: int, seed: int = 0) -> Any:
    """Pixels of one picture or more."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def encoded(pixels: Any, kind: str = "png") -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def folder(path: Path, names: Iterable[str]) -> Path:
    """Write a picture under each name, folders included."""
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(encoded(picture(8 + number, 9, seed=number)))
    return path


def refusal(*args: Any, **options: Any) -> str:
    """Return the sentence with which inputs are refused."""
    with pytest.raises(DataError) as caught:
        read_inputs(*args, **{"labelled": False} | options)
    return str(caught.value)


def same(inputs: Inputs, raw: RawData) -> bool:
    """Tell whether inputs are bit for bit what a site reads."""
    x, y = inputs.x, inputs.y
    assert y is not None
    assert (x.dtype, y.dtype) == (raw.x.dtype, raw.y.dtype)
    return x.numpy().tobytes() == raw.x.numpy().tobytes() and torch.equal(y, raw.y) and inputs.features == raw.features


# --- the law: what was trained on is what is asked about -----------------------------------------------


@pytest.mark.parametrize("missing", ["impute", "drop_row"])
def test_a_sites_own_table_is_read_as_for_training(tmp_path: Path, missing: str) -> None:
    """Inputs of a site's own table are bit for bit those that it trains on, rows with missing cells included."""
    task = TABLE.model_copy(update={"missing": missing})
    path = table(tmp_path / "a.csv", patients(300))
    raw = read_table(TableData(path=path), task, SplitConfig(), site="rom")
    inputs = read_inputs(path, task, labelled=True)
    assert same(inputs, raw)
    assert len(inputs) + len(inputs.unread) == 300
    assert len(inputs.unread) == (0 if missing == "impute" else 300 - len(raw.y))
    assert bool(torch.isnan(inputs.x).any()) == (missing == "impute")


def test_a_sites_parquet_file_is_read_as_for_training(tmp_path: Path) -> None:
    """A folder of Parquet and CSV files gives what training reads, with the label that is a number in its units."""
    pa = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    import pyarrow.parquet as pq

    task = TableTask(
        label="days",
        regression=Regression(center=3, scale=7, tolerance=1),
        columns={"on": NumberColumn(), "c": CategoryColumn(values=("False", "True"))},
    )
    rows = [{"on": i % 3 == 0, "c": i % 2 == 0, "days": i / 7, "id": None} for i in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    table(tmp_path / "a.csv", [[1, "True", 4], [0, "False", 5]], header=("on", "c", "days"))
    raw = read_table(TableData(path=tmp_path), task, SplitConfig(), site="rom")
    inputs = read_inputs(tmp_path, task, labelled=True)
    assert same(inputs, raw)
    assert inputs.names[:3] == ("a.csv:1", "a.csv:2", "b.parquet:1")
    assert torch.equal(rows_inputs(rows, task, labelled=True).x, raw.x[2:])


@pytest.mark.parametrize("group", [None, "folder", "^(p[0-9])"])
def test_a_sites_pictures_are_read_as_for_training(tmp_path: Path, group: str | None) -> None:
    """Pictures of a site's own folder come in its order, with its labels and patients."""
    names = ["p2_z.png", "p1_a.png", "p1_b.png"]

    def where(name: str) -> str:
        return f"{name[:2]}/{name}" if group == "folder" else name

    folder(tmp_path, [f"{kind}/{where(name)}" for kind in PICTURES.classes for name in names])
    raw = read_images(ImageFolderData(path=tmp_path), PICTURES, SplitConfig(group=group), site="rom")
    inputs = read_inputs(tmp_path, PICTURES, labelled=True, group=group)
    assert same(inputs, raw)
    assert inputs.names[:2] == (f"cat/{where('p1_a.png')}", f"cat/{where('p1_b.png')}")
    if group is None:
        assert inputs.groups is None
    else:
        assert inputs.groups is not None
        assert inputs.groups.tolist() == [0, 0, 1, 0, 0, 1]
    unlabelled = read_inputs(tmp_path, PICTURES, labelled=False)
    order = [unlabelled.names.index(name) for name in inputs.names]
    assert torch.equal(unlabelled.x[order], inputs.x)
    assert unlabelled.y is None


def test_a_sites_arrays_are_read_as_for_training(tmp_path: Path) -> None:
    """An array's pictures are resized and scaled as for training, with or without their labels."""
    x, y = picture(20, 3, 12, 10), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y, who=np.arange(20) // 4)
    raw = read_arrays(ArraysData(path=tmp_path), PICTURES, SplitConfig(), site="rom")
    inputs = read_inputs(tmp_path / "a.npz", PICTURES, labelled=True, group="who", keep=["who"])
    assert same(inputs, raw)
    assert inputs.groups is not None
    assert inputs.groups.tolist() == [row // 4 for row in range(20)]
    assert inputs.kept["who"][5] == "1"
    for others in (read_inputs(tmp_path, PICTURES, labelled=False), pictures_inputs(x, PICTURES)):
        assert torch.equal(others.x, raw.x)
        assert others.names == tuple(map(str, range(20)))


def test_uploaded_pictures_are_those_of_the_folder(tmp_path: Path) -> None:
    """The bytes of a picture give the tensor of its file, and its name loses what could steer a terminal."""
    folder(tmp_path, ["a.png", "b.png"])
    inputs = image_inputs({name: (tmp_path / name).read_bytes() for name in ("a.png", "b.png")}, PICTURES)
    assert torch.equal(inputs.x, read_inputs(tmp_path, PICTURES, labelled=False).x)
    odd = image_inputs({"a\n\x1b[31m\u202egnp.exe": encoded(picture(9, 9)), "c": b"no picture"}, PICTURES)
    assert odd.names == (r"a\n\x1b[31m\u202egnp.exe",)
    assert [(one.name, one.reason) for one in odd.unread] == [
        ("c", "image 'c' is corrupt or not one of BMP, JPEG, PNG, TIFF, WEBP, DICOM, NIfTI")
    ]


def test_pictures_of_a_class_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    """As for training, the file's name comes before its patient's folder."""
    folder(tmp_path, ["cat/p1/z.png", "cat/p2/a.png", "dog/p1/b.png", "dog/p2/b.png"])
    raw = read_images(ImageFolderData(path=tmp_path), PICTURES, SplitConfig(group="folder"), site="rom")
    inputs = read_inputs(tmp_path, PICTURES, labelled=True, group="folder")
    assert same(inputs, raw)
    assert inputs.names == ("cat/p2/a.png", "cat/p1/z.png", "dog/p1/b.png", "dog/p2/b.png")


# --- rows of tables ---------------------------------------------------------------------------------------


def test_columns_stand_in_any_order_among_others(tmp_path: Path) -> None:
    """Neither the order of columns nor further ones matter, and no label is needed; kept columns pass through."""
    rows = patients(40)
    whole = read_inputs(table(tmp_path / "a.csv", rows), TABLE, labelled=False, keep=["id", "age"])
    turned = [[f" {row[3]}", "x", row[1], f"{row[0]} ", f" {row[2]} "] for row in rows]
    other = table(tmp_path / "b.csv", turned, header=("pain", "note", " age ", "id", "sex"))
    inputs = read_inputs(other, TABLE, labelled=False, keep=["id"])
    assert inputs.x.numpy().tobytes() == whole.x.numpy().tobytes()
    assert inputs.kept == {"id": whole.kept["id"]}
    assert whole.kept["id"] == tuple(f"p{row // 2}" for row in range(40))
    assert whole.kept["age"] == tuple(str(row[1]) for row in rows)
    assert whole.names == tuple(str(row) for row in range(1, 41))


def test_a_label_that_is_there_is_ignored_unless_wanted(tmp_path: Path) -> None:
    """Without `labelled` a label may hold anything; with it, rows whose label is missing or unknown are named."""
    path = table(tmp_path / "a.csv", [[1, 50, 1, "a", "maybe"], [2, 51, 0, "b", ""], [3, 52, 1, "c", "yes"]])
    assert len(read_inputs(path, TABLE, labelled=False)) == 3
    inputs = read_inputs(path, TABLE, labelled=True)
    assert inputs.y is not None
    assert (inputs.y.tolist(), inputs.names) == ([1], ("3",))
    assert [one.reason for one in inputs.unread] == [
        "row 1, label column 'ill': expected one of ['no', 'yes'], got text that is not among them",
        "row 2, column 'ill': the value is missing",
    ]


def test_rows_that_cannot_be_read_are_named_by_row_and_column(tmp_path: Path) -> None:
    """Each unusable row is named with what was expected, never with its value, and the others are read."""
    rows: list[list[object]] = [
        [1, 50, 1, "a"],
        [2, "old", 1, "a"],
        [3, "1e999", 1, "a"],
        [4, 50, 7, "a"],
        [5, 50, 1, "A"],
        [6, 50],
        [7, "", 1, "a"],
    ]
    path = table(tmp_path / "a.csv", rows, header=HEADER[:4])
    inputs = read_inputs(path, STRICT, labelled=False, group="id")
    assert inputs.names == ("1",)
    assert [one.reason for one in inputs.unread] == [
        "row 2, column 'age': expected a number, got text",
        "row 3, column 'age': expected a finite number, got one that is infinite or too large",
        "row 4, column 'sex': expected one of ['0', '1'], got a number that is not among them",
        "row 5, column 'pain': expected one of ['a', 'b', 'c'], got text that is not among them; upper and lower case "
        "differ from 'a'",
        "row 6: expected 4 fields as in the header, got 2",
        "row 7, column 'age': the value is missing",
    ]
    assert [one.name for one in inputs.unread] == ["2", "3", "4", "5", "6", "7"]


def test_rows_without_a_patient_are_named(tmp_path: Path) -> None:
    """Rows are numbered by patient; one that does not say whose it is cannot be used."""
    path = table(
        tmp_path / "a.csv",
        [["x", 50, 1, "a", "no"], ["", 50, 1, "a", "no"], ["y", 5, 1, "a", "no"], ["x", 4, 0, "b", "no"]],
    )
    inputs = read_inputs(path, TABLE, labelled=True, group="id")
    assert inputs.groups is not None
    assert (inputs.groups.tolist(), inputs.groups.dtype) == ([0, 1, 0], torch.int64)
    assert [one.reason for one in inputs.unread] == ["row 2, column 'id': expected whose row it is, got an empty cell"]


def test_all_missing_columns_are_named_at_once(tmp_path: Path) -> None:
    """One sentence names every missing column, what it is for, and names that differ by case or blanks alone."""
    path = table(tmp_path / "a.csv", [[1, 2, 3]], header=("Age", "SE_X", "note"))
    assert refusal(path, TABLE, labelled=True, keep=["id"]) == (
        "file 'a.csv' has no columns 'id' (to be kept), 'ill' (the label), 'age', 'sex', 'pain'; "
        "it has 'Age', expected 'age'; 'SE_X', expected 'sex': rename"
    )
    with pytest.raises(DataError, match=r"^the data has no column 'pain'$"):
        rows_inputs([{"age": 1, "sex": 1}], TABLE)
    path = table(tmp_path / "b.csv", [["1;2;3"]], header=("age;sex;pain",))
    assert 1 == len(read_inputs(path, TABLE, labelled=False).unread)
    path = table(tmp_path / "c.csv", [[1, 2, 3, 4]], header=("age", "sex", "pain", "age"))
    assert refusal(path, TABLE) == "file 'c.csv': column 'age' stands 2 times in the header, expected once"


def test_nothing_to_read_is_a_sentence(tmp_path: Path) -> None:
    """An empty table, one with a header alone, an empty folder and a path to nowhere are told apart."""
    (tmp_path / "empty.csv").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.md").write_text("x")
    assert refusal(tmp_path / "empty.csv", TABLE) == "the data: file 'empty.csv' is empty, expected a header"
    only = table(tmp_path / "header.csv", [])
    assert refusal(only, TABLE) == f"'{only}' has a header but no row below it, expected at least one"
    assert refusal(tmp_path / "folder", TABLE).endswith("has no .csv, .tsv, .xlsx or .parquet file")
    assert "does not exist, expected a .csv" in refusal(tmp_path / "nowhere", TABLE)
    assert "is not a .csv, .tsv, .xlsx or .parquet file" in refusal(tmp_path / "text.md", TABLE)
    assert refusal(tmp_path / "folder", PICTURES).startswith(f"folder '{tmp_path / 'folder'}' has no picture, expected")
    assert "does not exist, expected a picture" in refusal(tmp_path / "nowhere", PICTURES)
    assert "is no picture, expected files .bmp" in refusal(tmp_path / "text.md", PICTURES)
    assert "cannot be read: File name too long" in refusal(tmp_path / ("x" * 300), PICTURES)
    with pytest.raises(DataError, match=r"^there is no row, expected at least one$"):
        rows_inputs([], TABLE)
    with pytest.raises(DataError, match=r"^there is no picture, expected at least one$"):
        image_inputs({}, PICTURES)
    with pytest.raises(DataError, match=r"^the array has no picture"):
        pictures_inputs(np.zeros((0, 4, 4), dtype=np.uint8), PICTURES)


def test_inputs_of_another_kind_than_the_models_are_refused() -> None:
    """A model about pictures is not asked about rows, nor one about rows about pictures or arrays."""
    with pytest.raises(DataError, match=r"^the model answers about pictures, got rows of a table$"):
        rows_inputs([{"age": 1}], PICTURES)
    with pytest.raises(DataError, match=r"^the model answers about rows of a table, got picture files$"):
        image_inputs({"a.png": b""}, TABLE)
    with pytest.raises(DataError, match=r"^the model answers about rows of a table, got an array$"):
        pictures_inputs(np.zeros((1, 4, 4), dtype=np.uint8), TABLE)
    features = FeaturesTask(classes=("a", "b"), shape=(3,))
    assert pictures_inputs(np.ones((2, 3), dtype=np.float32), features).x.shape == (2, 3)


@pytest.mark.parametrize(
    ("age", "sex", "x"),
    [
        (50, 1, (50, 1)),
        (50.5, 1.0, (50.5, 1)),
        ("50.5", "1", (50.5, 1)),
        (True, False, (1, 0)),
        (np.int8(5), np.bool_(True), (5, 1)),
        (np.float32(0.1), np.float64(0), (float(np.float32(0.1)), 0)),
        (np.str_(" 7 "), np.str_("0 "), (7, 0)),
        (Decimal("1.25"), Decimal(1), (1.25, 1)),
        (None, float("nan"), (math.nan, math.nan)),
        (np.datetime64("NaT"), "", (math.nan, math.nan)),
        ("NA", "?", (math.nan, math.nan)),
    ],
)
def test_values_in_memory_count_as_the_same_value_in_a_file(age: object, sex: object, x: tuple[float, float]) -> None:
    """Numbers, texts, booleans, nothing and NumPy's scalars mean what the same cell of a file means."""
    inputs = rows_inputs([{"age": age, "sex": sex, "pain": "a", "more": [1]}], TABLE)
    np.testing.assert_array_equal(inputs.x.numpy(), [[*x, 0, 0]])


def test_values_that_are_no_cells_are_named() -> None:
    """A list, a number without end, one of thousands of digits and an absent column make the row unread."""
    good: dict[str, object] = {"age": 1, "sex": 1, "pain": "a"}
    rows: list[dict[str, object]] = [
        good | {"age": [1]},
        good | {"age": math.inf},
        good | {"age": 10**5000},
        {"age": 1, "sex": 1},
        good | {"pain": b"a"},
    ]
    inputs = rows_inputs(rows, TABLE)
    assert not len(inputs)
    assert inputs.x.shape == (0, 4)
    expected = "expected a number, a text, true, false or nothing, got a value of type"
    assert [one.reason for one in inputs.unread] == [
        f"row 1, column 'age': {expected} list",
        "row 2, column 'age': expected a finite number, got one that is infinite or too large",
        "row 3, column 'age': expected a finite number, got one that is too large",
        "row 4: it has no column 'pain', expected one, empty where the value is missing",
        f"row 5, column 'pain': {expected} bytes",
    ]


def test_a_data_frame_counts_as_its_file(tmp_path: Path) -> None:
    """Rows of a data frame, with pandas' own missing values and categories, are those of the CSV that it came from."""
    pd = pytest.importorskip("pandas", reason="needs the extra 'study'")
    path = table(tmp_path / "a.csv", patients(200))
    expected = read_inputs(path, TABLE, labelled=True, keep=["id"])
    frame = pd.read_csv(path, dtype={"pain": "category"}).convert_dtypes()
    for rows in (frame.to_dict("records"), pd.read_csv(path).to_dict("records")):
        inputs = rows_inputs(rows, TABLE, labelled=True, keep=["id"])
        np.testing.assert_array_equal(inputs.x.numpy(), expected.x.numpy())
        assert inputs.kept == expected.kept
    kept = rows_inputs([{"age": 1, "sex": 1, "pain": "a", "day": pd.Timestamp(2024, 2, 3)}], TABLE, keep=["day"]).kept
    assert kept == {"day": ("2024-02-03 00:00:00",)}
    missing = rows_inputs([{"age": pd.NA, "sex": pd.NaT, "pain": "a"}], TABLE)
    np.testing.assert_array_equal(missing.x.numpy(), [[math.nan, math.nan, 0, 0]])


CELLS = st.one_of(
    st.sampled_from(
        ["", "NA", "nan", "?", "1", "1.0", "0", "0x1", "1_0", "-nan", "inf", "1e39", "-3.5e38", "a", "A", "\u0661"]
    ),
    st.floats(allow_nan=True).map(str),
    st.text(max_size=3).map(str.strip),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS), min_size=1, max_size=8), st.booleans())
def test_rows_are_encoded_alike_one_by_one_and_together(rows: list[tuple[str, ...]], impute: bool) -> None:
    """Law: a row's features, label and problem do not depend on the rows beside it, nor on being labelled."""
    task = (TABLE if impute else STRICT).model_copy(update={"classes": ("0", "a")})
    names = ("age", "sex", "pain", "ill")
    together = Encoder(task)({name: [row[at] for row in rows] for at, name in enumerate(names)})
    for at, row in enumerate(rows):
        alone = Encoder(task)({name: [cell] for name, cell in zip(names, row, strict=True)})
        assert str(alone.problems.get(0)) == str(together.problems.get(at))
        if not alone.problems:
            np.testing.assert_array_equal(alone.x[0], together.x[at])
            assert alone.labels[0] == together.labels[at]
            bare = Encoder(task, labelled=False)({name: [cell] for name, cell in zip(names[:3], row, strict=False)})
            np.testing.assert_array_equal(bare.x, alone.x)
            assert all(
                cell == "" or math.isfinite(value) or impute for cell, value in zip(row, alone.x[0], strict=False)
            )


# --- pictures -----------------------------------------------------------------------------------------------


def test_a_folder_of_any_shape_is_read_by_the_paths_in_it(tmp_path: Path) -> None:
    """Flat or nested, in the order of the paths; hidden and other files are left out, one file alone will do."""
    names = ["b.png", "a/z.jpg", "a/b/c.png", "a.png"]
    folder(tmp_path, names)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    inputs = read_inputs(tmp_path, PICTURES, labelled=False)
    assert inputs.names == tuple(sorted(names))
    assert not inputs.unread
    single = read_inputs(tmp_path / "a" / "b" / ".." / "z.jpg", PICTURES, labelled=False)
    assert single.names == ("z.jpg",)
    assert torch.equal(single.x[0], inputs.x[inputs.names.index("a/z.jpg")])


def test_pictures_of_no_class_are_named(tmp_path: Path) -> None:
    """Pictures beside the classes' folders, or in one of another name, are named and the others read."""
    folder(tmp_path, ["loose.png", "Cat/a.png", "bird/b.png", "dog/c.png"])
    inputs = read_inputs(tmp_path, PICTURES, labelled=True)
    assert inputs.y is not None
    assert (inputs.names, inputs.y.tolist()) == (("dog/c.png",), [1])
    expected = "expected a folder for each of ['cat', 'dog']"
    assert [one.reason for one in inputs.unread] == [
        f"image 'Cat/a.png': folder 'Cat' is none of the classes, {expected}; upper and lower case differ from 'cat'",
        f"image 'bird/b.png': folder 'bird' is none of the classes, {expected}",
        f"image 'loose.png': it lies in no class's folder, {expected}",
    ]
    assert refusal(tmp_path / "loose.png", PICTURES, labelled=True).endswith(
        "expected a folder with one sub-folder per class"
    )


def test_pictures_without_a_patient_are_named(tmp_path: Path) -> None:
    """Where patients are wanted, a picture that does not say whose it is cannot be used; a bad pattern is refused."""
    folder(tmp_path, ["cat/p1/a.png", "cat/b.png"])
    loose = read_inputs(tmp_path, PICTURES, labelled=True, group="folder").unread
    assert [one.reason for one in loose] == [
        "image 'cat/b.png' lies in its class's folder itself, expected in a folder of its patient"
    ]
    unfit = read_inputs(tmp_path, PICTURES, labelled=False, group="^(b)").unread
    assert [one.reason for one in unfit] == [
        "image 'cat/p1/a.png': its name does not fit the pattern '^(b)' of patients"
    ]
    with pytest.raises(ConfigError, match="expected for a folder of images 'folder' or a pattern"):
        read_inputs(tmp_path, PICTURES, labelled=False, group="((a+)+)+")


def test_pictures_that_cannot_be_decoded_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file, one with too many pixels and one in another format are named, and the others read."""
    folder(tmp_path, ["a.png", "big.png"])
    (tmp_path / "b.png").write_bytes(encoded(picture(8, 9))[:60])
    (tmp_path / "c.heic").write_bytes(b"x")
    monkeypatch.setattr("consilium.client.data.pictures.MAX_PIXELS", 8 * 9)
    inputs = read_inputs(tmp_path, PICTURES, labelled=False)
    assert inputs.names == ("a.png",)
    assert [one.reason for one in inputs.unread] == [
        "image 'b.png' is corrupt or not one of BMP, JPEG, PNG, TIFF, WEBP, DICOM, NIfTI",
        "image 'big.png' declares 81 pixels, at most 72 are decoded",
        "image 'c.heic' is in a format that is not read, expected one of .bmp, .dcm, .dicom, .ima, .jpeg, .jpg, .nii, "
        ".nii.gz, .png, .tif, .tiff, .webp",
    ]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "c.heic").touch()
    assert refusal(tmp_path / "d", PICTURES).endswith("it has 1 in other formats, e.g. 'c.heic': convert them")


def test_links_in_circles_and_hostile_names_do_no_harm(tmp_path: Path) -> None:
    """A folder that links to itself is read once, and names lose what could steer a terminal."""
    folder(tmp_path, ["a/x\n\u202e.png"])
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone.png").symlink_to(tmp_path / "gone")
    inputs = read_inputs(tmp_path, PICTURES, labelled=False)
    assert inputs.names == (r"a/x\n\u202e.png",)
    assert not inputs.unread


def test_more_pictures_than_memory_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that all pictures need is compared with the bound before any is decoded."""
    monkeypatch.setattr("consilium.client.data.arrays.MAX_BYTES", 3 * 8 * 8 * 4)
    folder(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    told = "4 images of the study's size take 1024 bytes, at most 768"
    assert refusal(tmp_path, PICTURES) == f"the pictures: {told}"
    with pytest.raises(DataError, match=f"^the array: {told}$"):
        pictures_inputs(picture(4, 8, 8), PICTURES)


def test_labels_of_an_array_are_looked_at_only_where_wanted(tmp_path: Path) -> None:
    """An unknown label makes its picture unread where labels are wanted, and nothing otherwise."""
    np.savez(tmp_path / "a.npz", x=picture(3, 8, 8), y=np.array([0, 5, 1]))
    assert len(read_inputs(tmp_path, PICTURES, labelled=False)) == 3
    inputs = read_inputs(tmp_path, PICTURES, labelled=True)
    assert (inputs.names, [one.name for one in inputs.unread]) == (("0", "2"), ["1"])
    np.savez(tmp_path / "a.npz", x=picture(3, 8, 8))
    assert "has no array 'y', its arrays are: 'x'" in refusal(tmp_path / "a.npz", PICTURES, labelled=True)
    floats = np.stack([np.full((8, 8), 0.5), np.full((8, 8), np.nan), np.full((8, 8), 7.0)])
    assert [one.reason for one in pictures_inputs(floats, PICTURES).unread] == [
        "image 1: a pixel is not a finite number",
        "image 2: a pixel is outside 0..1, which is what floats in 'x' must hold without task.pixel_range",
    ]


def test_the_common_test_set_beside_the_data_is_left_out(tmp_path: Path) -> None:
    """A study's common test set in the folder is no data of the site's own; named itself, it is read."""
    task = STRICT.model_copy(update={"test": "test.csv"})
    table(tmp_path / "a.csv", [[1, 50, 1, "a", "no"]])
    table(tmp_path / "test.csv", [[1, 50, 1, "a", "no"]] * 3)
    assert len(read_inputs(tmp_path, task, labelled=False)) == 1
    assert len(read_inputs(tmp_path / "test.csv", task, labelled=False)) == 3
    pictures = PICTURES.model_copy(update={"test": "common"})
    folder(tmp_path, ["cat/a.png", "common/cat/b.png", "dog/common/c.png"])
    assert read_inputs(tmp_path, pictures, labelled=False).names == ("cat/a.png", "dog/common/c.png")
    assert read_inputs(tmp_path / "common", pictures, labelled=True).names == ("cat/b.png",)
