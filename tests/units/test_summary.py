"""What a study expects of sites' data: what is refused, what a site is warned of, and how examples are described."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.client.operations.doctor.differences import column_facts, label_facts, pixel_facts
from consilium.client.operations.doctor.expected import check_summary
from consilium.client.operations.doctor.finding import Finding
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.load import parse_study
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.summary import ColumnSummary, PixelSummary
from consilium.data.describe import describe_data, summary_text

RNG = np.random.default_rng(5)
GLUCOSE = RNG.normal(110, 30, size=400).clip(50)
"""In mg/dl; a mmol/l is 18.02 of them."""
TABLE = {
    "kind": "table",
    "label": "ill",
    "classes": ["no", "yes"],
    "columns": {"glucose": {"kind": "number"}, "sex": {"kind": "category", "values": ["F", "M"]}},
    "missing": "impute",
}
EXPECTED: dict[str, Any] = {
    "columns": {"glucose": {"low": 50, "high": 250, "mean": 110, "std": 30, "missing": 0.02}, "sex": {"missing": 0.0}},
    "labels": {"yes": 0.3},
}


def study_of(task: dict[str, Any], **settings: Any) -> StudyConfig:
    """A study about this task."""
    return parse_study({"name": "s", "sites": ["rom"], "task": task, **settings}, source="study.toml")


def write(folder: Path, glucose: np.ndarray, *, ill: float = 0.3, gaps: float = 0.0) -> Path:
    """Write a site's table with these values of glucose."""
    draw = np.random.default_rng(1)
    lines = [
        f"{'' if draw.random() < gaps else f'{value:.2f}'},{'FM'[number % 2]},{'yes' if draw.random() < ill else 'no'}"
        for number, value in enumerate(glucose)
    ]
    (folder / "rows.csv").write_text("\n".join(["glucose,sex,ill", *lines]) + "\n")
    return folder


def check(path: Path, study: StudyConfig, kind: str = "table") -> Finding:
    """What the site is told."""
    keys = {"name": "rom", "server": "localhost:1", "ca_certificate": "a", "private_key": "k", "state_dir": "s"}
    (finding,) = check_summary(SiteConfig.model_validate(keys | {"data": {"kind": kind, "path": path}}), study)
    return finding


@pytest.mark.parametrize(
    ("summary", "sentence"),
    [
        ({"columns": {"glucose": {"low": 5, "high": 4}}}, "low must be less than high, got 5 and 4"),
        ({"columns": {"glucose": {"low": float("nan"), "high": 4}}}, "must be a finite number"),
        ({"columns": {"glucose": {"low": 1}}}, "low and high go together"),
        ({"columns": {"glucose": {"mean": 1}}}, "mean and std go together"),
        ({"columns": {"glucose": {"mean": 1, "std": 0}}}, "must be greater than 0"),
        (
            {"columns": {"glucose": {"mean": 9, "std": 1, "low": 1, "high": 5}}},
            "mean 9 is not between low 1 and high 5",
        ),
        ({"columns": {"glucose": {}}}, "says nothing: give low and high, mean and std, or missing"),
        ({"columns": {"glucose": {"missing": 1.5}}}, "must be at most 1"),
        ({"columns": {"a\x1b[2J": {"missing": 0.5}}}, "must hold no control character"),
        ({"columns": {"age": {"missing": 0.5}}}, "the task has no column 'age' to summarise, it has 'glucose', 'sex'"),
        ({"columns": {"sex": {"low": 1, "high": 2}}}, "are of numbers: a category has 'missing'"),
        ({"columns": {"ill": {"low": 1, "high": 2}}}, "the task has no column 'ill' to summarise"),
        ({"labels": {"maybe": 0.5}}, "the task has no class 'maybe', it has 'no', 'yes'"),
        ({"labels": {"yes": 0.9, "no": 0.9}}, "the parts of the classes add up to 1.8, expected 1"),
        ({"labels": {"yes": 0.1, "no": 0.1}}, "the parts of the classes add up to 0.2, expected 1"),
        ({"labels": {"yes": -0.1}}, "must be at least 0"),
        ({"pixels": {"mean": 0.5, "std": 0.2}}, "task.summary.pixels: is for pictures, but task.kind is 'table'"),
        ({}, "says nothing: give columns, labels or pixels"),
        ({"rows": 5}, "rows"),
    ],
)
def test_summaries_that_cannot_be_are_refused(summary: dict[str, Any], sentence: str) -> None:
    """Each with a sentence, when the study is read, at the coordinator's as at a site."""
    with pytest.raises(ConfigError) as raised:
        study_of({**TABLE, "summary": summary})
    assert sentence in str(raised.value) and "\x1b" not in str(raised.value)


def test_a_study_without_a_summary_is_as_it_was() -> None:
    """Nothing of it stands in the study's text, so that digests stay; and a site is told nothing."""
    study = study_of(TABLE)
    assert "summary" not in study.model_dump_json()
    assert [] == check_summary(None, study)  # type: ignore[arg-type] # nothing of a site is asked


def test_data_as_expected_pass(tmp_path: Path) -> None:
    """With the numbers that they were drawn with."""
    assert "PASS" == check(write(tmp_path, GLUCOSE), study_of({**TABLE, "summary": EXPECTED})).status


@pytest.mark.parametrize("expected", [{"mean": 110, "std": 30}, {"low": 50, "high": 250}, {"low": 0, "high": 300}])
def test_another_unit_is_named_with_its_factor(tmp_path: Path, expected: dict[str, float]) -> None:
    """Glucose in mmol/l where mg/dl are expected: 18 times less, by mean, by a range, and by one that begins at 0."""
    study = study_of({**TABLE, "summary": {"columns": {"glucose": expected}}})
    finding = check(write(tmp_path, GLUCOSE / 18.02), study)
    assert "WARN" == finding.status and "column 'glucose'" in finding.message
    assert "looks like another unit" in finding.message and "converted before the study" in finding.fix
    if expected.get("low") != 0:
        assert "(a factor of 18" in finding.message
    assert "PASS" == check(write(tmp_path, GLUCOSE), study).status


@pytest.mark.parametrize(
    ("values", "factor"),
    [
        (RNG.normal(1.0, 0.25, size=200) * 88.4, "88"),  # creatinine, mg/dl to umol/l
        (RNG.normal(1.0, 0.25, size=200) * 1000, "1e+03"),
        (RNG.normal(1.0, 0.25, size=200) / 12, "12"),
    ],
)
def test_factors_are_those_of_the_units(values: np.ndarray, factor: str) -> None:
    """Within the chance of 200 values, to two digits, up and down."""
    (said,) = column_facts(values, ColumnSummary(mean=1.0, std=0.25))
    told = float(said.split("a factor of ")[1].split(")")[0])
    assert abs(told / float(factor) - 1) < 0.1


def test_sicker_patients_are_no_other_unit() -> None:
    """Twice the mean, a third more spread, and ten values: none of it is said, nor of a constant column."""
    expected = ColumnSummary(low=40, high=400, mean=110, std=30)
    assert [] == list(column_facts(GLUCOSE + 60, expected))
    assert [] == list(column_facts(np.full(50, 100.0), expected))
    assert [] == list(column_facts(GLUCOSE[:9] / 18, expected))
    assert [] == list(column_facts(np.array([np.nan] * 50), ColumnSummary(low=1, high=2)))


def test_gaps_and_shares_that_differ_are_named(tmp_path: Path) -> None:
    """Half of the cells missing where 2 % are expected; 95 % ill where 30 % are."""
    finding = check(write(tmp_path, GLUCOSE, ill=0.95, gaps=0.5), study_of({**TABLE, "summary": EXPECTED}))
    assert "WARN" == finding.status
    assert "is missing in" in finding.message and "where the study expects 2%" in finding.message
    assert "label 'yes' is that of 9" in finding.message and "where the study expects 30.0%" in finding.message


def test_shares_within_chance_are_not_named() -> None:
    """Of 20 patients 9 in place of 6 may be chance; 1 in place of 30 of 1,000 is not; 3 in place of 1 may be."""
    assert [] == list(label_facts({"yes": (9 / 20, 20)}, {"yes": 0.3}))
    assert 1 == len(list(label_facts({"yes": (0.001, 1000)}, {"yes": 0.03})))
    assert [] == list(label_facts({"yes": (0.003, 1000)}, {"yes": 0.001}))
    assert [] == list(label_facts({"yes": (1.0, 9)}, {"yes": 0.1}))


def test_levels_of_pictures_are_compared(tmp_path: Path) -> None:
    """Inverted ones, and ones of 12 bits taken for 16; levels are computed here from the file."""
    x = (RNG.normal(60, 30, size=(60, 8, 8)).clip(0, 255)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(60) % 2)
    task = {"kind": "images", "classes": ["0", "1"], "size": 8, "channels": 1, "mean": [0.5], "std": [0.25]}
    levels = {"mean": float((x / 255).mean()), "std": float((x / 255).std())}
    study = study_of({**task, "summary": {"pixels": levels, "labels": {"0": 0.5}}})
    assert "PASS" == check(tmp_path, study, "arrays").status
    described = describe_data([tmp_path], study)
    assert described.pixels == PixelSummary(mean=round(levels["mean"], 2), std=round(levels["std"], 2))
    np.savez(tmp_path / "a.npz", x=255 - x, y=np.arange(60) % 2)
    assert "they look inverted, black for white" in check(tmp_path, study, "arrays").message
    dark = list(pixel_facts(levels["mean"] / 4, levels["std"] / 4, PixelSummary(**levels)))
    assert 2 == len(dark) and all("another range of levels" in said for said in dark)


def test_examples_are_described_rounded_and_many(tmp_path: Path) -> None:
    """Mean and spread within their rounding, percentiles outwards; the text goes into a study."""
    study = study_of(TABLE)
    write(tmp_path, GLUCOSE, gaps=0.1)
    summary = describe_data([tmp_path / "rows.csv"], study)
    column = summary.columns["glucose"]
    assert column.low is not None and column.high is not None and column.mean is not None and column.std is not None
    assert abs(column.mean - GLUCOSE.mean()) < 5 and abs(column.std - GLUCOSE.std()) < 5
    assert column.low <= np.percentile(GLUCOSE, 2) and column.high >= np.percentile(GLUCOSE, 98)
    assert (0, 0) == (column.low % 1, column.high % 10)
    assert abs((column.missing or 0) - 0.1) < 0.05 and abs(sum(summary.labels.values()) - 1) < 0.02
    text = summary_text(summary)
    assert "[task]" not in text
    written = tomllib.loads(text)["task"]["summary"]
    again = study_of({**TABLE, "summary": written})
    assert summary == again.task.summary and "PASS" == check(tmp_path, again).status


def test_few_patients_are_not_described(tmp_path: Path) -> None:
    """Of 49 nothing is said, and of 150 no range: its ends would be single patients'."""
    study = study_of(TABLE)
    with pytest.raises(DataError, match="too few to describe, expected at least 50"):
        describe_data([write(tmp_path, GLUCOSE[:49])], study)
    column = describe_data([write(tmp_path, GLUCOSE[:150])], study).columns["glucose"]
    assert column.low is None is column.high and column.mean is not None


def test_times_and_numbers_to_learn_are_in_a_unit_too(tmp_path: Path) -> None:
    """Days in place of months, under the name of the label's column."""
    rows = [f"{value:.2f},{value * 30.4 + 1:.1f},{number % 2}" for number, value in enumerate(GLUCOSE[:100])]
    (tmp_path / "rows.csv").write_text("\n".join(["glucose,months,died", *rows]) + "\n")
    columns = {"glucose": {"kind": "number"}}
    times = {"kind": "table", "survival": {"time": "months", "event": "died"}, "columns": columns}
    number = {"kind": "table", "label": "months", "regression": {"tolerance": 1.0}, "columns": columns}
    for task in (times, number):
        study = study_of({**task, "summary": {"columns": {"months": {"mean": 110, "std": 30}}}}, min_examples=2)
        assert "column 'months' has a mean of" in check(tmp_path, study).message
