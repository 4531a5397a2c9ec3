"""What a site would do alone with usual tools, against closed forms and plain scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeStudy, write_site, write_table
from numpy.typing import NDArray
from scipy import optimize

from consilium.client.data import Examples
from consilium.client.data.target import CLASSES, NumberTarget
from consilium.common.study.study import StudyConfig
from consilium.comparison.usual import FOLDS, PENALTIES, USUAL, assign_folds, fit, run_usual

Floats = NDArray[np.float64]


def examples(x: Floats, y: NDArray[Any], *, number: bool, groups: NDArray[np.int64] | None = None) -> Examples:
    """Return examples of numbers or classes, of patients where groups are given."""
    labels = torch.from_numpy(y).to(torch.float32 if number else torch.int64)
    of = None if groups is None else torch.from_numpy(groups)
    return Examples(torch.from_numpy(x).to(torch.float32), labels, NumberTarget(0.5) if number else CLASSES, of)


def standardised(x: Floats, like: Floats) -> Floats:
    """Return inputs by the mean and deviation of others."""
    return np.asarray((x - like.mean(axis=0)) / like.std(axis=0))


def ridge(x: Floats, y: Floats, to: Floats, penalty: float) -> Floats:
    """Minimise the sum of squared errors plus the penalty on standardised columns, the intercept free."""
    scaled = standardised(x, x)
    beta = np.linalg.solve(scaled.T @ scaled + penalty * np.eye(x.shape[1]), scaled.T @ (y - y.mean()))
    return np.asarray(y.mean() + standardised(to, x) @ beta)


def test_number_is_ridge_with_the_penalty_of_least_error_over_folds_of_patients() -> None:
    """The closed form at every penalty, on the same folds; the columns have different units."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(60, 4)) * [1, 10, 100, 0.1] + 5
    y = (x - 5) @ [1, 0.1, 0, 3] + generator.normal(size=60)
    groups = np.arange(60) // 3
    x, y = x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)
    found = fit(examples(x, y, number=True, groups=groups), num_classes=0, seed=4)
    folds = assign_folds(y, groups, seed=4)
    errors = [
        sum(
            np.square(ridge(x[folds != k], y[folds != k], x[folds == k], p) - y[folds == k]).sum() for k in range(FOLDS)
        )
        for p in PENALTIES
    ]
    expected = ridge(x, y, x, PENALTIES[int(np.argmin(errors))])
    assert 0 < np.argmin(errors) < len(PENALTIES) - 1
    assert found.tool == "ridge regression"
    np.testing.assert_allclose(found.answers(x)[:, 0], expected, rtol=1e-6)


def test_classes_are_logistic_regression_with_a_penalty() -> None:
    """Against a minimiser of the penalised loss, for whichever penalty was chosen."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(80, 3)).astype(np.float32).astype(np.float64)
    y = (x @ [2.0, -1.0, 0.0] + generator.logistic(size=80) > 0).astype(np.int64)
    found = fit(examples(x, y, number=False), num_classes=2, seed=1)
    assert found.tool == "logistic regression"
    chances, scaled = np.exp(found.answers(x)), standardised(x, x)
    np.testing.assert_allclose(chances.sum(axis=1), 1)

    def loss(beta: Floats, penalty: float) -> float:
        margin = (beta[0] + scaled @ beta[1:]) * (2 * y - 1)
        return float(np.logaddexp(0, -margin).sum() + penalty * (beta[1:] ** 2).sum() / 2)

    gaps = []
    for penalty in PENALTIES:
        beta = optimize.minimize(loss, np.zeros(4), args=(penalty,), tol=1e-10).x
        gaps.append(np.abs(chances[:, 1] - 1 / (1 + np.exp(-(beta[0] + scaled @ beta[1:])))).max())
    assert min(gaps) < 1e-3


def test_trees_are_chosen_where_no_line_will_do() -> None:
    """Exclusive or: a line is right on half of it."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 2))
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(np.int64)
    found = fit(examples(x[:200], y[:200], number=False), num_classes=2, seed=1)
    assert found.tool == "gradient boosting"
    assert (found.answers(x[200:]).argmax(axis=1) == y[200:]).mean() > 0.85
    numbers = fit(examples(x[:200], y[:200] * 4.0, number=True), num_classes=0, seed=1)
    assert numbers.tool == "gradient boosting"
    assert np.abs(numbers.answers(x[200:])[:, 0] - 4 * y[200:]).mean() < 1


def test_patients_are_not_torn_apart_by_the_folds() -> None:
    """Three equal rows of each patient, labels of pure noise: torn apart, trees that remember would be chosen."""
    generator = np.random.default_rng(0)
    groups = generator.permutation(np.repeat(np.arange(40), 3))
    y = generator.normal(size=40)[groups]
    folds = assign_folds(y, groups, seed=0)
    assert {len(set(folds[groups == group].tolist())) for group in range(40)} == {1}
    assert np.bincount(folds).tolist() == [24] * FOLDS
    x = generator.normal(size=(40, 2))[groups]
    whole = fit(examples(x, y, number=True, groups=groups), num_classes=0, seed=0)
    torn = fit(examples(x, y, number=True), num_classes=0, seed=0)
    assert whole.answers(x).std() < 0.5 * y.std()
    assert torn.answers(x).std() > 0.8 * y.std()


def test_folds_have_every_class_where_there_are_enough() -> None:
    """Ten ill of fifty: two in each fold, whatever the seed; another seed divides otherwise."""
    y = np.array([1] * 10 + [0] * 40)
    for seed in range(5):
        folds = assign_folds(y, np.arange(50), seed=seed)
        assert [int(y[folds == fold].sum()) for fold in range(FOLDS)] == [2] * FOLDS
    assert (assign_folds(y, np.arange(50), seed=0) != assign_folds(y, np.arange(50), seed=1)).any()


@pytest.mark.parametrize("rows", [1, 2, 12])
def test_site_of_one_class_answers_it(rows: int) -> None:
    """With a finite loss for the others, which no training row has; one row is enough."""
    x, y = np.random.default_rng(0).normal(size=(rows, 2)), np.full(rows, 2)
    answers = fit(examples(x, y, number=False), num_classes=4, seed=0).answers(np.zeros((5, 2)))
    assert (answers.argmax(axis=1) == 2).all()
    assert np.isfinite(answers).all() and answers.shape == (5, 4)


def test_constant_column_and_single_rows_of_a_class_are_no_failure() -> None:
    """One row of a class: some fold's training rows have one class only."""
    generator = np.random.default_rng(0)
    x, y = np.c_[generator.normal(size=20), np.full(20, 7.0)], np.array([1] + [0] * 19)
    answers = fit(examples(x, y, number=False), num_classes=2, seed=0).answers(x)
    assert np.isfinite(answers).all()


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    """Return a study with a part for validation."""
    return make_study(sites=["berlin", "lyon"], split={"test": 0.3, "validation": 0.2})


def test_sites_answer_their_test_rows_and_measure_their_validation_rows(study: StudyConfig, tmp_path: Path) -> None:
    """The loss is cross entropy as networks have it, the accuracy the share of right classes; no other site matters."""
    settings = {name: write_site(tmp_path / name, name) for name in study.sites}
    for seed, name in enumerate(study.sites):
        write_table(tmp_path / name / "data.csv", rows=60, seed=seed)
    outcome = run_usual(study, settings)
    alone = run_usual(study, {"lyon": settings["lyon"]})
    assert outcome.sites["lyon"] == alone.sites["lyon"]
    np.testing.assert_array_equal(outcome.answers["lyon"][USUAL], alone.answers["lyon"][USUAL])
    for name, facts in outcome.sites.items():
        right = outcome.answers[name][USUAL].argmax(axis=1) == outcome.answers[name]["labels"]
        assert len(right) == facts.num_test == 18
        assert right.mean() > 0.7
        measured = facts.validation[USUAL]
        assert measured.accuracy is not None and measured.loss is not None
        assert 0 < measured.loss < 0.7 and measured.accuracy > 0.6
        assert round(measured.accuracy * facts.num_validation, 6) % 1 == 0
