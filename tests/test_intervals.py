"""How sure a number of a comparison is, and what is chosen and said by it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from comparing import SETTINGS
from conftest import MakeStudy
from scipy import stats

from common.config import StudyConfig
from consilium.comparison.cells import Cell
from consilium.comparison.evaluation import ClassScores
from consilium.comparison.intervals import Interval, corrected_t, drawn, summarised
from consilium.comparison.summary import Candidate, Comparison, better, choose, headline


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    return make_study(**SETTINGS)


# --- intervals ---------------------------------------------------------------------------------------


def test_corrected_t_interval_is_wider_than_the_plain_one_by_the_ratio() -> None:
    """Nadeau and Bengio 2003, equation 8: variance times (1/n + test/train)."""
    values = [0.1, 0.3, 0.2, 0.4, 0.25]
    found = corrected_t(values, test_to_train=0.5)
    plain = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.value == pytest.approx(np.mean(values))
    assert found.low is not None and found.high is not None
    assert (found.high - found.low) / (plain[1] - plain[0]) == pytest.approx(np.sqrt((1 / 5 + 0.5) * 5))
    assert corrected_t([0.3], test_to_train=0.5) == Interval(0.3)


def test_bootstrap_of_accuracy_has_the_spread_of_its_binomial() -> None:
    y = np.array([0, 1] * 50)
    right = np.arange(100) < 80
    logits = np.where((y == 1) == right, 1.0, -1.0)[:, None]
    draws = drawn([ClassScores.of_logits(y, logits)], "accuracy", seed=1, who="a")
    assert draws[0] == pytest.approx(0.8)
    assert draws[1:].std() == pytest.approx(np.sqrt(0.8 * 0.2 / 100), rel=0.1)
    found = summarised(draws)
    assert found is not None and found.low is not None
    assert found.low == pytest.approx(0.72, abs=0.02)


def test_same_draws_pair_two_models_and_other_sites_draw_otherwise() -> None:
    generator = np.random.default_rng(0)
    scores = ClassScores.of_logits(generator.integers(0, 2, 60), generator.normal(size=(60, 2)))
    for metric in ("accuracy", "auroc"):
        one, again, other = (drawn([scores], metric, seed=1, who=who) for who in ("a", "a", "b"))
        np.testing.assert_array_equal(one, again)
        assert (one[1:] != other[1:]).any()
        assert one[0] == pytest.approx(scores.measure(metric))


def test_undefined_metric_has_no_interval() -> None:
    scores = ClassScores.of_logits(np.zeros(5, dtype=np.int64), np.ones((5, 2)))
    assert summarised(drawn([scores], "auroc", seed=0, who="a")) is None


# --- choices and sentences ---------------------------------------------------------------------------


def comparison(study: StudyConfig, means: Mapping[tuple[str, int], float]) -> Comparison:
    results = {}
    for (label, split), value in means.items():
        cell = Cell(label, study.model_dump_json(), 0, split)
        results[cell] = {
            "rounds": [{"means": {"personal.accuracy": value, "personal.loss": 1.0}}],
            "sites": {},
            "key": "",
        }
    return Comparison(results, Path(), study.task, study.sites)


def test_each_split_chooses_by_its_own_validation_alone(study: StudyConfig) -> None:
    means = {("a", 0): 0.9, ("b", 0): 0.6, ("a", 1): 0.5, ("b", 1): 0.7}
    assert choose(comparison(study, means), [Candidate("a"), Candidate("b")]) == {0: Candidate("a"), 1: Candidate("b")}


@pytest.mark.parametrize(
    ("interval", "metric", "kind"),
    [
        (Interval(0.1, 0.01, 0.2), "accuracy", "helps"),
        (Interval(-0.1, -0.2, -0.01), "accuracy", "hurts"),
        (Interval(0.1, -0.01, 0.2), "accuracy", "unclear"),
        (Interval(0.1), "accuracy", "unclear"),
        (Interval(0.1, 0.01, 0.2), "brier", "hurts"),
    ],
)
def test_effect_is_clear_only_if_the_interval_excludes_0(interval: Interval, metric: str, kind: str) -> None:
    assert better(interval, metric) == kind


def test_headline_shows_the_interval_that_makes_it_clear() -> None:
    text = headline("va", Interval(0.64), Interval(0.72), Interval(0.08, 0.0012, 0.13), "accuracy")
    assert text == "Joining helps va: 0.64 -> 0.72 (+0.08, 95 % +0.001 to +0.130)"
