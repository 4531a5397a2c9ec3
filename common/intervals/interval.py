"""A value with its 95 % interval and p, and the least interval that holds several."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95

ALPHA = 0.05
"""A difference whose p is below this is clear."""

SMALLEST = 1e-9
"""Relative size of a difference below which it is rounding."""

UPPER = (1 + LEVEL) / 2
"""The upper of the two quantiles."""

_Z = NormalDist().inv_cdf(UPPER)


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval; the bounds are None where nothing can be said.

    Args:
        p: of differences, two-sided against 0; None without bounds.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Return both bounds; None where there are none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def sign(self) -> int:
        """Return 1 or -1 where the interval is above or below 0, otherwise 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def hull(value: float, parts: Sequence[Interval]) -> Interval:
    """Return the least interval that holds all parts, and the largest p; no bounds if one part has none."""
    lows, highs = [part.low for part in parts], [part.high for part in parts]
    ps = [part.p for part in parts]
    if any(one is None or math.isnan(one) for one in (*lows, *highs, *ps)):
        return Interval(value)
    return Interval(value, min(value, *lows), max(value, *highs), max(ps))  # type: ignore[type-var]  # ps are numbers where there are draws


def widened(one: Interval, noise: float, *, least: float, most: float) -> Interval:
    """Return the interval of a value that has noise on it: what was said of the value is said of what it stands for.

    Both limits move away from the value as independent errors add up, `sqrt(distance^2 + (1.96 noise)^2)`, and p is
    the larger of the former and of the normal one of the wider error towards 0, so that it is below 0.05 only where
    the interval leaves 0 out.

    Args:
        noise: standard deviation of the noise.
        least, most: what is possible.
    """
    if one.low is None or one.high is None or noise <= 0:
        return one
    extra = _Z * noise
    low = one.value - math.hypot(one.value - one.low, extra)
    high = one.value + math.hypot(one.high - one.value, extra)
    p = one.p
    if p is not None:
        towards = one.value - low if one.value > 0 else high - one.value
        p = max(p, math.erfc(_Z * abs(one.value) / towards / math.sqrt(2)))
    return Interval(one.value, max(low, least), min(high, most), p)


def within(one: Interval, least: float, most: float) -> Interval:
    """Return the interval with its bounds cut to what is possible."""
    if one.low is None or one.high is None:
        return one
    return Interval(one.value, max(one.low, least), min(one.high, most), one.p)
