"""A site's data: what is read, what is refused and with which sentence, and how it is split."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import SHARED
from PIL import Image
from site_data import load_data
from sklearn.model_selection import train_test_split

from consilium.client.data import READERS, SiteData, schema_digest
from consilium.client.data.split import split_rows
from consilium.client.data.stratified import draw_two_parts
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.site import ArraysData, ImageFolderData, TableData
from consilium.common.study.task import CategoryColumn, ImageTask, NumberColumn, TableTask
from consilium.common.study.training import SplitConfig
from consilium.data.sources import heart_disease_hospitals

HEART = SHARED / "data" / "heart_disease"
IMAGES = ImageTask(classes=("normal", "pneumonia"), size=8, channels=1)
TABLE = TableTask(
    classes=("no", "yes"),
    label="disease",
    columns={"age": NumberColumn(), "pain": CategoryColumn(values=("1", "2", "3")), "pressure": NumberColumn()},
)
ROWS = [f"{40 + i},{1 + i % 3},{100 + i * i % 37},{'yes' if i % 4 == 0 else 'no'}" for i in range(40)]
HEADER = "age,pain,pressure,disease"


def image_folder(path: Path, *, each: int = 10, mode: str = "L") -> Path:
    """Write `each` images of both classes; image i of a class is filled with grey 10 i."""
    for name in IMAGES.classes:
        (path / name).mkdir(parents=True)
        for i in range(each):
            Image.new(mode, (12, 10), 10 * i if mode == "L" else (10 * i, 0, 0)).save(path / name / f"{i:03d}.png")
    return path


def load_images(path: Path, task: ImageTask = IMAGES, *, max_skipped: int = 0, **options: Any) -> SiteData:
    """Return a site's data of a folder of pictures."""
    config = ImageFolderData(path=path, max_skipped=max_skipped)
    return load_data(config, task, options.pop("split", SplitConfig()), site="berlin", min_examples=2, **options)


def table_file(path: Path, rows: list[str], *, header: str = HEADER) -> Path:
    """Write a table of these rows."""
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def load_table(path: Path, task: TableTask = TABLE, *, max_skipped: int = 0, **options: Any) -> SiteData:
    """Return a site's data of a table."""
    config = TableData(path=path, max_skipped=max_skipped)
    options.setdefault("min_examples", 2)
    return load_data(config, task, options.pop("split", SplitConfig()), site="lyon", **options)


def error_of(call: Any, *args: Any, **options: Any) -> str:
    """Return the sentence with which the data are refused."""
    with pytest.raises(DataError) as caught:
        call(*args, **options)
    return str(caught.value)


def equal(one: SiteData, other: SiteData) -> bool:
    """Tell whether two sites' data are equal: their cards, and each part bit for bit."""
    parts = [(getattr(one, part), getattr(other, part)) for part in ("train", "validation", "test")]
    return one.card == other.card and all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in parts)


# --- every reader ----------------------------------------------------------------------------------


@pytest.fixture(params=sorted(READERS))
def loaded_twice(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[SiteData, SiteData]:
    """The same files of one kind of data, read two times."""
    if request.param == "images":
        folder = image_folder(tmp_path / "images")
        return load_images(folder), load_images(folder)
    if request.param == "arrays":
        file = tmp_path / "data.npz"
        np.savez(file, x=np.arange(20 * 6 * 5, dtype=np.uint8).reshape(20, 6, 5), y=np.arange(20) % 2)
        one, two = (
            load_data(ArraysData(path=file), IMAGES, SplitConfig(), site="berlin", min_examples=2) for _ in range(2)
        )
        return one, two
    file = table_file(tmp_path / "rows.csv", ROWS)
    return load_table(file), load_table(file)


def test_reading_twice_gives_the_same(loaded_twice: tuple[SiteData, SiteData]) -> None:
    """Readers and split are deterministic, bit for bit."""
    assert equal(*loaded_twice)


def test_examples_have_the_promised_types(loaded_twice: tuple[SiteData, SiteData]) -> None:
    """Inputs are float32, labels int64, and the card counts what is there."""
    data = loaded_twice[0]
    for part in (data.train, data.validation, data.test):
        assert (torch.float32, torch.int64) == (part.x.dtype, part.y.dtype)
        assert data.input_shape == tuple(part.x.shape[1:])
    counts = (data.card.num_train, data.card.num_validation, data.card.num_test)
    assert counts == (len(data.train), len(data.validation), len(data.test))
    assert data.card.num_examples == sum(counts)


def test_data_of_another_kind_than_the_task_is_refused(tmp_path: Path) -> None:
    """Data kind and task kind must agree, in both directions."""
    with pytest.raises(ConfigError, match=r"site 'berlin': data.kind is 'images', expected 'table'"):
        load_data(ImageFolderData(path=tmp_path), TABLE, SplitConfig(), site="berlin", min_examples=2)
    with pytest.raises(ConfigError, match=r"site 'berlin': data.kind is 'arrays', expected 'table'"):
        load_data(ArraysData(path=tmp_path), TABLE, SplitConfig(), site="berlin", min_examples=2)
    with pytest.raises(ConfigError, match=r"site 'berlin': data.kind is 'table', expected 'images' or 'arrays'"):
        load_data(TableData(path=tmp_path), IMAGES, SplitConfig(), site="berlin", min_examples=2)


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    """A site with fewer usable examples than the study's minimum is named with both numbers."""
    file = table_file(tmp_path / "rows.csv", ROWS[:7])
    message = error_of(load_table, file, min_examples=20)
    assert "site 'lyon': 7 usable examples, expected at least 20" == message


def test_class_counts_are_on_the_card_only_when_shared(tmp_path: Path) -> None:
    """Without the site's consent a card has class names but no counts."""
    file = table_file(tmp_path / "rows.csv", ROWS)
    assert load_table(file).card.class_counts is None
    assert load_table(file, share_class_counts=True).card.class_counts == {"no": 30, "yes": 10}
    assert load_table(file).card.classes == ("no", "yes")


def test_card_names_only_classes_that_occur(tmp_path: Path) -> None:
    """A site with one class only is accepted, and its card says so."""
    card = load_table(table_file(tmp_path / "rows.csv", [row for row in ROWS if row.endswith("no")])).card
    assert card.classes == ("no",)


def test_schema_digest_depends_on_the_order_of_columns() -> None:
    """Two tasks whose features stand in another order do not have one schema."""
    turned = TABLE.model_copy(update={"columns": dict(reversed(TABLE.columns.items()))})
    assert schema_digest(TABLE) == schema_digest(TABLE.model_copy())
    assert schema_digest(TABLE) != schema_digest(turned)


# --- images ----------------------------------------------------------------------------------------


def test_image_pixels_are_scaled_by_the_task(tmp_path: Path) -> None:
    """A pixel p becomes (p / 255 * pixel_max - mean) / std, here (30 / 255 * 255 - 10) / 4 = 5."""
    task = IMAGES.model_copy(update={"pixel_max": 255.0, "mean": (10.0,), "std": (4.0,)})
    data = load_images(image_folder(tmp_path / "d"), task, split=SplitConfig(test=0, validation=0))
    values = sorted({round(float(image.mean()), 4) for image in data.train.x})
    assert values == [(10 * i - 10) / 4 for i in range(10)]
    assert data.input_shape == (1, 8, 8)


def test_colour_images_keep_their_channels(tmp_path: Path) -> None:
    """Channels come first, in the order red, green, blue, each with its own mean."""
    task = ImageTask(classes=IMAGES.classes, size=8, channels=3, mean=(0.0, 1.0, 2.0))
    data = load_images(image_folder(tmp_path / "d", mode="RGB"), task)
    assert data.input_shape == (3, 8, 8)
    assert bool((data.train.x[:, 1] == -1).all()) and bool((data.train.x[:, 2] == -2).all())
    assert float(data.train.x[:, 0].max()) > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_image_stands_upright(tmp_path: Path, channels: int) -> None:
    """The last two axes are row and column: a white top half stays on top."""
    folder = tmp_path / "d"
    (folder / "normal").mkdir(parents=True)
    picture = np.zeros((8, 8), dtype=np.uint8)
    picture[:4] = 255
    for name in ("1.png", "2.png"):
        Image.fromarray(picture).save(folder / "normal" / name)
    task = IMAGES.model_copy(update={"channels": channels})
    image = load_images(folder, task, split=SplitConfig(test=0, validation=0)).train.x[0]
    assert [1.0] * 4 + [0.0] * 4 == image.mean(dim=(0, 2)).tolist()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_image_of_16_bits_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    """Half of 65535 is half of white; Pillow's own conversion would give white."""
    folder = image_folder(tmp_path / "d")
    Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16)).save(folder / "pneumonia" / f"999.{suffix}")
    data = load_images(folder, split=SplitConfig(test=0, validation=0))
    assert min(abs(float(image.mean()) - 32768 / 65535) for image in data.train.x) < 1e-6


def test_image_with_transparent_palette_is_read_without_warning(tmp_path: Path) -> None:
    """Palette images with transparency are common on the web, and Pillow warns about them."""
    folder = image_folder(tmp_path / "d")
    image = Image.new("P", (8, 8))
    image.save(folder / "normal" / "p.png", transparency=b"\x00\x80")
    assert load_images(folder).card.num_examples == 21


def test_other_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    """Only image files that are not hidden count; the case of a suffix does not matter."""
    folder = image_folder(tmp_path / "d")
    (folder / ".cache").mkdir()
    (folder / "notes.txt").write_text("x")
    (folder / "normal" / "notes.txt").write_text("x")
    (folder / "normal" / "._000.png").write_text("x")
    (folder / "normal" / "000.png").rename(folder / "normal" / "000.PNG")
    assert load_images(folder).card.num_examples == 20


def test_unknown_class_folder_is_named(tmp_path: Path) -> None:
    """A folder that is no class of the study stops the site, with the classes that are expected."""
    folder = image_folder(tmp_path / "d")
    (folder / "covid").mkdir()
    message = error_of(load_images, folder)
    classes = "['normal', 'pneumonia']"
    assert f"site 'berlin': class 'covid' is not in the study's classes {classes} (folder '{folder}/covid')" == message


def test_class_folder_in_other_case_gets_a_hint(tmp_path: Path) -> None:
    """A difference in case only is said to be one."""
    folder = tmp_path / "d"
    (folder / "Pneumonia").mkdir(parents=True)
    message = error_of(load_images, folder)
    assert message.startswith("site 'berlin': class 'Pneumonia' is not in the study's classes ")
    assert message.endswith("upper and lower case differ: rename the folder to 'pneumonia'")


def test_missing_and_empty_image_folders_are_told_apart(tmp_path: Path) -> None:
    """Each way to have no images has its own sentence."""
    assert "does not exist" in error_of(load_images, tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in error_of(load_images, tmp_path / "file")
    (tmp_path / "d").mkdir()
    assert "has no sub-folder, expected one for each of ['normal', 'pneumonia']" in error_of(
        load_images, tmp_path / "d"
    )
    (tmp_path / "d" / "normal").mkdir()
    assert "no image in the sub-folders" in error_of(load_images, tmp_path / "d")


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"]
)
def test_corrupt_image_is_named(tmp_path: Path, content: bytes) -> None:
    """Bytes that no allowed decoder reads are named relative to the data folder."""
    folder = image_folder(tmp_path / "d")
    (folder / "normal" / "bad.png").write_bytes(content)
    message = error_of(load_images, folder)
    assert message.startswith("site 'berlin': image 'normal/bad.png' is corrupt or not one of")
    assert str(tmp_path) not in message


def test_truncated_image_is_corrupt(tmp_path: Path) -> None:
    """An image whose file ends early is not read as half an image."""
    folder = image_folder(tmp_path / "d")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "normal" / "bad.png")
    whole = (folder / "normal" / "bad.png").read_bytes()
    (folder / "normal" / "bad.png").write_bytes(whole[: len(whole) // 2])
    assert "'normal/bad.png' is corrupt" in error_of(load_images, folder)


def test_corrupt_images_up_to_max_skipped_are_logged_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Skipped files are on the card and one warning each; one more than allowed stops the site."""
    folder = image_folder(tmp_path / "d")
    for name in ("bad1.png", "bad2.png"):
        (folder / "normal" / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        card = load_images(folder, max_skipped=2).card
    assert (20, 2) == (card.num_examples, card.num_skipped)
    lines = [record.getMessage() for record in caplog.records if "bad example" in record.getMessage()]
    assert [True, True] == ["site=berlin" in line for line in lines]
    assert "(2 bad examples so far, at most 1 allowed by data.max_skipped)" in error_of(
        load_images, folder, max_skipped=1
    )


# --- tables ----------------------------------------------------------------------------------------


def test_table_features_stand_in_the_order_of_the_task(tmp_path: Path) -> None:
    """A number is one feature, a category of three values two, and columns in between do not matter."""
    rows = ["yes,x,2,20,1.5", "no,x,3,40,0.5"]
    file = table_file(tmp_path / "rows.csv", rows, header="disease,name,pain,age,pressure")
    data = load_table(file, split=SplitConfig(test=0, validation=0))
    # Two rows standardise to -1 and +1, and the row with the larger value gets the +1.
    assert [1, 0] == data.train.y.tolist()
    assert [[-1, 1, -1, 1], [1, -1, 1, -1]] == data.train.x.tolist()


def test_table_is_standardised_on_training_rows_only(tmp_path: Path) -> None:
    """Training features have mean 0 and population std 1; a constant one is 0; test rows do not take part."""
    rows = [f"{row},7" for row in ROWS]
    task = TABLE.model_copy(update={"columns": {**TABLE.columns, "same": NumberColumn()}})
    data = load_table(table_file(tmp_path / "rows.csv", rows, header=f"{HEADER},same"), task)
    assert torch.allclose(torch.zeros(5), data.train.x.mean(dim=0), atol=1e-6)
    assert torch.allclose(torch.tensor([1.0, 1, 1, 1, 0]), data.train.x.std(dim=0, correction=0), atol=1e-5)
    assert float(data.test.x[:, :4].mean(dim=0).abs().max()) > 1e-3


def test_table_standardisation_does_not_see_test_rows(tmp_path: Path) -> None:
    """Changing a number of a test row leaves every training row as it was, bit for bit."""
    split = SplitConfig(test=0.25, validation=0)
    labels = np.array([int(row.endswith("yes")) for row in ROWS])
    victim = int(split_rows(labels, split).test[0])
    changed = [f"9999,{row.split(',', 1)[1]}" if i == victim else row for i, row in enumerate(ROWS)]
    one = load_table(table_file(tmp_path / "a.csv", ROWS), split=split)
    other = load_table(table_file(tmp_path / "b.csv", changed), split=split)
    assert torch.equal(one.train.x, other.train.x)
    assert not torch.equal(one.test.x, other.test.x)


def test_number_too_far_from_the_training_rows_is_refused(tmp_path: Path) -> None:
    """A value that overflows when it is standardised stops the site instead of becoming infinite."""
    split = SplitConfig(test=0.25, validation=0)
    labels = np.array([int(row.endswith("yes")) for row in ROWS])
    victim = int(split_rows(labels, split).test[0])
    rows = [f"{'1e38' if i == victim else i * 1e-9},{row.split(',', 1)[1]}" for i, row in enumerate(ROWS)]
    message = error_of(load_table, table_file(tmp_path / "a.csv", rows), split=split)
    assert "site 'lyon': a number is too far from the training rows to be standardised" == message


def test_category_matches_as_a_number_too(tmp_path: Path) -> None:
    """The cell "2.0" is the category "2"."""
    one = load_table(table_file(tmp_path / "a.csv", ROWS))
    floats = [",".join([a, f"{b}.0", *rest]) for a, b, *rest in (row.split(",") for row in ROWS)]
    assert equal(one, load_table(table_file(tmp_path / "b.csv", floats)))


def test_folder_of_tables_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """Two files are one table; hidden files and other kinds are ignored; a byte order mark does not matter."""
    whole = load_table(table_file(tmp_path / "whole.csv", ROWS))
    (tmp_path / "d").mkdir()
    table_file(tmp_path / "d" / "2.CSV", ROWS[25:])
    table_file(tmp_path / "d" / "1.csv", ROWS[:25], header="\ufeff" + HEADER)
    table_file(tmp_path / "d" / ".hidden.csv", ["x"])
    (tmp_path / "d" / "notes.txt").write_text("x")
    assert equal(whole, load_table(tmp_path / "d"))


@pytest.mark.parametrize("cell", ["", " ", "?", "NA", "nan", "NaN"])
def test_missing_cell_follows_the_task(tmp_path: Path, cell: str, caplog: pytest.LogCaptureFixture) -> None:
    """A missing cell is refused, or its row dropped without counting as skipped."""
    file = table_file(tmp_path / "rows.csv", [*ROWS, f"50,1,{cell},no"])
    assert error_of(load_table, file).endswith("file 'rows.csv', line 42, column 'pressure': the value is missing")
    with caplog.at_level(logging.INFO):
        card = load_table(file, TABLE.model_copy(update={"missing": "drop_row"})).card
    assert (40, 0) == (card.num_examples, card.num_skipped)
    assert ["rows with missing cells dropped site=lyon dropped=1 kept=40"] == [r.getMessage() for r in caplog.records]


def test_missing_cell_in_an_unused_column_does_not_matter(tmp_path: Path) -> None:
    """Only the study's columns must be filled."""
    file = table_file(tmp_path / "rows.csv", [f"{row}," for row in ROWS], header=f"{HEADER},remark")
    assert load_table(file).card.num_examples == 40


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("sekret,1,120,no", "column 'age': expected a number, got text"),
        ("4_0,1,120,no", "column 'age': expected a number, got text"),
        ("inf,1,120,no", "column 'age': expected a finite number, got one that is infinite or too large"),
        ("1e300,1,120,no", "column 'age': expected a finite number, got one that is infinite or too large"),
        ("40,sekret,120,no", "column 'pain': expected one of ['1', '2', '3'], got text that is not among them"),
        ("40,41,120,no", "column 'pain': expected one of ['1', '2', '3'], got a number that is not among them"),
        ("40,1,120,sekret", "label column 'disease': expected one of ['no', 'yes'], got text that is not among them"),
        (
            "40,1,120,Yes",
            "label column 'disease': expected one of ['no', 'yes'], got text that is not among them; "
            "upper and lower case differ from 'yes'",
        ),
    ],
)
def test_bad_cell_is_named_by_place_and_never_by_value(tmp_path: Path, row: str, sentence: str) -> None:
    """A sentence has file, line and column and what was expected; the value stays at the site."""
    message = error_of(load_table, table_file(tmp_path / "rows.csv", [*ROWS[:15], row, *ROWS[15:]]))
    assert f"site 'lyon': file 'rows.csv', line 17, {sentence}" == message
    assert "sekret" not in message and "41" not in message


@pytest.mark.parametrize(("row", "got"), [("40,1,no", 3), ("40,1,120,no,sekret", 5)])
def test_row_with_wrong_number_of_fields_is_named(tmp_path: Path, row: str, got: int) -> None:
    """A short or long row is bad; blank lines are not rows, and still count as lines."""
    message = error_of(load_table, table_file(tmp_path / "rows.csv", ["", *ROWS[:3], row]))
    assert f"site 'lyon': file 'rows.csv', line 6: expected 4 fields as in the header, got {got}" == message


def test_bad_rows_up_to_max_skipped_are_counted(tmp_path: Path) -> None:
    """Bad rows are skipped as far as the site allows, over all of its files."""
    file = table_file(tmp_path / "rows.csv", [*ROWS, "x,1,120,no", "40,1,no"])
    card = load_table(file, max_skipped=2).card
    assert (40, 2) == (card.num_examples, card.num_skipped)
    message = error_of(load_table, file, max_skipped=1)
    assert message.endswith("(2 bad rows, at most 1 allowed by data.max_skipped)")
    assert "column 'age': expected a number, got text (1 row: line 42); expected 4 fields as in the header" in message


def test_missing_column_is_named(tmp_path: Path) -> None:
    """A file without a column of the study is refused, with all that it lacks and what may be meant by it."""
    message = error_of(load_table, table_file(tmp_path / "a.csv", ["1,1,no"], header="age,pain,disease"))
    assert "site 'lyon': file 'a.csv' has no column 'pressure'" == message
    message = error_of(load_table, table_file(tmp_path / "a.csv", [], header="Age, pain ,blood,Disease"))
    assert (
        "site 'lyon': file 'a.csv' has no columns 'age', 'pressure', 'disease' (task.label); it has 'Age', expected "
        "'age'; 'Disease', expected 'disease': rename in the file, or in site.toml by data.rename = "
        '{ "name there" = "name here" }'
    ) == message
    message = error_of(load_table, table_file(tmp_path / "a.csv", [], header=f"{HEADER},age"))
    assert message.endswith("column 'age' stands 2 times in the header, expected once")


def test_missing_and_empty_tables_are_told_apart(tmp_path: Path) -> None:
    """Each way to have no rows has its own sentence."""
    assert "does not exist, expected a .csv, .tsv, .xlsx or .parquet file" in error_of(load_table, tmp_path / "nowhere")
    (tmp_path / "d").mkdir()
    assert "has no .csv, .tsv, .xlsx or .parquet file" in error_of(load_table, tmp_path / "d")
    (tmp_path / "rows.xls").write_text("x")
    assert "is an old Excel file (.xls): save it as .xlsx" in error_of(load_table, tmp_path / "rows.xls")
    (tmp_path / "rows.doc").write_text("x")
    assert "is not a .csv, .tsv, .xlsx or .parquet file" in error_of(load_table, tmp_path / "rows.doc")
    (tmp_path / "d" / "a.csv").write_text("\n")
    assert "file 'a.csv' is empty, expected a header" in error_of(load_table, tmp_path / "d")
    assert "no usable row" in error_of(load_table, table_file(tmp_path / "d" / "a.csv", []))


def test_file_that_is_not_text_or_not_csv_is_refused(tmp_path: Path) -> None:
    """Bytes that are no text in any encoding that is looked for, or of two, and unclosed quotes are named."""
    (tmp_path / "a.csv").write_bytes(HEADER.encode() + b"\n\x01\xff")
    assert "file 'a.csv' is not text: character 26 is a control character" in error_of(load_table, tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(HEADER.encode() + b"\nK\xc3\xb6ln,\xff")
    message = error_of(load_table, tmp_path / "a.csv")
    assert "file 'a.csv' is mostly UTF-8 text, but byte 32 is not: it is damaged, or of two encodings" in message
    message = error_of(load_table, table_file(tmp_path / "a.csv", [*ROWS, '"sekret,1,120,no']))
    assert "file 'a.csv', line 42: not valid CSV" in message and "sekret" not in message


CELLS = st.one_of(
    st.sampled_from(["40", "1", "2.0", "no", "yes", "", "?", "inf", "1e308", "-1e-320", '"', "a\nb"]), st.text()
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.one_of(st.just(HEADER), st.text()),
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=5).map(",".join), max_size=6),
    max_skipped=st.integers(0, 5),
    missing=st.sampled_from(["drop_row", "impute"]),
)
def test_random_csv_text_is_read_or_refused_as_data(
    tmp_path: Path, header: str, rows: list[str], max_skipped: int, missing: str
) -> None:
    """Whatever a file holds, it gives finite features or a DataError, and nothing else."""
    text = "\n".join([header, *rows])
    (tmp_path / "rows.csv").write_bytes(text.encode("utf-8", errors="surrogatepass"))
    task = TABLE.model_copy(update={"missing": missing})
    try:
        data = load_table(tmp_path / "rows.csv", task, max_skipped=max_skipped)
    except DataError:
        return
    assert all(bool(torch.isfinite(part.x).all()) for part in (data.train, data.validation, data.test))


# --- split -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    test=st.floats(0, 0.999),
    validation=st.floats(0, 0.999),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_divides_every_row_exactly_once(labels: list[int], test: float, validation: float, seed: int) -> None:
    """The three parts are disjoint and complete, training is never empty, and rare classes do no harm."""
    config = SplitConfig(test=test, validation=validation, seed=seed)
    split = split_rows(np.array(labels), config)
    assert list(range(len(labels))) == sorted([*split.train, *split.validation, *split.test])
    assert len(split.train) > 0
    assert (test == 0) <= (len(split.test) == 0) and (validation == 0) <= (len(split.validation) == 0)


def test_split_is_stratified() -> None:
    """Every part has the classes in the proportion of the whole: here 3 to 1."""
    labels = np.array([0, 0, 0, 1] * 50)
    split = split_rows(labels, SplitConfig(test=0.2, validation=0.25))
    assert [(90, 30), (30, 10), (30, 10)] == [
        (int((labels[part] == 0).sum()), int((labels[part] == 1).sum()))
        for part in (split.train, split.validation, split.test)
    ]


def test_split_depends_on_the_seed_alone() -> None:
    """One seed gives one split, another seed another."""
    labels = np.array([0, 1] * 50)
    one, same, other = (split_rows(labels, SplitConfig(seed=seed)) for seed in (1, 1, 2))
    assert one.test.tolist() == same.test.tolist() and one.validation.tolist() == same.validation.tolist()
    assert one.test.tolist() != other.test.tolist()


@settings(deadline=None, max_examples=300)
@given(
    sizes=st.lists(st.integers(3, 40), min_size=1, max_size=5),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32 - 1),
    in_classes=st.booleans(),
)
def test_rows_are_drawn_as_scikit_learn_draws_them(sizes: list[int], share: float, seed: int, in_classes: bool) -> None:
    """Row by row and in the same order, stratified or not: whoever divides by that function has our parts."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    kept = min(max(round(share * len(labels)), len(sizes)), len(labels) - len(sizes))
    expected = train_test_split(
        np.arange(len(labels)), train_size=kept, random_state=seed, stratify=labels if in_classes else None
    )
    drawn = draw_two_parts(len(labels), kept, labels if in_classes else None, seed=seed)
    assert [one.tolist() for one in expected] == [one.tolist() for one in drawn]


def test_split_of_rare_class_falls_back_to_unstratified() -> None:
    """A class with two rows is split as FLamby does it: without stratification."""
    labels = np.array([0] * 40 + [1] * 2)
    expected = train_test_split(np.arange(42), test_size=1.0 - 0.66, train_size=0.66, random_state=43)
    split = split_rows(labels, SplitConfig(test=0.34, validation=0, seed=43))
    assert [list(part) for part in expected] == [split.train.tolist(), split.test.tolist()]


@pytest.mark.skipif(not HEART.is_dir(), reason="the heart disease files are not part of the repository")
def test_split_of_heart_disease_is_that_of_flamby(tmp_path: Path) -> None:
    """Rows, features, and every single test row equal those of FLamby's own call per hospital."""
    federation = heart_disease_hospitals(HEART, tmp_path)
    sizes = {}
    for site, folder in federation.folders.items():
        # VA has one patient twice; FLamby's split does not know.
        split = SplitConfig(test=0.34, validation=0, seed=43, copies="ignore")
        whole = load_data(
            TableData(path=folder), federation.task, SplitConfig(test=0, validation=0), site=site, min_examples=2
        )
        data = load_data(TableData(path=folder), federation.task, split, site=site, min_examples=2)
        labels = whole.train.y.numpy()
        # Switzerland has one healthy patient, so FLamby does not stratify there.
        stratify = labels if np.bincount(labels).min() > 2 else None
        train, test = train_test_split(
            np.arange(len(labels)), test_size=1.0 - 0.66, train_size=0.66, random_state=43, stratify=stratify
        )
        parts = split_rows(labels, split)
        assert (train.tolist(), test.tolist()) == (parts.train.tolist(), parts.test.tolist())
        assert labels[test].tolist() == data.test.y.tolist()
        assert data.input_shape == (13,)
        sizes[site] = (len(data.train), len(data.test))
    assert {"cleveland": (199, 104), "hungarian": (172, 89), "switzerland": (30, 16), "va": (85, 45)} == sizes


def test_another_validation_seed_draws_other_validation_rows_and_keeps_the_test_rows() -> None:
    """So that splits differ in one thing only."""
    labels = np.array([0, 1] * 50)
    first, second = (
        split_rows(labels, SplitConfig(test=0.3, validation=0.3, seed=5, validation_seed=seed)) for seed in (0, 1)
    )
    assert np.array_equal(first.test, second.test)
    assert set(first.validation) != set(second.validation)
    assert set(first.validation) | set(first.train) == set(second.validation) | set(second.train)
