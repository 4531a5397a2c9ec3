"""95 % intervals and p-values of shares, numbers and differences: of one site, over sites, over splits.

Every interval is checked by `benchmarks/coverage.py`; what it needs and what is known of it:

- a share of rows, one seed: Jeffreys' interval (Brown, Cai and DasGupta 2001, "Interval Estimation for a Binomial
  Proportion", Statistical Science 16(2), section 4.1.1, doi:10.1214/ss/1009213286). Patients with several rows and
  several seeds make the number of rows smaller to what they are worth (Korn and Graubard 1998, "Confidence Intervals
  for Proportions with Small Expected Number of Positive Counts", Survey Methodology 24(2));
- a difference of two shares, one seed: clear only if two tests say so, so the interval is the hull of two. The exact
  test of the pairs that differ, as mid-p (McNemar 1947; Fagerland, Lydersen and Laake 2013,
  doi:10.1186/1471-2288-13-91), whose limits of the share among these pairs are carried over to the difference; and the
  score interval of Tango (1998, "Equivalence Test and Confidence Interval for the Difference in Proportions for the
  Paired-Sample Design", Statistics in Medicine 17(8)). Patients with several rows: the mid-p test counts patients by
  what their rows come to, and t intervals of their sums take the place of Tango's;
- several seeds: seeds and patients are crossed random effects; the variance of the mean is the sum of what both show,
  `var(seeds) / S + var(patients) / n`, with Satterthwaite's (1946) degrees of freedom. That counts the variance of
  single answers twice, so it is wide rather than narrow. Over sites, the parts of all patients are added: patients of
  sites are independent, seeds are the same at all of them;
- numbers: the same, as the hull with the interval of Hall (1992, "On the Removal of Skewness by Transformation",
  Journal of the Royal Statistical Society B 54(1), doi:10.1111/j.2517-6161.1992.tb01878.x). Rare errors that are far
  larger than all others, and not among the test rows, no interval can know of;
- however alike differences are: with `k` patients at which anything differs, p is at least `2^(1 - k)`, the chance
  that the signs alone fall to one side. So nothing is clear from fewer than 6;
- splits: training rows overlap, so the variance is corrected (Nadeau and Bengio 2003, "Inference for the
  Generalization Error", doi:10.1023/A:1024068626366).

p is two-sided against 0 and the largest of the tests': it is below 0.05 exactly where the interval leaves 0 out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, special, stats

from common.data.patients import LEAST_PATIENTS, Patients, by_patient
from consilium.findings.evidence import Evidence, Floats

LEVEL = 0.95
ALPHA = 0.05
"""A p below it is clear."""
LEAST_SPLITS = 5
"""From here on intervals are over splits; with fewer, but more than one, there are none."""
SMALLEST = 1e-9
"""Relative; below it a difference is rounding."""

Kind = Literal["share", "number", "difference"]
_UPPER = (1 + LEVEL) / 2


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
    def sign(self) -> int:
        """Return 1 or -1 where the interval is above or below 0, otherwise 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


# --- from counts alone -------------------------------------------------------------------------------


def share_of(right: int, num: int, *, patients: Patients | None = None) -> Interval:
    """Return the share of right answers with Jeffreys' interval.

    Args:
        patients: the sums of right answers, where patients have several rows; None: every row is a patient.

    Raises:
        ValueError: not 0 <= right <= num, or num < 1.
    """
    if not 0 <= right <= num or num < 1:
        raise ValueError(f"{right} right of {num}: expected 0 to {num} of at least 1")
    return interval_of(Evidence.of_patients(patients or Patients.single(num, right, 0)), kind="share")


def paired(pairs: tuple[int, int, int, int], *, patients: Patients | None = None) -> Interval:
    """Return the difference joined minus alone of the shares of right answers, from the same rows.

    Args:
        pairs: rows that both have right, only alone, only joined, neither.
        patients: the sums of (joined right - alone right), where patients have several rows.

    Raises:
        ValueError: a negative count, or no row at all.
    """
    _, only_alone, only_joined, _ = pairs
    if min(pairs) < 0 or sum(pairs) < 1:
        raise ValueError(f"pairs {pairs}: expected four counts from 0, at least one row")
    return interval_of(
        Evidence.of_patients(patients or Patients.single(sum(pairs), only_joined, only_alone)), kind="difference"
    )


# --- one site, several sites, several splits -----------------------------------------------------------


def interval_of(evidence: Evidence, *, kind: Kind) -> Interval:
    """Return the mean over seeds with its interval, of one site.

    Args:
        kind: a `share` in [0, 1] of one model, a `number` of one model, or the `difference` of two models.
    """
    value, counted = float(evidence.values.mean()), evidence.counted
    if kind == "share":
        return _share([evidence], [1.0])
    if evidence.effective < LEAST_PATIENTS:
        return Interval(value)
    if kind == "difference" and counted is not None:
        return _difference_of_counts(counted)
    return _of_means([evidence], [1.0], kind)


def over_sites(evidences: Sequence[Evidence], weights: Sequence[float], *, kind: Kind) -> Interval:
    """Return the weighted mean over sites with its interval: patients of sites are independent, seeds are the same.

    Args:
        evidences: one per site, all of the same seeds in the same order.
        weights: one per site, not negative; only their shares count.

    Raises:
        ValueError: there is no site, or weights that cannot be.
    """
    if not evidences or len(evidences) != len(weights) or min(weights) < 0 or not sum(weights):
        raise ValueError(f"{len(evidences)} sites with weights {list(weights)}: expected one each, from 0, not all 0")
    known = [(one, weight / math.fsum(weights)) for one, weight in zip(evidences, weights, strict=True) if weight]
    if len(known) == 1:
        return interval_of(known[0][0], kind=kind)
    parts, shares = [one for one, _ in known], [share for _, share in known]
    if kind == "share":
        return _share(parts, shares)
    if _effective(parts, shares) < LEAST_PATIENTS:
        return Interval(_mean(parts, shares))
    counts = [one.counted for one in parts]
    if kind == "difference" and all(one is not None and one.moved == 0 for one in counts):
        return _nobody_differs([one for one in counts if one is not None], shares)
    return _of_means(parts, shares, kind)


def _nobody_differs(counts: Sequence[Patients], shares: Sequence[float]) -> Interval:
    """Return the interval of a mean over sites at none of which a patient differs: no spread is seen, none is known.

    Each site's own limit is that of Tango's interval of 0 to 0; those of independent sites add up as variances do.
    """
    half = math.hypot(*(share * (_tango(0, 0, one.num).high or 0.0) for one, share in zip(counts, shares, strict=True)))
    return Interval(0.0, -half, half, 1.0)


def over_splits(values: Sequence[float], *, test_to_train: float) -> Interval:
    """Return the mean over splits with its corrected t interval, and p against 0; one value has no bounds.

    Args:
        values: one per split, each a mean over its seeds.
        test_to_train: test rows per training row of a split.
    """
    found, count = np.asarray(values, dtype=np.float64), len(values)
    mean = float(found.mean())
    if count < 2 or (mean and np.ptp(found) == 0):  # all alike: there is no spread to judge by
        return Interval(mean)
    if not mean and np.ptp(found) == 0:
        return Interval(0.0, 0.0, 0.0, 1.0)
    return _t(mean, float((1 / count + test_to_train) * found.var(ddof=1)), count - 1)


def _of_means(evidences: Sequence[Evidence], shares: Sequence[float], kind: Kind) -> Interval:
    parts = _crossed(evidences, shares)
    if kind == "number":
        found = _hull(parts[0].value, parts[:2])
        return Interval(found.value, found.low, found.high)
    found = _hull(parts[0].value, parts)
    return _within(found, -1, 1) if all(one.whole for one in evidences) else found


# --- shares ------------------------------------------------------------------------------------------


def _share(evidences: Sequence[Evidence], shares: Sequence[float]) -> Interval:
    """Return Jeffreys' interval of as many rows as the evidence is worth: never more than there are patients."""
    value, most = _mean(evidences, shares), _effective(evidences, shares)
    worth = most
    if 0 < value < 1:
        patients = [
            (share**2 * spread.variance / _unbiased(one.effective), max(spread.patients - 1, 1.0))
            for share, one, spread in zip(shares, evidences, map(_spread, evidences), strict=True)
        ]
        variance, freedom = _satterthwaite(patients, _of_seeds(evidences, shares))
        if variance > 0:
            fewer = 1.0 if most <= 1 else (_quantile(most - 1) / _quantile(min(freedom, most - 1))) ** 2
            worth = min(most, value * (1 - value) / variance * fewer)
    low, high = (float(stats.beta.ppf(q, value * worth + 0.5, (1 - value) * worth + 0.5)) for q in (1 - _UPPER, _UPPER))
    return Interval(value, 0.0 if value <= 0 else min(low, value), 1.0 if value >= 1 else max(high, value))


@lru_cache(maxsize=4096)
def _difference_of_counts(counted: Patients) -> Interval:
    value = counted.total / counted.rows
    parts = [_mid_p(counted)]
    if counted.sizes == counted.rows:
        parts.append(_tango(counted.worse, counted.better, counted.rows))
    elif len(crossed := _crossed([Evidence.of_patients(counted)], [1.0])) > 1:
        parts += crossed
    else:  # all patients alike: Tango's interval of patients, in units of the difference
        scale = counted.moved / counted.rows or 1.0
        of_patients = _tango(counted.worse, counted.better, counted.num)
        low, high = of_patients.low or 0.0, of_patients.high or 0.0
        parts.append(Interval(value, scale * low, scale * high, of_patients.p))
    return _within(_hull(value, parts), -1, 1)


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
        return float(stats.binom.sf(better, differ, share) + stats.binom.pmf(better, differ, share) / 2)

    tail = 1 - _UPPER
    low = 0.0 if better == 0 else float(optimize.brentq(lambda share: above(share) - tail, 0.0, 1.0, xtol=1e-14))
    high = (
        1.0 if better == differ else float(optimize.brentq(lambda share: 1 - above(share) - tail, 0.0, 1.0, xtol=1e-14))
    )
    p = min(1.0, 2 * min(above(0.5), 1 - above(0.5)))
    return Interval(value, (2 * low - 1) * scale, (2 * high - 1) * scale, p)


def _tango(worse: int, better: int, rows: int) -> Interval:
    """Return Tango's score interval (1998, equations 5 to 9), p that of McNemar's statistic without correction."""
    value, z = (better - worse) / rows, float(stats.norm.ppf(_UPPER))

    def score(delta: float) -> float:
        a = 2 * rows
        b = -better - worse + (2 * rows - better + worse) * delta
        c = -worse * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = rows * (2 * share + delta * (1 - delta))
        gap = better - worse - rows * delta
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

    def solve(target: float, low: float, high: float) -> float:
        found = optimize.brentq(lambda delta: max(min(score(delta), 1e9), -1e9) - target, low, high, xtol=1e-14)
        return float(found)

    low = -1.0 if value <= -1 else solve(z, -1.0, value)
    high = 1.0 if value >= 1 else solve(-z, value, 1.0)
    p = 1.0 if better == worse else float(special.erfc(abs(better - worse) / math.sqrt(2 * (better + worse))))
    return Interval(value, low, high, p)


# --- seeds and patients ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spread:
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


def _mean(evidences: Sequence[Evidence], shares: Sequence[float]) -> float:
    return math.fsum(share * float(one.values.mean()) for one, share in zip(evidences, shares, strict=True))


def _effective(evidences: Sequence[Evidence], shares: Sequence[float]) -> float:
    """Return how many patients of equal weight tell as much as those of all sites (Kish 1965)."""
    return 1 / math.fsum(share**2 / one.effective for one, share in zip(evidences, shares, strict=True))


def _spread(evidence: Evidence) -> _Spread:
    effective = evidence.effective
    if evidence.draws is not None:
        return _spread_of_draws(evidence.draws.mean(axis=0), effective, evidence.spread_over)
    if (counted := evidence.counted) is not None:
        mean, moved = counted.total / counted.rows, counted.better + counted.worse
        squares = counted.squares - 2 * mean * counted.cross + mean**2 * counted.sizes
        return _Spread(max(squares, 0.0) / counted.rows**2 * _unbiased(effective), 0.0, evidence.spread_over, moved)
    assert evidence.rows is not None
    totals, sizes = by_patient(evidence.rows.mean(axis=0, keepdims=True), evidence.groups)
    residuals, rows = totals[0] - evidence.values.mean() * sizes, sizes.sum()
    if np.ptp(evidence.rows) == 0:  # not a spread: rounding
        residuals = np.zeros(len(sizes))
    variance = float((residuals**2).sum() / rows**2) * _unbiased(effective)
    third = 0.0 if evidence.whole else float((residuals**3).sum() / rows**3) * _unbiased_third(evidence.spread_over)
    added = np.abs(totals[0])
    return _Spread(variance, third, evidence.spread_over, int((added > SMALLEST * added.max()).sum()))


def _spread_of_draws(draws: Floats, effective: float, patients: float) -> _Spread:
    known = draws[~np.isnan(draws)]
    if len(known) < max(2, len(draws) / 2):  # mostly undefined: the rest tells of something else
        return _Spread(math.nan, math.nan, patients, 0)
    variance, third = float(known.var()), float(((known - known.mean()) ** 3).mean())
    by_chance = math.sqrt(6 / len(known)) * variance**1.5  # the standard error of a normal's skewness
    third = math.copysign(max(abs(third) - by_chance, 0.0), third) * _unbiased_third(effective)
    return _Spread(variance * _unbiased(effective), third, patients, int(effective) if np.ptp(known) else 0)


def _unbiased(num: float) -> float:
    return num / (num - 1) if num > 1 else 1.0


def _unbiased_third(num: float) -> float:
    return num**2 / ((num - 1) * (num - 2)) if num > 2 else 1.0


def _of_seeds(evidences: Sequence[Evidence], shares: Sequence[float]) -> list[tuple[float, float]]:
    """Return the variance of the mean over the seeds and its degrees of freedom; nothing for one seed."""
    values = np.sum([share * one.values for one, share in zip(evidences, shares, strict=True)], axis=0)
    return [(float(values.var(ddof=1)) / len(values), len(values) - 1.0)] if len(values) > 1 else []


def _satterthwaite(
    patients: Sequence[tuple[float, float]], seeds: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Return the sum of variances, and its degrees of freedom `V^2 / sum(v^2 / f)` from those of its parts.

    For the degrees of freedom alone the variance of seeds counts `1 + 4 / f^2` times: known from few, it is too often
    found too small, and the degrees of freedom of the others would stand in for its own.
    """
    parts = [*patients, *((one * (1 + 4 / freedom**2), freedom) for one, freedom in seeds)]
    below = math.fsum(one**2 / freedom for one, freedom in parts if one)
    freedom = math.fsum(one for one, _ in parts) ** 2 / below if below else max(freedom for _, freedom in parts)
    return math.fsum(one for one, _ in (*patients, *seeds)), freedom


def _crossed(evidences: Sequence[Evidence], shares: Sequence[float]) -> list[Interval]:
    """Return the intervals of a mean over sites, from the spread of patients and of seeds.

    A t interval, the same with its skewness taken out, and what so few patients that moved can say at all.
    """
    value, spreads = _mean(evidences, shares), [_spread(one) for one in evidences]
    pairs = list(zip(shares, spreads, strict=True))
    patients = [(share**2 * one.variance, max(one.patients - 1, 1.0)) for share, one in pairs]
    variance, freedom = _satterthwaite(patients, _of_seeds(evidences, shares))
    moved = sum(one.moved for one in spreads)
    if not variance > 0:
        return [Interval(value, 0.0, 0.0, 1.0) if not value and variance == 0 and not moved else Interval(value)]
    third = math.fsum(share**3 * one.third for share, one in pairs)
    return [_t(value, variance, freedom), _unskewed(value, variance, third, freedom), _fewest(value, moved)]


def _quantile(freedom: float) -> float:
    return float(special.stdtrit(freedom, _UPPER))


def _t(value: float, variance: float, freedom: float) -> Interval:
    error = math.sqrt(variance)
    half = _quantile(freedom) * error
    return Interval(value, value - half, value + half, float(2 * special.stdtr(freedom, -abs(value) / error)))


def _unskewed(value: float, variance: float, third: float, freedom: float) -> Interval:
    """Return Hall's (1992) interval: of `g(t) = t + a t^2 / 3 + a^2 t^3 / 27 + a / 6`, `a` the skewness of the mean."""
    error, a = math.sqrt(variance), third / variance**1.5
    if abs(a) < SMALLEST:
        return _t(value, variance, freedom)

    def back(g: float) -> float:
        return float(3 / a * (np.cbrt(1 + a * (g - a / 6)) - 1))

    t, q = value / error, _quantile(freedom)
    p = float(2 * special.stdtr(freedom, -abs(t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6)))
    return Interval(value, value - back(q) * error, value - back(-q) * error, p)


def _fewest(value: float, moved: int) -> Interval:
    """Return what `moved` patients can say at most: all to one side has the chance `2^(1 - moved)` by signs alone."""
    p = min(1.0, 2.0 ** (1 - moved))
    return Interval(value, min(value, 0.0), max(value, 0.0), p) if p >= ALPHA else Interval(value, value, value, p)


# --- hulls -------------------------------------------------------------------------------------------------


def _hull(value: float, parts: Sequence[Interval]) -> Interval:
    """Return the least interval that holds all parts, and the largest p; no bounds if one part has none."""
    lows, highs = [part.low for part in parts], [part.high for part in parts]
    ps = [part.p for part in parts]
    if any(one is None or math.isnan(one) for one in (*lows, *highs, *ps)):
        return Interval(value)
    return Interval(value, min(value, *lows), max(value, *highs), max(ps))  # type: ignore[type-var]


def _within(found: Interval, least: float, most: float) -> Interval:
    if found.low is None or found.high is None:
        return found
    return Interval(found.value, max(found.low, least), min(found.high, most), found.p)
