"""A label of two columns, a time and an event: how it is read, split, drawn and refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from survival_cases import patients
from survival_studies import site_folders, survival_study

from consilium.adaptation.adapt import adapt_site
from consilium.client.data import read_site
from consilium.client.data.target import TimeTarget
from consilium.client.operations.doctor.columns import check_columns
from consilium.client.site.state_folder import StateFolder
from consilium.client.training.sampling import spread
from consilium.common.errors import ConfigError, DataError
from consilium.common.model import read_record
from consilium.common.protocol.counts import Estimates
from consilium.common.study.load import load_site, study_text
from consilium.common.study.study import StudyConfig
from consilium.report.page import render_page
from consilium.report.report import build_report
from consilium.running.in_process import run_in_process
from consilium.serving.calibrate import calibrate
from consilium.serving.evaluate import evaluate
from consilium.serving.predict import predict

COLUMNS = ["a"]


def _table(count: int, *, seed: int) -> pd.DataFrame:
    of, risks = patients(count, seed=seed)
    noise = np.random.default_rng(seed).normal(scale=0.01, size=count)
    return pd.DataFrame({"a": risks + noise, "days": of.times, "died": of.events.astype(int)})


def _study(sites: dict[str, Path], **more: Any) -> StudyConfig:
    training = {"epochs": 1, "batch_size": 16, "learning_rate": 0.1}
    return survival_study(sites, COLUMNS, time="days", event="died", rounds=2, training=training, **more)


def test_a_time_has_the_sign_of_its_event(tmp_path: Path) -> None:
    """Events are 1 or true, in any spelling that tables know; the site's staff sees how many there are."""
    table = pd.DataFrame(
        {"a": range(8), "days": [3, 0, 5, 7, 8, 9, 2, 0], "died": ["1", "0.0", *["true", "False"] * 3]}
    )
    sites = site_folders(tmp_path, {"one": table})
    config, study = load_site(sites["one"]), _study(sites, min_examples=2, split={"test": 0.4, "validation": 0.0})
    y = read_site(config, study).raw.y
    assert [3.0, 0.0, 5.0, 7.0, 8.0, 9.0, 2.0, 0.0] == y.abs().tolist()
    assert [False, True, False, True, False, True, False, True] == torch.signbit(y).tolist()
    assert "event 'died' seen in 50.0%" in check_columns(config, study)[0].message


@pytest.mark.parametrize(
    ("column", "cell", "sentence"),
    [
        ("days", "-3", "label column 'days': expected a number of at least 0, got a smaller one"),
        ("died", "2", r"label column 'died': expected one of \['0', '1'\], got a number that is not among them"),
        ("days", "", "column 'days': the value is missing"),
    ],
)
def test_a_row_without_a_usable_time_or_event_is_named(tmp_path: Path, column: str, cell: str, sentence: str) -> None:
    """Each says the column and what was expected, never the value."""
    table = _table(20, seed=0).astype(object)
    table.loc[3, column] = cell
    sites = site_folders(tmp_path, {"one": table})
    with pytest.raises(DataError, match=sentence):
        read_site(load_site(sites["one"]), _study(sites, min_examples=2))


def test_parts_are_stratified_by_event(tmp_path: Path) -> None:
    """The share of events in the test part is that of all rows, but for one row of rounding."""
    sites = site_folders(tmp_path, {"one": _table(200, seed=1)})
    data = read_site(load_site(sites["one"]), _study(sites, split={"test": 0.25, "validation": 0.2}))
    events = ~torch.signbit(data.raw.y).numpy()
    for rows in (data.parts.train, data.parts.validation, data.parts.test):
        assert events.mean() * len(rows) == pytest.approx(events[rows].sum(), abs=1.5)


def test_every_batch_has_its_share_of_events() -> None:
    """Of 60 rows with 6 events, each ten in a row have one or two, whatever the seed; every row is drawn once."""
    events = (torch.arange(60) < 6).long()
    for seed in range(5):
        order = spread(events, torch.Generator().manual_seed(seed))
        assert list(range(60)) == sorted(order.tolist())
        assert all(1 <= int(count) <= 2 for count in events[order].reshape(6, 10).sum(dim=1))


def test_a_constant_answer_says_half_and_no_pair_says_nothing() -> None:
    """Harrell's c of equal risks is 0.5; of labels that are all censored it is NaN."""
    target, y = TimeTarget(), torch.tensor([1.0, 2.0, -3.0])
    assert 0.5 == target.score(torch.zeros(3), y)
    assert np.isnan(target.score(torch.zeros(3), -y.abs()))
    assert not target.right(target.constant(y), y).any()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Any, Path]:
    """Return the sites, the result and the folder of a small run."""
    folder = tmp_path_factory.mktemp("survival")
    sites = site_folders(folder, {"one": _table(120, seed=2), "two": _table(100, seed=3)})
    study = _study(sites, local_baseline=True, split={"test": 0.3, "validation": 0.2})
    return sites, run_in_process(study, sites, folder / "run"), folder


def _model(sites: dict[str, Path]) -> Path:
    return StateFolder.of(sites["one"].parent / "state", study="survival", run="run", site="one").models / "personal"


def test_a_report_tells_the_index_with_its_interval(finished: tuple[dict[str, Path], Any, Path]) -> None:
    """Estimates stand in place of counts; the constant answer has 0.5; the page calls the score by its name."""
    _, result, _ = finished
    report = build_report(result)
    for site, of in result.sites.items():
        assert of.test is not None
        assert of.test.personal is None
        assert 0.5 == of.test.estimates.majority.value
        measured = report.run.measures(site)["personal"]
        assert measured is not None and measured.bounds is not None
        assert measured.bounds[0] < of.test.estimates.personal.value < measured.bounds[1]
    assert "concordance index" in render_page(report)
    assert "same risk for all" in render_page(report)


def test_a_model_predicts_risks_and_refuses_what_it_cannot(finished: tuple[dict[str, Path], Any, Path]) -> None:
    """A larger answer is a larger risk; what takes right answers, or true values, is refused in a sentence."""
    sites, result, folder = finished
    model, data = _model(sites), sites["one"].parent / "data.csv"
    record = read_record(model)
    assert ["concordance index"] == [score.name for score in record.scores]
    values = predict(model, [data]).answers.values
    assert values is not None
    assert 0.9 < abs(np.corrcoef(values.numpy(), pd.read_csv(data)["a"])[0, 1])
    with pytest.raises(ConfigError, match="not there yet"):
        evaluate(model, data)
    with pytest.raises(ConfigError, match="no true value to calibrate by"):
        calibrate(model, sites["one"])
    study_file = folder / "study.toml"
    study_file.write_text(study_text(result.study), encoding="utf-8")
    with pytest.raises(ConfigError, match="neither right nor wrong"):
        adapt_site(sites["two"], model=folder / "run" / "model", study_file=study_file, steps=1)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"personal": 0.5, "local": 0.9, "difference": 0.4}, "difference 0.4 is not personal 0.5 less local 0.9"),
        ({"personal": 0.5, "difference": 0.1}, "the difference of personal and local is there without the two"),
        ({"personal": 0.5, "majority": -1.0}, "a score is from 0 to 1"),
    ],
)
def test_scores_that_contradict_each_other_are_refused(values: dict[str, float], sentence: str) -> None:
    """A site cannot say that joining gained what its own two numbers do not show."""
    with pytest.raises(ValidationError, match=sentence):
        Estimates.model_validate({name: {"value": value, "error": 0.01} for name, value in values.items()})
