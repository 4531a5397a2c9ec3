"""Every metric of a finished model against scikit-learn and by hand, its intervals, and the recorded score beside."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from consilium.client.served.load import Answers
from consilium.common.intervals.interval import Interval
from consilium.common.model import Score
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.common.study.task import Regression
from consilium.serving.metric import Metric
from consilium.serving.metrics import Truth
from consilium.serving.recorded import Recorded, difference_of


def truth(y: list[int], p: Any, *, groups: list[int] | None = None) -> Truth:
    """Return answers with these probabilities `(N, C)` beside true classes."""
    chances = torch.tensor(np.asarray(p, dtype=np.float64))
    names = [f"c{number}" for number in range(chances.shape[1])]
    of = None if groups is None else np.array(groups)
    return Truth.of_classes(np.array(y), Answers(probabilities=chances), names, groups=of)


def by_name(found: Truth) -> dict[str, Metric]:
    """Return the metrics by their names, and of classes by both."""
    return {f"{one.name} {one.of}".strip(): one for one in found.metrics()}


def value(metric: Metric) -> float:
    """Return the value of a metric that has one."""
    assert metric.interval is not None, metric
    return metric.interval.value


@pytest.fixture
def some() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels and probabilities of 60 rows and two classes, not perfect."""
    chance = np.random.default_rng(0)
    y = chance.integers(0, 2, 60)
    logits = 1.5 * (2 * y - 1) + chance.normal(scale=1.5, size=60)
    second = 1 / (1 + np.exp(-logits))
    return y, np.stack([1 - second, second], axis=1)


def test_two_classes_are_scikit_learns(some: tuple[Any, Any]) -> None:
    """Sensitivity and the like are about the second class; log loss and Brier score need no class."""
    y, p = some
    found, said = by_name(truth(y.tolist(), p)), p.argmax(axis=1)
    expected = {
        "accuracy": sk.accuracy_score(y, said),
        "balanced_accuracy": sk.balanced_accuracy_score(y, said),
        "sensitivity c1": sk.recall_score(y, said),
        "specificity c1": sk.recall_score(y, said, pos_label=0),
        "auroc": sk.roc_auc_score(y, p[:, 1]),
        "auprc": sk.average_precision_score(y, p[:, 1]),
        "f1": sk.f1_score(y, said),
        "log_loss": sk.log_loss(y, p),
        "brier": sk.brier_score_loss(y, p[:, 1]),
    }
    assert expected.keys() | {"calibration_error"} == found.keys()
    for name, number in expected.items():
        assert number == pytest.approx(value(found[name]), abs=1e-12), name
        bounds = found[name].interval.bounds  # type: ignore[union-attr] # it has a value
        assert bounds is not None
        assert bounds[0] < number < bounds[1], name


def test_constant_answer_is_beside_every_metric(some: tuple[Any, Any]) -> None:
    """Always the most frequent class; probabilities that are the rows' shares where they count."""
    y, p = some
    found, share = by_name(truth(y.tolist(), p)), y.mean()
    most = int(share > 0.5)
    expected = {
        "accuracy": max(share, 1 - share),
        "balanced_accuracy": 0.5,
        "sensitivity c1": most,
        "specificity c1": 1 - most,
        "auroc": 0.5,
        "auprc": share,
        "log_loss": sk.log_loss(y, np.tile([1 - share, share], (60, 1))),
        "brier": share * (1 - share),
        "calibration_error": None,
    }
    for name, number in expected.items():
        constant = found[name].constant
        assert number == (constant if number is None else pytest.approx(constant, abs=1e-12)), name


def test_intervals_of_shares_are_jeffreys_of_the_rows_that_they_are_about() -> None:
    """By hand: sensitivity of 3 right of 4 rows, specificity of 5 of 6, whatever the other rows are."""
    y = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    said = [1, 1, 1, 0, 0, 0, 0, 0, 0, 1]
    found = by_name(truth(y, np.eye(2)[said]))
    for name, right, num in (("sensitivity c1", 3, 4), ("specificity c1", 5, 6), ("accuracy", 8, 10)):
        low, high = stats.beta.ppf((0.025, 0.975), right + 0.5, num - right + 0.5)
        interval = found[name].interval
        assert interval is not None
        assert [right / num, *(interval.bounds or ())] == pytest.approx([right / num, low, high], abs=1e-12)


def test_three_classes_have_means_and_a_line_each() -> None:
    """Macro means of scikit-learn; of each class how many were found, and how many of the others not taken for it."""
    chance = np.random.default_rng(1)
    y = np.array([0, 1, 2] * 15)
    p = chance.dirichlet([1, 1, 1], size=45) + 0.6 * np.eye(3)[y]
    p /= p.sum(axis=1, keepdims=True)
    found, said = by_name(truth(y.tolist(), p)), p.argmax(axis=1)
    assert sk.roc_auc_score(y, p, multi_class="ovr") == pytest.approx(value(found["auroc"]))
    assert sk.f1_score(y, said, average="macro") == pytest.approx(value(found["f1"]))
    assert sk.log_loss(y, p) == pytest.approx(value(found["log_loss"]))
    for place in range(3):
        assert (said[y == place] == place).mean() == pytest.approx(value(found[f"sensitivity c{place}"]))
        assert (said[y != place] != place).mean() == pytest.approx(value(found[f"specificity c{place}"]))


def test_one_class_alone_leaves_out_what_it_does_not_define() -> None:
    """AUROC and the like are not defined, and say why; accuracy is."""
    found = by_name(truth([0] * 8, np.tile([0.8, 0.2], (8, 1))))
    for name in ("auroc", "auprc", "f1", "balanced_accuracy"):
        assert (None, "every row is of class 'c0'") == (found[name].interval, found[name].note)
    assert (None, "no row is of 'c1'") == (found["sensitivity c1"].interval, found["sensitivity c1"].note)
    assert (1.0, 1.0) == (value(found["accuracy"]), value(found["specificity c1"]))
    three = by_name(truth([0, 1] * 8, np.tile([0.5, 0.3, 0.2], (16, 1))))
    assert "no row is of class 'c2'" == three["auroc"].note


def test_one_row_has_values_and_says_that_it_is_alone() -> None:
    """Shares have the interval of one row; what is no share has none."""
    found = by_name(truth([1], [[0.1, 0.9]]))
    assert value(found["accuracy"]) == 1.0
    assert value(found["log_loss"]) == pytest.approx(-math.log(0.9))
    assert f"fewer than {LEAST_PATIENTS} patients: no interval" == found["log_loss"].note
    assert found["log_loss"].interval is not None
    assert found["log_loss"].interval.bounds is None


def test_patients_with_several_rows_widen_every_interval(some: tuple[Any, Any]) -> None:
    """Each row three times over, as three rows of one patient, tells no more than once; as patients it would."""
    y, p = some
    y3, p3 = np.repeat(y, 3).tolist(), np.repeat(p, 3, axis=0)
    once, rows = by_name(truth(y.tolist(), p)), by_name(truth(y3, p3))
    patients = truth(y3, p3, groups=np.repeat(np.arange(60), 3).tolist())
    assert 60 == patients.patients
    found = by_name(patients)
    for name in ("accuracy", "log_loss", "auroc", "sensitivity c1"):
        width = {key: np.ptp(of[name].interval.bounds) for key, of in (("once", once), ("rows", rows), ("own", found))}  # type: ignore[union-attr,arg-type] # all have bounds
        assert width["once"] == pytest.approx(width["own"], rel=0.15), name
        assert width["rows"] < 0.75 * width["own"], name


def test_probability_of_0_for_the_truth_is_a_large_loss_and_no_infinity() -> None:
    """As scikit-learn, which counts it as the smallest number that 1 can differ by, or near it."""
    found = by_name(truth([0, 1, 1, 0, 1, 0], np.eye(2)[[1, 1, 1, 0, 1, 0]]))
    assert 5 < value(found["log_loss"]) < 7


def test_numbers_are_scikit_learns() -> None:
    """In the label's units; coverage where there is a calibrated interval; the constant is the mean of these rows."""
    chance = np.random.default_rng(2)
    of = Regression(center=50, scale=10, tolerance=5)
    labels = chance.normal(50, 10, 40)
    answers = labels + chance.normal(1, 5, 40)
    y, logits = (((one - 50) / 10).astype(np.float32) for one in (labels, answers))
    found = by_name(Truth.of_numbers(y, logits, of, width=8.0))
    off = np.abs(answers - labels)
    expected = {
        "within_tolerance": (off <= 5).mean(),
        "coverage": (off <= 8).mean(),
        "mae": sk.mean_absolute_error(labels, answers),
        "rmse": math.sqrt(sk.mean_squared_error(labels, answers)),
        "median_error": np.median(off),
        "r2": sk.r2_score(labels, answers),
    }
    assert expected.keys() == found.keys()
    for name, number in expected.items():
        assert number == pytest.approx(value(found[name]), abs=1e-5), name
    assert np.abs(labels - labels.mean()).mean() == pytest.approx(found["mae"].constant, abs=1e-4)
    assert 0 == pytest.approx(found["r2"].constant, abs=1e-6)
    assert "coverage" not in by_name(Truth.of_numbers(y, logits, of))
    same = by_name(Truth.of_numbers(np.zeros_like(y), logits, of))
    assert (None, "all labels are the same") == (same["r2"].interval, same["r2"].note)


# --- beside the recorded score ----------------------------------------------------------------------------


def recorded(old: tuple[int, int], new: tuple[int, int], *, same_rows: bool = False) -> Recorded:
    """Return two shares, each of right answers and rows, with Jeffreys' intervals."""
    values = []
    for right, num in (old, new):
        low, high = (float(stats.beta.ppf(q, right + 0.5, num - right + 0.5)) for q in (0.025, 0.975))
        values.append((right / num, low, high))
    score = Score(name="accuracy", num=old[1], patients=old[1], value=values[0][0], low=values[0][1], high=values[0][2])
    return Recorded(score, Interval(*values[1]), same_rows, "site porto")


def test_newcombes_interval_of_a_difference() -> None:
    """Of 56 of 70 and 48 of 80 Newcombe (1998), table II (a), has 0.0524 to 0.3339: method 10, Wilson's intervals."""
    z = stats.norm.ppf(0.975)

    def wilson(right: int, num: int) -> Interval:
        share = right / num
        middle, half = share + z * z / (2 * num), z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
        return Interval(share, (middle - half) / (1 + z * z / num), (middle + half) / (1 + z * z / num))

    found = difference_of(wilson(56, 70), wilson(48, 80))
    assert (0.2, 0.0524, 0.3339) == tuple(round(one, 4) for one in (found.value, found.low or 0, found.high or 0))


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((90, 100), (60, 100), "lower"),
        ((60, 100), (90, 100), "higher"),
        ((80, 100), (78, 100), "not clear"),
        ((9, 10), (6, 10), "not clear"),
    ],
)
def test_verdict_beside_the_recorded_score(old: tuple[int, int], new: tuple[int, int], verdict: str) -> None:
    """Clear only where the interval of the difference leaves 0 out; the sentence says that patients differ."""
    found = recorded(old, new)
    assert verdict == found.verdict
    word = f"clearly {verdict}" if verdict != "not clear" else "no clear difference"
    assert word in found.sentence
    assert "different rows" in found.sentence


def test_same_rows_and_too_few_have_sentences_of_their_own() -> None:
    """Nothing is compared where the rows are the same, and nothing said where there is no interval."""
    assert recorded((9, 10), (9, 10), same_rows=True).sentence.endswith("the same rows and the same number.")
    assert recorded((9, 10), (8, 10), same_rows=True).sentence.endswith("the same rows but another number.")
    few = Recorded(Score(name="accuracy", num=2, patients=2, value=0.5), Interval(0.9, 0.8, 0.95), False, "x")
    assert ("too few", True) == (few.verdict, few.sentence.endswith("too few patients to compare the two."))
