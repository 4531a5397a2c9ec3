"""Noise of whole numbers: it has the distributions that its privacy rests on."""

import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from consilium.client.privacy.discrete import discrete_gaussian, discrete_laplace

DRAWS = 20_000


def _fits(found: list[int], chance: np.ndarray, values: np.ndarray) -> float:
    """Return the p-value of a chi-squared test; values that are expected fewer than ten times count together."""
    counts = Counter(found)
    expected = DRAWS * chance / chance.sum()
    often = expected >= 10
    seen = np.array([counts[int(value)] for value in values[often]], dtype=float)
    rest = DRAWS - expected[often].sum()
    return float(stats.chisquare([*seen, DRAWS - seen.sum()], [*expected[often], rest]).pvalue)


@pytest.mark.parametrize("scale", [Fraction(1, 3), Fraction(1), Fraction(20, 3), Fraction(0.15) ** -1])
def test_laplace_has_its_distribution(scale: Fraction) -> None:
    """P(x) is proportional to exp(-|x| / scale)."""
    values = np.arange(-400, 401)
    below = random.Random(11).randrange
    found = [discrete_laplace(scale, below=below) for _ in range(DRAWS)]
    assert _fits(found, np.exp(-np.abs(values) / float(scale)), values) > 1e-3


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.7, 12.0])
def test_gaussian_has_its_distribution(deviation: float) -> None:
    """P(x) is proportional to exp(-x^2 / 2 sigma^2)."""
    values = np.arange(-100, 101)
    below = random.Random(13).randrange
    found = [discrete_gaussian(Fraction(deviation) ** 2, below=below) for _ in range(DRAWS)]
    assert _fits(found, np.exp(-(values.astype(float) ** 2) / 2 / deviation**2), values) > 1e-3


def test_noise_is_never_the_same_twice() -> None:
    """Without another source it comes from the operating system: 200 numbers are not those of another call."""
    one, other = ([discrete_gaussian(Fraction(10_000)) for _ in range(200)] for _ in range(2))
    assert one != other
