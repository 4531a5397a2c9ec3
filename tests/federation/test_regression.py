"""A label that is a number: read, trained, measured and compared like a class, in its own units."""

import io
import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy, method_settings, write_site, write_table
from rich.console import Console
from safetensors.numpy import load_file
from site_data import load_data

from consilium.adaptation.adapt import adapt_site
from consilium.client.data import Examples
from consilium.client.data.split import split_rows
from consilium.client.data.target import NumberTarget, loss_of
from consilium.client.methods import METHODS
from consilium.client.operations.doctor.data import check_data
from consilium.client.site.state_folder import StateFolder
from consilium.client.training.evaluation import evaluate
from consilium.common.errors import ConfigError, DataError
from consilium.common.model import read_record
from consilium.common.study.load import load_site, parse_study, study_text
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import Regression, TableTask
from consilium.common.study.training import SplitConfig
from consilium.comparison.cells import Cell
from consilium.comparison.choices import Candidate, choose
from consilium.comparison.compare import compare
from consilium.comparison.comparison import Comparison
from consilium.comparison.number_scores import NumberScores
from consilium.comparison.options import CompareOptions
from consilium.comparison.results import CellResult, SiteOutcome, Validation
from consilium.comparison.rows import CHOSEN, LOCAL, MEAN
from consilium.comparison.summary import Summary, numbers_over, places_of
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool
from consilium.findings import Interval, sentence
from consilium.findings.decimals import point
from consilium.report.page import render_page
from consilium.report.report import build_report
from consilium.report.terminal import print_report
from consilium.running.in_process import run_in_process

pytestmark = pytest.mark.usefixtures("few_trees")

NUMBER = {"center": 0.1, "scale": 2.0, "tolerance": 0.7}
TASK = {
    "kind": "table",
    "label": "b",
    "regression": NUMBER,
    "columns": {"a": {"kind": "number"}, "ill": {"kind": "category", "values": ["no", "yes"]}},
}
SPLIT: dict[str, Any] = {"test": 0.3, "validation": 0.2}


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    """The small tables, with the column `b` to be predicted from the others."""
    return make_study(task=TASK, split=SPLIT, training={"epochs": 2, "batch_size": 8, "learning_rate": 0.05})


# --- what a label may be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"regression": None}, {"classes": ["a", "b"]}, {"classes": ["a"], "regression": None}],
    ids=["neither", "both", "one class"],
)
def test_a_label_is_one_of_classes_or_a_number(change: dict[str, Any], make_study: MakeStudy) -> None:
    """Both or neither is refused."""
    with pytest.raises(ConfigError, match="give either 'classes', at least two, or 'regression'"):
        make_study(task=TASK | change)


@pytest.mark.parametrize(("name", "value"), [("scale", 0), ("tolerance", 0), ("scale", math.inf), ("center", math.nan)])
def test_scale_and_tolerance_are_positive_and_finite(name: str, value: float, make_study: MakeStudy) -> None:
    """The sentence names the setting."""
    with pytest.raises(ConfigError, match=f"regression.{name}"):
        make_study(task=TASK | {"regression": NUMBER | {name: value}})


# --- reading it --------------------------------------------------------------------------------------


def load(path: Path, study: StudyConfig) -> Any:
    """Return a site's data."""
    config = load_site(path)
    return load_data(config.data, study.task, study.split, site=config.name, min_examples=2, share_class_counts=True)


def test_labels_are_centred_and_scaled_alike_at_every_site(make_sites: MakeSites, study: StudyConfig) -> None:
    """By the study's numbers, not by each site's own."""
    for path in make_sites().values():
        data = load(path, study)
        parts = (data.train, data.validation, data.test)
        found = np.sort(np.concatenate([part.y.numpy() for part in parts]) * 2.0 + 0.1)
        rows = [line.split(",") for line in (path.parent / "data.csv").read_text().splitlines()[1:]]
        np.testing.assert_allclose(found, np.sort([float(row[1]) for row in rows]), atol=1e-6)
        assert [part.target.tolerance for part in parts if isinstance(part.target, NumberTarget)] == pytest.approx(
            [0.35] * 3, abs=2e-5
        )
        assert (data.card.classes, data.card.class_counts) == ((), None)


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("high", "label column 'b': expected a number, got text"),
        ("1e39", "label column 'b': expected a finite number"),
        ("1e38", "label column 'b': expected a number that task.regression.scale leaves finite"),
        ("", "column 'b': the value is missing"),
    ],
)
def test_label_that_is_no_number_is_a_sentence_without_its_value(
    cell: str, sentence: str, tmp_path: Path, make_study: MakeStudy
) -> None:
    """A patient's value does not leave in an error."""
    path = write_site(tmp_path, "lyon")
    write_table(tmp_path / "data.csv", rows=30, seed=0)
    lines = (tmp_path / "data.csv").read_text().splitlines()
    lines[3] = f"0.5,{cell},no"
    (tmp_path / "data.csv").write_text("\n".join(lines))
    study = make_study(task=TASK | {"regression": {"scale": 1e-3, "tolerance": 1.0}})
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        load(path, study)
    assert "line 4" in str(caught.value)
    assert not cell or cell not in str(caught.value)


def test_numbers_are_not_stratified(make_sites: MakeSites, study: StudyConfig) -> None:
    """Equal numbers are no classes."""
    repeated = np.repeat(np.arange(4, dtype=np.float32), 10)  # as classes, each would be in every part alike
    parts = split_rows(repeated, SplitConfig(**SPLIT))
    plain = split_rows(np.arange(40, dtype=np.float32), SplitConfig(**SPLIT))
    np.testing.assert_array_equal(parts.test, plain.test)
    assert sorted(np.concatenate([parts.train, parts.validation, parts.test]).tolist()) == list(range(40))


# --- training and measuring --------------------------------------------------------------------------


def test_loss_is_the_mean_squared_error() -> None:
    """(0.25 + 0 + 9) / 3."""
    outputs, y = torch.tensor([[1.0], [0.0], [-2.0]]), torch.tensor([0.5, 0.0, 1.0])
    assert float(loss_of(outputs, y)) == pytest.approx((0.25 + 0 + 9) / 3)
    assert float(loss_of(outputs, y, "sum")) == pytest.approx(9.25)


def test_right_is_near_enough_and_the_constant_is_the_mean() -> None:
    """Within the tolerance counts as right; a constant answer is the labels' mean."""
    examples = Examples(torch.zeros(4, 1), torch.tensor([0.0, 1.0, 2.0, 5.0]), NumberTarget(1.0))
    assert examples.right(torch.tensor([0.9, 2.0, 0.5, 7.0])).tolist() == [True, True, False, False]
    assert float(examples.constant()) == 2.0
    assert examples.right(examples.constant()).tolist() == [False, True, True, False]


def test_evaluation_counts_answers_within_the_tolerance() -> None:
    """As the module answers its input itself."""
    module = torch.nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.fill_(0.0)
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    seen = evaluate(module, Examples(x, torch.tensor([0.2, 1.0, 3.0, 3.4]), NumberTarget(0.5)))
    assert seen.right.tolist() == [True, True, False, True]
    assert seen.accuracy == 0.75
    assert seen.loss == pytest.approx((0.04 + 0 + 1 + 0.16) / 4)


def test_local_training_finds_the_least_squares_answer(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """A linear model comes to where NumPy's lstsq is."""
    training = {"epochs": 400, "batch_size": 100, "learning_rate": 0.1, "momentum": 0.0}
    study = make_study(
        task=TASK, split=SPLIT, model={"name": "linear"}, method={"kind": "local"}, rounds=1, training=training
    )
    sites = make_sites()
    run_in_process(study, sites, tmp_path / "run")
    for site, path in sites.items():
        data = load(path, study)
        design = np.column_stack([data.train.x.numpy(), np.ones(len(data.train))])
        best = np.linalg.lstsq(design, data.train.y.numpy(), rcond=None)[0]
        expected = np.column_stack([data.test.x.numpy(), np.ones(len(data.test))]) @ best
        np.testing.assert_allclose(scores_of(path, site)["personal"][:, 0], expected, atol=1e-4)


def scores_of(path: Path, site: str) -> dict[str, Any]:
    """Return the scores that a site has kept."""
    folder = StateFolder.of(path.parent / "state", study="quick", run="run", site=site).path
    return load_file(folder / "test-scores.safetensors")


@pytest.mark.parametrize("kind", sorted(set(METHODS) - {"knn_per", "fedrod"}))
def test_every_method_learns_a_number(kind: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Every method but those for classes trains, and its result is finite."""
    settings = method_settings(kind) | {"task": TASK, "split": SPLIT, "rounds": 2}
    sites = make_sites()
    run_in_process(make_study(**settings), sites, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for site, path in sites.items():
        scores, test = scores_of(path, site), result["sites"][site]["test"]
        for name, count in (("personal", "personal"), ("local", "local")):
            assert int((np.abs(scores[name][:, 0] - scores["labels"]) <= np.float32(0.35 + 1e-5)).sum()) == test[count]
        data = load(path, make_study(task=TASK, split=SPLIT))
        assert float(scores["majority"]) == pytest.approx(float(data.train.y.mean()))
        assert test["majority"] == int(((data.test.y - data.train.y.mean()).abs() <= 0.35).sum())


def test_report_says_what_is_right_and_in_which_units(
    tmp_path: Path, make_sites: MakeSites, study: StudyConfig
) -> None:
    """In words, with the study's unit."""
    report = build_report(run_in_process(study, make_sites(), tmp_path / "run"))
    assert report.run.score == "share within 0.7 of the true 'b'"
    assert report.run.titles["majority"] == "training mean"
    page = render_page(report)
    assert "Test share within 0.7 of the true &#39;b&#39; at each site" in page
    assert "Always answering the mean" in page
    assert "Mean validation" not in page or "share within" in page
    console = Console(width=140, record=True, file=io.StringIO())
    print_report(report, console)
    assert "share within 0.7 of the true 'b' on each site's own test split" in console.export_text()
    assert "ajority class" not in page


def test_adapt_counts_what_is_near_enough(tmp_path: Path, make_sites: MakeSites, study: StudyConfig) -> None:
    """A site by itself counts as the run did."""
    sites = make_sites()
    run_in_process(study, sites, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    study_file = tmp_path / "study.toml"
    study_file.write_text(study_text(study))
    found = adapt_site(sites["lyon"], study_file=study_file, model=tmp_path / "run" / "model", steps=2).as_json()
    assert found["majority"] == result["sites"]["lyon"]["test"]["majority"] > 0
    assert found["headlines"][-1].startswith("Always answering the site's training mean is right on ")
    assert found["score"] == "share within 0.7 of the true 'b'"


def test_served_model_says_what_it_is_about(tmp_path: Path, make_sites: MakeSites, study: StudyConfig) -> None:
    """Columns, center, scale and tolerance go along with the weights."""
    sites = make_sites()
    run_in_process(study, sites, tmp_path / "run")
    folder = StateFolder.of(sites["lyon"].parent / "state", study="quick", run="run", site="lyon").path
    assert study.task == read_record(folder / "models" / "personal").task


def test_doctor_counts_examples_without_classes(make_sites: MakeSites, study: StudyConfig) -> None:
    """A number has no classes to count."""
    finding = check_data(load_site(make_sites()["lyon"]), study)
    assert finding.message.startswith("30 examples, 0 skipped; shown here only; only 9 for the test")


# --- numbers of a test split -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NumberScores.METRICS)
def test_less_of_an_error_is_better_and_more_of_the_rest(name: str) -> None:
    """So that the worst site is the right one."""
    error = name in {"mae", "rmse", "median_error"}
    assert numbers_over(np.array([[1.0], [2.0]]), [1, 1], name)["worst site"][0] == (2.0 if error else 1.0)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (52.4, "mae 52.40 -> 49.80 (-2.60, 95 % interval -2.80 to -2.40)"),
        (0.0052, "mae 0.005200 -> 0.004940 (-0.000260, 95 % interval "),
    ],
)
def test_errors_in_any_unit_are_told_with_four_digits(value: float, told: str) -> None:
    """Decimals follow the size of the value."""
    after = Interval(value * 0.95 if value < 1 else 49.8)
    difference = Interval(after.value - value, -2.8 * value / 52.4, -2.4 * value / 52.4)
    places = places_of("mae", [Summary({}, {"mean": Interval(value)})])
    assert told in sentence("lyon", Interval(value), after, difference, metric="mae", places=places)
    assert point(Interval(value), places) == {52.4: "52.40", 0.0052: "0.005200"}[value]
    assert places_of("accuracy", [Summary({}, {"mean": Interval(value)})]) == 3


@pytest.mark.parametrize(("center", "scale", "tolerance"), [(5.0, 3.0, 1.0), (140.0, 23.7, 15.0), (0.31, 0.07, 0.05)])
def test_off_by_exactly_the_tolerance_is_right_at_the_site_and_in_the_comparison(
    center: float, scale: float, tolerance: float
) -> None:
    """Whatever float32 makes of a label."""
    number = Regression(center=center, scale=scale, tolerance=tolerance)
    answers = np.linspace(center - 3 * scale, center + 3 * scale, 200)
    for off, right in ((tolerance, True), (-tolerance, True), (1.001 * tolerance, False)):
        y, outputs = (((values - center) / scale).astype(np.float32) for values in (answers + off, answers))
        examples = Examples(torch.zeros(len(y), 1), torch.from_numpy(y), NumberTarget(number.reach))
        assert set(examples.right(torch.from_numpy(outputs)).tolist()) == {right}
        assert set(NumberScores.of_outputs(y, outputs, number).right.tolist()) == {right}


def test_examples_on_another_device_keep_their_tolerance(make_sites: MakeSites, study: StudyConfig) -> None:
    """Moving data loses nothing."""
    moved = load(make_sites()["lyon"], study).on_device(torch.device("meta"))
    assert (moved.test.target, moved.test.y.device.type) == (moved.train.target, "meta")
    assert isinstance(moved.train.target, NumberTarget)


def test_errors_by_hand_in_the_labels_units() -> None:
    """Off by 0.5, 0, 1 and 2."""
    y, outputs = np.array([0.0, 1.0, 2.0, 3.0], np.float32), np.array([0.5, 1.0, 1.0, 5.0], np.float32)
    scores = NumberScores.of_outputs(y, outputs, Regression(center=10.0, scale=4.0, tolerance=4.0))
    np.testing.assert_allclose(scores.y, [10, 14, 18, 22])
    assert scores.measure_all() == pytest.approx(
        {
            "mae": (2 + 0 + 4 + 8) / 4,
            "rmse": math.sqrt((4 + 0 + 16 + 64) / 4),
            "median_error": 3.0,
            "r2": 1 - (4 + 0 + 16 + 64) / (36 + 4 + 4 + 36),
            "within_tolerance": 3 / 4,  # off by exactly the tolerance is right
        }
    )
    assert scores.support == []
    assert scores.taken(np.array([3, 3])).measure("mae") == 8.0


def test_r2_of_equal_labels_is_undefined() -> None:
    """Nothing to explain is no number."""
    scores = NumberScores.of_outputs(np.ones(3), np.zeros(3), Regression(tolerance=1.0))
    assert scores.measure("r2") is None
    assert scores.measure("mae") == 1.0
    with pytest.raises(ValueError, match="no metric 'auroc', expected one of mae, rmse"):
        scores.measure("auroc")


@pytest.mark.parametrize("name", NumberScores.METRICS)
def test_what_examples_add_is_the_metric(name: str) -> None:
    """The mean of what each example adds, as intervals need it."""
    chance = np.random.default_rng(0)
    scores = NumberScores.of_outputs(chance.normal(size=50), chance.normal(size=50), Regression(tolerance=0.8))
    adds = scores.per_example(name)
    assert (adds is None) == (name in {"rmse", "median_error", "r2"})
    if adds is not None:
        assert adds.mean() == pytest.approx(scores.measure(name))


# --- the comparison ----------------------------------------------------------------------------------


def test_choice_between_answers_that_are_numbers_is_by_the_loss(study: StudyConfig) -> None:
    """Being near more often is not being nearer."""
    means = {"near more often": (0.9, 2.0), "nearer": (0.1, 1.0)}
    results = {
        Cell(label, study.model_dump_json(), 0, 0): CellResult(
            sites={
                site: SiteOutcome(validation={"personal": Validation(accuracy=accuracy, loss=loss)})
                for site in study.sites
            }
        )
        for label, (accuracy, loss) in means.items()
    }
    found = Comparison(results, Path(), study.task, study.sites)
    assert choose(found, [Candidate(label) for label in means]) == {0: Candidate("nearer")}


def test_compare_is_about_the_error_and_chooses_by_the_loss(tmp_path: Path) -> None:
    """From the pool to the report."""
    pool = tmp_path / "pool.csv"
    write_table(pool, rows=150, seed=1)
    options = SplitOptions(by="quantity", sites=2, alpha=5.0, label="b", tolerance=0.5)
    assert split_pool(pool, tmp_path / "federation", options) == []
    study_file = tmp_path / "federation" / "study.toml"
    study_file.write_text(study_file.read_text().replace("rounds = 20", "rounds = 3"))
    settings: dict[str, Any] = {"methods": "fedper,knn_per", "learning_rates": "0.05,0.00001", "seeds": 1}
    report = compare(
        CompareOptions(
            study=study_file, sites=tmp_path / "federation", out=tmp_path / "out", **{"jobs": 1, **settings}
        ),
        Console(quiet=True),
    )
    assert report.metric == "mae"
    assert any(text.startswith("Not run: knn_per") for text in report.problems)
    table = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert table[0].endswith("num_test,mae,rmse,median_error,r2,within_tolerance")
    mean, local, chosen = (report.line(name) for name in (MEAN, LOCAL, CHOSEN))
    assert mean is not None
    assert local is not None
    assert chosen is not None
    assert set(chosen.row.shares) <= {"FedAvg", "FedAvg + fine-tuning", "fedper + lr 0.05"}  # the other learns nothing
    assert mean.numbers.over["mean"].value > local.numbers.over["mean"].value  # type: ignore[union-attr]  # both were measured
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mae (smaller is better, in units of &#39;b&#39;)" in page
    assert "Majority class" not in page
    assert "Mean of the training labels always answers that" in page
    assert "Mean validation share within 0.5 of the true &#39;b&#39; over the sites" in page
    limits = [float(number) for number in re.findall(r"Test numbers at site-01: 1: ([0-9.]+)", page)]
    assert limits
    assert all(re.search(r"[:,] mae ", text) for _, text in report.headlines.values())
    with pytest.raises(ConfigError, match="there is no 'accuracy' for this task; known: mae, rmse"):
        compare(
            CompareOptions(study=study_file, sites=tmp_path / "federation", out=tmp_path, jobs=1, metric="accuracy"),
            Console(quiet=True),
        )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"by": "dirichlet", "sites": 2}, "--by dirichlet spreads classes, but with --tolerance the label is a number"),
        ({"by": "quantity", "sites": 2, "tolerance": 0.0}, "--tolerance must be above 0, got 0"),
        ({"by": "quantity", "sites": 2, "label": "ill"}, "column 'ill' has text in it or a number that is too large"),
        ({"by": "quantity", "sites": 2, "label": "id"}, "column 'id' has text in it or a number that is too large"),
        ({"by": "quantity", "sites": 2, "label": "huge"}, "column 'huge' has text in it or a number that is too large"),
        ({"by": "quantity", "sites": 2, "label": "same"}, "column 'same' is the same in every row"),
        ({"by": "quantity", "sites": 2, "tolerance": None}, "say with --tolerance how far an answer may be"),
    ],
)
def test_splitting_a_pool_by_what_a_number_has_not_is_a_sentence(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    """By classes, for instance."""
    write_table(tmp_path / "pool.csv", rows=100, seed=1)
    lines = (tmp_path / "pool.csv").read_text().splitlines()
    rows = [f"{line},1_{number:03},1e{number + 10},7" for number, line in enumerate(lines[1:])]
    (tmp_path / "pool.csv").write_text("\n".join([f"{lines[0]},id,huge,same", *rows]))
    options = SplitOptions(**{"label": "b", "tolerance": 0.5, **settings})
    with pytest.raises((ConfigError, DataError), match=re.escape(sentence)):
        split_pool(tmp_path / "pool.csv", tmp_path / "out", options)


@pytest.mark.parametrize("by", ["iid", "interleaved"])
def test_pool_with_a_number_is_divided_by_chance_or_in_turn(by: Any, tmp_path: Path) -> None:
    """Neither looks at the label."""
    write_table(tmp_path / "pool.csv", rows=90, seed=1)
    split_pool(tmp_path / "pool.csv", tmp_path / "out", SplitOptions(by, sites=3, label="b", tolerance=0.5))
    tables = [(tmp_path / "out" / f"site-0{site}" / "data" / "patients.csv").read_text() for site in (1, 2, 3)]
    assert [31] * 3 == [len(text.splitlines()) for text in tables]


@pytest.mark.parametrize("shift", [0, 101325])
def test_study_of_a_pool_has_the_pools_center_and_scale(shift: int, tmp_path: Path) -> None:
    """Mean and deviation of all its labels."""
    write_table(tmp_path / "pool.csv", rows=100, seed=1)
    lines = (tmp_path / "pool.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines[1:]]
    moved = [f"{a},{float(b) + shift},{ill}" for a, b, ill in cells]
    (tmp_path / "pool.csv").write_text("\n".join([lines[0], *moved]) + "\n")
    split_pool(tmp_path / "pool.csv", tmp_path / "out", SplitOptions(by="quantity", sites=3, label="b", tolerance=0.5))
    task = parse_study(tomllib.loads((tmp_path / "out" / "study.toml").read_text()), source="test").task
    values = [float(line.split(",")[1]) for line in (tmp_path / "pool.csv").read_text().splitlines()[1:]]
    assert isinstance(task, TableTask)
    assert task.regression is not None
    assert task.regression.center == pytest.approx(float(np.mean(values)), abs=0.01 * float(np.std(values)))
    assert task.regression.scale == pytest.approx(np.std(values), rel=5e-3)
    assert task.regression.tolerance == 0.5


@pytest.mark.parametrize(("classes", "outputs"), [(["a", "b"], 1), (["a", "b", "c"], 3), ([], 1)])
def test_two_classes_or_a_number_are_one_answer(classes: list[str], outputs: int, make_study: MakeStudy) -> None:
    """One output of the model for both."""
    task = make_study(task=TASK | ({"classes": classes, "regression": None} if classes else {})).task
    assert task.num_outputs == outputs
    assert (task.number is None) == bool(classes)
