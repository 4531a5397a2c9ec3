"""A table with several labels of each row, divided among sites: the study reads as it is written."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from label_cases import FINDINGS, findings

from consilium.client.data import read_data
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.load import load_study
from consilium.common.study.site import TableData
from consilium.data.label_pool import NONE, read_label_table
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool

LABELS = ",".join(FINDINGS)


def write(folder: Path, rows: int = 300) -> Path:
    """Write a table in which every fifth row does not know nodules, and two rows know nothing; with a ward."""
    table = findings(rows, seed=3).astype(object)
    table.loc[::5, "nodule"] = ""
    table.loc[:1, list(FINDINGS)] = ""
    table.loc[3, "edema"] = "yes" if table.loc[3, "edema"] else "No"
    table["ward"] = np.where(np.arange(rows) % 3, "north", "south")
    table.to_csv(folder / "all.csv", index=False)
    return folder / "all.csv"


@pytest.mark.parametrize(
    "how",
    [
        {"by": "dirichlet", "sites": 3, "alpha": 0.5, "min_examples": 20},
        {"by": "classes", "sites": 3, "labels_per_site": 2, "min_examples": 20},
        {"by": "column", "column": "ward"},
    ],
)
def test_a_table_of_several_labels_is_divided(tmp_path: Path, how: dict[str, Any]) -> None:
    """No row is lost but those that know nothing; every site reads its part, and the record counts what it has."""
    table = pd.read_csv(write(tmp_path), keep_default_na=False)
    notes = split_pool(tmp_path / "all.csv", tmp_path / "out", SplitOptions(**how, labels=LABELS))
    study = load_study(tmp_path / "out" / "study.toml")
    record = tomllib.loads((tmp_path / "out" / "federation.toml").read_text())
    assert FINDINGS == study.task.label_names and {"a", "b", "c"} == {*study.task.scaled_columns}
    assert 2 == record["rows_without_label"]
    total = dict.fromkeys(FINDINGS, 0)
    for site in study.sites:
        config = TableData(path=tmp_path / "out" / site / "data")
        card = read_data(
            config, study.task, study.split, site=site, min_examples=study.min_examples, share_class_counts=True
        ).card
        assert sum(record["examples"][site].values()) == card.num_examples
        have = {name: of[0] for name, of in (card.label_counts or {}).items()}
        know = {name: sum(of) for name, of in (card.label_counts or {}).items()}
        assert (have, know) == (record["have"][site], record["know"][site])
        total = {name: total[name] + have[name] for name in FINDINGS}
    assert {name: int(table[name].isin(["1", "yes"]).sum()) for name in FINDINGS} == total
    assert all("is left out of the study" not in note or "ward" in note for note in notes)


def test_rows_are_divided_by_the_rarest_label_that_they_have(tmp_path: Path) -> None:
    """A row with a frequent and a rare label is one of the rare; one without any is of none."""
    rows = ["1,1,1", *["1,1,0"] * 19, *["2,1,1"] * 9, *["3,0,0"] * 5]
    (tmp_path / "all.csv").write_text("\n".join(["a,often,rare", *rows]) + "\n")
    pool = read_label_table(tmp_path / "all.csv", ("often", "rare"))
    assert ("often", "rare", NONE) == pool.classes
    assert [1, *[0] * 19, *[1] * 9, *[2] * 5] == pool.y.tolist()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"labels": "edema"}, "expected the names of at least two columns, all different, got 'edema'"),
        ({"labels": "edema,edema"}, "all different"),
        ({"labels": "edema,"}, "of at least two columns"),
        ({"labels": LABELS, "label": "edema"}, "--labels does not go with --label"),
        ({"labels": LABELS, "tolerance": 1.0}, "--labels does not go with --tolerance"),
        ({"labels": LABELS, "group": "edema"}, "--group 'edema' is one of --labels, expected a column of its own"),
    ],
)
def test_labels_that_do_not_go_with_other_options_are_refused(
    tmp_path: Path, more: dict[str, Any], sentence: str
) -> None:
    """One name, a repeated one, an empty one, and options that say otherwise what is learned."""
    with pytest.raises(ConfigError, match=sentence):
        split_pool(write(tmp_path), tmp_path / "out", SplitOptions("iid", sites=2, **more))


def test_a_column_that_is_no_label_is_named(tmp_path: Path) -> None:
    """With how many rows, and never with what they hold; of an `.npz` file there are no columns."""
    with pytest.raises(DataError, match=r"30\d? of 300 rows: label column 'a': expected 1 or 0"):
        split_pool(write(tmp_path), tmp_path / "out", SplitOptions("iid", sites=2, labels="edema,a"))
    with pytest.raises(DataError, match="no column 'fracture'"):
        split_pool(tmp_path / "all.csv", tmp_path / "out", SplitOptions("iid", sites=2, labels="edema,fracture"))
    np.savez(tmp_path / "pool.npz", x=np.zeros((40, 3)), y=np.arange(40) % 2)
    with pytest.raises(ConfigError, match="--labels is for tables"):
        split_pool(tmp_path / "pool.npz", tmp_path / "out", SplitOptions("iid", sites=2, labels=LABELS))
