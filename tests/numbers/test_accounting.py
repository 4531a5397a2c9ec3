"""What noise costs: equal to two other accountants within 1 percent, to formulas by hand, and never below the truth."""

import math
import random
import warnings
from collections.abc import Sequence

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from consilium.common.errors import PrivacyBudgetSpent
from consilium.common.privacy.accounting import Charge, delta_for, epsilon_of, gaussian_for, keeps_to, noise_for

SCHEDULES = 200
"""Random schedules that the ledger's accounting is held against; the nightly run has all of them."""
EVERY = 20
"""The part of them that each run has is one in so many: ten, of one to three phases and epsilons from 0.07 to 19."""


def schedule(number: int) -> tuple[list[Charge], float]:
    """Return a random schedule: one to three phases of rounds of a few steps each, and a delta."""
    draw = random.Random(number)
    charges: list[Charge] = []
    for _ in range(draw.randint(1, 3)):
        rate = 1.0 if draw.random() < 0.1 else 10 ** draw.uniform(-2.3, -0.2)
        rounds, steps = draw.randint(1, 40), draw.randint(1, 20)
        noise = 10 ** draw.uniform(-0.1, 1.0) * max(1.0, rate * math.sqrt(rounds * steps) / 3)
        charges += [Charge("sgd", noise, rate, steps)] * rounds
    draw.shuffle(charges)
    return charges, 10.0 ** -draw.randint(3, 7)


def by_dp_accounting(charges: Sequence[Charge], delta: float) -> float:
    """Return what the accountant of dp-accounting says, step by step as its users compose."""
    from dp_accounting import dp_event as events
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    accountant = PLDAccountant()
    steps = dict.fromkeys((charge.noise, charge.rate) for charge in charges)
    for noise, rate in steps:
        count = sum(charge.steps for charge in charges if (charge.noise, charge.rate) == (noise, rate))
        accountant.compose(
            events.SelfComposedDpEvent(events.PoissonSampledDpEvent(rate, events.GaussianDpEvent(noise)), count)
        )
    return float(accountant.get_epsilon(delta))


def by_opacus(charges: Sequence[Charge], delta: float, *, error: float) -> tuple[float, float]:
    """Return the lower bound and the estimate of opacus' accountant of privacy random variables."""
    history: dict[tuple[float, float], int] = {}
    for charge in charges:
        history[charge.noise, charge.rate] = history.get((charge.noise, charge.rate), 0) + charge.steps
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that its grid, which it takes from Renyi orders, may be larger than it need be
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(noise, rate, steps) for (noise, rate), steps in history.items()]
        found = accountant._get_dprv(eps_error=error, delta_error=delta / 1000)
    lower, estimate, _ = found.compute_epsilon(delta, delta / 1000, error)
    return lower, estimate


def least_possible(charges: Sequence[Charge], delta: float) -> float:
    """Return a lower bound of the truth: the same distributions, with every loss rounded down."""
    from dp_accounting.pld import privacy_loss_distribution as losses

    interval = min(20 / charge.noise for charge in charges) / 50_000
    whole = losses.identity(value_discretization_interval=interval, pessimistic_estimate=False)
    for noise, rate in dict.fromkeys((charge.noise, charge.rate) for charge in charges):
        count = sum(charge.steps for charge in charges if (charge.noise, charge.rate) == (noise, rate))
        one = losses.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=interval, pessimistic_estimate=False
        )
        whole = whole.compose(one.self_compose(count))
    return float(whole.get_epsilon_for_delta(delta))


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=() if n % EVERY == 0 else pytest.mark.nightly) for n in range(SCHEDULES)]
)
def test_epsilon_equals_two_other_accountants_and_is_never_below_the_truth(number: int) -> None:
    """Within 1 percent of both on random schedules, above the lower bound of each; the order of rounds is nothing."""
    charges, delta = schedule(number)
    epsilon = epsilon_of(charges, delta)
    assert by_dp_accounting(charges, delta) == pytest.approx(epsilon, rel=0.01)
    lower, estimate = by_opacus(charges, delta, error=0.003 * epsilon)
    assert estimate == pytest.approx(epsilon, rel=0.01)
    assert lower <= epsilon
    assert least_possible(charges, delta) <= epsilon


def delta_of_gaussian(epsilon: float, noise: float) -> float:
    """Return the exact delta of one Gaussian draw (Balle and Wang 2018, theorem 8, with sensitivity 1)."""
    below = math.exp(epsilon + float(norm.logcdf(-0.5 / noise - epsilon * noise)))
    return float(norm.cdf(0.5 / noise - epsilon * noise)) - below


@pytest.mark.parametrize("noise", [0.1, 0.7, 1.0, 5.0, 60.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_one_gaussian_draw_costs_what_the_formula_says(noise: float, delta: float) -> None:
    """Phi(1/(2z) - eps z) - e^eps Phi(-1/(2z) - eps z) = delta, solved for eps; above it by less than 0.1 percent."""
    exact = brentq(lambda epsilon: delta_of_gaussian(epsilon, noise) - delta, 0, 1000)
    epsilon = epsilon_of([Charge("sgd", noise)], delta)
    assert exact <= epsilon <= exact * 1.001


def test_draws_for_everybody_add_like_squares() -> None:
    """k draws of noise z for everybody are one of z / sqrt(k): their sensitivities are at right angles."""
    assert epsilon_of([Charge("sgd", 2.0)], 1e-5) == epsilon_of([Charge("sgd", 6.0, steps=9)], 1e-5)
    assert epsilon_of([Charge("sgd", 3.0), Charge("sgd", 4.0)], 1e-5) == epsilon_of([Charge("sgd", 2.4)], 1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 10.0])
def test_one_discrete_laplace_draw_costs_what_the_formula_says(scale: float) -> None:
    """A count changed by one has losses of +-1/b alone: with s = 1/b, delta = (e^s - e^eps) / (1 + e^s)."""
    slope = 1 / scale
    for delta in (1e-6, 0.01):
        exact = math.log(math.exp(slope) - delta * (1 + math.exp(slope)))
        assert epsilon_of([Charge("laplace", scale)], delta) == pytest.approx(exact, abs=1e-9)


def test_two_discrete_laplace_draws_cost_what_the_formula_says() -> None:
    """The losses of two are 2s, 0 and -2s with chances p^2, 2pq and q^2, p = e^s / (1 + e^s): solved for eps."""
    slope, delta = 0.5, 1e-3
    chance = math.exp(slope) / (1 + math.exp(slope))
    exact = 2 * slope + math.log(1 - delta / chance**2)  # above 0, so that only the largest loss counts
    assert epsilon_of([Charge("laplace", 2.0, steps=2)], delta) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.8, 2.0, 5.0])
def test_discrete_gaussian_noise_on_counts_costs_what_its_chances_say(sigma: float) -> None:
    """The sum over whole numbers of max(0, P(x) - e^eps P(x - 1)) is delta: added up, and solved for eps.

    It is not what normal noise costs: at sigma = 2 and delta = 1e-5 it is 0.9 percent more.
    """
    chances = [math.exp(-(x**2) / (2 * sigma**2)) for x in range(-100, 101)]
    whole = math.fsum(chances)

    def delta_at(epsilon: float) -> float:
        pairs = zip(chances[1:], chances, strict=False)
        return math.fsum(max(0.0, here - math.exp(epsilon) * moved) for here, moved in pairs) / whole

    exact = brentq(lambda epsilon: delta_at(epsilon) - 1e-5, 0, 100)
    epsilon = epsilon_of([Charge("gaussian", sigma)], 1e-5)
    assert exact - 1e-9 <= epsilon <= exact * 1.002


def test_laplace_is_never_below_what_a_larger_change_or_real_numbers_would_cost() -> None:
    """A count that one patient changes by 3, and Laplace noise on a real number, cost less at the same 1 / noise."""
    from dp_accounting.pld import privacy_loss_distribution as losses

    epsilon = epsilon_of([Charge("laplace", 2.0, steps=4)], 1e-4)
    by_three = losses.from_discrete_laplace_mechanism(0.5 / 3, sensitivity=3).self_compose(4)
    real = losses.from_laplace_mechanism(2.0).self_compose(4)
    assert by_three.get_epsilon_for_delta(1e-4) < epsilon
    assert real.get_epsilon_for_delta(1e-4) < epsilon


def test_nothing_costs_nothing() -> None:
    """What was not charged has not been spent."""
    assert epsilon_of([], 1e-5) == 0


def test_cost_is_the_same_however_charges_are_split_and_ordered() -> None:
    """20 rounds of 5 steps are 100 steps, to the last bit: a budget that was planned is never exceeded by rounding."""
    others = [Charge("laplace", 10.0), Charge("gaussian", 8.0)]
    whole = epsilon_of([*others, Charge("sgd", 3.0, 0.25, 100)], 1e-4)
    assert whole == epsilon_of([*[Charge("sgd", 3.0, 0.25, 5)] * 20, *others[::-1]], 1e-4)
    thirds = [Charge("sgd", 0.1, steps=1)] * 3
    assert epsilon_of(thirds, 1e-4) == epsilon_of([Charge("sgd", 0.1, steps=3)], 1e-4)


def test_cost_grows_with_every_step_and_falls_with_noise() -> None:
    """Nothing that leaves is free, and more noise never costs more."""
    by_steps = [epsilon_of([Charge("sgd", 1.0, 0.05, steps)], 1e-5) for steps in (1, 9, 10, 11, 100, 1000)]
    assert by_steps == sorted(set(by_steps))
    by_noise = [epsilon_of([Charge("sgd", noise, 0.05, 50)], 1e-5) for noise in (0.3, 0.6, 1.0, 2.0, 9.0)]
    assert by_noise == sorted(set(by_noise), reverse=True)


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [
        (3, 1e-4, 0.25, 100),
        (8, 1e-5, 0.01, 10_000),
        (0.5, 1e-4, 0.25, 100),
        (0.01, 1e-6, 0.05, 1000),
        (90, 1e-3, 0.5, 8),
    ],
)
def test_noise_that_is_found_keeps_to_the_budget_and_uses_it(
    epsilon: float, delta: float, rate: float, steps: int
) -> None:
    """It costs at most epsilon and at least 97 percent of it, also when it is charged round by round."""
    noise = noise_for(epsilon, delta, rate=rate, steps=steps)
    rounds = [Charge("sgd", noise, rate, steps // 4)] * 4
    assert 0.97 * epsilon <= epsilon_of(rounds, delta) <= epsilon


def test_noise_that_is_found_never_costs_more_than_the_budget() -> None:
    """Wherever the search ends: for 200 budgets from 0.01 to 100, of one draw for everybody."""
    for number in range(200):
        budget = 10 ** (number / 50 - 2)
        assert 0.97 * budget <= epsilon_of([Charge("sgd", noise_for(budget, 1e-5, rate=1, steps=1))], 1e-5) <= budget


def test_noise_leaves_room_for_what_is_charged_beside_it() -> None:
    """Counts and scores come out of the same budget; with no room left, the sentence says so."""
    besides = [Charge("laplace", 5.0), Charge("gaussian", 6.0, steps=2)]
    noise = noise_for(2, 1e-4, rate=0.2, steps=50, besides=besides)
    assert 0.97 * 2 <= epsilon_of([*besides, Charge("sgd", noise, 0.2, 50)], 1e-4) <= 2
    assert noise > noise_for(2, 1e-4, rate=0.2, steps=50)
    with pytest.raises(
        PrivacyBudgetSpent, match=r"^epsilon 0.1 leaves nothing for training: .* costs 0\.\d+ by itself"
    ):
        noise_for(0.1, 1e-4, rate=0.2, steps=50, besides=besides)


@pytest.mark.parametrize("part", [0.3, 0.999, 1.0])
def test_quick_answer_is_the_exact_one(part: float) -> None:
    """Charges keep to what they cost and to more, never to less, whatever comes together."""
    besides = [Charge("laplace", 9.0), Charge("gaussian", 40.0, steps=2)]
    for charges in ([Charge("sgd", 3.2, 0.25, 100)], [Charge("sgd", 1.0, 0.01, 3000), *besides], besides, []):
        cost = epsilon_of(charges, 1e-4)
        assert keeps_to(cost / part, charges, 1e-4)
        assert part == 1 or not cost or not keeps_to(cost * part, charges, 1e-4)


@pytest.mark.parametrize("numbers", [1, 6])
def test_noise_on_counts_that_is_found_keeps_to_the_budget(numbers: int) -> None:
    """Discrete Gaussian noise on as many counts as one patient changes."""
    noise = gaussian_for(0.3, 1e-4, numbers=numbers)
    assert 0.97 * 0.3 <= epsilon_of([Charge("gaussian", noise, steps=numbers)], 1e-4) <= 0.3


def test_delta_is_the_largest_power_of_ten_up_to_a_tenth_of_one_in_n() -> None:
    """1 / (10 n) itself where that is a power of ten; never more than 0.001."""
    expected = {1: 1e-3, 100: 1e-3, 101: 1e-4, 303: 1e-4, 1000: 1e-4, 1001: 1e-5, 10**6: 1e-7}
    assert expected == {number: delta_for(number) for number in expected}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("sgd", 0.0), "noise must be above 0 and finite, got 0.0"),
        (("sgd", math.nan), "noise must be above 0 and finite, got nan"),
        (("sgd", 1.0, 1.5), "rate must be above 0 and at most 1"),
        (("laplace", 1.0, 0.5), "rate must be above 0 and at most 1, and 1 but for 'sgd', got 0.5"),
        (("sgd", 1.0, 0.5, 0), "steps must be at least 1, got 0"),
    ],
)
def test_charge_that_cannot_be_is_refused(values: tuple[float, ...], said: str) -> None:
    """A wrong number would be an account of something else."""
    with pytest.raises(ValueError, match=said):
        Charge(*values)  # type: ignore[arg-type] # wrong on purpose


def test_noise_on_a_mean_of_50_sites_costs_what_the_study_is_told() -> None:
    """Noise multiplier 5 in each of 20 rounds: one Gaussian of 5 / sqrt(20), epsilon 3.85 at delta 1e-5."""
    exact = brentq(lambda epsilon: delta_of_gaussian(epsilon, 5 / math.sqrt(20)) - 1e-5, 0, 100)
    assert exact == pytest.approx(3.848, abs=1e-3)
    assert epsilon_of([Charge("sgd", 5.0)] * 20, 1e-5) == pytest.approx(exact, rel=1e-3)
