"""Discrete Gaussian noise for many numbers: exactly its distribution, the same for one seed, and quick."""

import time

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from consilium.client.privacy.discrete_many import LARGEST, DiscreteGaussians

SEED, DRAWS = bytes(range(32)), 400_000


def fit(numbers: npt.NDArray[np.int64], deviation: float, *, wide: int) -> float:
    """Return the p-value of a chi-squared test against chances proportional to exp(-x^2 / (2 deviation^2)).

    The chances are summed number by number, from their formula; `wide` numbers at a time are counted together, and all
    that are expected fewer than ten times.
    """
    reach = wide * round(9 * deviation / wide + 1)
    values = np.arange(-reach, reach)
    chances = np.exp(-(values.astype(np.float64) ** 2) / (2 * deviation**2)).reshape(-1, wide).sum(axis=1)
    expected = len(numbers) * chances / chances.sum()
    seen = np.histogram(numbers, bins=np.arange(-reach, reach + 1, wide))[0]
    often = expected >= 10
    rest = len(numbers) - expected[often].sum()
    counts, wanted = [*seen[often], len(numbers) - seen[often].sum()], [*expected[often], rest]
    if rest < 10:
        counts, wanted = [counts[0] + counts[-1], *counts[1:-1]], [wanted[0] + wanted[-1], *wanted[1:-1]]
    return float(stats.chisquare(counts, wanted).pvalue)


@pytest.mark.parametrize(("deviation", "wide"), [(1, 1), (2, 1), (3, 1), (17, 1), (1000, 100), (100_000, 10_000)])
def test_numbers_have_the_distribution(deviation: int, wide: int) -> None:
    """P(x) is proportional to exp(-x^2 / 2 s^2), whether numbers are few or many; of 2 % more deviation it is not."""
    numbers = DiscreteGaussians(SEED, deviation).draw(DRAWS)
    assert fit(numbers, deviation, wide=wide) > 1e-3
    assert fit(numbers, 1.02 * deviation, wide=wide) < 1e-6


@pytest.mark.parametrize("deviation", [1, 5, 1000, 2**20 + 7, LARGEST])
def test_floating_point_decides_as_exact_arithmetic_does(deviation: int) -> None:
    """With every decision made in 100 decimal digits the numbers are the same, to the last one."""
    quick, exact = (DiscreteGaussians(SEED, deviation, margin=margin) for margin in (2.0**-40, 2.0))
    assert quick.draw(5000).tolist() == exact.draw(5000).tolist()


def test_numbers_follow_from_the_seed_and_how_many_are_drawn() -> None:
    """The same pieces of the same seed are the same numbers; another seed gives others, and neighbours differ."""
    one, same, other = (DiscreteGaussians(seed, 1000) for seed in (SEED, SEED, bytes(32)))
    first, second = one.draw(20_000), one.draw(20_000)
    assert np.array_equal(first, same.draw(20_000))
    assert np.array_equal(second, same.draw(20_000))
    for left, right in ((first, second), (first, other.draw(20_000)), (first[:-1], first[1:])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 5 / np.sqrt(20_000)


def test_largest_deviation_is_normal_in_shape() -> None:
    """Where chances cannot be summed one by one, they are the normal distribution's; its squares do not overflow."""
    numbers = DiscreteGaussians(SEED, LARGEST).draw(DRAWS)
    assert stats.kstest(numbers / LARGEST, "norm").pvalue > 1e-3
    assert numbers.std() == pytest.approx(LARGEST, rel=4 / np.sqrt(2 * DRAWS))


@pytest.mark.parametrize("deviation", [0, -1, LARGEST + 1])
def test_other_deviations_are_refused(deviation: int) -> None:
    """Beyond the largest, squares would not fit into 64 bits."""
    with pytest.raises(ValueError, match=f"deviation must be from 1 to {LARGEST}, got {deviation}"):
        DiscreteGaussians(SEED, deviation)


def test_a_million_numbers_take_no_minute() -> None:
    """About 0.1 microseconds each, where one at a time take 36; the limit leaves room for a busy core."""
    began, noise = time.process_time(), DiscreteGaussians(SEED, 1_000_000)
    for _ in range(16):
        noise.draw(2**16)
    assert time.process_time() - began < 5
