"""The numbers of a test split, against their definitions written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics
from sklearn.calibration import calibration_curve

from consilium.comparison.evaluation import CALIBRATION_BINS, ClassScores, Scores
from consilium.comparison.label_scores import LabelScores


def binary() -> ClassScores:
    """Four ill of ten; 3 of them found, 2 false alarms."""
    y = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    chance = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.55, 0.4, 0.2, 0.1, 0.05])
    return ClassScores(y, np.stack([1 - chance, chance], axis=1))


def test_two_classes_by_hand() -> None:
    """4 ill and 6 healthy: every metric from the definition."""
    found = binary().measure_all()
    pairs = [(a, b) for a in (0.9, 0.8, 0.6, 0.3) for b in (0.7, 0.55, 0.4, 0.2, 0.1, 0.05)]
    assert found["accuracy"] == pytest.approx(7 / 10)
    assert found["sensitivity"] == pytest.approx(3 / 4)
    assert found["specificity"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert found["f1"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert found["auroc"] == pytest.approx(sum(a > b for a, b in pairs) / len(pairs))
    # ranks of the ill: 1, 2, 4, 7 -> precision there 1/1, 2/2, 3/4, 4/7
    assert found["auprc"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 7) / 4)
    scores = binary()
    assert found["brier"] == pytest.approx(float(((scores.y - scores.probabilities[:, 1]) ** 2).mean()))


def test_calibration_error_is_the_gap_between_confidence_and_accuracy_per_bin() -> None:
    """Weighted by how many are in a bin."""
    scores = binary()
    confidence, right = scores.probabilities.max(axis=1), scores.predicted == scores.y
    bins = np.ceil(confidence * CALIBRATION_BINS - 1e-9).astype(int)
    expected = sum(
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean()) for b in set(bins.tolist())
    )
    assert scores.measure("calibration_error") == pytest.approx(expected, abs=1e-6)


def test_more_classes_are_means_over_the_classes() -> None:
    """Macro numbers are the mean of one class against the rest."""
    generator = np.random.default_rng(0)
    y = np.array([0, 1, 2] * 7)
    scores = ClassScores.of_logits(y, generator.normal(size=(21, 3)))
    hit = scores.predicted
    recalls = [(hit[y == c] == c).mean() for c in range(3)]
    others = [(hit[y != c] != c).mean() for c in range(3)]
    assert scores.measure("sensitivity") == pytest.approx(np.mean(recalls))
    assert scores.measure("balanced_accuracy") == pytest.approx(np.mean(recalls))
    assert scores.measure("specificity") == pytest.approx(np.mean(others))
    per_class = []
    for c in range(3):
        wins = [
            (a > b) + 0.5 * (a == b) for a in scores.probabilities[y == c, c] for b in scores.probabilities[y != c, c]
        ]
        per_class.append(np.mean(wins))
    assert scores.measure("auroc") == pytest.approx(np.mean(per_class))
    assert scores.measure("brier") == pytest.approx(((np.eye(3)[y] - scores.probabilities) ** 2).sum(axis=1).mean() / 2)


@pytest.mark.parametrize(
    ("y", "undefined"),
    [
        ([1, 1, 1], {"auroc", "auprc", "specificity", "balanced_accuracy", "f1"}),
        ([0, 0, 0], {"auroc", "auprc", "sensitivity", "balanced_accuracy", "f1"}),
    ],
)
def test_one_class_leaves_undefined_what_needs_two(y: list[int], undefined: set[str]) -> None:
    """Undefined is not 0."""
    scores = ClassScores.of_logits(np.array(y), np.array([[0.5], [-1.0], [2.0]]))
    assert {name for name, value in scores.measure_all().items() if value is None} == undefined


def test_class_that_is_missing_leaves_macro_numbers_undefined() -> None:
    """A mean over fewer classes would be another number."""
    scores = ClassScores.of_logits(np.array([0, 1, 0, 1]), np.eye(3)[[0, 1, 2, 0]])
    assert scores.measure("auroc") is None
    assert scores.measure("sensitivity") is None
    assert scores.measure("balanced_accuracy") == pytest.approx(0.5)
    assert scores.support == [2, 2, 0]


def test_one_logit_is_the_second_class() -> None:
    """Its probability is the logistic function of the logit."""
    scores = ClassScores.of_logits(np.array([0, 1]), np.array([[-2.0], [3.0]]))
    np.testing.assert_allclose(scores.probabilities[:, 1], 1 / (1 + np.exp([2.0, -3.0])))
    assert scores.predicted.tolist() == [0, 1]


def test_majority_answers_one_class_with_certainty() -> None:
    """So its accuracy is that class's part."""
    scores = ClassScores.of_majority(np.array([0, 1, 1]), 1, 3)
    assert scores.measure("accuracy") == pytest.approx(2 / 3)
    assert scores.measure("brier") == pytest.approx(1 / 3)


def test_unknown_metric_is_refused() -> None:
    """By its name."""
    with pytest.raises(ValueError, match="no metric 'roc'"):
        binary().measure("roc")


@given(
    logits=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.floats(-50, 50, width=32)
    ),
    data=st.data(),
)
def test_every_number_is_between_0_and_1_or_undefined(
    logits: "np.ndarray[tuple[int, int], np.dtype[np.float32]]", data: st.DataObject
) -> None:
    """Whatever the logits and the labels."""
    classes = max(2, logits.shape[1])
    y = data.draw(hnp.arrays(np.int64, len(logits), elements=st.integers(0, classes - 1)))
    for name in ClassScores.METRICS:
        value = ClassScores.of_logits(y, logits).measure(name)
        assert value is None or -1e-6 <= value <= 1 + 1e-6


def by_scikit_learn(scores: ClassScores, name: str) -> float | None:
    """Return one of the metrics as scikit-learn computes it; None where some class that it needs is missing."""
    y, chances, predicted = scores.y, scores.probabilities, scores.predicted
    labels = list(range(chances.shape[1]))
    binary, present = len(labels) == 2, set(y.tolist())
    match name:
        case "accuracy":
            return float(metrics.accuracy_score(y, predicted))
        case "brier":
            return float(metrics.brier_score_loss(y, chances, labels=labels, scale_by_half=True))
        case "calibration_error":
            confidence = chances.max(axis=1)
            right, mean = calibration_curve(predicted == y, confidence, n_bins=CALIBRATION_BINS)
            sizes = np.bincount(np.searchsorted(np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], confidence))
            return float((np.abs(right - mean) * sizes[sizes > 0]).sum() / len(y))
        case "specificity":
            others = [(y != one, predicted != one) for one in (labels[1:] if binary else labels)]
            return (
                float(np.mean([metrics.recall_score(*of) for of in others]))
                if all(of.any() for of, _ in others)
                else None
            )
        case "sensitivity" if binary:
            return float(metrics.recall_score(y, predicted)) if 1 in present else None
        case "balanced_accuracy":
            of_class = metrics.recall_score(y, predicted, average=None, labels=sorted(present))
            return float(np.mean(of_class)) if len(present) > 1 else None
    if len(present) < len(labels):
        return None
    match name:
        case "auroc":
            said = chances[:, 1] if binary else chances
            return float(metrics.roc_auc_score(y, said, multi_class="ovr", labels=labels))
        case "auprc":
            true, said = (y, chances[:, 1]) if binary else (np.eye(len(labels))[y], chances)
            return float(metrics.average_precision_score(true, said))
        case "sensitivity":
            return float(metrics.recall_score(y, predicted, average="macro"))
    return float(
        metrics.f1_score(y, predicted, average="binary" if binary else "macro", labels=labels, zero_division=0)
    )


@given(
    rows=st.integers(1, 40),
    classes=st.integers(2, 4),
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(ClassScores.METRICS),
)
def test_every_number_is_that_of_scikit_learn(rows: int, classes: int, seed: int, name: str) -> None:
    """To 1e-12, with ties, and undefined where scikit-learn's is of fewer classes."""
    generator = np.random.default_rng(seed)
    chances = generator.dirichlet(np.ones(classes), size=rows).round(1) + 1e-3
    scores = ClassScores(generator.integers(0, classes, rows), chances / chances.sum(axis=1, keepdims=True))
    wanted, found = by_scikit_learn(scores, name), scores.measure(name)
    assert (wanted is None) == (found is None)
    assert wanted is None or found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", ClassScores.METRICS)
@pytest.mark.parametrize("classes", [2, 3])
def test_all_draws_at_once_give_what_scikit_learn_gives_of_each(name: str, classes: int) -> None:
    """To 1e-12, with ties, with rows that are there twice, and undefined in the same draws."""
    generator = np.random.default_rng(classes)
    y = generator.choice(classes, p=[0.6, 0.4] if classes == 2 else [0.6, 0.33, 0.07], size=40)
    chances = generator.dirichlet(np.ones(classes), size=40).round(1)
    scores = ClassScores(y, chances / chances.sum(axis=1, keepdims=True))
    drawn = [*(generator.integers(0, 40, 40) for _ in range(40)), np.flatnonzero(y == 0), np.flatnonzero(y == 1)]
    of_each = [by_scikit_learn(scores.taken(rows), name) for rows in drawn]
    wanted = np.array([np.nan if one is None else one for one in of_each])
    np.testing.assert_allclose(scores.in_draws(name, drawn), wanted, atol=1e-12)
    defined = ("accuracy", "brier", "calibration_error")
    assert name in defined or np.isnan(wanted).any()
    assert np.isfinite(wanted[:40]).any()


@pytest.mark.parametrize("name", LabelScores.METRICS)
def test_all_draws_of_several_labels_at_once_give_what_each_gives(name: str) -> None:
    """Also of a label that few rows have, and where a draw has no label of both kinds."""
    generator = np.random.default_rng(0)
    y = (generator.random((30, 2)) < (0.5, 0.1)).astype(np.float64)
    y[generator.random(y.shape) < 0.2] = np.nan
    scores = LabelScores(y, generator.normal(size=y.shape).round(1), ("a", "b"))
    drawn = [*(generator.integers(0, 30, 30) for _ in range(20)), np.flatnonzero((y == 0).all(axis=1))]
    np.testing.assert_allclose(scores.in_draws(name, drawn), Scores.in_draws(scores, name, drawn), atol=1e-12)
