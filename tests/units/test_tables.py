"""Tables beyond plain CSV: Parquet files that mean the same, and missing values filled from training rows."""

import csv
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from site_data import load_data
from sklearn.impute import SimpleImputer

from consilium.client.data import SiteData
from consilium.client.data.base import Feature
from consilium.client.data.impute import fill_values
from consilium.client.data.split import split_rows
from consilium.client.data.table import read_table
from consilium.common.errors import DataError
from consilium.common.study.site import TableData
from consilium.common.study.task import CategoryColumn, NumberColumn, TableTask
from consilium.common.study.training import SplitConfig

pa = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
import pyarrow.parquet as pq  # noqa: E402 # after the check that it is there

COLUMNS = ("age", "smoker", "pain", "blood.pressure", "sex")
TASK = TableTask(
    classes=("no", "yes"),
    label="ill",
    columns={
        "age": NumberColumn(),
        "smoker": NumberColumn(),
        "pain": CategoryColumn(values=("none", "some", "much")),
        "blood.pressure": NumberColumn(),
        "sex": CategoryColumn(values=("1", "2")),
    },
)
IMPUTE = TASK.model_copy(update={"missing": "impute"})
Row = dict[str, Any]


def rows(count: int = 40, *, missing: float = 0.0, seed: int = 0) -> list[Row]:
    """Rows with some cells missing, never the label."""
    chance = np.random.default_rng(seed)
    made = []
    for i in range(count):
        row: Row = {
            "age": int(chance.integers(20, 90)),
            "smoker": int(chance.integers(0, 2)),
            "pain": str(chance.choice(["none", "some", "much"], p=[0.2, 0.5, 0.3])),
            "blood.pressure": float(chance.normal(120, 15)),
            "sex": float(chance.integers(1, 3)),
        }
        made.append({name: None if chance.random() < missing else value for name, value in row.items()})
        made[-1]["ill"] = "yes" if i % 3 == 0 else "no"
    return made


def to_csv(path: Path, table: list[Row]) -> Path:
    """Write a table as .csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table[0])
        writer.writerows([["" if cell is None else cell for cell in row.values()] for row in table])
    return path


def to_parquet(path: Path, table: list[Row], **types: Any) -> Path:
    """Write a table as .parquet."""
    arrow = pa.Table.from_pylist(table)
    for name, kind in types.items():
        place = arrow.schema.get_field_index(name)
        arrow = arrow.set_column(place, name, arrow.column(name).cast(kind))
    pq.write_table(arrow, path)
    return path


def load(path: Path, task: TableTask = TASK, *, max_skipped: int = 0, split: SplitConfig | None = None) -> SiteData:
    """Return a site's data of a table."""
    config = TableData(path=path, max_skipped=max_skipped)
    return load_data(config, task, split or SplitConfig(), site="lyon", min_examples=2)


def error_of(path: Path, task: TableTask = TASK, **options: Any) -> str:
    """Return the sentence with which the data are refused."""
    with pytest.raises(DataError) as caught:
        load(path, task, **options)
    return str(caught.value)


def equal(one: SiteData, other: SiteData) -> bool:
    """Tell whether two sites' data are equal: their cards, and each part bit for bit."""
    parts = [(getattr(one, part), getattr(other, part)) for part in ("train", "validation", "test")]
    return one.card == other.card and all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in parts)


# --- Parquet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["drop_row", "impute"])
def test_parquet_gives_the_tensors_of_the_same_csv(tmp_path: Path, missing: str) -> None:
    """Integers, floats, booleans, text, dictionaries and nulls mean what they mean in CSV, bit for bit."""
    table = rows(missing=0.05)
    task = TASK.model_copy(update={"missing": missing})
    types = {"smoker": pa.bool_(), "pain": pa.dictionary(pa.int8(), pa.string()), "ill": pa.large_string()}
    parquet = to_parquet(tmp_path / "a.parquet", table, **types)
    assert equal(load(to_csv(tmp_path / "a.csv", table), task), load(parquet, task))


def test_parquet_and_csv_files_of_a_folder_are_one_table(tmp_path: Path) -> None:
    """Files are read in the order of their names, whatever their kind; more rows than one batch come in order."""
    table = rows(5000)
    whole = load(to_csv(tmp_path / "whole.csv", table))
    (tmp_path / "d").mkdir()
    to_csv(tmp_path / "d" / "1.csv", table[:50])
    to_parquet(tmp_path / "d" / "2.PARQUET", table[50:])
    assert equal(whole, load(tmp_path / "d"))


@pytest.mark.parametrize(
    ("values", "texts"),
    [(("False", "True"), ("False", "True")), (("true", "false"), ("false", "true")), (("0", "1"), "01")],
)
def test_boolean_is_a_category_or_a_label(tmp_path: Path, values: tuple[str, str], texts: Any) -> None:
    """True is the value `true` in any case, or 1 where the study has no such value."""
    task = TableTask(classes=values, label="ill", columns={"c": CategoryColumn(values=values), "n": NumberColumn()})
    table = [{"c": i % 3 == 0, "n": i % 5 == 0, "ill": i % 2 == 0} for i in range(20)]
    spelled = [{"c": texts[row["c"]], "n": int(row["n"]), "ill": texts[row["ill"]]} for row in table]
    one = load(to_csv(tmp_path / "a.csv", spelled), task)
    assert equal(one, load(to_parquet(tmp_path / "a.parquet", table), task))


def test_parquet_column_of_nulls_is_missing(tmp_path: Path) -> None:
    """A column without any value has Arrow's null type: every cell is missing."""
    table = [row | {"age": None} for row in rows()]
    message = error_of(to_parquet(tmp_path / "a.parquet", table))
    places = "40 rows: first row 1, row 2 and row 3"
    said = f"40 rows cannot be used: column 'age': the value is missing ({places})"
    assert f"site 'lyon': file 'a.parquet': {said}" == message


def test_bad_parquet_cells_are_named_by_row_and_never_by_value(tmp_path: Path) -> None:
    """Text among numbers, infinity, an unknown category: as in CSV, with the row in place of the line."""
    table = rows()
    table[7] |= {"blood.pressure": float("inf")}
    message = error_of(to_parquet(tmp_path / "a.parquet", table))
    assert message.startswith("site 'lyon': file 'a.parquet', row 8, column 'blood.pressure': expected a finite number")
    table = rows()
    table[9] |= {"pain": "sekret"}
    message = error_of(to_parquet(tmp_path / "a.parquet", table))
    assert "row 10, column 'pain': expected one of" in message and "sekret" not in message
    assert 39 == load(tmp_path / "a.parquet", max_skipped=1).card.num_examples


def test_parquet_cell_of_a_megabyte_is_refused_with_its_row(tmp_path: Path) -> None:
    """One string that a dictionary repeats is a small file and much memory; CSV refuses such a cell, too."""
    table = rows()
    table[3] |= {"pain": "x" * 1_000_000}
    message = error_of(to_parquet(tmp_path / "a.parquet", table))
    assert (
        "site 'lyon': file 'a.parquet', row 4: a cell of 1000000 bytes, expected at most 131072 characters" == message
    )


def test_parquet_column_that_is_missing_or_no_column_of_cells_is_named(tmp_path: Path) -> None:
    """No such column, the same name two times, and lists are a sentence each; other columns do not matter."""
    table = [row | {"remarks": ["x"]} for row in rows()]
    assert 40 == load(to_parquet(tmp_path / "a.parquet", table)).card.num_examples
    message = error_of(to_parquet(tmp_path / "a.parquet", [{"age": 1, "ill": "no"}]))
    assert "site 'lyon': file 'a.parquet' has no columns 'smoker', 'pain', 'blood.pressure', 'sex'" == message
    message = error_of(to_parquet(tmp_path / "a.parquet", [row | {"age": [row["age"]]} for row in rows()]))
    assert message.startswith("site 'lyon': file 'a.parquet': column 'age' is of type list<")
    arrow = pa.Table.from_pylist(rows())
    pq.write_table(arrow.append_column("age", arrow.column("age")), tmp_path / "a.parquet")
    assert "column 'age' stands 2 times" in error_of(tmp_path / "a.parquet")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=5), cut=st.booleans()
)
def test_damaged_parquet_is_read_or_refused_as_data(tmp_path: Path, changes: list[tuple[int, int]], cut: bool) -> None:
    """Whatever bytes are changed or cut off, it is examples or a DataError, and nothing else."""
    whole = tmp_path / "whole.parquet"
    if not whole.exists():
        to_parquet(whole, rows())
    content = bytearray(whole.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    (tmp_path / "a.parquet").write_bytes(bytes(content[: changes[0][0] % len(content) if cut else None]))
    try:
        load(tmp_path / "a.parquet", max_skipped=10)
    except DataError:
        return


def test_parquet_without_pyarrow_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is not needed before there is such a file."""
    file = to_parquet(tmp_path / "a.parquet", rows())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert error_of(file) == (
        "site 'lyon': file 'a.parquet' needs pyarrow, which is not installed; "
        "install it with: pip install 'consilium[parquet]'"
    )


# --- missing values --------------------------------------------------------------------------------


def raw_cells(table: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and categories as scikit-learn takes them."""
    numbers = np.array([[row[name] for name in ("age", "smoker", "blood.pressure")] for row in table], dtype=float)
    return numbers, np.array([[row["pain"], row["sex"]] for row in table], dtype=object)


@pytest.mark.parametrize("seed", range(4))
def test_imputed_rows_are_those_of_scikit_learn_fitted_on_training_rows(tmp_path: Path, seed: int) -> None:
    """Every split equals SimpleImputer (mean, most_frequent) and the scaling of the filled training rows."""
    table = rows(120, missing=0.2, seed=seed)
    split = SplitConfig(test=0.3, validation=0.2, seed=seed)
    labels = np.array([row["ill"] == "yes" for row in table]).astype(np.int64)
    parts = split_rows(labels, split)
    numbers, categories = raw_cells(table)
    mean = SimpleImputer(strategy="mean").fit(numbers[parts.train])
    mode = SimpleImputer(strategy="most_frequent", missing_values=None).fit(categories[parts.train])
    filled, named = mean.transform(numbers), mode.transform(categories)
    one_hot = [(named[:, 0] == "some"), (named[:, 0] == "much")]
    expected = np.stack([filled[:, 0], filled[:, 1], *one_hot, filled[:, 2], named[:, 1] == 2.0], axis=1).astype(float)
    train = expected[parts.train]
    expected = (expected - train.mean(axis=0)) / train.std(axis=0)
    data = load(to_csv(tmp_path / "a.csv", table), IMPUTE, split=split)
    for part, places in ((data.train, parts.train), (data.validation, parts.validation), (data.test, parts.test)):
        assert np.allclose(expected[places], part.x.numpy(), atol=1e-5)
        assert labels[places].tolist() == part.y.tolist()


def test_imputing_never_asks_validation_and_test_rows(tmp_path: Path) -> None:
    """Other numbers and categories there leave every training row as it was, bit for bit."""
    table = rows(60, missing=0.3)
    parts = split_rows(np.array([int(row["ill"] == "yes") for row in table]), SplitConfig())
    changed = [dict(row) for row in table]
    for place in (*parts.validation, *parts.test):
        changed[place] |= {"age": 999, "pain": "none"}
    one, other = (load(to_csv(tmp_path / f"{i}.csv", made), IMPUTE) for i, made in enumerate([table, changed]))
    assert torch.equal(one.train.x, other.train.x) and not torch.equal(one.test.x, other.test.x)


@pytest.mark.parametrize(
    ("known", "expected"),
    [(["none", "some", "some"], [1, 0]), (["much", "some"], [1, 0]), (["much", "none"], [0, 0]), (["much"], [0, 1])],
)
def test_most_frequent_category_wins_and_at_a_tie_the_first_of_the_study(known: list[str], expected: list[int]) -> None:
    """The order of `values` decides, not the alphabet and not the order of rows."""
    codes = {"none": [0.0, 0.0], "some": [1.0, 0.0], "much": [0.0, 1.0]}
    x = torch.tensor([[float("nan")] * 2, *(codes[value] for value in known)], dtype=torch.float64)
    feature = Feature("pain", start=0, width=2, category=True)
    assert expected == fill_values(x, [feature], np.arange(len(x)), site="lyon").tolist()


def test_nothing_missing_gives_the_same_with_and_without_imputing(tmp_path: Path) -> None:
    """Imputing changes missing cells and nothing else."""
    file = to_csv(tmp_path / "a.csv", rows())
    one, other = load(file, IMPUTE), load(file)
    assert torch.equal(one.train.x, other.train.x) and torch.equal(one.test.x, other.test.x)


def test_column_without_a_value_in_training_rows_is_named(tmp_path: Path) -> None:
    """A value in a test row does not help: nothing may be learned from it."""
    table = rows()
    parts = split_rows(np.array([int(row["ill"] == "yes") for row in table]), SplitConfig())
    for place in parts.train:
        table[place]["pain"] = None
    message = error_of(to_csv(tmp_path / "a.csv", table), IMPUTE)
    assert message.startswith(f"site 'lyon': column 'pain' has no value in any of the {len(parts.train)} training rows")


def test_row_without_a_label_is_dropped_also_where_values_are_imputed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A label is never made up."""
    table = [*rows(missing=0.1), dict.fromkeys((*COLUMNS, "ill")) | {"age": 50}]
    with caplog.at_level(logging.INFO):
        assert 40 == load(to_csv(tmp_path / "a.csv", table), IMPUTE).card.num_examples
    assert ["rows with missing cells dropped site=lyon dropped=1 kept=40"] == [r.getMessage() for r in caplog.records]


def test_reader_marks_missing_cells_and_only_them(tmp_path: Path) -> None:
    """A missing number is one NaN, a missing category one in each of its features."""
    table = rows(5)
    table[1] |= {"age": None, "pain": None}
    raw = read_table(TableData(path=to_csv(tmp_path / "a.csv", table)), IMPUTE, SplitConfig(), site="lyon")
    assert [[1, 0], [1, 2], [1, 3]] == torch.isnan(raw.x).nonzero().tolist()
