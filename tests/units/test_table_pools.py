"""Pools that are tables as people have them: divided alike however they are written, with every oddity said."""

import random
from pathlib import Path

import pytest
from table_forms import HEAD, Line, lines, text

from consilium.common.data.oddities import codes_in
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.load import load_study
from consilium.common.study.site import TableData
from consilium.common.study.task import CategoryColumn, NumberColumn, TableTask
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool
from consilium.data.table_pool import read_table

IID = SplitOptions("iid", sites=2, label="outcome")


def task_of(folder: Path) -> TableTask:
    """The task of a federation's study."""
    task = load_study(folder / "study.toml").task
    assert isinstance(task, TableTask)
    return task


def federation(folder: Path) -> dict[str, str]:
    """What a federation consists of, but for the record, which has the pool's sha256."""
    files = [folder / "study.toml", *sorted(folder.glob("*/data/*"))]
    return {str(file.relative_to(folder)): file.read_text() for file in files}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (
            text([(age.replace(".", ","), *rest) for age, *rest in lines()], sep=";").encode("cp1252"),
            "file 't.csv' is read with ';' between fields, with decimal commas",
        ),
        (text(sep="\t").encode("utf-16"), "file 't.csv' is read as UTF-16 text, with tab between fields"),
        (("Export,,\n" + text() + ",,\n").encode(), "file 't.csv' is read without the title line above its header"),
    ],
)
def test_pool_in_another_form_is_the_same_federation(tmp_path: Path, content: bytes, note: str) -> None:
    """Sites get plain CSV, and one sentence says how the pool was read."""
    (tmp_path / "t.csv").write_text(text())
    assert [] == split_pool(tmp_path / "t.csv", tmp_path / "plain", IID)
    (tmp_path / "t.csv").write_bytes(content)
    assert [note] == split_pool(tmp_path / "t.csv", tmp_path / "other", IID)
    assert federation(tmp_path / "plain") == federation(tmp_path / "other")


def test_truth_values_of_a_pool_are_the_same_in_csv_and_parquet(tmp_path: Path) -> None:
    """The label true and false is 1 and 0 in the study, and a site's file may say either."""
    pd = pytest.importorskip("pandas", reason="needs the extra 'study'")
    pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    frame = pd.DataFrame([(float(age), sex, outcome == "1") for age, sex, outcome in lines()], columns=list(HEAD))
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    for suffix in ("csv", "parquet"):
        split_pool(tmp_path / f"t.{suffix}", tmp_path / suffix, IID)
    assert federation(tmp_path / "csv") == federation(tmp_path / "parquet")
    assert ("0", "1") == task_of(tmp_path / "csv").classes


def with_ages(*ages: str) -> list[Line]:
    """Rows of which the first have these ages."""
    rows = lines()
    return [(age, *row[1:]) for age, row in zip(ages, rows, strict=False)] + rows[len(ages) :]


def test_few_texts_among_numbers_count_as_missing_and_are_named(tmp_path: Path) -> None:
    """The study lists them, so that every site reads them so; many texts make the column one of texts."""
    (tmp_path / "t.csv").write_text(text(with_ages("n.a.", "n.a.", "<18")))
    notes = split_pool(tmp_path / "t.csv", tmp_path / "few", IID)
    assert [
        "column 'age' is one of numbers: 'n.a.' (2 rows), '<18' (1 row) in it count as missing (task.missing_values)"
    ] == notes
    task = task_of(tmp_path / "few")
    assert isinstance(task.columns["age"], NumberColumn) and "impute" == task.missing
    assert {"age": ("<18", "n.a.")} == task.missing_values
    (tmp_path / "t.csv").write_text(text(with_ages(*["n.a."] * 7)))
    note = " ".join(split_pool(tmp_path / "t.csv", tmp_path / "many", IID))
    assert "column 'age' is left out of the study: it has" in note and "numbers in 88% of the rows" in note


def test_word_that_may_mean_nothing_is_a_value_among_texts_and_named(tmp_path: Path) -> None:
    """A "none" of pain is a finding: the sentence says what was taken, and the other way."""
    rows = [(age, "none" if i % 3 else "severe", outcome) for i, (age, _, outcome) in enumerate(lines())]
    (tmp_path / "t.csv").write_text(text(rows))
    (note,) = split_pool(tmp_path / "t.csv", tmp_path / "f", IID)
    assert "column 'sex' has 'none' among its texts, which counts as a value; list it in task.missing_values" in note
    assert CategoryColumn(values=("none", "severe")) == task_of(tmp_path / "f").columns["sex"]


@pytest.mark.parametrize(("name", "said"), [("Died", True), ("cens", True), ("outcome", False)])
def test_number_next_to_an_event_may_be_censored(tmp_path: Path, name: str, *, said: bool) -> None:
    """A sentence names the column and the option for it; 0 and 1 under another name say nothing."""
    (tmp_path / "t.csv").write_text(text(head=("age", "sex", name)))
    options = SplitOptions("iid", sites=2, label="age", tolerance=1.0)
    notes = " ".join(split_pool(tmp_path / "t.csv", tmp_path / "f", options))
    assert said == (f"the label 'age' may be a time that is censored: column '{name}' has only 0 and 1" in notes)
    assert said == (f"name it with --event '{name}' in place of --tolerance" in notes)


@pytest.mark.parametrize("code", ["-9", "999"])
def test_code_far_from_all_others_is_named_by_data_split(tmp_path: Path, code: str) -> None:
    """8 % of 999 in a column is worse than 8 % missing, and nobody sees it in a mean."""
    (tmp_path / "t.csv").write_text(text(with_ages(*[code] * 5)))
    notes = " ".join(split_pool(tmp_path / "t.csv", tmp_path / "f", IID))
    assert f"column 'age' has {code} in 5 rows, far from all others (" in notes
    assert f'task.missing_values = {{ "age" = [{code}] }}' in notes


def test_values_that_belong_to_their_column_are_no_codes() -> None:
    """Skewed, rare, ordinal and constant columns, and one old patient, are left in peace."""
    np = pytest.importorskip("numpy")
    draw = np.random.default_rng(0)
    usual = [
        draw.lognormal(2, 1.2, 400).round(1),
        np.array([0.0] * 60 + [1.0] * 2),
        np.array([-1.0, 0.0, 1.0] * 20),
        draw.integers(0, 10, 300).astype(float),
        np.append(draw.normal(60, 12, 200).round(), 99.0),
        np.full(50, 9.0),
        np.append(draw.poisson(1.0, 300).astype(float), 12.0),
        draw.normal(size=200),
    ]
    assert [[]] * len(usual) == [codes_in(values) for values in usual]
    odd = np.concatenate([draw.normal(200, 40, 150), [0.0] * 3, [-1.0] * 2, [9999.0]])
    assert {0.0, -1.0, 9999.0} == {code.value for code in codes_in(odd)}


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (text(head=("Age", "Sex", "Outcome")), IID, "has no column 'outcome'; it has 'Outcome': --label 'Outcome'"),
        ("1.0,2.0,0\n" * 40, IID, "with --no-header it is a row"),
        (
            text() + "1,F\n2,M,0,9\n",
            IID,
            "expected 3 fields in every row, as in the header; line 62 has 2, line",
        ),
        (text(), SplitOptions("iid", sites=2, label="outcome", decimal=";"), "--decimal must be '.' or ',', got ';'"),
        (
            text(),
            SplitOptions("iid", sites=2, label="outcome", delimiter="x"),
            "--delimiter must be ',', ';', '|' or tab",
        ),
        (text(), SplitOptions("iid", sites=2, label="outcome", encoding="latein"), "there is no encoding 'latein'"),
    ],
)
def test_pool_that_cannot_be_read_is_a_sentence(
    tmp_path: Path, content: str, options: SplitOptions, sentence: str
) -> None:
    """Each says what was expected, and which option helps."""
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises((ConfigError, DataError)) as caught:
        split_pool(tmp_path / "t.csv", tmp_path / "f", options)
    assert sentence in str(caught.value)


def test_pool_without_a_header_has_numbered_columns(tmp_path: Path) -> None:
    """As the files of UCI are: the first line is a row, too."""
    (tmp_path / "t.data").write_text(text().split("\n", 1)[1])
    options = SplitOptions("iid", sites=2, label="column_3", no_header=True)
    assert [] == split_pool(tmp_path / "t.data", tmp_path / "f", options)
    assert ["column_1", "column_2"] == list(task_of(tmp_path / "f").columns)
    rows = [line for file in (tmp_path / "f").glob("*/data/*.csv") for line in file.read_text().splitlines()[1:]]
    assert sorted(rows) == sorted(",".join(line) for line in lines())


def test_table_with_a_text_alone_points_to_the_option_for_texts(tmp_path: Path) -> None:
    """A column of sentences is nothing that a table's study can learn from."""
    draw = random.Random(0)
    rows = [("".join(draw.choices("abcdefg hij", k=30)).strip() or "a", str(i % 2)) for i in range(60)]
    (tmp_path / "t.csv").write_text(text(rows, head=("text", "label")))
    with pytest.raises(DataError, match=r"column 'text' is left out .* --text COLUMN makes a study that learns from"):
        split_pool(tmp_path / "t.csv", tmp_path / "f", SplitOptions("iid", sites=2, label="label"))


def test_pool_of_a_workbook_is_that_of_its_csv(tmp_path: Path) -> None:
    """Excel's numbers are written as CSV has them."""
    pd = pytest.importorskip("pandas", reason="needs the extra 'study'")
    pytest.importorskip("openpyxl", reason="needs the extra 'excel'")
    (tmp_path / "t.csv").write_text(text())
    pd.read_csv(tmp_path / "t.csv").to_excel(tmp_path / "t.xlsx", index=False)
    one, other = read_table(tmp_path / "t.csv", "outcome"), read_table(tmp_path / "t.xlsx", "outcome")
    assert [(float(age), *rest) for age, *rest in one.rows] == [(float(age), *rest) for age, *rest in other.rows]
    assert TableData(path=tmp_path).kind == "table" and one.classes == other.classes
