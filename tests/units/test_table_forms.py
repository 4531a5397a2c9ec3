"""Tables as they come: however the same rows are written, they give the same tensors, or a sentence with all faults."""

import builtins
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas._libs.parsers import STR_NA_VALUES
from table_forms import HEAD, IMPUTE, TASK, Line, lines, read, text

from consilium.client.data import schema_digest
from consilium.client.data.input_rows import read_rows
from consilium.client.data.parts import parts_in_file
from consilium.common.data.tables import Form, Wanted, open_table
from consilium.common.data.words import MISSING, MISSING_IN_NUMBERS, decimal_of
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.task import CategoryColumn, NumberColumn, Regression, TableTask


def commas(rows: list[Line]) -> list[Line]:
    """The same rows with decimal commas."""
    return [(age.replace(".", ","), *rest) for age, *rest in rows]


def quoted(rows: list[Line]) -> list[Line]:
    """The same rows with their first field in quotes."""
    return [(f'"{age}"', *rest) for age, *rest in rows]


UMLAUTS = [(*line, "Köln") for line in lines()]
FORMS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "semicolons": (text(commas(lines()), sep=";").encode(), ("with ';' between fields", "with decimal commas")),
    "quoted commas": (text(quoted(commas(lines()))).encode(), ("with decimal commas",)),
    "tabs": (text(sep="\t").encode(), ("with tab between fields",)),
    "bars": (text(sep="|").encode(), ("with '|' between fields",)),
    "mark": (text().encode("utf-8-sig"), ()),
    "latin-1": (text(UMLAUTS, head=(*HEAD, "ort")).encode("latin-1"), ("as Windows-1252 (Latin-1) text",)),
    "utf-16": (text().encode("utf-16"), ("as UTF-16 text",)),
    "utf-16 without a mark": (text().encode("utf-16-le"), ("as UTF-16 text",)),
    "utf-32": (text().encode("utf-32"), ("as UTF-32 text",)),
    "old Mac": (text().replace("\n", "\r").encode(), ()),
    "empty rows": ((text() + ",,\n\n , ,\n").encode(), ()),
    "title": (("Export study X;;\n" + text()).encode(), ("without the title line above its header",)),
    "two titles": (("Export,,\n\nby hand,,\n" + text()).encode(), ("without the 2 title lines above its header",)),
    "sep=": (("sep=;\n" + text(sep=";")).encode(), ("with ';' between fields", "without the title line")),
}


@pytest.mark.parametrize("form", FORMS)
def test_same_rows_in_another_form_give_the_same_tensors(tmp_path: Path, form: str) -> None:
    """What is unusual about the file is found, and said in one sentence; a finished model reads the same."""
    content, found = FORMS[form]
    (tmp_path / "plain.csv").write_text(text())
    (tmp_path / "other.csv").write_bytes(content)
    plain, other = read(tmp_path / "plain.csv"), read(tmp_path / "other.csv")
    assert [float(age) for age, _, _ in lines()] == plain.raw.x[:, 0].tolist() and not plain.raw.reading
    assert plain.digest == other.digest and plain.card == other.card
    sentence = "".join(other.raw.reading)
    assert bool(found) == bool(sentence) and all(part in sentence for part in found)
    asked = read_rows(tmp_path / "other.csv", TASK, labelled=True, keep=(), group=None)
    assert np.array_equal(plain.raw.x.numpy(), asked.x.numpy()) and not asked.unread


def test_form_that_a_site_sets_is_taken_and_not_looked_for(tmp_path: Path) -> None:
    """Where a file could be read in two ways, `site.toml` decides; columns without a header get names."""
    (tmp_path / "a.csv").write_bytes("a|b;1,5\nc|d;2,5\n".encode("utf-16-be"))
    form = Form("|", ".", "utf-16-be", names=("one", "two"))
    table = open_table(tmp_path / "a.csv", Wanted(), form, who="x")
    assert (("one", "two"), ".") == (table.header, table.decimal)
    assert [["a", "b;1,5"], ["c", "d;2,5"]] == [cells for _, cells in table.rows]
    (tmp_path / "b.data").write_text(text().split("\n", 1)[1])
    named = read(tmp_path / "b.data", names=HEAD)
    assert [float(age) for age, _, _ in lines()] == named.raw.x[:, 0].tolist()


@pytest.mark.parametrize(
    ("cells", "decimal"),
    [
        (["1,5", "2"], ","),
        (["1,5", "2.5"], "."),
        (["1,234", "22,500"], "."),
        (["1,234", "0,567"], ","),
        (["1,234", "1,2"], ","),
        (["1", "", "x"], "."),
        ([",5"], ","),
    ],
)
def test_comma_is_decimal_where_it_can_stand_for_nothing_else(cells: list[str], decimal: str) -> None:
    """1,234 may be a thousand and more; 0,567 may not; and a file has one sign, not two."""
    assert decimal == decimal_of(cells)


def test_number_in_another_writing_than_the_files_is_named(tmp_path: Path) -> None:
    """A comma that may mean two things is refused with the setting that decides, and so is a point among commas."""
    (tmp_path / "a.csv").write_text(text([(f'"1,{100 + i}"', "F", str(i % 2)) for i in range(20)]))
    with pytest.raises(DataError, match=r"may stand for a decimal point or for thousands \(site.toml: data.decimal\)"):
        read(tmp_path / "a.csv")
    assert 1.1 == read(tmp_path / "a.csv", decimal=",").raw.x[0, 0]
    (tmp_path / "b.csv").write_text(text([*commas(lines()), ("60.5", "F", "1")], sep=";"))
    with pytest.raises(DataError, match="got one with a comma"):  # both signs: none is taken for granted
        read(tmp_path / "b.csv")
    with pytest.raises(DataError, match="line 62, column 'age': expected a number with a decimal comma, as the file"):
        read(tmp_path / "b.csv", decimal=",")


def test_words_for_missing_are_those_of_pandas(tmp_path: Path) -> None:
    """Every word that pandas reads as NaN is missing here, in numbers and categories; pandas agrees on the file."""
    words = sorted(STR_NA_VALUES)
    (tmp_path / "a.csv").write_text(text([*lines(), *((word, word, "1") for word in words)]))
    raw = read(tmp_path / "a.csv").raw
    expected = pd.read_csv(tmp_path / "a.csv")["age"].isna().to_numpy()
    assert len(words) - 1 <= expected.sum()  # the row of two empty cells and a label is there too
    assert expected.tolist() == np.isnan(raw.x[:, 0].numpy()).tolist() == np.isnan(raw.x[:, 1].numpy()).tolist()
    assert {word.casefold() for word in STR_NA_VALUES} <= MISSING_IN_NUMBERS and MISSING < MISSING_IN_NUMBERS


@pytest.mark.parametrize("word", ["N/A", "NULL", "None", ".", "-", "#N/A", "?", " "])
def test_word_for_missing_is_a_value_only_where_the_study_lists_it(tmp_path: Path, word: str) -> None:
    """A category may be called "None" or "-"; everywhere else these are missing."""
    rows = [(word, word, "1"), *lines()]
    (tmp_path / "a.csv").write_text(text(rows))
    assert [True, True] == np.isnan(read(tmp_path / "a.csv").raw.x[0].numpy()).tolist()
    if word.strip():
        known = CategoryColumn(values=("F", word, "M"))
        task = IMPUTE.model_copy(update={"columns": {"age": NumberColumn(), "sex": known}})
        assert [1.0, 0.0] == read(tmp_path / "a.csv", task).raw.x[0, 1:].tolist()


CODED = [("-9", "F", "0"), ("-9.0", "9", "1"), ("999", "M", "0"), ("61", "unknown", "1"), ("62", "F", "7"), *lines()]


@pytest.mark.parametrize("where", ["study", "site", "both"])
def test_codes_of_missing_values_are_missing(tmp_path: Path, where: str) -> None:
    """By column and by pattern, of the study, of a site, or of both; a number in any writing; also of the label."""
    codes: dict[str, Any] = {"ag*": [-9, 999.0], "sex": [9, "unknown"], "outcome": [7]}
    study = codes if where == "study" else {"age": [999], "sex": ["unknown"]} if where == "both" else {}
    task = TableTask.model_validate(IMPUTE.model_dump() | {"missing_values": study})
    (tmp_path / "a.csv").write_text(text(CODED))
    data = read(tmp_path / "a.csv", task, missing_values=codes if where != "study" else {})
    rows = data.raw.x[:4].numpy()
    assert [[True, False], [True, True], [True, False], [False, True]] == np.isnan(rows).tolist()
    assert 64 == data.card.num_examples  # the row without a label is left out, and said
    assert ("1 row with a missing cell left out (task.missing)",) == data.raw.reading
    assert schema_digest(task) == data.card.schema_digest, "a site's own codes are no difference between sites"
    assert isinstance(data.task, TableTask) and ("-9", "999") == tuple(sorted(data.task.codes_of("age")))
    assert np.isnan(
        read_rows(tmp_path / "a.csv", data.task, labelled=False, keep=(), group=None).x[:3, 0].numpy()
    ).all()


@pytest.mark.parametrize(
    ("codes", "sentence"),
    [
        (
            {"agee": [-9]},
            "data.missing_values: 'agee' is no column of the task, and fits none as a pattern",
        ),
        ({"sex": ["F"]}, "column 'sex': 'F' is among its values and among missing_values"),
    ],
)
def test_codes_that_fit_nothing_are_refused(tmp_path: Path, codes: dict[str, Any], sentence: str) -> None:
    """A name that is misspelt would otherwise leave 999 among the ages."""
    (tmp_path / "a.csv").write_text(text())
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "a.csv", missing_values=codes)
    assert sentence in str(caught.value) and str(caught.value).endswith("(site.toml)")
    with pytest.raises(ValueError, match=sentence.removeprefix("data.")):
        TableTask.model_validate(TASK.model_dump() | {"missing_values": codes})


def test_all_faults_of_a_site_are_in_one_list(tmp_path: Path) -> None:
    """By kind with counts and the first places, over all files; never a value."""
    rows = lines()
    rows[4], rows[9], rows[20] = ("sekret", *rows[4][1:]), (rows[9][0], "divers", rows[9][2]), (*rows[20][:2], "2")
    (tmp_path / "three.csv").write_text(text(rows))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "three.csv")
    assert str(caught.value) == (
        "site 'rom': file 'three.csv': 3 rows cannot be used: column 'age': expected a number, got text (1 row: line "
        "6); column 'sex': expected one of ['F', 'M'], got text that is not among them (1 row: line 11); label column "
        "'outcome': expected one of ['0', '1'], got a number that is not among them (1 row: line 22)"
    )
    assert 57 == read(tmp_path / "three.csv", max_skipped=3).card.num_examples
    both = [("sekret", "divers", "1")] * 5
    (tmp_path / "zwei.csv").write_text(text(both))
    with pytest.raises(DataError) as caught:
        read(tmp_path, max_skipped=7)
    said = str(caught.value)
    assert (
        "8 rows cannot be used: column 'age': expected a number, got text (6 rows: first file 'three.csv', line 6"
        in said
    )
    assert said.endswith("(8 bad rows, at most 7 allowed by data.max_skipped)") and "sekret" not in said


def test_ten_kinds_of_faults_are_said_and_the_others_counted(tmp_path: Path) -> None:
    """A file that is wrong all over fills no screen."""
    names = tuple(f"c{i}" for i in range(14))
    task = TableTask(classes=("0", "1"), label="y", columns={name: NumberColumn() for name in names})
    (tmp_path / "a.csv").write_text(text([("x",) * 14 + ("1",)] * 3, head=(*names, "y")))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.csv", task)
    assert 10 == str(caught.value).count("expected a number") and str(caught.value).endswith("; and 4 more kinds")


def test_headers_that_do_not_fit_are_named_with_what_may_be_meant(tmp_path: Path) -> None:
    """Of every file at once; a site can give its own names the study's, and then its rows are the same."""
    (tmp_path / "a.csv").write_text(text(head=("Age", " SEX", "Outcome")))
    (tmp_path / "b.csv").write_text(text(head=("age", "sex", "result")))
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    said = str(caught.value)
    assert "file 'a.csv' has no columns 'age', 'sex', 'outcome' (task.label); it has 'Age', expected 'age'" in said
    assert "; 'SEX', expected 'sex'; 'Outcome', expected 'outcome': rename in the file, or in site.toml by" in said
    assert said.endswith("; file 'b.csv' has no column 'outcome' (task.label)")
    renamed = read(tmp_path / "a.csv", rename={"Age": "age", "SEX": "sex", "Outcome": "outcome"})
    (tmp_path / "c.csv").write_text(text())
    assert read(tmp_path / "c.csv").digest == renamed.digest


@pytest.mark.parametrize(("kind", "words"), [("class", ("0", "1")), ("class", ("no", "true")), ("number", ())])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".xlsx"])
def test_truth_values_are_the_same_in_every_kind_of_file(
    tmp_path: Path, suffix: str, kind: str, words: tuple[str, str]
) -> None:
    """True is 1 in a column of numbers, else the study's own `true`, in any case, or its 1."""
    values = [i % 2 == 0 for i in range(40)]
    if words == ("no", "true"):
        values = [True] * 40
    frame = pd.DataFrame({"flag": values, "age": [60.5 + i for i in range(40)], "outcome": [i % 2 for i in range(40)]})
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_excel(path, index=False)
    column = NumberColumn() if kind == "number" else CategoryColumn(values=words)
    task = TASK.model_copy(update={"columns": {"flag": column, "age": NumberColumn()}})
    assert [float(value) for value in values] == read(path, task).raw.x[:, 0].tolist()
    assert frame["age"].tolist() == read(path, task).raw.x[:, 1].tolist()


# --- workbooks -------------------------------------------------------------------------------------


def workbook(path: Path, **sheets: list[list[Any]]) -> Path:
    """Write sheets of cells as `.xlsx`."""
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra 'excel'")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def typed(rows: list[Line]) -> list[list[Any]]:
    """Rows as Excel holds them: numbers as numbers."""
    return [[*HEAD], *([float(age), sex, int(outcome)] for age, sex, outcome in rows)]


def test_workbook_gives_the_tensors_of_the_same_csv(tmp_path: Path) -> None:
    """With a title, empty rows and a note at the side; numbers as numbers or as text with a comma."""
    (tmp_path / "a.csv").write_text(text())
    cells = [["Export", None, None], [], *typed(lines()), [], [None, None, None]]
    plain = read(tmp_path / "a.csv")
    titled = read(workbook(tmp_path / "b.xlsx", data=cells))
    assert plain.digest == titled.digest and "without the title line above its header" in titled.raw.reading[0]
    texts = [[*HEAD], *([age.replace(".", ","), sex, outcome] for age, sex, outcome in lines())]
    assert plain.digest == read(workbook(tmp_path / "c.xlsx", data=texts)).digest


def test_sheet_is_the_one_with_the_studys_columns(tmp_path: Path) -> None:
    """The others are left alone; where two could be meant, the site names one."""
    path = workbook(tmp_path / "a.xlsx", notes=[["by", "whom"], ["x", "y"]], rows=typed(lines()), empty=[])
    data = read(path)
    assert 60 == data.card.num_examples and "from its sheet 'rows'" in data.raw.reading[0]
    path = workbook(tmp_path / "b.xlsx", one=typed(lines()), two=typed(lines(20)))
    with pytest.raises(DataError, match=r"has 2 sheets that could be meant, 'one', 'two': name one as data.sheet"):
        read(path)
    assert 20 == read(path, sheet="two").card.num_examples
    with pytest.raises(DataError, match=r"has no sheet 'three' \(data.sheet\), its sheets are 'one', 'two'"):
        read(path, sheet="three")


def test_workbook_that_cannot_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, a zip of something else, or openpyxl is not installed."""
    good = workbook(tmp_path / "good.xlsx", data=typed(lines())).read_bytes()
    bad = tmp_path / "bad.xlsx"
    for content in (b"", b"PK", good[:-200], good[: len(good) // 2] + b"x" * len(good)):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"file 'bad.xlsx' (is not an Excel workbook|cannot be read)"):
            read(bad)
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(DataError, match=r"file 'bad.xlsx' is not an Excel workbook"):
        read(bad)
    with zipfile.ZipFile(io.BytesIO(good)) as held, zipfile.ZipFile(bad, "w") as archive:
        for name in held.namelist():  # the last row says that twenty million empty ones come before it
            archive.writestr(name, re.sub(rb'<row r="4"', b'<row r="20000000"', held.read(name)))
    with pytest.raises(DataError, match="more than 1048576 rows or 50000000 cells in a sheet; divide it"):
        read(bad)
    bad.write_bytes(good)
    monkeypatch.setattr("consilium.common.data.excel.MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(DataError, match=r"unpacks to \d+ bytes, at most 1000 are read; divide it"):
        read(bad)
    plain = builtins.__import__

    def absent(name: str, *more: Any, **others: Any) -> Any:
        if name == "openpyxl":
            raise ImportError(name)
        return plain(name, *more, **others)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(DataError, match=r"needs openpyxl, which is not installed; install it with: pip install"):
        read(bad)


def test_index_file_may_have_semicolons(tmp_path: Path) -> None:
    """`split.parts` reads its file as tables are read."""
    (tmp_path / "parts.csv").write_bytes("row;part\n0;train\n1;test\n".encode("utf-16"))
    assert [0, 2] == parts_in_file(tmp_path / "parts.csv", ["0", "1"], [0, 1], key="row", site="rom").tolist()


def test_regression_label_may_have_a_decimal_comma(tmp_path: Path) -> None:
    """The label of a study that predicts a number is a column of numbers too."""
    task = TableTask(label="age", regression=Regression(tolerance=1), columns={"outcome": NumberColumn()})
    (tmp_path / "a.csv").write_text(text(commas(lines()), sep=";"))
    assert np.allclose([float(age) for age, _, _ in lines()], read(tmp_path / "a.csv", task).raw.y.numpy())
