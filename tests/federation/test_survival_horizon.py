"""The Brier score at a horizon: what a site tells of it, what the report and a comparison show, and what stays."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from comparing import console, options
from lifelines import KaplanMeierFitter
from lifelines.datasets import load_gbsg2
from sksurv.linear_model.coxph import BreslowEstimator
from sksurv.metrics import brier_score
from survival_cases import structured
from survival_studies import site_folders, survival_study

from consilium.client.site.state_folder import StateFolder
from consilium.common.errors import ConfigError
from consilium.common.protocol import counts
from consilium.common.protocol.counts import Estimate, Estimates
from consilium.common.protocol.replies import FinishReply
from consilium.common.results import RunResult
from consilium.common.study.study import StudyConfig
from consilium.common.survival.times import Floats, Times
from consilium.comparison.cells import make_cell, run_cell
from consilium.comparison.compare import compare
from consilium.comparison.evidence import evidence_of
from consilium.comparison.finished import read_answers, scores_of
from consilium.comparison.results import Kind
from consilium.comparison.site_files import SiteFiles
from consilium.privacy.visibility import visibility
from consilium.report.page import render_page
from consilium.report.report import build_report
from consilium.running.in_process import run_in_process
from consilium.server.study.exchange import Answer
from consilium.server.study.finish import checked
from consilium.serving.evaluate import evaluate
from consilium.serving.own_rows import own_rows_of
from consilium.serving.page import page_of
from consilium.serving.question import load

HORIZON = 730.0
COLUMNS = ["age", "tsize", "pnodes", "progrec", "estrec"]


@dataclass(frozen=True)
class Finished:
    """A run of two sites, its folder and their settings."""

    folder: Path
    study: StudyConfig
    sites: dict[str, Path]
    result: RunResult

    def brier(self, site: str) -> Estimates:
        """Return what a site told of its Brier scores."""
        test = self.result.sites[site].test
        assert test is not None and test.brier is not None
        return test.brier

    def model(self, site: str) -> Path:
        """Return the folder of the model that a site serves."""
        state = StateFolder.of(self.sites[site].parent / "state", study="survival", run="run", site=site)
        return state.models / "personal"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return a small run on GBSG2 with a horizon of two years."""
    folder = tmp_path_factory.mktemp("horizon")
    rows = load_gbsg2()[[*COLUMNS, "time", "cens"]].sample(n=400, random_state=0)
    sites = site_folders(folder, {"rom": rows.iloc[::2], "kyoto": rows.iloc[1::2]})
    study = survival_study(
        sites,
        COLUMNS,
        time="time",
        event="cens",
        rounds=3,
        local_baseline=True,
        training={"epochs": 2, "batch_size": 32, "learning_rate": 0.1},
        task={"survival": {"time": "time", "event": "cens", "horizon": HORIZON}},
        split={"test": 0.4, "validation": 0.1},
    )
    return Finished(folder, study, sites, run_in_process(study, sites, folder / "run"))


def expected_of(finished: Finished, site: str) -> tuple[float, float]:
    """Return scikit-survival's Brier scores of the model that a site serves, and of the same risk for all."""
    _, model = load(finished.model(site))
    own = own_rows_of(finished.sites[site], model.record, part="test", option="--test-rows")
    assert own.trained_on is not None and own.trained_on.y is not None and own.inputs.y is not None
    training, test = (Times.of_labels(part.y.numpy()) for part in (own.trained_on, own.inputs))  # type: ignore[union-attr]  # both have labels
    risks: list[Floats] = [model.logits(model.prepared(part).x)[:, 0].numpy() for part in (own.trained_on, own.inputs)]

    def score(fitted: Floats, asked: Floats) -> float:
        hazard = BreslowEstimator().fit(fitted, training.events, training.times).cum_baseline_hazard_(HORIZON)
        survival = np.exp(-hazard * np.exp(asked))
        return float(brier_score(structured(training), structured(test), survival[:, None], [HORIZON])[1][0])

    return score(*risks), score(np.zeros(len(training)), np.zeros(len(test)))


@pytest.mark.parametrize("site", ["rom", "kyoto"])
def test_a_site_tells_the_brier_scores_of_scikit_survival(finished: Finished, site: str) -> None:
    """Hazard and weights are of the site's training rows; the model is better than the same risk for all."""
    told = finished.brier(site)
    served, constant = expected_of(finished, site)
    assert told.personal is not None and told.majority is not None and told.local is not None
    assert served == pytest.approx(told.personal.value, rel=0.005)  # as many digits as the policy lets leave
    assert constant == pytest.approx(told.majority.value, rel=0.005)
    assert served < constant and 0 < told.personal.error < 0.05
    assert told.difference is not None and told.difference.error < told.personal.error


def test_hazards_stay_at_the_site(finished: Finished) -> None:
    """They are among a site's own scores, and in nothing that the coordinator keeps."""
    state = finished.model("rom").parent.parent
    assert b"personal.hazard" in (state / "test-scores.safetensors").read_bytes()
    kept = [path for path in (finished.folder / "run").rglob("*") if path.is_file()]
    assert kept and all(b"hazard" not in path.read_bytes() for path in kept)
    assert any("Brier scores at 730" in row.what for row in visibility(finished.study))


@pytest.mark.filterwarnings("ignore:Starting with pandas version 4.0")  # lifelines calls it in the older way
def test_a_sites_own_curve_lies_in_its_folder_and_stays(finished: Finished) -> None:
    """Lifelines' curve of all of its rows, in a table and a picture of its own; the report says where it is."""
    state = finished.model("rom").parent.parent
    rows = pd.read_csv(finished.sites["rom"].parent / "data.csv")
    fitted = KaplanMeierFitter().fit(rows["time"], rows["cens"])
    table = pd.read_csv(state / "survival.csv")
    np.testing.assert_allclose(table["share_without_event"], fitted.predict(table["time"].tolist()), atol=1e-6)
    events = fitted.event_table.iloc[1:]
    for own, theirs in (("at_risk", "at_risk"), ("events", "observed"), ("censored", "censored")):
        assert events[theirs].tolist() == table[own].tolist()
    picture = (state / "survival.svg").read_text(encoding="utf-8")
    assert len(table) == picture.count(" H") - 1 and "200 patients without &#x27;cens&#x27;" in picture
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    kept = {path.name for path in (finished.folder / "run").rglob("*")}
    assert kept.isdisjoint({"survival.csv", "survival.svg"})
    assert "<code>survival.svg</code>" in render_page(build_report(finished.result))


def test_the_report_shows_them_with_intervals(finished: Finished) -> None:
    """A table of its own says that smaller is better; the JSON has each site's numbers."""
    report = build_report(finished.result)
    page = " ".join(render_page(report).split())
    assert "Brier score at time = 730: smaller is better" in page
    own = report.as_json()["sites"]["rom"]["brier"]
    low, high = own["intervals"]["personal"]
    assert low < own["metrics"]["personal"] == finished.brier("rom").personal.value < high  # type: ignore[union-attr]  # it is told
    assert high - low < 0.2


def test_evaluating_the_test_rows_tells_the_same(finished: Finished) -> None:
    """Other rows have no Brier score, as the training rows are not known there; the note says how to get one."""
    told = {one.name: one for one in evaluate(finished.model("rom"), None, test_rows=finished.sites["rom"]).metrics}
    served, constant = expected_of(finished, "rom")
    found = told["brier_at_horizon"]
    assert found.interval is not None and found.interval.bounds is not None and found.lower_is_better
    assert served == pytest.approx(found.interval.value, abs=1e-6)
    assert constant == pytest.approx(found.constant, abs=1e-6)
    other = evaluate(finished.model("rom"), finished.sites["kyoto"].parent / "data.csv")
    without = {one.name: one for one in other.metrics}["brier_at_horizon"]
    assert without.interval is None and "--test-rows" in without.note
    assert "Brier score at the study&#39;s horizon" in page_of(other)


def test_a_comparison_measures_every_row(finished: Finished, tmp_path: Path) -> None:
    """FedAvg, alone, all rows pooled and the usual tool have a score, and draws that an interval is made of."""
    files = {name: SiteFiles("table", path.parent / "data.csv") for name, path in finished.sites.items()}
    kinds: dict[Kind, tuple[str, ...]] = {
        "federated": ("majority", "local", "personal", "personal.best"),
        "pooled": ("pooled", "pooled.best"),
        "usual": ("usual",),
    }
    for kind, models in kinds.items():
        cell = make_cell(kind, finished.study, seed=0, split=0, kind=kind)
        result = run_cell(cell, files, tmp_path, kind)
        answers = read_answers(kind, tmp_path)["rom"]
        for model in models:
            value = result.sites["rom"].metrics[model]["brier_at_horizon"]
            scores = scores_of(answers, model, finished.study.task)
            assert value is not None and 0.05 < value < 0.3 and scores is not None
            told = evidence_of([scores], "brier_at_horizon", groups=None, seed=0, who="rom")
            assert told is not None and told.rows is not None and value == pytest.approx(told.rows.mean())


def test_a_comparison_without_a_horizon_knows_no_brier_score(finished: Finished, tmp_path: Path) -> None:
    """The metric is refused before anything is trained."""
    values = finished.study.model_dump(mode="json", exclude_none=True)
    del values["task"]["survival"]["horizon"]
    asked = options(finished.folder, StudyConfig.model_validate(values), tmp_path / "x", metric="brier_at_horizon")
    with pytest.raises(ConfigError, match="there is no 'brier_at_horizon' for this task; known: c_index, uno_c"):
        compare(asked, console())


def test_scores_that_nobody_asked_for_are_refused(finished: Finished) -> None:
    """A site of a study without a horizon that sends Brier scores is named."""
    one = Estimates(personal=Estimate(value=0.2, error=0.01))
    reply = FinishReply.model_construct(
        run="r", round=3, test=counts.TestCounts(num_test=20, personal=None, estimates=one, brier=one)
    )
    plain = survival_study(finished.sites, COLUMNS, time="time", event="cens")
    answer = Answer(site="rom", reply=reply)
    for study, said in ((plain, "sent Brier scores, which this study without a horizon"), (finished.study, None)):
        context = SimpleNamespace(run="r", test_sizes={"rom": 20}, config=study)
        found = checked(answer, context, round_number=3)  # type: ignore[arg-type]  # what it reads of the study
        assert (isinstance(found, str) and said in found) if said else found is reply


def test_a_horizon_is_positive(finished: Finished) -> None:
    """0 says nothing, as nobody has had the event by then."""
    with pytest.raises(ConfigError, match=r"survival\.horizon: must be greater than 0, got 0"):
        survival_study(
            finished.sites,
            COLUMNS,
            time="time",
            event="cens",
            task={"survival": {"time": "time", "event": "cens", "horizon": 0}},
        )
