"""Tables of series as pools: whole series at one site, as they were, in a study that reads them."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from series_files import Series, waves, write_long

from consilium.client.data import read_data
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.load import load_study
from consilium.common.study.site import SeriesData
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import SeriesTask
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool

N, STEPS = 60, 12
X, Y = waves(N, STEPS, seed=4)
LONG: dict[str, Any] = {"by": "iid", "sites": 3, "label": "label", "series": True, "min_examples": 10}


def divided(folder: Path, held: list[Series] | None = None, **options: Any) -> tuple[StudyConfig, list[str]]:
    """Write these series in long form, divide them, and return the study and the notes."""
    names = np.array(["calm", "ill"])
    write_long(folder / "pool.csv", held or list(X), names[Y][: len(held or X)].tolist(), channels=["pulse"])
    notes = split_pool(folder / "pool.csv", folder / "f", SplitOptions(**(LONG | options)))
    return load_study(folder / "f" / "study.toml"), notes


def read(folder: Path, study: StudyConfig, site: str) -> Any:
    """What a site reads."""
    data = SeriesData(path=folder / "f" / site / "data")
    return read_data(data, study.task, study.split, site=site, min_examples=2).raw


def test_every_series_is_whole_at_one_site(tmp_path: Path) -> None:
    """All of its steps, in the order of time, with its label; the study names what stands in which column."""
    study, notes = divided(tmp_path)
    task = study.task
    assert isinstance(task, SeriesTask) and [] == notes and "cnn1d" == study.model.name
    assert (("pulse",), STEPS, ("calm", "ill"), "refuse") == (task.channels, task.length, task.classes, task.short)
    raws = [read(tmp_path, study, site) for site in study.sites]
    held = np.concatenate([raw.x.numpy() for raw in raws])
    labels = np.concatenate([raw.y.numpy() for raw in raws])
    expected = sorted((*values.ravel().tolist(), int(label)) for values, label in zip(X, Y, strict=True))
    assert expected == sorted(
        (*values.ravel().tolist(), int(label)) for values, label in zip(held, labels, strict=True)
    )


def test_short_series_and_copies(tmp_path: Path) -> None:
    """Series of other lengths are filled up by the study; copies, whatever they are called, are at one site."""
    series = [*X[:40], X[0], X[0][:5], X[1]]
    study, notes = divided(tmp_path, series, min_examples=5)
    assert isinstance(study.task, SeriesTask) and "pad" == study.task.short
    assert "2 of 43 examples are exact copies of others; copies are at one site" in notes
    assert 43 == sum(read(tmp_path, study, site).num_own for site in study.sites)


def table(path: Path, rows: list[list[str]], header: list[str]) -> Path:
    """Write a table and return its file."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def ward(folder: Path) -> Path:
    """Write the stays of 60 patients in two wards, with columns under other names and texts among them."""
    rows = []
    for number, values in enumerate(X):
        for step, value in enumerate(values[:, 0]):
            day = f"2024-05-{step + 1:02d}"
            note = "calm" if step % 3 else ""
            rows.append(
                [
                    f"p{number}",
                    day,
                    f"{value:.3f}",
                    str(step * 2),
                    note,
                    "AB"[number % 2],
                    f"h{number // 2}",
                    str(Y[number]),
                ]
            )
    return table(folder / "pool.csv", rows, ["stay", "day", "pulse", "dose", "note", "ward", "who", "ill"])


def test_wards_are_sites_and_patients_stay_together(tmp_path: Path) -> None:
    """`--column` and `--group` are the same in all rows of a stay, and a column of texts is left out with a note."""
    options = {"by": "column", "sites": None, "column": "ward", "label": "ill", "min_examples": None}
    names = {"series_column": "stay", "time_column": "day"}
    notes = split_pool(ward(tmp_path), tmp_path / "f", SplitOptions(**(LONG | options | names)))
    study = load_study(tmp_path / "f" / "study.toml")
    assert ("a", "b") == study.sites and ("pulse", "dose") == study.task.channels  # type: ignore[union-attr] # of series
    assert [note for note in notes if "'note' is left out of the study: 60 of 60 series" in note]
    assert [30, 30] == [read(tmp_path, study, site).num_own for site in study.sites]
    by_chance = {"label": "ill", "group": "who", "min_examples": 5}
    split_pool(tmp_path / "pool.csv", tmp_path / "g", SplitOptions(**(LONG | by_chance | names)))
    assert "who" == load_study(tmp_path / "g" / "study.toml").split.group
    held = [set(re.findall(r"h\d+", file.read_text())) for file in (tmp_path / "g").glob("*/data/series.csv")]
    assert 30 == len(set.union(*held)) == sum(map(len, held))


def test_series_that_a_site_would_refuse_are_left_out(tmp_path: Path) -> None:
    """One with a time twice, one without a value, one with a time that is none: each said, and the others are read."""
    rows = [
        [f"s{number}", str(step), str(number * 0.37 + step), str(number % 2)]
        for number in range(50)
        for step in range(4)
    ]
    rows[1][1], rows[5][2], rows[9][1] = "0", "", "soon"
    table(tmp_path / "pool.csv", rows, ["series", "time", "pulse", "label"])
    notes = split_pool(tmp_path / "pool.csv", tmp_path / "f", SplitOptions(**(LONG | {"min_examples": 5})))
    for reason in ("a time stands there twice", "a channel lacks a value", "a time is neither a number nor a date"):
        assert f"1 of 50 series are left out: {reason}" in notes
    study = load_study(tmp_path / "f" / "study.toml")
    assert 47 == sum(read(tmp_path, study, site).num_own for site in study.sites)


def test_number_of_a_series_is_learned(tmp_path: Path) -> None:
    """With --tolerance, from a label that stands in one row of each series only."""
    rows = [
        [f"s{number}", str(step), str(number * 0.37 + step), str(number / 7) if step == 2 else ""]
        for number in range(50)
        for step in range(4)
    ]
    table(tmp_path / "pool.csv", rows, ["series", "time", "pulse", "label"])
    split_pool(tmp_path / "pool.csv", tmp_path / "f", SplitOptions(**(LONG | {"tolerance": 1.0})))
    study = load_study(tmp_path / "f" / "study.toml")
    found = [study.task.regression.to_label(read(tmp_path, study, site).y.numpy()) for site in study.sites]  # type: ignore[union-attr] # of numbers
    np.testing.assert_allclose(np.arange(50) / 7, np.sort(np.concatenate(found)), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label": None}, "a table needs --label"),
        ({"time_column": "when"}, "has no column 'when'"),
        (
            {"series_column": "label"},
            "series, time and label are the columns ['label', 'time', 'label'], expected three",
        ),
        ({"group": "pulse"}, "column 'pulse' has 12 different values in one series, expected one"),
        ({"by": "feature", "min_examples": None}, "--by feature is for images"),
        ({"by": "column", "column": "label", "sites": None, "min_examples": None}, "is the label"),
        ({"series": False, "time_column": "time"}, "--time-column is for a table of series: add --series"),
        ({"text": "pulse"}, "--series does not go with --text"),
        ({"event": "pulse"}, "--series does not go with --event"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    """With a sentence, and nothing is written."""
    with pytest.raises((ConfigError, DataError), match=re.escape(sentence)):
        divided(tmp_path, **options)
    assert not (tmp_path / "f").exists()
