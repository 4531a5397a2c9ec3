"""Concordance, curves and the partial likelihood, held to lifelines and scikit-survival."""

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.utils import concordance_index
from sksurv.linear_model.coxph import BreslowEstimator
from sksurv.metrics import brier_score, concordance_index_censored, concordance_index_ipcw
from survival_cases import patients, structured

from consilium.client.training.cox import cox_loss
from consilium.common.intervals.evidence import DRAWS, redrawn
from consilium.common.intervals.means import interval_of
from consilium.common.protocol.estimates import estimates_of
from consilium.common.survival.concordance import harrell, of_draws, uno
from consilium.common.survival.curves import breslow, brier_losses, kaplan_meier, log_hazard, survival_at
from consilium.common.survival.evidence import evidence_of, evidence_of_losses
from consilium.common.survival.times import Times
from consilium.comparison.by_time import LEAST_AT_RISK, site_curve
from consilium.comparison.evidence import evidence_of as comparison_evidence
from consilium.comparison.time_scores import TimeScores
from consilium.comparison.usual_cox import chosen_penalty, coefficients


@pytest.mark.parametrize("seed", range(4))
def test_harrell_is_that_of_lifelines_and_scikit_survival(seed: int) -> None:
    """Ties of times, of events with censored patients, and of risks count as both libraries count them."""
    of, risks = patients(120, seed=seed)
    found = harrell(of, risks)
    assert concordance_index(of.times, -risks, of.events) == pytest.approx(found, abs=1e-12)
    assert concordance_index_censored(of.events, of.times, risks)[0] == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_uno_is_that_of_scikit_survival(seed: int) -> None:
    """Weights are of the training patients' censoring; test patients are younger, so that all of them have one."""
    training, _ = patients(300, seed=100 + seed, most=60)
    of, risks = patients(120, seed=seed, most=40)
    expected = concordance_index_ipcw(structured(training), structured(of), risks)[0]
    assert expected == pytest.approx(uno(of, risks, training=training), abs=1e-12)
    assert harrell(of, risks) != pytest.approx(uno(of, risks, training=training), abs=1e-6)


def test_uno_is_undefined_after_the_last_training_patient() -> None:
    """Nobody says how many are censored by 9 where the last training patient is censored at 4."""
    training = Times(np.array([1.0, 2.0, 4.0]), np.array([True, False, False]))
    of = Times(np.array([9.0, 10.0]), np.array([True, True]))
    assert uno(of, np.array([1.0, 0.0]), training=training) is None


def test_one_answer_for_all_has_half() -> None:
    """All risks equal: every comparable pair is a tie; without an event there is no pair."""
    of, risks = patients(50, seed=1)
    assert 0.5 == harrell(of, np.zeros_like(risks))
    assert harrell(Times(of.times, np.zeros(50, dtype=bool)), risks) is None


def test_draws_are_the_index_of_drawn_patients() -> None:
    """The weighted formula gives what the drawn rows themselves give, one by one; differences are in the same draws."""
    of, risks = patients(60, seed=3)
    rows = list(redrawn(60, None, draws=5, seed=0, who="x"))
    counted = np.stack([np.bincount(one, minlength=60) for one in rows]).astype(float)
    expected = [concordance_index(of.times[one], -risks[one], of.events[one]) for one in rows]
    np.testing.assert_allclose(of_draws(of, risks, counted), expected, atol=1e-12)
    found = evidence_of(of, {"one": risks, "same": risks}, None)
    assert DRAWS == found["one"].draws.shape[1]  # type: ignore[union-attr] # it is no mean of rows
    np.testing.assert_array_equal(found["one"].draws, found["same"].draws)


def test_kaplan_meier_is_that_of_lifelines() -> None:
    """The curve at every time, with ties."""
    of, _ = patients(150, seed=5)
    fitted = KaplanMeierFitter().fit(of.times, of.events)
    at = np.arange(0.0, 45.0, 0.5)
    np.testing.assert_allclose(kaplan_meier(of).at(at), fitted.predict(at), atol=1e-12)


def test_a_sites_curve_is_that_of_lifelines_while_enough_are_at_risk() -> None:
    """Its steps are lifelines' events, up to the last time with at least 5 at risk; of 4 patients there is none."""
    whole, _ = patients(60, seed=6)
    of = whole.taken(np.flatnonzero(whole.times < whole.times.max()))
    fitted, found = KaplanMeierFitter().fit(of.times, of.events), site_curve("rom", of)
    table = fitted.event_table.iloc[1:]
    last = float(table.index[table["at_risk"] >= 5].max())
    steps = [float(time) for time in table.index[table["observed"] > 0] if time <= last]
    assert 5 == LEAST_AT_RISK and last < float(of.times.max())
    assert (len(of), int(of.events.sum())) == (found.patients, found.events)
    assert sorted({*steps, last}) == list(found.times)
    np.testing.assert_allclose(found.shares, fitted.predict(list(found.times)), atol=1e-12)
    assert () == site_curve("rom", of.taken(np.arange(4))).times


def test_breslow_and_brier_are_those_of_scikit_survival() -> None:
    """The chance of no event until a time by the training patients' hazard, and its error at that time."""
    training, risk = patients(300, seed=8, most=60)
    of, risks = patients(120, seed=9, most=50)
    theirs = BreslowEstimator().fit(risk, training.events, training.times)
    hazard = breslow(training, risk)
    np.testing.assert_allclose(hazard.at(theirs.unique_times_), theirs.cum_baseline_hazard_.y, atol=1e-10)
    for horizon in (5.0, 12.5, 20.0):
        survival = np.exp(-hazard.at(np.array([horizon])) * np.exp(risks))
        np.testing.assert_allclose(survival_at(log_hazard(horizon, training, risk), risks), survival, atol=1e-12)
        expected = brier_score(structured(training), structured(of), survival[:, None], [horizon])[1][0]
        losses = brier_losses(horizon, of, survival, training=training)
        assert losses is not None and expected == pytest.approx(losses.mean(), abs=1e-12)


def test_a_brier_score_is_undefined_after_the_last_training_patient() -> None:
    """Nobody of the training patients says what comes after the last of them was seen; before, it is defined."""
    training, _ = patients(100, seed=8, most=20)
    of, _ = patients(50, seed=9, most=40)
    last, even = float(training.times.max()), np.full(50, 0.5)
    assert brier_losses(last - 1, of, even, training=training) is not None
    assert brier_losses(last + 0.5, of, even, training=training) is None
    assert brier_losses(5.0, of, np.full(50, np.nan), training=training) is None


def test_hazards_of_large_risks_do_not_overflow() -> None:
    """Risks of thousands: the same number added to all changes no chance. Without an event until then it is 1."""
    training, risk = patients(60, seed=2)
    first = float(training.times[training.events].min())
    far = survival_at(log_hazard(12.0, training, risk + 5000), risk + 5000)
    np.testing.assert_allclose(far, survival_at(log_hazard(12.0, training, risk), risk), atol=1e-9)
    assert set(survival_at(log_hazard(first / 2, training, risk), risk)) == {1.0}
    assert [0.0] == survival_at(log_hazard(12.0, training, risk), np.array([5000.0])).tolist()


def test_a_brier_score_has_draws_of_its_patients() -> None:
    """Value and draws are means of the losses of drawn patients; a score above 1 is not told."""
    losses = np.random.default_rng(0).random(40)
    found = evidence_of_losses({"one": losses, "absurd": losses + 1}, None)
    rows = list(redrawn(40, None, draws=3, seed=0, who="test"))
    assert ["one"] == list(found)
    assert losses.mean() == pytest.approx(found["one"].values[0])
    draws = found["one"].draws
    assert draws is not None and (1, DRAWS) == draws.shape
    np.testing.assert_allclose(draws[0, :3], [losses[one].mean() for one in rows], atol=1e-12)


@pytest.mark.parametrize(("events", "known"), [(9, False), (10, True)])
def test_a_concordance_needs_ten_patients_with_an_event(events: int, *, known: bool) -> None:
    """With fewer there is a value and no interval, in a site and a comparison alike; the constant answer keeps 1/2."""
    of, risks = Times(np.arange(40.0) + 1, np.arange(40) < events), np.random.default_rng(1).normal(size=40)
    found = evidence_of(of, {"personal": risks, "majority": np.zeros(40)}, None)
    draws, constant = found["personal"].draws, found["majority"].draws
    assert draws is not None and known == bool(np.isfinite(draws).all()) and known == bool(np.isfinite(draws).any())
    assert constant is not None and (constant == 0.5).all()
    assert known == (estimates_of(found, neutral=0.5).personal.error < 1)  # type: ignore[union-attr]  # it has a value
    scores = TimeScores(of.labels(), risks)
    compared = comparison_evidence([scores], "c_index", groups=None, seed=0, who="x")
    assert compared is not None and known == (interval_of(compared, kind="number").bounds is not None)


@pytest.mark.filterwarnings("ignore:Starting with pandas version 4.0")  # lifelines calls it in the older way
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")  # lifelines, at the end of a fit
@pytest.mark.parametrize("penalty", [0.01, 0.1, 1.0])
def test_the_usual_tool_is_the_penalised_model_of_lifelines(penalty: float) -> None:
    """Of columns with standard deviation 1, `penalizer` is the penalty: coefficients are equal to 1e-5."""
    of, risks = patients(120, seed=4)
    x = np.stack([risks, np.random.default_rng(4).normal(size=120)], axis=1)
    x = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    table = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "time": of.times, "event": of.events})
    expected = CoxPHFitter(penalizer=penalty).fit(table, "time", "event").params_.to_numpy()
    found = coefficients(torch.from_numpy(x), torch.from_numpy(of.labels()), penalty)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_cross_validation_chooses_a_penalty_by_what_columns_say() -> None:
    """Noise alone gets the largest penalty, a strong risk among few columns a small one."""
    chance = np.random.default_rng(0)
    of, risks = patients(150, seed=6)
    y, folds = torch.from_numpy(of.labels()), np.arange(150) % 5
    noise = torch.from_numpy(chance.normal(size=(150, 20)))
    told = torch.from_numpy(np.stack([-np.log(of.times), risks], axis=1))
    assert 10.0 == chosen_penalty(noise, y, folds)
    assert 0.1 >= chosen_penalty(told, y, folds)
    assert 10.0 == chosen_penalty(told, y, np.zeros(150, dtype=np.int64))


@pytest.mark.filterwarnings("ignore:Starting with pandas version 4.0")  # lifelines calls it in the older way
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_partial_likelihood_of_lifelines(seed: int) -> None:
    """At lifelines' own estimate, ties by Efron: N times the loss is minus its log likelihood, the gradient is 0."""
    of, risks = patients(90, seed=seed)
    x = np.stack([risks, np.random.default_rng(50 + seed).normal(size=90)], axis=1)
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "time": of.times, "event": of.events})
    fitted = CoxPHFitter().fit(frame, "time", "event")
    weights = torch.tensor(fitted.params_.to_numpy(), requires_grad=True)
    loss = cox_loss(torch.from_numpy(x) @ weights, torch.from_numpy(of.labels()))
    assert -fitted.log_likelihood_ / 90 == pytest.approx(float(loss.detach()), abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, weights)
    assert float(gradient.abs().max()) < 1e-6


def test_a_batch_without_an_event_has_no_loss_and_no_gradient() -> None:
    """All censored: the loss is 0, and it still has a gradient, of zeros."""
    risks = torch.tensor([0.3, -2.0], requires_grad=True)
    loss = cox_loss(risks, torch.tensor([-1.0, -2.0]))
    (gradient,) = torch.autograd.grad(loss, risks)
    assert 0.0 == float(loss.detach())
    assert [0.0, 0.0] == gradient.tolist()


def test_the_loss_does_not_overflow_and_knows_no_intercept() -> None:
    """Risks of hundreds are finite; the same number added to all changes nothing."""
    risks, y = torch.tensor([300.0, 250.0, 290.0]), torch.tensor([1.0, 2.0, -3.0])
    assert float(cox_loss(risks - 300, y)) == pytest.approx(float(cox_loss(risks + 500, y)), abs=1e-4)
    assert np.isfinite(float(cox_loss(risks, y)))


def test_a_time_and_its_event_are_one_number() -> None:
    """Censored times have a minus sign, that of 0 too."""
    of = Times(np.array([0.0, 0.0, 3.5]), np.array([True, False, False]))
    again = Times.of_labels(of.labels())
    assert [0.0, 0.0, 3.5] == again.times.tolist()
    assert [True, False, False] == again.events.tolist()


def test_draws_that_are_all_the_same_say_nothing_of_the_error() -> None:
    """Twelve patients whom one model ranks right and another wrong: no gain of 1 beyond doubt. Ties stay ties."""
    of, up = Times(np.arange(12.0) + 1, np.ones(12, dtype=bool)), np.arange(12.0, 0.0, -1.0)
    told = estimates_of(evidence_of(of, {"personal": up, "local": -up, "majority": np.zeros(12)}, None), neutral=0.5)
    assert told.personal is not None and told.local is not None and told.difference is not None
    assert (1.0, 0.0, 1.0) == (told.personal.value, told.local.value, told.difference.value)
    assert (1.0, 1.0, 1.0) == (told.personal.error, told.local.error, told.difference.error)
    same = estimates_of(evidence_of(of, {"personal": up, "local": up, "majority": np.zeros(12)}, None), neutral=0.5)
    assert same.difference is not None and (0.0, 0.0) == (same.difference.value, same.difference.error)
    assert same.majority is not None and (0.5, 0.0) == (same.majority.value, same.majority.error)
