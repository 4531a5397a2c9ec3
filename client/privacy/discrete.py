"""Noise for whole numbers, drawn exactly: no floating point, and the operating system's own randomness.

Canonne, Kamath and Steinke: The Discrete Gaussian for Differential Privacy, NeurIPS 2020, algorithms 1, 2 and 3,
<https://arxiv.org/abs/2004.00010>. Floating-point noise has gaps that can give a number away (Mironov 2012); sums of
integers and comparisons of fractions have none.

    P(X = x) is proportional to exp(-|x| / scale)             discrete Laplace
    P(X = x) is proportional to exp(-x^2 / (2 sigma^2))       discrete Gaussian
"""

import math
import secrets
from collections.abc import Callable
from fractions import Fraction

Below = Callable[[int], int]
"""`below(n)` returns each of 0 .. n - 1 with the same chance."""


def discrete_laplace(scale: Fraction, *, below: Below = secrets.randbelow) -> int:
    """Return a whole number with discrete Laplace noise (algorithm 2).

    Args:
        scale: > 0; one more in a count changes the chance of any result by at most a factor of e^(1 / scale).
        below: where randomness comes from; anything but the default is for tests.
    """
    up, down = scale.numerator, scale.denominator
    while True:
        rest = below(up)
        if not _happens(Fraction(rest, up), below):
            continue
        whole = 0
        while _happens(Fraction(1), below):
            whole += 1
        size, negative = (rest + up * whole) // down, below(2) == 1
        if not (negative and size == 0):
            return -size if negative else size


def discrete_gaussian(variance: Fraction, *, below: Below = secrets.randbelow) -> int:
    """Return a whole number with discrete Gaussian noise (algorithm 3).

    Args:
        variance: sigma squared, > 0; the number's own variance is at most this.
        below: where randomness comes from; anything but the default is for tests.
    """
    scale = math.isqrt(variance.numerator // variance.denominator) + 1
    while True:
        drawn = discrete_laplace(Fraction(scale), below=below)
        off = abs(drawn) - variance / scale
        if _happens(off * off / (2 * variance), below):
            return drawn


def _happens(rate: Fraction, below: Below) -> bool:
    """Return True with a chance of exp(-rate), for rate >= 0 (algorithm 1)."""
    while rate > 1:
        if not _happens_once(Fraction(1), below):
            return False
        rate -= 1
    return _happens_once(rate, below)


def _happens_once(rate: Fraction, below: Below) -> bool:
    count = 1
    while below(rate.denominator * count) < rate.numerator:
        count += 1
    return count % 2 == 1
