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
from typing import Literal

import numpy as np
from scipy import special

from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.interval import UPPER, Interval, hull, within
from consilium.common.intervals.pairs import difference_of_counts, nobody_differs
from consilium.common.intervals.spread import (
    crossed,
    effective_of,
    mean_of,
    of_seeds,
    quantile,
    satterthwaite,
    spread_of,
    t_interval,
    unbiased,
)
from consilium.common.protocol.patients import LEAST_PATIENTS, Patients

LEAST_SPLITS = 5
"""From this many splits on, intervals are over splits; with fewer, but more than one, there are none."""

Kind = Literal["share", "number", "difference"]


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
        return difference_of_counts(counted)
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
    if effective_of(parts, shares) < LEAST_PATIENTS:
        return Interval(mean_of(parts, shares))
    counts = [one.counted for one in parts]
    if kind == "difference" and all(one is not None and one.moved == 0 for one in counts):
        return nobody_differs([one for one in counts if one is not None], shares)
    return _of_means(parts, shares, kind)


def over_splits(values: Sequence[float], *, test_to_train: float) -> Interval:
    """Return the mean over splits with its corrected t interval, and p against 0; one value has no bounds.

    Args:
        values: one per split, each a mean over its seeds.
        test_to_train: test rows per training row of a split.
    """
    each, count = np.asarray(values, dtype=np.float64), len(values)
    mean = float(each.mean())
    if count < 2 or (mean and np.ptp(each) == 0):  # all alike: there is no spread to judge by
        return Interval(mean)
    if not mean and np.ptp(each) == 0:
        return Interval(0.0, 0.0, 0.0, 1.0)
    return t_interval(mean, float((1 / count + test_to_train) * each.var(ddof=1)), count - 1)


def _of_means(evidences: Sequence[Evidence], shares: Sequence[float], kind: Kind) -> Interval:
    parts = crossed(evidences, shares)
    if kind == "number":
        number = hull(parts[0].value, parts[:2])
        return Interval(number.value, number.low, number.high)
    difference = hull(parts[0].value, parts)
    return within(difference, -1, 1) if all(one.whole for one in evidences) else difference


def _share(evidences: Sequence[Evidence], shares: Sequence[float]) -> Interval:
    """Return Jeffreys' interval of as many rows as the evidence is worth: never more than there are patients."""
    value, most = mean_of(evidences, shares), effective_of(evidences, shares)
    worth = most
    if 0 < value < 1:
        patients = [
            (share**2 * spread.variance / unbiased(one.effective), max(spread.patients - 1, 1.0))
            for share, one, spread in zip(shares, evidences, map(spread_of, evidences), strict=True)
        ]
        variance, freedom = satterthwaite(patients, of_seeds(evidences, shares))
        if variance > 0:
            fewer = 1.0 if most <= 1 else (quantile(most - 1) / quantile(min(freedom, most - 1))) ** 2
            worth = min(most, value * (1 - value) / variance * fewer)
    right, wrong = value * worth + 0.5, (1 - value) * worth + 0.5
    low, high = (float(special.betaincinv(right, wrong, q)) for q in (1 - UPPER, UPPER))
    return Interval(value, 0.0 if value <= 0 else min(low, value), 1.0 if value >= 1 else max(high, value))
