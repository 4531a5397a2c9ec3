"""What is chosen, by whose validation rows, among how many; and what is said of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from comparing import SETTINGS, SIZES, console, options, write_sites
from conftest import MakeStudy
from numpy.typing import NDArray
from scipy import stats

from consilium.common.errors import ConfigError
from consilium.common.results import RoundRecord, SiteRound
from consilium.common.study.methods import FineTuneMethod
from consilium.common.study.study import StudyConfig
from consilium.comparison.cells import Cell, make_cell
from consilium.comparison.choices import Candidate, Choices, choose, choose_each
from consilium.comparison.compare import compare
from consilium.comparison.comparison import Comparison
from consilium.comparison.evaluation import ClassScores
from consilium.comparison.evidence import averaged, evidence_of, minus
from consilium.comparison.number_scores import NumberScores
from consilium.comparison.plan import budget_of, local_budgets, make_choices
from consilium.comparison.progress import CELLS
from consilium.comparison.report import Report
from consilium.comparison.results import CellResult, Kind, SiteOutcome, Validation, last_measured
from consilium.comparison.rows import ALONE_OWN, FEDAVG, LOCAL, OWN, USUAL_TOOLS, Place, Row, shares_text
from consilium.comparison.studies import make_variants
from consilium.comparison.summary import rows_tested_per_trained
from consilium.comparison.table import make_rows
from consilium.findings import LEAST_PATIENTS, Evidence, interval_of, over_splits
from consilium.findings.contradiction import contradiction, contradiction_of_errors

pytestmark = pytest.mark.usefixtures("few_trees")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with both sites' data."""
    return write_sites(tmp_path / "federation")


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    """Return a quick study of them."""
    return make_study(**SETTINGS)


Seen = Mapping[tuple[str, int, int], Mapping[str, float]]
"""Validation accuracy per site, by label, split and seed."""


def comparison(study: StudyConfig, seen: Seen) -> Comparison:
    """Return a comparison whose cells have nothing but these numbers; every loss is 1."""
    results = {}
    for (label, split, seed), of_sites in seen.items():
        cell = Cell(label, study.model_dump_json(), seed, split)
        measured = {site: {"personal": Validation(accuracy=value, loss=1.0)} for site, value in of_sites.items()}
        sites = {
            site: SiteOutcome(validation=measured.get(site, {}), num_test=20, num_train=50, num_validation=30)
            for site in SIZES
        }
        results[cell] = CellResult(sites=sites, key=f"{label}{split}{seed}")
    return Comparison(results, Path(), study.task, study.sites)


# --- choices -----------------------------------------------------------------------------------------


def test_each_split_chooses_by_its_own_validation_alone(study: StudyConfig) -> None:
    """The better one on the mean over sites and seeds of that split."""
    seen = {
        ("a", 0, 0): {"berlin": 0.9, "lyon": 0.9},
        ("b", 0, 0): {"berlin": 1.0, "lyon": 0.7},
        ("a", 1, 0): {"berlin": 0.5, "lyon": 0.5},
        ("b", 1, 0): {"berlin": 0.7, "lyon": 0.6},
    }
    assert choose(comparison(study, seen), [Candidate("a"), Candidate("b")]) == {0: Candidate("a"), 1: Candidate("b")}


def test_each_site_chooses_by_its_own_rows_in_every_split_and_seed(study: StudyConfig) -> None:
    """No other site, seed or split has a say; of equals the first; without validation rows what all are served."""
    seen = {
        ("a", 0, 0): {"berlin": 0.9, "lyon": 0.2},
        ("b", 0, 0): {"berlin": 0.3, "lyon": 0.3},
        ("a", 0, 1): {"berlin": 0.5},
        ("b", 0, 1): {"berlin": 0.5},
        ("a", 1, 0): {"berlin": 0.1, "lyon": 0.9},
        ("b", 1, 0): {"berlin": 0.2, "lyon": 0.1},
    }
    a, b = Candidate("a"), Candidate("b")
    assert choose_each(comparison(study, seen), [a, b], otherwise={0: b, 1: a}) == {
        (0, 0, "berlin"): a,
        (0, 0, "lyon"): b,
        (0, 1, "berlin"): a,
        (0, 1, "lyon"): b,
        (1, 0, "berlin"): b,
        (1, 0, "lyon"): a,
    }


def test_a_choice_reads_what_each_site_measured_last() -> None:
    """Not the first measured round, nor only the last cohort: a site that was not asked again counts as it was."""

    def measured(value: float) -> SiteRound:
        metrics = {"personal.accuracy": value, "personal.loss": 1 - value, "train.loss": 3.0}
        return SiteRound(num_examples=1, seconds=1.0, metrics=metrics)

    nothing = SiteRound(num_examples=1, seconds=1.0, metrics={"train.loss": 1.0})
    of_sites = [{"berlin": measured(0.1), "lyon": measured(0.2)}, {"berlin": measured(0.3)}, {"berlin": nothing}]
    last = last_measured(
        [RoundRecord(round=place, asked=("berlin",), sites=of) for place, of in enumerate(of_sites, 1)]
    )
    assert last["berlin"]["personal"].accuracy == 0.3
    assert last["lyon"]["personal"] == Validation(accuracy=0.2, loss=0.8)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_comparison_chooses_by_the_last_measured_round_of_all_sites(
    fraction: float, study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """Against our own reading of the cells' rounds: one site is asked in a round, and both have a say."""
    asked = study.model_copy(update={"cohort_fraction": fraction, "rounds": 4})
    compare(options(folder, asked, tmp_path / "out"), console())
    for path in (tmp_path / "out" / CELLS).glob("*.json"):
        cell = json.loads(path.read_text())
        if cell["kind"] == "federated":
            seen = {site: facts["validation"]["personal"]["accuracy"] for site, facts in cell["sites"].items()}
            assert set(seen) == set(SIZES)
            if fraction == 1.0:
                assert np.mean(list(seen.values())) == pytest.approx(cell["rounds"][-1]["means"]["personal.accuracy"])
            else:  # the mean of a round is that of one site
                assert cell["rounds"][-1]["means"]["personal.accuracy"] in seen.values()


# --- who stays alone ---------------------------------------------------------------------------------


def test_every_budget_is_a_candidate_that_stays_alone(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """FedAvg's, each fine-tuning's and Per-FedAvg's; methods of one budget share it, and a local method has its own."""
    methods = "fedper,fine_tune:epochs=60,per_fedavg,local"
    variants, _, _ = make_variants(study, options(folder, study, tmp_path, methods=methods))
    assert local_budgets(variants) == {
        "fedavg": Candidate("fedavg", "local"),
        "fedper": Candidate("fedavg", "local"),
        "local": Candidate("fedavg", "local"),
        "fine_tune": Candidate("fine_tune", "local"),
        "fine_tune:epochs=60": Candidate("fine_tune:epochs=60", "local"),
        "per_fedavg": Candidate("per_fedavg", "local"),
    }
    rates = options(folder, study, tmp_path, methods="fedper", learning_rates="0.1,0.5")
    faster = local_budgets(make_variants(study, rates)[0])
    assert faster["fedper + lr 0.5"] == faster["local + lr 0.5"] == Candidate("local + lr 0.5")
    slow = study.training.model_copy(update={"learning_rate": 0.01})
    assert budget_of(study) != budget_of(study.model_copy(update={"training": slow}))


def test_alone_is_chosen_among_every_budget_and_the_usual_tools(study: StudyConfig) -> None:
    """Local-only with fine-tuning's budget is best at one site, the usual tools at the other; joining is none."""
    cells: dict[tuple[str, Kind], dict[str, tuple[float, float]]] = {
        ("fedavg", "federated"): {"personal": (0.95, 0.1), "local": (0.5, 0.5)},
        ("fine_tune", "federated"): {"personal": (0.6, 0.99), "local": (0.9, 0.6)},
        (USUAL_TOOLS, "usual"): {"usual": (0.8, 0.7)},
    }
    results = {}
    for (label, kind), models in cells.items():
        sites = {
            site: SiteOutcome(
                validation={model: Validation(accuracy=shares[place], loss=1.0) for model, shares in models.items()}
            )
            for place, site in enumerate(SIZES)
        }
        results[Cell(label, "", 0, 0, kind)] = CellResult(sites=sites)  # any kind will do
    found = Comparison(results, Path(), study.task, study.sites)
    tuned = study.model_copy(update={"method": FineTuneMethod(epochs=60)})
    studies = {"fedavg": study, "fine_tune": tuned}
    budgets = {label: Candidate(label, "local") for label in studies}
    choices = make_choices(found, studies, budgets, "fedavg")
    assert (choices.num_joined, choices.num_alone) == (2, 3)
    assert choices.own_alone == {
        (0, 0, "berlin"): Candidate("fine_tune", "local"),
        (0, 0, "lyon"): Candidate(USUAL_TOOLS, "usual"),
    }
    assert choices.own == {(0, 0, "berlin"): Candidate("fedavg"), (0, 0, "lyon"): Candidate("fine_tune")}
    assert (choices.joined, choices.alone) == ({0: Candidate("fine_tune")}, {0: Candidate("fine_tune", "local")})


def test_more_local_training_alone_is_chosen_where_that_is_what_helps(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """Opposite labels, one step a round and 60 epochs of tuning: without a candidate of that budget, joining helps."""
    turn(folder / "lyon")
    training = study.training.model_copy(update={"epochs": None, "steps": 1})
    short = study.model_copy(update={"training": training})
    much = "fine_tune:epochs=60;learning_rate=0.3"
    report = compare(options(folder, short, tmp_path / "out", methods=much), console())
    own, alone, untuned = (line_of(report, name) for name in (OWN, ALONE_OWN, LOCAL))
    assert alone.row.among == 4
    assert value(alone) > value(untuned) + 0.1
    assert abs(value(own) - value(alone)) < 0.1
    assert {kind for kind, _ in report.headlines.values()} <= {"unclear", "stays"}


def turn(site: Path) -> None:
    """Write a site's labels the other way round."""
    path = site / "data" / "data.csv"
    head, *lines = path.read_text().splitlines()
    turned = {"yes": "no", "no": "yes"}
    path.write_text(
        "\n".join([head, *(",".join([*each.split(",")[:2], turned[each.split(",")[2]]]) for each in lines)])
    )


def line_of(report: Report, name: str) -> Any:
    """Return the report's line of a model."""
    line = report.line(name)
    assert line is not None
    return line


def value(line: Any) -> float:
    """Return a line's mean over sites."""
    return float(line.numbers.over["mean"].value)


# --- a site that is unlike the others ------------------------------------------------------------------


def test_a_site_that_would_stay_alone_is_not_told_that_joining_hurts(make_study: MakeStudy, tmp_path: Path) -> None:
    """Three sites, one of them with labels the other way round: it stays alone, and is asked how they are coded."""
    sites = {f"s{number}": 120 for number in range(3)}
    for number, (name, rows) in enumerate(sites.items()):
        (tmp_path / "f" / name / "data").mkdir(parents=True)
        generator = np.random.default_rng(number)
        x = generator.normal(size=(rows, 2))
        ill = np.where((x @ [1.5, -1.0] > 0) ^ (number == 2), "yes", "no")
        lines = [f"{a!r},{b!r},{label}" for (a, b), label in zip(x.tolist(), ill, strict=True)]
        (tmp_path / "f" / name / "data" / "data.csv").write_text("\n".join(["a,b,ill", *lines]))
    training = {"epochs": 2, "learning_rate": 0.3}
    study = make_study(**SETTINGS | {"sites": list(sites), "rounds": 10, "training": training})
    report = compare(options(tmp_path / "f", study, tmp_path / "out"), console())
    kind, text = report.headlines["s2"]
    assert kind == "stays"
    assert "s2 would stay alone by its own validation rows" in text
    assert [one for one in report.problems if "contradicts" in one] == [
        one for one in report.problems if one.startswith("Site 's2' contradicts the others: the model of all sites is")
    ]
    assert any("contradicts" in one for one in report.problems)
    served_to_all = line_of(report, FEDAVG).against_local.sites["s2"]
    assert served_to_all.high < -0.2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "are its labels coded the other way round" in page
    assert " would stay alone." in page


def test_contradiction_needs_less_than_the_constant_answer_and_far_less_than_alone() -> None:
    """Against the binomial tail by hand: level 0.01 over the number of sites, and 0.2 below both."""
    facts: dict[str, Any] = {"num_test": 40, "majority": 22.0, "local": 34.0, "num_sites": 4}
    limit = next(k for k in range(40, 0, -1) if stats.binom.cdf(k, 40, 22 / 40) < 0.01 / 4)
    assert limit <= 22 - 8
    found = contradiction("va", everyone=float(limit), **facts)
    assert found is not None and f"right on {limit / 40:.2f} of its test rows" in found and "'va'" in found
    assert contradiction("va", everyone=float(limit + 1), **facts) is None
    assert contradiction("va", everyone=float(limit), **facts | {"num_sites": 4000}) is None
    assert contradiction("va", everyone=float(limit), **facts | {"local": limit + 7.0}) is None


def test_contradiction_of_numbers_needs_errors_apart_from_a_constant() -> None:
    """Of labels with the wrong sign the global model is off twice the signal; of shifted labels by a constant alone."""
    signal = np.random.default_rng(0).normal(0, 2, 40)
    noise = np.random.default_rng(1).normal(0, 0.5, 40)
    label = -signal + noise
    errors = {"constant": label.mean() - label, "local": -signal - label, "num_sites": 4}
    text = contradiction_of_errors("va", everyone=signal - label, **errors)
    assert text is not None and "'va' contradicts the others" in text and "other sign" in text
    shifted = signal + 50 + noise
    errors = {"constant": shifted.mean() - shifted, "local": signal + 50 - shifted, "num_sites": 4}
    assert contradiction_of_errors("va", everyone=signal - shifted, **errors) is None
    assert contradiction_of_errors("va", everyone=errors["constant"], **errors) is None


@pytest.mark.parametrize(("off", "named"), [(1.3, True), (1.2, False)])
def test_contradiction_of_numbers_is_worse_than_the_constant_and_than_alone(off: float, named: bool) -> None:
    """1.25 times the larger of the two errors: neither a poor model alone nor a poor constant answer is enough."""
    signs = np.tile([1.0, -1.0], 20)
    for constant, local in ((1.0, 0.5), (0.5, 1.0)):
        errors = {"constant": constant * signs, "local": local * signs, "everyone": off * signs}
        assert named == (contradiction_of_errors("va", num_sites=4, **errors) is not None)


def test_site_whose_numbers_have_the_wrong_sign_is_asked_about(make_study: MakeStudy, tmp_path: Path) -> None:
    """Three sites, a label that is a number, and one of them has it the other way round."""
    sites = [f"s{number}" for number in range(3)]
    for number, name in enumerate(sites):
        (tmp_path / "f" / name / "data").mkdir(parents=True)
        generator = np.random.default_rng(number)
        x = generator.normal(size=(150, 2))
        dose = (x @ [1.5, -1.0] + generator.normal(scale=0.3, size=150)) * (-1 if number == 2 else 1)
        lines = [f"{a!r},{b!r},{label!r}" for (a, b), label in zip(x.tolist(), dose.tolist(), strict=True)]
        (tmp_path / "f" / name / "data" / "data.csv").write_text("\n".join(["a,b,dose", *lines]))
    columns = {"a": {"kind": "number"}, "b": {"kind": "number"}}
    task = {"kind": "table", "label": "dose", "columns": columns}
    task |= {"regression": {"center": 0.0, "scale": 1.0, "tolerance": 0.5}}
    training = {"epochs": 2, "learning_rate": 0.05}
    study = make_study(**SETTINGS | {"sites": sites, "rounds": 10, "training": training, "task": task})
    report = compare(options(tmp_path / "f", study, tmp_path / "out"), console())
    (text,) = [one for one in report.problems if "contradicts" in one]
    assert text.startswith(
        "Site 's2' contradicts the others: on its test rows, apart from a constant, the model of all"
    )


# --- numbers of rows -----------------------------------------------------------------------------------


def test_validation_rows_are_no_training_rows_in_the_corrected_t(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """The ratio is test to training rows of all sites; the interval over splits is exactly the one with that ratio."""
    report = compare(options(folder, study, tmp_path / "out", splits=5), console())
    counts = [json.loads(path.read_text()) for path in (tmp_path / "out" / CELLS).glob("*.json")]
    sites = next(cell for cell in counts if cell["split"] == 0)["sites"].values()
    assert sum(one["num_validation"] for one in sites) > 10
    ratio = sum(one["num_test"] for one in sites) / sum(one["num_train"] for one in sites)
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    table = table[(table["round"] == "last round") & (table["site"] == "berlin")]
    means = table.groupby(["row", "split"])["accuracy"].mean()
    line = line_of(report, USUAL_TOOLS)
    found = line.against_local.sites["berlin"]
    difference = (means[USUAL_TOOLS] - means[LOCAL]).to_numpy()
    half = stats.t.ppf(0.975, 4) * np.sqrt((1 / 5 + ratio) * difference.var(ddof=1))
    assert (found.low, found.high) == pytest.approx(
        (difference.mean() - half, min(1, difference.mean() + half)), abs=1e-4
    )
    assert found.p == pytest.approx(over_splits(difference.tolist(), test_to_train=ratio).p, rel=1e-3)


def test_ratio_counts_what_was_trained_on(study: StudyConfig) -> None:
    """20 test rows for 50 trained on, at each of two sites; how many validation rows there are is not asked."""
    found = comparison(study, {("a", 0, 0): {"berlin": 0.5}})
    cell = next(iter(found.results))
    row = Row("a", {0: [{site: Place(cell, "personal") for site in SIZES}]})
    assert rows_tested_per_trained(found, row, [0]) == pytest.approx(20 / 50)


def test_row_of_own_choices_has_each_site_s_own_answers(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Site by site, split by split and seed by seed the numbers of what the site's validation rows chose there."""
    report = compare(options(folder, study, tmp_path / "out", methods="fedper", seeds=2, splits=2), console())
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    last = table[table["round"] == "last round"].set_index(["split", "seed", "site"])
    names = {"logistic regression": USUAL_TOOLS, "gradient boosting": USUAL_TOOLS}
    for name in (OWN, ALONE_OWN):
        rows = last[last["row"] == name]
        assert len(rows) == 2 * 2 * len(SIZES)
        for where, one in rows.iterrows():
            chosen = str(one["chosen"])
            if chosen.startswith("local only, budget"):
                continue
            of_row = last[last["row"] == names.get(chosen, chosen)].loc[[where]]
            assert one["accuracy"] == of_row["accuracy"].iloc[0]
    own = line_of(report, OWN)
    assert own.row.among == line_of(report, ALONE_OWN).row.among + 3
    assert f"of {own.row.among} candidates" in (tmp_path / "out" / "report.html").read_text()


def test_rows_of_choices_leave_out_a_split_whose_choice_failed(study: StudyConfig) -> None:
    """A refit that could not be run in split 1 leaves split 0."""
    seen = {("fedavg", split, 0): {"berlin": 0.5, "lyon": 0.5} for split in (0, 1)}
    found = comparison(study, seen)
    for split in (0, 1):
        cell = Cell("fedavg, refitted", study.model_dump_json(), 0, split)
        found.results[cell] = CellResult(error="no" if split else None)
    chosen = Candidate("fedavg")
    choices = Choices(
        joined={0: chosen, 1: chosen}, alone={0: chosen, 1: chosen}, refitted=True, num_joined=1, num_alone=1
    )
    rows = {row.name: row for row in make_rows(found, ["fedavg"], choices)}
    assert set(rows["one choice for all"].places) == {0, 1}
    assert set(rows["one choice for all, refitted"].places) == {0}


def test_shares_are_of_splits_seeds_and_sites() -> None:
    """The most frequent first; no share where there is only one."""
    cells = [Cell("a", "", seed, 0) for seed in (0, 1)]
    places = [{"x": Place(cells[0], "personal", "a"), "y": Place(Cell("b", "", 0, 0), "personal", "b")}]
    places.append({"x": Place(cells[1], "personal", "a"), "y": Place(cells[1], "personal", "a")})
    row = Row("each", {0: places})
    assert row.shares == {"a": 0.75, "b": 0.25}
    assert row.chosen_at("x") == {"a": 1.0}
    assert shares_text(row.shares) == "a 75 %, b 25 %"
    assert shares_text(row.chosen_at("x")) == "a"
    assert row.cells() == {}


# --- evidence ------------------------------------------------------------------------------------------


def scores_of(y: NDArray[np.int64], right: NDArray[np.bool_]) -> ClassScores:
    """Return the scores of answers that are right or wrong."""
    return ClassScores.of_logits(y, np.where((y == 1) == right, 1.0, -1.0)[:, None])


def test_difference_is_taken_row_by_row_and_seed_by_seed() -> None:
    """What each test row adds for whom joined minus what it adds alone; the patients stay."""
    generator = np.random.default_rng(0)
    y, groups = generator.integers(0, 2, 30), np.arange(30) // 2
    joined, alone = ([scores_of(y, generator.random(30) < share) for _ in range(2)] for share in (0.9, 0.6))
    found = [evidence_of(each, "accuracy", groups=groups, seed=1, who="a") for each in (joined, alone)]
    assert found[0] is not None and found[1] is not None
    difference = minus(found[0], found[1])
    expected = np.stack(
        [
            (one.predicted == y).astype(float) - (other.predicted == y).astype(float)
            for one, other in zip(joined, alone, strict=True)
        ]
    )
    assert difference.rows is not None
    np.testing.assert_array_equal(difference.rows, expected)
    np.testing.assert_array_equal(difference.groups, groups)
    assert difference.values == pytest.approx(expected.mean(axis=1))


def test_metric_that_is_no_mean_is_drawn_over_patients_the_same_for_both() -> None:
    """AUROC of two equal models differs by 0 in every draw; copies of rows make draws no narrower."""
    generator = np.random.default_rng(0)
    y, logits = generator.integers(0, 2, 40), generator.normal(size=(40, 2))
    once = evidence_of([ClassScores.of_logits(y, logits)], "auroc", groups=None, seed=1, who="a")
    groups = np.tile(np.arange(40), 4)
    scores = ClassScores.of_logits(np.tile(y, 4), np.tile(logits, (4, 1)))
    copied = evidence_of([scores], "auroc", groups=groups, seed=1, who="a")
    assert once is not None and copied is not None and once.draws is not None and copied.draws is not None
    assert not minus(once, once).draws.any()  # type: ignore[union-attr]  # there are draws
    assert copied.draws.std() == pytest.approx(once.draws.std(), rel=0.2)
    apart = evidence_of([scores], "auroc", groups=None, seed=1, who="a")
    assert apart is not None and apart.draws is not None
    assert apart.draws.std() == pytest.approx(once.draws.std() / 2, rel=0.2)


def test_undefined_metric_is_no_evidence() -> None:
    """One class has no AUROC; of errors the mean absolute one is that of its rows."""
    alone = ClassScores.of_logits(np.zeros(5, dtype=np.int64), np.ones((5, 2)))
    assert evidence_of([alone], "auroc", groups=None, seed=0, who="a") is None
    numbers = NumberScores(np.array([1.0, 2.0]), np.array([2.0, 4.0]), np.array([True, False]))
    found = evidence_of([numbers], "mae", groups=None, seed=0, who="a")
    assert found is not None and found.rows is not None
    assert found.rows.tolist() == [[1.0, 2.0]]


def test_common_test_set_is_averaged_row_by_row_over_sites() -> None:
    """Two sites with the same test rows know no more than one: the interval does not shrink by the root of two."""
    rows = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=(3, 50), p=[0.1, 0.5, 0.4])
    one = Evidence.of_rows(rows)
    both = averaged([one, one], [1.0, 3.0])
    assert both.rows is not None
    np.testing.assert_allclose(both.rows, rows)
    found, single = interval_of(both, kind="difference"), interval_of(one, kind="difference")
    assert (found.low, found.high) == pytest.approx((single.low, single.high))
    other = Evidence.of_rows(np.zeros((3, 50)))
    assert averaged([one, other], [1.0, 3.0]).values == pytest.approx(rows.mean(axis=1) / 4)


# --- studies that can say little ------------------------------------------------------------------------


def test_no_two_splits_share_a_seed(study: StudyConfig) -> None:
    """20 splits of 3 seeds have 60 sets of initial weights; the split seed is that of the split alone."""
    cells = [make_cell("a", study, seed=seed, split=split) for split in range(20) for seed in range(3)]
    studies = [json.loads(cell.study) for cell in cells]
    assert len({one["seed"] for one in studies}) == 60
    assert [one["split"]["seed"] for one in studies[:6]] == [0, 0, 0, 1, 1, 1]


def test_splits_of_a_study_that_names_its_test_rows_are_refused(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """A sentence before anything is run."""
    named = study.model_copy(update={"split": study.split.model_copy(update={"parts": "part"})})
    with pytest.raises(ConfigError, match=r"--splits: the study says by split.parts which rows are for testing"):
        compare(options(folder, named, tmp_path / "out", splits=5), console())


def test_site_with_fewer_than_the_least_patients_has_no_sentence(make_study: MakeStudy, tmp_path: Path) -> None:
    """Two sites of six rows, a label that is a number, `linear`, half of the rows for testing: nothing is said."""
    assert LEAST_PATIENTS > 3
    generator = np.random.default_rng(0)
    for site in SIZES:
        (tmp_path / "f" / site / "data").mkdir(parents=True)
        lines = [f"{a!r},{b!r},{c!r}" for a, b, c in generator.normal(size=(6, 3)).tolist()]
        (tmp_path / "f" / site / "data" / "data.csv").write_text("\n".join(["a,b,y", *lines]))
    task = {"kind": "table", "regression": {"tolerance": 1.0}, "label": "y"}
    task["columns"] = {"a": {"kind": "number"}, "b": {"kind": "number"}}
    study = make_study(
        sites=list(SIZES),
        rounds=3,
        task=task,
        model={"name": "linear"},
        split={"test": 0.5, "validation": 0.0},
        training={"epochs": 5, "learning_rate": 0.1},
        min_examples=2,
    )
    report = compare(options(tmp_path / "f", study, tmp_path / "out", methods="fine_tune"), console())
    assert {kind for kind, _ in report.headlines.values()} == {"too_few"}
    assert all("95 %" not in text for _, text in report.headlines.values())
    assert "clearly helps 0 and clearly hurts 0" in (tmp_path / "out" / "report.html").read_text()
