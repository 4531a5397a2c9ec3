"""How a mean moves over redraws of patients and over seeds, and the intervals that follow from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from consilium.common.intervals.evidence import Evidence, Floats
from consilium.common.intervals.interval import ALPHA, SMALLEST, UPPER, Interval
from consilium.common.protocol.patients import by_patient


@dataclass(frozen=True)
class Spread:
    """How the mean of one site moves over redraws of its patients.

    Args:
        variance, third: second and third cumulant of the mean.
        patients: from how many of equal size these are known.
        moved: patients that add anything but 0.
    """

    variance: float
    third: float
    patients: float
    moved: int


def mean_of(evidences: Sequence[Evidence], shares: Sequence[float]) -> float:
    """Return the weighted mean over sites of the means over seeds."""
    return math.fsum(share * float(one.values.mean()) for one, share in zip(evidences, shares, strict=True))


def effective_of(evidences: Sequence[Evidence], shares: Sequence[float]) -> float:
    """Return how many patients of equal weight tell as much as those of all sites (Kish 1965)."""
    return 1 / math.fsum(share**2 / one.effective for one, share in zip(evidences, shares, strict=True))


def spread_of(evidence: Evidence) -> Spread:
    """Return how one site's mean moves over redraws of its patients: from draws, from exact sums, or from its rows."""
    effective = evidence.effective
    if evidence.draws is not None:
        return _spread_of_draws(evidence.draws.mean(axis=0), effective, evidence.spread_over)
    if (counted := evidence.counted) is not None:
        mean, moved = counted.total / counted.rows, counted.better + counted.worse
        squares = counted.squares - 2 * mean * counted.cross + mean**2 * counted.sizes
        return Spread(max(squares, 0.0) / counted.rows**2 * unbiased(effective), 0.0, evidence.spread_over, moved)
    assert evidence.rows is not None
    totals, sizes = by_patient(evidence.rows.mean(axis=0, keepdims=True), evidence.groups)
    residuals, rows = totals[0] - evidence.values.mean() * sizes, sizes.sum()
    if np.ptp(evidence.rows) == 0:  # not a spread: rounding
        residuals = np.zeros(len(sizes))
    variance = float((residuals**2).sum() / rows**2) * unbiased(effective)
    third = 0.0 if evidence.whole else float((residuals**3).sum() / rows**3) * _unbiased_third(evidence.spread_over)
    added = np.abs(totals[0])
    return Spread(variance, third, evidence.spread_over, int((added > SMALLEST * added.max()).sum()))


def _spread_of_draws(draws: Floats, effective: float, patients: float) -> Spread:
    known = draws[~np.isnan(draws)]
    if len(known) < max(2, len(draws) / 2):  # mostly undefined: the rest is about something else
        return Spread(math.nan, math.nan, patients, 0)
    variance, third = float(known.var()), float(((known - known.mean()) ** 3).mean())
    by_chance = math.sqrt(6 / len(known)) * variance**1.5  # the standard error of a normal's skewness
    third = math.copysign(max(abs(third) - by_chance, 0.0), third) * _unbiased_third(effective)
    return Spread(variance * unbiased(effective), third, patients, int(effective) if np.ptp(known) > SMALLEST else 0)


def unbiased(num: float) -> float:
    """Return `n / (n - 1)`, by which the variance of n patients is too small."""
    return num / (num - 1) if num > 1 else 1.0


def _unbiased_third(num: float) -> float:
    return num**2 / ((num - 1) * (num - 2)) if num > 2 else 1.0


def of_seeds(evidences: Sequence[Evidence], shares: Sequence[float]) -> list[tuple[float, float]]:
    """Return the variance of the mean over the seeds and its degrees of freedom; nothing for one seed."""
    values = np.sum([share * one.values for one, share in zip(evidences, shares, strict=True)], axis=0)
    return [(float(values.var(ddof=1)) / len(values), len(values) - 1.0)] if len(values) > 1 else []


def satterthwaite(patients: Sequence[tuple[float, float]], seeds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the sum of variances, and its degrees of freedom `V^2 / sum(v^2 / f)` from those of its parts.

    For the degrees of freedom alone the variance of seeds counts `1 + 4 / f^2` times: known from few, it is too often
    estimated too small, and the degrees of freedom of the others would stand in for its own.
    """
    parts = [*patients, *((one * (1 + 4 / freedom**2), freedom) for one, freedom in seeds)]
    below = math.fsum(one**2 / freedom for one, freedom in parts if one)
    freedom = math.fsum(one for one, _ in parts) ** 2 / below if below else max(freedom for _, freedom in parts)
    return math.fsum(one for one, _ in (*patients, *seeds)), freedom


def crossed(evidences: Sequence[Evidence], shares: Sequence[float]) -> list[Interval]:
    """Return the intervals of a mean over sites, from the spread of patients and of seeds.

    A t interval, the same with its skewness taken out, and what so few patients that moved can say at all.
    """
    value, spreads = mean_of(evidences, shares), [spread_of(one) for one in evidences]
    pairs = list(zip(shares, spreads, strict=True))
    patients = [(share**2 * one.variance, max(one.patients - 1, 1.0)) for share, one in pairs]
    variance, freedom = satterthwaite(patients, of_seeds(evidences, shares))
    moved = sum(one.moved for one in spreads)
    if not variance > 0:
        return [Interval(value, 0.0, 0.0, 1.0) if not value and variance == 0 and not moved else Interval(value)]
    third = math.fsum(share**3 * one.third for share, one in pairs)
    return [t_interval(value, variance, freedom), _unskewed(value, variance, third, freedom), _fewest(value, moved)]


def quantile(freedom: float) -> float:
    """Return the upper quantile of Student's t."""
    return float(special.stdtrit(freedom, UPPER))


def t_interval(value: float, variance: float, freedom: float) -> Interval:
    """Return the t interval of a value with the variance of its mean."""
    error = math.sqrt(variance)
    half = quantile(freedom) * error
    return Interval(value, value - half, value + half, float(2 * special.stdtr(freedom, -abs(value) / error)))


def _unskewed(value: float, variance: float, third: float, freedom: float) -> Interval:
    """Return Hall's (1992) interval: of `g(t) = t + a t^2 / 3 + a^2 t^3 / 27 + a / 6`, `a` the skewness of the mean."""
    error, a = math.sqrt(variance), third / variance**1.5
    if abs(a) < SMALLEST:
        return t_interval(value, variance, freedom)

    def back(g: float) -> float:
        return float(3 / a * (np.cbrt(1 + a * (g - a / 6)) - 1))

    t, q = value / error, quantile(freedom)
    p = float(2 * special.stdtr(freedom, -abs(t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6)))
    return Interval(value, value - back(q) * error, value - back(-q) * error, p)


def _fewest(value: float, moved: int) -> Interval:
    """Return what `moved` patients can say at most: all to one side has the chance `2^(1 - moved)` by signs alone."""
    p = min(1.0, 2.0 ** (1 - moved))
    return Interval(value, min(value, 0.0), max(value, 0.0), p) if p >= ALPHA else Interval(value, value, value, p)
