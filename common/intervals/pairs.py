"""Intervals of the difference of two shares from the patients at which two models differ."""

import math
from collections.abc import Sequence
from functools import lru_cache

import scipy  # its optimize is loaded when it is used first
from scipy import special

from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.interval import UPPER, Interval, hull, within
from consilium.common.intervals.spread import crossed
from consilium.common.protocol.patients import Patients


def nobody_differs(counts: Sequence[Patients], shares: Sequence[float]) -> Interval:
    """Return the interval of a mean over sites at none of which a patient differs: their spread is not known.

    Each site's own limit is that of Tango's interval of 0 to 0; those of independent sites add up as variances do.
    """
    half = math.hypot(*(share * (_tango(0, 0, one.num).high or 0.0) for one, share in zip(counts, shares, strict=True)))
    return Interval(0.0, -half, half, 1.0)


@lru_cache(maxsize=4096)
def difference_of_counts(counted: Patients) -> Interval:
    """Return the hull of the exact test's interval and of Tango's, or of t intervals of sums over patients."""
    value = counted.total / counted.rows
    parts = [_mid_p(counted)]
    if counted.sizes == counted.rows:
        parts.append(_tango(counted.worse, counted.better, counted.rows))
    elif len(of_sums := crossed([Evidence.of_patients(counted)], [1.0])) > 1:
        parts += of_sums
    else:  # all patients alike: Tango's interval of patients, in units of the difference
        scale = counted.moved / counted.rows or 1.0
        of_patients = _tango(counted.worse, counted.better, counted.num)
        low, high = of_patients.low or 0.0, of_patients.high or 0.0
        parts.append(Interval(value, scale * low, scale * high, of_patients.p))
    return within(hull(value, parts), -1, 1)


def _mid_p(counted: Patients) -> Interval:
    """Return the limits of the exact test of patients that differ, as mid-p, in units of the difference.

    Of `k = better + worse` patients that differ, `better ~ Binomial(k, share)`; a limit of `share` is one of
    `(2 share - 1) moved / rows`.
    """
    better, differ, scale = counted.better, counted.better + counted.worse, counted.moved / counted.rows
    value = counted.total / counted.rows
    if not differ:
        return Interval(value, 0.0, 0.0, 1.0)

    def above(share: float) -> float:  # P(X > better) + P(X = better) / 2
        return (_at_least(better, differ, share) + _at_least(better + 1, differ, share)) / 2

    tail = 1 - UPPER
    root = scipy.optimize.brentq
    low = 0.0 if better == 0 else float(root(lambda share: above(share) - tail, 0.0, 1.0, xtol=1e-14))
    high = 1.0 if better == differ else float(root(lambda share: 1 - above(share) - tail, 0.0, 1.0, xtol=1e-14))
    p = min(1.0, 2 * min(above(0.5), 1 - above(0.5)))
    return Interval(value, (2 * low - 1) * scale, (2 * high - 1) * scale, p)


def _at_least(count: int, of: int, share: float) -> float:
    """Return the chance of `count` or more of `of`, each with chance `share`: the incomplete beta function."""
    return 1.0 if count <= 0 else 0.0 if count > of else float(special.betainc(count, of - count + 1, share))


def _tango(worse: int, better: int, rows: int) -> Interval:
    """Return Tango's score interval (1998, equations 5 to 9), p that of McNemar's statistic without correction."""
    value, z = (better - worse) / rows, float(special.ndtri(UPPER))

    def score(delta: float) -> float:
        a = 2 * rows
        b = -better - worse + (2 * rows - better + worse) * delta
        c = -worse * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = rows * (2 * share + delta * (1 - delta))
        gap = better - worse - rows * delta
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

    def solve(target: float, low: float, high: float) -> float:
        limit = scipy.optimize.brentq(lambda delta: max(min(score(delta), 1e9), -1e9) - target, low, high, xtol=1e-14)
        return float(limit)

    low = -1.0 if value <= -1 else solve(z, -1.0, value)
    high = 1.0 if value >= 1 else solve(-z, value, 1.0)
    p = 1.0 if better == worse else float(special.erfc(abs(better - worse) / math.sqrt(2 * (better + worse))))
    return Interval(value, low, high, p)
