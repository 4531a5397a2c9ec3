"""A label of two columns, a time and an event: how it is read, split, drawn and refused."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines.utils import concordance_index
from pydantic import ValidationError
from rich.console import Console
from survival_cases import patients
from survival_studies import site_folders, survival_study

from consilium.adaptation.adapt import adapt_site
from consilium.adaptation.picture import write_adaptation
from consilium.adaptation.terminal import print_adaptation
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
from consilium.serving.page import page_of
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
    sites, _, _ = finished
    model, data = _model(sites), sites["one"].parent / "data.csv"
    record = read_record(model)
    assert ["concordance index"] == [score.name for score in record.scores]
    values = predict(model, [data]).answers.values
    assert values is not None
    assert 0.9 < abs(np.corrcoef(values.numpy(), pd.read_csv(data)["a"])[0, 1])
    with pytest.raises(ConfigError, match="no true value to calibrate by"):
        calibrate(model, sites["one"])


def test_evaluating_tells_the_index_with_its_interval(finished: tuple[dict[str, Path], Any, Path]) -> None:
    """On other rows Harrell's c, lifelines' number; on the own test rows the recorded number and Uno's c too."""
    sites, _, _ = finished
    model, data = _model(sites), sites["two"].parent / "data.csv"
    table, risks = pd.read_csv(data), predict(model, [data]).answers.values
    found = evaluate(model, data)
    told = {one.name: one for one in found.metrics}
    assert risks is not None and told["c_index"].interval is not None
    expected = concordance_index(table["days"], -risks.numpy(), table["died"])
    assert expected == pytest.approx(told["c_index"].interval.value)
    assert told["c_index"].interval.bounds is not None and 0.5 == told["c_index"].constant
    assert told["uno_c"].interval is None and "--test-rows" in told["uno_c"].note
    assert "Concordance index" in page_of(found) and "the same risk for all" in page_of(found)
    own = evaluate(model, None, test_rows=sites["one"])
    assert "same rows" == own.recorded[0].verdict and "the same number" in own.sentences[0]
    assert "--test-rows" not in own.metrics[1].note
    json.dumps(own.as_json(), allow_nan=False)


def test_rows_without_an_event_are_measured_by_nothing(finished: tuple[dict[str, Path], Any, Path]) -> None:
    """No two patients can be compared: the note says so."""
    sites, _, folder = finished
    table = pd.read_csv(sites["two"].parent / "data.csv").assign(died=0)
    table.to_csv(folder / "censored.csv", index=False)
    first = evaluate(_model(sites), folder / "censored.csv").metrics[0]
    assert (None, "no two patients can be compared") == (first.interval, first.note)


def test_adapting_measures_the_index_and_not_counts(finished: tuple[dict[str, Path], Any, Path]) -> None:
    """Both starts at every stop with intervals, the difference in the same draws, and the constant answer at 0.5."""
    sites, result, folder = finished
    study_file = folder / "study.toml"
    study_file.write_text(study_text(result.study), encoding="utf-8")
    arguments: Any = {"model": folder / "run" / "model", "study_file": study_file, "steps": 1}
    found = adapt_site(sites["two"], **arguments)
    assert 0.5 == found.majority == found.level
    told = found.as_json()
    assert {"accuracy", "interval", "loss"} == set(told["starts"]["federated"])
    assert {"difference", "interval"} == set(told["comparisons"]["random"][0])
    ours, theirs = (told["starts"][name]["accuracy"][0] for name in ("federated", "random"))
    assert ours - theirs == pytest.approx(told["comparisons"]["random"][0]["difference"])
    data = read_site(load_site(sites["two"]), result.study).scaled(None)
    assert len(data.test) == found.num_test
    first, *_, last = found.headlines
    assert first.startswith(f"Before any step the federated start has a concordance index of {ours:.2f}, the random")
    assert "Always answering the site's same risk for all has 0.50." == last
    console = Console(file=io.StringIO(), width=120, color_system=None)
    print_adaptation(found, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined] # it is a StringIO
    assert f"{ours:.2f} [" in shown
    assert "right answers" not in shown
    write_adaptation(folder / "adapted", found)
    assert "same risk for all" in (folder / "adapted" / "adapt.svg").read_text()


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


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({"personal": (0.9, 0.0)}, "a score of 0.9 has the standard error 0.0, expected a larger one"),
        ({"personal": (0.9, 1e-300)}, "standard error 1e-300"),
        ({"personal": (0.9, math.nan)}, "personal.error"),
        ({"personal": (0.9, math.inf)}, "personal.error"),
        ({"personal": (0.5, 1e-12)}, "standard error 1e-12"),
        ({"personal": (0.5, 0.0)}, None),
        (
            {"personal": (0.9, 0.1), "local": (0.4, 0.1), "difference": (0.5, 0.0)},
            "the difference 0.5 has the standard",
        ),
        ({"personal": (0.9, 0.1), "local": (0.9, 0.1), "difference": (0.0, 0.0)}, None),
    ],
)
def test_a_score_without_error_is_believed_only_where_no_draw_changes_it(
    values: dict[str, tuple[float, float]], refused: str | None
) -> None:
    """The same answer to all rows has 1/2 whoever is drawn; no other score is sure, and no site may say that it is."""
    sent = {name: {"value": value, "error": error} for name, (value, error) in values.items()}
    if refused is None:
        assert Estimates.model_validate(sent).personal is not None
        return
    with pytest.raises(ValidationError, match=refused):
        Estimates.model_validate(sent)
