"""What noise costs: epsilon of everything that was drawn with it, by privacy loss distributions.

Koskela, Jalko and Honkela (2020), "Computing tight differential privacy guarantees using FFT",
<https://arxiv.org/abs/1906.03049>; discretised so that the result is never below the truth: Doroshenko, Ghazi,
Kamath, Kumar and Manurangsi (2022), "Connect the dots: tighter discrete approximations of privacy loss
distributions", <https://arxiv.org/abs/2207.04380>, by their package dp-accounting.

    delta(epsilon) = sum over y of max(0, P(y) - e^epsilon Q(y)),

where P and Q are the distributions of all that leaves, with and without one patient; epsilon is the least one for which
delta(epsilon) is at most delta, whichever of the two has the patient (add or remove one).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from consilium.common.errors import PrivacyBudgetSpent

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

_CELLS = 30_000
"""Into how many parts the losses of one step are cut; epsilon is then less than 0.1 percent above the truth."""
_FEW_CELLS = 3_000
"""Into how many for an account that is a few percent above the truth, and takes a tenth of the time."""
_WIDEST = 10
"""How many times as many parts at most, where noises of very different sizes come together."""
_MOST_NOISE = 1e9
"""`noise_for` looks no further."""
_CLOSE = 0.99
"""`noise_for` ends at a noise that costs at least this part of the budget."""


@dataclass(frozen=True)
class Charge:
    """Something drawn with noise, `steps` times, each time afresh.

    Args:
        mechanism: `sgd` adds normal noise to a sum; `gaussian` discrete Gaussian noise to whole numbers, of which one
            patient changes as many as there are steps, each by one; `laplace` is any mechanism that keeps to 1 / noise
            by itself.
        noise: standard deviation in units of the L2 sensitivity; of `laplace` the scale in units of the L1 sensitivity.
        rate: probability with which a patient takes part in a step, each by itself (Poisson sampling).

    Raises:
        ValueError: a number is outside its range, or something else than `sgd` is sampled.
    """

    mechanism: Literal["sgd", "gaussian", "laplace"]
    noise: float
    rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise ValueError(f"noise must be above 0 and finite, got {self.noise!r}")
        if not 0 < self.rate <= 1 or (self.mechanism != "sgd" and self.rate != 1):
            raise ValueError(f"rate must be above 0 and at most 1, and 1 but for 'sgd', got {self.rate!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps!r}")


def epsilon_of(charges: Sequence[Charge], delta: float) -> float:
    """Return what the charges cost together: never less than the truth, whatever their order and how they are split.

    Args:
        delta: probability with which the bound may be missed, in (0, 1).
    """
    return _epsilon(_together(charges), delta, _CELLS)


def keeps_to(epsilon: float, charges: Sequence[Charge], delta: float) -> bool:
    """Return whether the charges cost at most epsilon; quicker than `epsilon_of` where they cost clearly less.

    A coarse account is above the truth by more, so that what keeps to epsilon in it does so in truth.
    """
    keys = _together(charges)
    return _epsilon(keys, delta, _FEW_CELLS) <= epsilon or _epsilon(keys, delta, _CELLS) <= epsilon


def noise_for(epsilon: float, delta: float, *, rate: float, steps: int, besides: Sequence[Charge] = ()) -> float:
    """Return the noise multiplier with which so many steps, and `besides`, cost at most epsilon, and nearly that.

    Raises:
        PrivacyBudgetSpent: `besides` costs as much as epsilon, or more, or leaves hardly anything.
    """

    def cost(noise: float) -> float:
        return epsilon_of((*besides, Charge("sgd", noise, rate, steps)), delta)

    if besides and (spent := epsilon_of(besides, delta)) >= epsilon:
        raise PrivacyBudgetSpent(
            f"epsilon {epsilon:g} leaves nothing for training: what is charged beside it costs {spent:.4g} by itself"
        )
    return _search(cost, epsilon)


def gaussian_for(epsilon: float, delta: float, *, numbers: int = 1) -> float:
    """Return the standard deviation of discrete Gaussian noise that costs at most epsilon, and nearly that.

    Args:
        numbers: how many whole numbers one patient changes, each by one at most; each gets noise of its own.
    """
    return _search(lambda noise: epsilon_of((Charge("gaussian", noise, steps=numbers),), delta), epsilon)


def delta_for(num_units: int) -> float:
    """Return the largest power of ten that is at most 1 / (10 n), and at most 0.001.

    Args:
        num_units: n, the number of patients that the site announces; at least 1.
    """
    return float(f"1e-{max(3, len(str(10 * max(1, num_units) - 1)))}")


_Key = tuple[Literal["sgd", "gaussian", "laplace"], float, float, int]
"""Mechanism, noise, rate and steps of charges that are alike."""


def _together(charges: Sequence[Charge]) -> tuple[_Key, ...]:
    """Return the charges with those that are alike as one; k normal draws of noise z are one of z / sqrt(k)."""
    alike: Counter[tuple[Literal["sgd", "gaussian", "laplace"], float, float]] = Counter()
    for charge in charges:
        alike[charge.mechanism, charge.noise, charge.rate] += charge.steps
    whole = sorted((noise, steps) for (kind, noise, rate), steps in alike.items() if (kind, rate) == ("sgd", 1))
    keys: list[_Key] = [(*key, steps) for key, steps in alike.items() if (key[0], key[2]) != ("sgd", 1)]
    if whole:
        keys.append(("sgd", 1 / math.sqrt(math.fsum(steps / noise**2 for noise, steps in whole)), 1.0, 1))
    return tuple(sorted(keys))


@lru_cache(maxsize=4096)
def _epsilon(keys: tuple[_Key, ...], delta: float, cells: int) -> float:
    if not keys:
        return 0.0
    interval = _interval(keys, cells)
    distributions = [_distribution(key, interval) for key in keys]
    whole = distributions[0]
    for one in distributions[1:]:
        whole = whole.compose(one)
    return float(whole.get_epsilon_for_delta(delta))


@lru_cache(maxsize=4)
def _distribution(key: _Key, interval: float) -> "PrivacyLossDistribution":
    kind, noise, rate, steps = key
    one = _of_one_step(kind, noise, rate, interval)
    return one.self_compose(steps) if steps > 1 else one


@lru_cache(maxsize=16)
def _of_one_step(kind: str, noise: float, rate: float, interval: float) -> "PrivacyLossDistribution":
    from dp_accounting.pld import (
        privacy_loss_distribution as losses,
    )  # slow to import, and only private studies need it

    if kind == "laplace":
        # With a sensitivity of 1 this is randomised response: no mechanism that keeps to 1 / noise by itself is worse.
        return losses.from_discrete_laplace_mechanism(
            1 / noise, value_discretization_interval=interval, use_connect_dots=True
        )
    if kind == "gaussian":
        return losses.from_discrete_gaussian_mechanism(
            noise, value_discretization_interval=interval, use_connect_dots=True
        )
    return losses.from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=interval)


def _interval(keys: Sequence[_Key], cells: int) -> float:
    """Return how finely losses are cut: by the least noise of few steps, and the most noise of many."""
    ranges = [(2 / noise if kind == "laplace" else 20 / noise + 1 / noise**2) for kind, noise, _, _ in keys]
    normal = [(extent, steps) for extent, (kind, _, _, steps) in zip(ranges, keys, strict=True) if kind != "laplace"]
    wanted = min((extent * (1 if steps >= 10 else 10) for extent, steps in normal), default=max(ranges)) / cells
    return max(wanted, max(ranges) / (_WIDEST * cells))


def _search(cost: Callable[[float], float], most: float) -> float:
    """Return a noise that costs at most `most` and at least `_CLOSE` of it; cost falls as noise grows.

    Regula falsi on the logarithms, where cost is nearly a straight line, with a bisection where that is slow.
    """
    low, high = _bracket(cost, most)
    for turn in range(200):
        (left, dear), (right, cheap) = low, high
        if cheap >= _CLOSE * most or right / left < 1 + 1e-9:
            return right
        noise = math.sqrt(left * right)
        if turn % 3 < 2 and cheap > 0 and math.isfinite(dear):
            aim = math.log(most * (1 + _CLOSE) / 2)
            part = (math.log(dear) - aim) / (math.log(dear) - math.log(cheap))
            noise = left * (right / left) ** min(max(part, 0.02), 0.98)
        if (spent := cost(noise)) <= most:
            high = (noise, spent)
        else:
            low = (noise, spent)
    return high[0]


def _bracket(cost: Callable[[float], float], most: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return a noise that costs more than `most` and one that does not, with what they cost."""
    noise, spent = 1.0, cost(1.0)
    factor = 2.0 if spent > most else 0.5
    while True:
        following = noise * factor
        if following > _MOST_NOISE:
            raise PrivacyBudgetSpent(f"epsilon {most:g} leaves too little: no noise below {_MOST_NOISE:g} keeps to it")
        then = cost(following)
        if (then > most) != (spent > most):
            ends = sorted([(noise, spent), (following, then)])
            return ends[0], ends[1]
        noise, spent = following, then
