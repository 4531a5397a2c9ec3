"""Several labels: their loss, their ranking, draws, shift and noise, held to torch and scikit-learn."""

from collections.abc import Mapping
from itertools import islice

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn import functional

from consilium.client.data import Examples
from consilium.client.data.labels_target import LabelsTarget
from consilium.client.data.noise import label_noise, noisy_counts, noisy_label_counts
from consilium.client.data.strata import LEAST_ROWS
from consilium.client.training.labels_loss import labels_loss
from consilium.client.training.metrics import measure
from consilium.common.intervals import evidence
from consilium.common.intervals.evidence import DRAWS, redrawn
from consilium.common.intervals.means import interval_of
from consilium.common.labels.evidence import aurocs, carriers, evidence_of, mean_auroc
from consilium.common.labels.ranking import auroc, auroc_in_draws, precision_in_draws
from consilium.common.labels.shift import label_shift
from consilium.common.protocol.estimates import estimates_of
from consilium.comparison.evidence import evidence_of as in_comparison
from consilium.comparison.evidence import minus
from consilium.comparison.label_scores import LabelScores
from consilium.comparison.usual import fit_each

TARGET = LabelsTarget()


def labelled(rows: int, *, seed: int, unknown: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Return labels `(rows, 3)`, a part of them not known, and scores with ties that are better than chance."""
    chance = np.random.default_rng(seed)
    y = (chance.random((rows, 3)) < (0.5, 0.2, 0.7)).astype(np.float32)
    scores = (chance.normal(size=y.shape) + y).round(1)
    y[chance.random(y.shape) < unknown] = np.nan
    return y, scores


@pytest.mark.parametrize("seed", range(4))
def test_the_area_is_that_of_scikit_learn(seed: int) -> None:
    """Of tied scores, plain and with weights: how often each example was drawn."""
    chance = np.random.default_rng(seed)
    y, scores = chance.random(90) < 0.3, chance.normal(size=90).round(1)
    assert roc_auc_score(y, scores) == pytest.approx(auroc(y, scores), abs=1e-12)
    drawn = chance.integers(0, 4, size=(7, 90)).astype(np.float64)
    expected = [roc_auc_score(y, scores, sample_weight=times) for times in drawn]
    np.testing.assert_allclose(auroc_in_draws(y, scores, drawn), expected, atol=1e-12)
    expected = [average_precision_score(y, scores, sample_weight=times) for times in drawn]
    np.testing.assert_allclose(precision_in_draws(y, scores, drawn), expected, atol=1e-12)


def test_an_area_needs_both_kinds() -> None:
    """Without a positive or without a negative example there is none; nor in a draw without, nor of nobody."""
    y, scores = np.array([True, False, False]), np.array([2.0, 1.0, 3.0])
    assert auroc(y, scores) == 0.5
    assert None is auroc(np.ones(3, dtype=bool), scores)
    assert None is auroc(np.zeros(0, dtype=bool), np.zeros(0))
    found = auroc_in_draws(y, scores, np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 0.0]]))
    np.testing.assert_array_equal([np.nan, 1.0], found)


@pytest.mark.parametrize("grouped", [False, True])
def test_evidence_is_the_mean_area_in_the_usual_draws(grouped: bool) -> None:
    """Each draw's value is scikit-learn's on the drawn rows that know a label; of patients with all their rows."""
    y, scores = labelled(60, seed=5)
    groups = np.repeat(np.arange(20), 3) if grouped else None
    found = evidence_of(y, {"one": scores, "same for all": np.zeros_like(scores)}, groups)

    def mean(rows: np.ndarray) -> float:
        each = []
        for label in range(3):
            known = rows[~np.isnan(y[rows, label])]
            if 0 < y[known, label].sum() < len(known):
                each.append(roc_auc_score(y[known, label], scores[known, label]))
        return float(np.mean(each))

    assert mean(np.arange(60)) == pytest.approx(found["one"].values[0], abs=1e-12)
    draws = found["one"].draws
    assert draws is not None and (1, DRAWS) == draws.shape
    every = islice(redrawn(60, groups, draws=DRAWS, seed=0, who="test"), 40)
    np.testing.assert_allclose(draws[0, :40], [mean(rows) for rows in every], atol=1e-12)
    assert 0.5 == found["same for all"].values[0]


def test_labels_without_both_kinds_are_left_out_of_the_mean() -> None:
    """A label that nobody has counts in no mean; where that is so of all, there is no score and no evidence."""
    y = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, np.nan]])
    scores = np.array([[2.0, 1.0], [3.0, 2.0], [4.0, 5.0]])
    assert [0.5, None] == aurocs(y, scores)
    assert 0.5 == mean_auroc(y, scores)
    alike = np.array([[1.0, np.nan], [1.0, np.nan]])
    assert None is mean_auroc(alike, scores[:2])
    assert {} == evidence_of(alike, {"one": scores[:2]}, None)
    assert np.isnan(TARGET.score(torch.tensor(scores[:2]), torch.tensor(alike)))


def test_intervals_of_the_mean_area_cover_it() -> None:
    """Of 120 made sites, the value with 1.96 standard deviations of the draws holds the true mean in 90 % or more."""
    truth, covered = float(norm.cdf(np.array([1.0, 0.5]) / np.sqrt(2)).mean()), 0
    for seed in range(120):
        chance = np.random.default_rng(seed)
        y = (chance.random((80, 2)) < 0.4).astype(np.float64)
        scores = chance.normal(size=y.shape) + y * (1.0, 0.5)
        y[chance.random(y.shape) < 0.2] = np.nan
        found = evidence_of(y, {"one": scores}, None, who=str(seed))["one"]
        assert found.draws is not None
        covered += abs(found.values[0] - truth) <= 1.96 * found.draws.std(ddof=1)
    assert 0.9 <= covered / 120 <= 0.99


def test_models_that_know_nothing_are_not_told_apart_by_a_single_positive() -> None:
    """Of 60 patients one has the label: without a floor, 3 of 4 such pairs of models were clearly different."""
    rng = np.random.default_rng(0)
    y = np.zeros((60, 1))
    y[0] = 1.0
    found = evidence_of(y, {name: rng.normal(size=(60, 1)) for name in ("local", "personal")}, None)
    told = estimates_of(found, neutral=0.5)
    assert told.difference is not None and 1.0 == told.difference.error
    scores = [LabelScores(y, rng.normal(size=(60, 1)), ("nodule",)) for _ in range(2)]
    drawn = [in_comparison([one], "auroc", groups=None, seed=0, who="a") for one in scores]
    assert drawn[0] is not None and drawn[1] is not None
    assert interval_of(minus(drawn[0], drawn[1]), kind="difference").low is None


def test_a_mean_over_labels_hangs_on_the_rarer_kind_of_each() -> None:
    """One of 60 and 30 of 60 are worth 3.9 patients; rows of one patient are one; a label of one kind is no part."""
    y = np.zeros((60, 3))
    y[0, 0], y[:30, 1] = 1, 1
    assert 4 / (1 + 1 / 30) == pytest.approx(carriers(y, None))
    assert 1.0 == carriers(y[:, [1]], np.repeat(np.arange(2), 30))
    assert 0.0 == carriers(y[:, [2]], None)


def test_the_loss_is_the_mean_over_known_labels_of_torchs_cross_entropy() -> None:
    """Sum over known cells of BCE, over rows times labels: so that the batch's loss is the mean of its rows' own."""
    y, scores = labelled(40, seed=1)
    labels, logits = torch.from_numpy(y), torch.from_numpy(scores).float()
    known = ~torch.isnan(labels)
    cells = functional.binary_cross_entropy_with_logits(logits[known], labels[known], reduction="sum")
    found = labels_loss(logits, labels)
    torch.testing.assert_close(found, cells / labels.numel())
    rows = [labels_loss(logits[[row]], labels[[row]]) for row in range(40)]
    torch.testing.assert_close(found, torch.stack(rows).mean())


def test_an_unknown_label_pulls_nowhere() -> None:
    """Its cell's gradient is 0, and a batch that knows nothing has loss 0; none of it is NaN, however large a logit."""
    y = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]])
    logits = torch.tensor([[0.0, 900.0], [-900.0, 0.0]], requires_grad=True)
    labels_loss(logits, y).backward()  # type: ignore[no-untyped-call] # torch's own
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.125, 0.0], [0.0, 0.0]]))
    assert 0.0 == float(labels_loss(logits.detach(), torch.full((2, 2), torch.nan)))


def test_the_constant_answer_is_each_labels_share() -> None:
    """By the rows that know it, as a logit; 1/2 where none does, and its score is 1/2."""
    y = torch.tensor([[1.0, torch.nan], [0.0, torch.nan], [0.0, torch.nan], [torch.nan, torch.nan]])
    torch.testing.assert_close(TARGET.constant(y).sigmoid(), torch.tensor([1 / 3, 0.5]))
    torch.testing.assert_close(TARGET.constant_outputs(y, 2), TARGET.constant(y).repeat(2, 1))
    assert 0.5 == TARGET.score(TARGET.constant_outputs(y, 4), y)
    assert bool(TARGET.constant(torch.ones(3, 1)).isfinite().all())


def test_strata_are_of_the_rarest_label_of_a_row() -> None:
    """A row with a rare and a frequent label is of the rare one; a label of too few rows makes no stratum."""
    y = torch.zeros(60, 3)
    y[:40, 0] = 1
    y[:LEAST_ROWS, 1] = 1
    y[: LEAST_ROWS - 1, 2] = 1
    expected = torch.tensor([1] * LEAST_ROWS + [0] * (40 - LEAST_ROWS) + [3] * 20)
    assert torch.equal(expected, TARGET.strata(y))


def test_metrics_in_rounds_are_means_over_the_labels() -> None:
    """AUROC, average precision and Brier score are scikit-learn's on the rows that know each label."""
    y, scores = labelled(80, seed=2)
    y[:, 2] = np.where(np.isnan(y[:, 2]), np.nan, 1.0)  # a label that every row has
    found = measure(("auroc", "average_precision", "brier"), torch.from_numpy(scores), torch.from_numpy(y), None)
    known = [~np.isnan(y[:, label]) for label in range(3)]
    pairs = [(y[rows, label], scores[rows, label]) for label, rows in enumerate(known)]
    assert np.mean([roc_auc_score(*pair) for pair in pairs[:2]]) == pytest.approx(found["auroc"])
    assert np.mean([average_precision_score(*pair) for pair in pairs[:2]]) == pytest.approx(found["average_precision"])
    assert np.mean([np.mean((expit(of) - truth) ** 2) for truth, of in pairs]) == pytest.approx(found["brier"])


def test_scores_of_a_comparison_are_those_of_each_label_and_their_mean() -> None:
    """What is kept of a test split: every metric, and AUROC and AUPRC by label; rows may be there twice."""
    y, scores = labelled(50, seed=3)
    of = LabelScores(y, scores.astype(np.float64), ("a", "b", "c"))
    kept = of.measure_all()
    for place, name in enumerate("abc"):
        known = ~np.isnan(y[:, place])
        assert roc_auc_score(y[known, place], scores[known, place]) == pytest.approx(kept[f"auroc.{name}"])
        assert average_precision_score(y[known, place], scores[known, place]) == pytest.approx(kept[f"auprc.{name}"])
        assert (int((y[:, place] == 1).sum()), int((y[:, place] == 0).sum())) == of.label_support[name]
    assert np.mean([kept[f"auroc.{name}"] for name in "abc"]) == pytest.approx(kept["auroc"])
    right = np.nanmean(np.where(np.isnan(y), np.nan, (scores > 0) == (y == 1)), axis=0).mean()
    assert right == pytest.approx(kept["accuracy"])
    assert 4 == len(of.taken(np.array([3, 3, 0, 1])))
    with pytest.raises(ValueError, match="no metric 'f1', expected one of auroc, auprc, brier, accuracy"):
        of.measure("f1")


def test_the_usual_tools_learn_each_label_by_the_rows_that_know_it() -> None:
    """A label's answers are scikit-learn's logistic regression on these rows alone; one that nobody knows is 1/2."""
    chance = np.random.default_rng(0)
    x = chance.normal(size=(150, 2))
    y = (x + chance.normal(size=x.shape) > 0).astype(np.float32)
    y[:60, 0] = np.nan
    y = np.concatenate([y, np.full((150, 1), np.nan, dtype=np.float32)], axis=1)
    fitted = fit_each(Examples(torch.from_numpy(x).float(), torch.from_numpy(y), TARGET), seed=0)
    found = fitted.answers(x)
    assert "logistic regression" == fitted.tool
    standard = (x - x[60:].mean(axis=0)) / x[60:].std(axis=0)
    models = [LogisticRegression(C=1 / 10.0**power).fit(standard[60:], y[60:, 0]) for power in range(-2, 5)]
    least = min(np.abs(model.decision_function(standard) - found[:, 0]).max() for model in models)
    assert least < 1e-3
    np.testing.assert_array_equal(found[:, 2], np.zeros(150))


SHIFTED: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "berlin": {"edema": (60, 140), "nodule": (10, 90), "cyst": (1, 9), "mass": (0, 0)},
    "lyon": {"edema": (10, 190), "nodule": (12, 88), "cyst": (4, 6), "mass": (0, 0)},
    "porto": {"edema": (40, 160), "nodule": (0, 0), "cyst": (2, 8), "mass": (0, 0)},
}


def test_label_shift_is_said_with_numbers() -> None:
    """Three times the odds beyond chance are; a tenth as much is not, nor what ten rows may have by chance."""
    told = label_shift(("edema", "nodule", "cyst", "mass"), SHIFTED, {})
    assert 3 == len(told)
    assert "'edema' is there in 10 of 200 (5 %) at 'lyon' and in 60 of 200 (30 %) at 'berlin'" in told[0]
    assert told[1].startswith("label 'nodule' is known of no example at porto")
    assert told[2].startswith("label 'mass' is known of no example at any site")
    assert [] == label_shift(("edema",), {"berlin": SHIFTED["berlin"]}, {})
    many = {f"l{number}": (50, 50) for number in range(9)}
    few = dict.fromkeys(many, (5, 95))
    assert "... and 3 more labels differ as much" == label_shift(list(many), {"a": many, "b": few}, {})[-1]


def test_counts_with_noise_are_no_label_shift_that_the_noise_explains() -> None:
    """What two standard errors of both kinds of chance give is not told; what no noise gives is; 0 may be 12."""
    counts = {"berlin": {"edema": (60, 140)}, "lyon": {"edema": (10, 190)}}
    assert 1 == len(label_shift(("edema",), counts, {"lyon": 1.0}))
    assert [] == label_shift(("edema",), counts, {"lyon": 8.0})
    empty = {"berlin": {"edema": (60, 140)}, "lyon": {"edema": (0, 0)}, "porto": {"edema": (0, 12)}}
    told = label_shift(("edema",), empty, {"porto": 4.2})
    assert "is known of no example at lyon, and learned at the other sites alone" in told[0]
    assert "label 'edema': the noise on the counts of porto hides whether any example there knows it" == told[1]
    hidden = label_shift(("edema",), {site: empty[site] for site in ("lyon", "porto")}, {"porto": 4.2})
    assert hidden[0].endswith("at lyon, how well it is predicted there cannot be measured")


@pytest.mark.parametrize("spread", [0.0, 6.0])
def test_sites_of_equal_shares_are_seldom_told_apart(spread: float) -> None:
    """Of 2,000 pairs of sites with 30 of 300 each, with noise or without, at most 1 in 100 is said to differ."""
    chance, told = np.random.default_rng(0), 0
    for _ in range(2_000):
        there = chance.binomial(300, 0.1, size=2)
        noised = np.maximum(0, np.stack([there, 300 - there]) + chance.normal(0, spread, size=(2, 2)).round())
        counts = {site: {"a": (int(noised[0, at]), int(noised[1, at]))} for at, site in enumerate(("one", "two"))}
        told += len(label_shift(("a",), counts, dict.fromkeys(counts, spread) if spread else {}))
    assert told <= 20


def test_the_budget_of_counts_is_shared_by_the_labels() -> None:
    """With L labels each count has the noise of epsilon / L, since an example may change one count of each."""
    counts = {"edema": (60, 140), "nodule": (10, 90)}
    found = noisy_label_counts(counts, 1.0, most=1_000, key=b"key")
    each = noisy_counts(
        {'["edema", true]': 60, '["nodule", false]': 90}, ['["edema", true]', '["nodule", false]'], 0.5, key=b"key"
    )
    assert each == {'["edema", true]': found["edema"][0], '["nodule", false]': found["nodule"][1]}
    far = [
        noisy_label_counts({"a": (500, 500), "b": (9, 9)}, 1.0, most=1_000, key=bytes([key]))["a"][0] - 500
        for key in range(200)
    ]
    assert 2.2 < np.std(far) < 3.4  # sqrt(2) / (epsilon / 2)
    assert label_noise(2, 1.0) == pytest.approx(np.sqrt(2 * np.exp(-0.5)) / (1 - np.exp(-0.5)))
    assert None is label_noise(2, 3_000.0)
    full = [noisy_label_counts({"a": (9, 0)}, 0.1, most=9, key=bytes([key]))["a"] for key in range(100)]
    assert {0, 9} == {min(map(min, full)), max(map(max, full))}


def test_draws_come_in_blocks_of_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as all draws at once give, of which a million rows would take 2.4 GB."""
    y, scores = labelled(60, seed=5)
    wanted = evidence_of(y, {"one": scores}, None)["one"].draws
    monkeypatch.setattr(evidence, "_CELLS_AT_ONCE", 60 * 7)
    assert [7] * 42 + [6] == [len(block) for block in evidence.blocks_drawn(60, None, who="test")]
    np.testing.assert_array_equal(wanted, evidence_of(y, {"one": scores}, None)["one"].draws)
