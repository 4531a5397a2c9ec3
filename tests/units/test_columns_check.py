"""What `consilium site check` shows of a table's columns at the site: ranges, shares, and what looks wrong."""

from pathlib import Path

import pytest
from table_forms import IMPUTE, TASK, lines, text

from consilium.client.operations.doctor.columns import check_columns
from consilium.client.operations.doctor.data import check_data
from consilium.client.operations.doctor.finding import Finding
from consilium.common.study.site import SiteConfig, TableData
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import CategoryColumn, NumberColumn, Regression, TableTask


def config_of(path: Path, **settings: object) -> SiteConfig:
    """The settings of a site with this table."""
    data = TableData.model_validate({"path": path, **settings})
    keys = {"ca_certificate": "ca.pem", "private_key": "site.key", "state_dir": "state"}
    return SiteConfig(name="rom", server="localhost:1", data=data, **keys)  # type: ignore[arg-type] # texts are paths


def study_of(task: TableTask) -> StudyConfig:
    """A study about this task."""
    return StudyConfig(name="s", sites=("rom",), task=task, min_examples=2)


def check(path: Path, task: TableTask = IMPUTE, **settings: object) -> Finding:
    """The finding about the columns."""
    (finding,) = check_columns(config_of(path, **settings), study_of(task))
    return finding


def test_ranges_shares_and_gaps_are_shown(tmp_path: Path) -> None:
    """Of each column its least, its greatest and its middle value, or its values' shares; of the label, too."""
    rows = [("", "F", "0"), *lines()[:9]]
    (tmp_path / "a.csv").write_text(text(rows))
    finding = check(tmp_path / "a.csv")
    ages = sorted(float(age) for age, _, _ in lines()[:9])
    women = sum(sex == "F" for _, sex, _ in rows)
    assert "PASS" == finding.status and "2 columns, shown here only:" in finding.message
    assert f"age: {ages[0]:.4g} to {ages[-1]:.4g}, median {ages[4]:.4g}, 10.0% missing" in finding.message
    assert f"sex: F {women / 10:.1%}, M {1 - women / 10:.1%}" in finding.message
    assert "label outcome: 0 60.0%, 1 40.0%" in finding.message


@pytest.mark.parametrize("code", ["-9", "999"])
def test_code_for_missing_is_warned_of_with_the_setting_that_helps(tmp_path: Path, code: str) -> None:
    """After that setting it is gone, and so is the warning."""
    rows = [(code if i % 4 == 0 else age, *rest) for i, (age, *rest) in enumerate(lines())]
    (tmp_path / "a.csv").write_text(text(rows))
    finding = check(tmp_path / "a.csv")
    assert "WARN" == finding.status and f"column 'age' has {code} in 15 rows, far from all others" in finding.message
    assert f'set data.missing_values = {{ "age" = [{code}] }} in site.toml' in finding.fix
    settled = check(tmp_path / "a.csv", missing_values={"age": [int(code)]})
    assert "PASS" == settled.status and "25.0% missing" in settled.message


def test_column_in_another_unit_than_the_studys_is_warned_of(tmp_path: Path) -> None:
    """Where the study gives mean and standard deviation: ages in months are 12 times ages in years."""
    (tmp_path / "a.csv").write_text(text([(f"{float(age) * 12:.1f}", *rest) for age, *rest in lines()]))
    task = TableTask.model_validate(IMPUTE.model_dump() | {"scale": {"age": {"mean": 58.0, "std": 10.0}}})
    months = check(tmp_path / "a.csv", task)
    assert "WARN" == months.status and "is it in another unit (a factor of 12" in months.message
    (tmp_path / "a.csv").write_text(text())
    assert "PASS" == check(tmp_path / "a.csv", task).status


def test_constant_empty_and_identifying_columns_are_warned_of(tmp_path: Path) -> None:
    """Nothing can be learned from them, or the wrong thing."""
    rows = [(str(1000 + i * 7 % 61), "F", "" if i % 3 else "1.5", outcome) for i, (_, _, outcome) in enumerate(lines())]
    (tmp_path / "a.csv").write_text(text(rows, head=("age", "sex", "gap", "outcome")))
    task = IMPUTE.model_copy(update={"columns": {**TASK.columns, "gap": NumberColumn()}})
    said = check(tmp_path / "a.csv", task).message
    assert "column 'age' has whole numbers that differ in 60 of 60 rows, as an identifier does" in said
    assert "column 'sex' has the same value in every row" in said
    assert "column 'gap' has the same value in every row; is missing in 67% of the rows" in said


def test_how_files_were_read_is_said_with_the_data(tmp_path: Path) -> None:
    """One sentence per unusual file, and rows that are left out."""
    (tmp_path / "a.csv").write_text(text([("", "F", "0"), *lines()], sep=";"))
    finding = check_data(config_of(tmp_path / "a.csv"), study_of(TASK.model_copy(update={"missing": "drop_row"})))
    assert "PASS" == finding.status and finding.message.endswith(
        "shown here only; file 'a.csv' is read with ';' between fields; 1 row with a missing cell left out "
        "(task.missing)"
    )


def test_numbers_to_predict_are_shown_in_their_units(tmp_path: Path) -> None:
    """The label of a regression has a range, no shares."""
    (tmp_path / "a.csv").write_text(text())
    number = Regression(center=50, scale=10, tolerance=1)
    columns: dict[str, NumberColumn | CategoryColumn] = {"sex": CategoryColumn(values=("F", "M"))}
    finding = check(tmp_path / "a.csv", TableTask(label="age", regression=number, columns=columns))
    ages = sorted(float(age) for age, _, _ in lines())
    assert f"label age: {ages[0]:.4g} to {ages[-1]:.4g}, median" in finding.message


@pytest.mark.parametrize("name", ["died", "OS_STATUS", "Censored"])
@pytest.mark.parametrize("feature", [True, False])
def test_time_that_may_be_censored_is_warned_of(tmp_path: Path, name: str, *, feature: bool) -> None:
    """Whether the study learns from the column of the event or the table only has it; true and false too."""
    words = ("true", "false") if not feature else ("1", "0")
    (tmp_path / "a.csv").write_text(
        text([(*row[:2], words[int(row[2])]) for row in lines()], head=("age", "sex", name))
    )
    columns: dict[str, NumberColumn | CategoryColumn] = {"sex": CategoryColumn(values=("F", "M"))}
    columns |= {name: NumberColumn()} if feature else {}
    task = TableTask(label="age", regression=Regression(center=50, scale=10, tolerance=1), columns=columns)
    finding = check_data(config_of(tmp_path / "a.csv"), study_of(task))
    assert "WARN" == finding.status and "task.survival" in finding.fix
    assert f"the label 'age' may be a time that is censored: column '{name}' has only 0 and 1" in finding.message


@pytest.mark.parametrize(
    ("name", "values", "sign"),
    [
        ("smoker", "01", ""),
        ("smoking_status", "01", ""),
        ("status", "012", ""),
        ("died", "0", ""),
        ("died", "01", "-"),
    ],
)
def test_other_columns_next_to_a_number_are_not_warned_of(tmp_path: Path, name: str, values: str, sign: str) -> None:
    """0 and 1 under another name, other values, no event at all; and a negative number is no time."""
    rows = [(sign + age, sex, values[i % len(values)]) for i, (age, sex, _) in enumerate(lines())]
    (tmp_path / "a.csv").write_text(text(rows, head=("age", "sex", name)))
    columns: dict[str, NumberColumn | CategoryColumn] = {"sex": CategoryColumn(values=("F", "M"))}
    task = TableTask(label="age", regression=Regression(center=50, scale=10, tolerance=1), columns=columns)
    assert "censored" not in check_data(config_of(tmp_path / "a.csv"), study_of(task)).message


def test_classes_are_no_times(tmp_path: Path) -> None:
    """A study of classes is not warned, whatever its table has."""
    (tmp_path / "a.csv").write_text(text([(*row, row[2]) for row in lines()], head=("age", "sex", "outcome", "died")))
    assert "censored" not in check_data(config_of(tmp_path / "a.csv"), study_of(TASK)).message


def test_many_columns_are_cut_with_the_odd_ones_first(tmp_path: Path) -> None:
    """A thousand genes fill no screen; the one that is constant is among those that are shown."""
    names = tuple(f"g{i}" for i in range(60))
    rows = [(*(f"{i * j % 17 + 0.5}" for j in range(1, 60)), "3", str(i % 2)) for i in range(40)]
    (tmp_path / "a.csv").write_text(text(rows, head=(*names, "outcome")))
    task = TASK.model_copy(update={"columns": {name: NumberColumn() for name in names}})
    said = check(tmp_path / "a.csv", task).message
    assert "60 columns" in said and said.endswith("and 20 more") and "g59: 3 100.0%" in said


def test_nothing_is_said_where_there_is_no_table_or_it_cannot_be_read(tmp_path: Path) -> None:
    """Unreadable data are for the check of the data."""
    config = config_of(tmp_path / "none.csv")
    assert [] == check_columns(config, None) == check_columns(config, study_of(TASK))
