"""Patterns of columns in a study: replaced once by the names of a table's columns, the same for every site."""

from pathlib import Path

import pytest
from paths import SHARED

from consilium.client.data import schema_digest
from consilium.common.errors import ConfigError
from consilium.common.study.load import load_study, study_source
from consilium.common.study.task import CategoryColumn, NumberColumn, TableTask

HEADER = "PatientID,age,gene_b,gene_a,ward,visit,sex,outcome,follow up\n"
HEAD = 'name = "s"\nsites = ["berlin", "lyon"]\nmin_examples = 2\n'


def study(folder: Path, columns: str, more: str = "", split: str = "") -> Path:
    """Write a study with these columns."""
    task = f'[task]\nkind = "table"\nlabel = "outcome"\nclasses = ["0", "1"]\n{columns}\n{more}\n'
    (folder / "study.toml").write_text(f"{HEAD}{task}{split}")
    return folder / "study.toml"


def columns_of(path: Path) -> dict[str, NumberColumn | CategoryColumn]:
    """The columns of a study."""
    task = load_study(path).task
    assert isinstance(task, TableTask)
    return task.columns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the data of the study's first site."""
    (tmp_path / "berlin" / "data").mkdir(parents=True)
    (tmp_path / "berlin" / "data" / "rows.csv").write_text(HEADER)
    return tmp_path


def test_all_others_are_the_other_columns_in_the_files_order(folder: Path) -> None:
    """But for the label, what the split names, identifiers, and what the study leaves out."""
    path = study(folder, 'columns = "all others"', 'columns_without = ["ward", "follow*"]', '[split]\ngroup = "visit"')
    assert dict.fromkeys(["age", "gene_b", "gene_a", "sex"], NumberColumn()) == columns_of(path)
    assert ["age", "gene_b", "gene_a", "sex"] == list(columns_of(path))


def test_name_goes_before_a_pattern_and_a_pattern_before_a_later_one(folder: Path) -> None:
    """So that one column of many can be a category."""
    sex = '"sex" = { kind = "category", values = ["f", "m"] }'
    genes = '"gene_*" = { kind = "category", values = ["0", "1"] }'
    path = study(folder, f'columns = {{ {genes}, {sex}, "*e" = {{ kind = "number" }} }}')
    category = CategoryColumn(values=("0", "1"))
    expected = {
        "age": NumberColumn(),
        "gene_b": category,
        "gene_a": category,
        "sex": CategoryColumn(values=("f", "m")),
    }
    assert expected == columns_of(path) and list(expected) == list(columns_of(path))


def test_names_come_from_the_file_that_the_study_names(folder: Path) -> None:
    """A header line is enough, and the sites' own data are not looked at."""
    (folder / "header.csv").write_text("age;outcome;weight")
    path = study(folder, 'columns = "all others"', 'columns_from = "header.csv"')
    assert ["age", "weight"] == list(columns_of(path))


def test_sites_get_the_names_and_agree(folder: Path) -> None:
    """What is handed out has no pattern, reads the same without any table, and has the same schema everywhere."""
    path = study(folder, 'columns = "all others"')
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "study.toml").write_text(study_source(path))
    assert load_study(path) == load_study(elsewhere / "study.toml") and "all others" not in study_source(path)
    assert schema_digest(load_study(path).task) == schema_digest(load_study(elsewhere / "study.toml").task)
    plain = study(elsewhere, 'columns = { age = { kind = "number" } }')
    assert plain.read_text() == study_source(plain)


@pytest.mark.parametrize(
    ("columns", "more", "sentence"),
    [
        (
            'columns = "all"',
            "",
            "task.columns: must be a section with a column for each key, or 'all others', got 'all'",
        ),
        ('columns = { "snp*" = { kind = "number" } }', "", "no column of '"),
        ('columns = "all others"', 'columns_from = "x.csv"', "task.columns_from: must name a table next to the study"),
        ('columns = "all others"', 'columns_from = "../x.csv"', "must name a table next to the study"),
        ('columns = "all others"', 'columns_without = "ward"', "must be a list of names or patterns"),
        ('columns = { age = { kind = "number" } }', 'columns_without = ["ward"]', "go with a pattern in columns"),
        ("columns = 3", "", "task.table.columns: must be a section with keys"),
    ],
)
def test_pattern_that_cannot_be_replaced_is_a_sentence(folder: Path, columns: str, more: str, sentence: str) -> None:
    """Each names the setting, what was expected, and the file."""
    with pytest.raises(ConfigError) as caught:
        load_study(study(folder, columns, more))
    assert sentence in str(caught.value) and str(caught.value).endswith("study.toml)")


def test_pattern_without_any_table_says_where_names_come_from(tmp_path: Path) -> None:
    """A coordinator has no data: the header line of one hospital's table is enough."""
    with pytest.raises(
        ConfigError, match=r"no site's data lie next to the study: name a file there as task.columns_from"
    ):
        load_study(study(tmp_path, 'columns = "all others"'))
    with pytest.raises(ValueError, match="'all others' stands for several columns, whose names are known only where"):
        TableTask.model_validate({"label": "y", "classes": ("0", "1"), "columns": "all others"})


def test_column_with_a_star_in_its_name_is_refused(folder: Path) -> None:
    """It could not be told from a pattern."""
    (folder / "berlin" / "data" / "rows.csv").write_text("HLA-A*02,outcome\n")
    with pytest.raises(ConfigError, match=r"'HLA-A\*02' of '.*' has a \* in its name"):
        load_study(study(folder, 'columns = "all others"'))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public tables are not part of the repository")
def test_all_others_of_tcga_brca_are_the_features_of_flamby(tmp_path: Path) -> None:
    """39 features: all columns but the patient, the event `E` and the time `T`."""
    (tmp_path / "brca.csv").symlink_to(SHARED / "data" / "tcga_brca" / "brca.csv")
    path = study(tmp_path, 'columns = "all others"', 'columns_from = "brca.csv"\ncolumns_without = ["T"]')
    path.write_text(path.read_text().replace('label = "outcome"', 'label = "E"'))
    assert 39 == len(columns_of(path)) and {"pid", "T", "E"}.isdisjoint(columns_of(path))
    assert "age_at_index" in columns_of(path)
