"""Whether new inputs look like those that a model was trained on, column by column.

Numbers are compared by the two-sample test of Kolmogorov and Smirnov at the points that the training summary keeps,
whose p-value is then an upper bound; where these are few, as for a column of 0 and 1, and for categories and missing
values, by Fisher's exact test of each share, times the number of shares. Holm's procedure (1979) over all tests keeps
the chance of any finding at or below 5 % where nothing differs. A finding also needs a population stability index of

    PSI = sum over bins of (p - q) ln(p / q) >= 0.05        p: new, q: training, half a patient added to every bin

so that a difference which only many rows make visible is none. Each patient counts once, as far as it is known whose
the rows are. Of a table with eleven columns, one of them off by so many standard deviations, this finds that column in
(`benchmarks/drift_power.py`; wrong: anything found where nothing differs):

    training patients   new ones   wrong    0.5    0.75    1.0
                   60         40     1 %    7 %    27 %   71 %
                  200         50     1 %   24 %    76 %   99 %
                 1000        200     3 %   95 %   100 %  100 %
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import scipy  # its stats are loaded when they are used first
from scipy import special

from consilium.client.data.base import Inputs
from consilium.client.served.summary import (
    Floats,
    Numbers,
    Observed,
    Shares,
    TrainingSummary,
    counts_at,
    counts_of,
    observed,
    observed_labels,
    quantiles,
    weights_of,
)
from consilium.common.intervals.evidence import Ints
from consilium.common.intervals.holm import holm

ALPHA = 0.05
LEAST_PSI = 0.05
"""A smaller difference is none, however many rows show it."""
LEAST_PATIENTS = 20
"""With fewer new patients nothing is said."""
_FEW_POINTS = 3
_LARGE = 25.0
"""With at least this many patients expected in every cell, chi-square's p-value is exact enough."""


@dataclass(frozen=True)
class Finding:
    """A column whose new values differ from those of training.

    Args:
        column: its name, as the sentence begins.
        p: adjusted for all tests (Holm).
        psi: the population stability index.
    """

    column: str
    sentence: str
    p: float
    psi: float


@dataclass(frozen=True)
class Drift:
    """What a comparison with the training rows found.

    Args:
        findings: those with the largest PSI first.
        num_tested: how many comparisons were made.
        unsaid: why nothing can be said; "" where something can.
    """

    findings: tuple[Finding, ...] = ()
    num_tested: int = 0
    unsaid: str = ""


@dataclass(frozen=True)
class _Test:
    """One comparison; the sentence is made only for a finding."""

    column: str
    p: float
    psi: float
    words: Callable[[], str]


def drift(summary: TrainingSummary, inputs: Inputs) -> Drift:
    """Compare inputs, as they are read, with the training rows; labels too where there are any.

    Args:
        inputs: neither filled nor scaled.
    """
    groups: Ints | None = None if inputs.groups is None else inputs.groups.numpy()
    weights = weights_of(groups, len(inputs))
    patients = round(float(weights.sum()))
    if patients < LEAST_PATIENTS:
        what = "rows" if groups is None else "patients"
        return Drift(unsaid=f"{patients} {what} are too few to be compared with training, expected {LEAST_PATIENTS}")
    tests = list(_tests(summary, inputs, weights))
    if not tests:
        return Drift(unsaid=f"the model was trained on {summary.patients} patients, too few to compare others with")
    adjusted = holm({str(place): test.p for place, test in enumerate(tests)})
    found = [
        Finding(test.column, _sentence(test, p), p, test.psi)
        for test, p in zip(tests, adjusted.values(), strict=True)
        if p is not None and p < ALPHA and test.psi >= LEAST_PSI
    ]
    return Drift(tuple(sorted(found, key=lambda one: (-one.psi, one.column))), len(tests))


def _tests(summary: TrainingSummary, inputs: Inputs, weights: Floats) -> Iterator[_Test]:
    kept: tuple[Numbers | Shares, ...] = (*summary.numbers, *summary.shares)
    known = {one.name: one for one in kept}
    columns = [(known.get(column.name), column) for column in observed(summary.task, inputs.x, inputs.features)]
    if inputs.y is not None:
        labels = observed_labels(summary.task, inputs.y)
        columns += zip(summary.labels or (summary.label,), labels, strict=True)
    for before, column in columns:
        if isinstance(before, Numbers):
            yield from _of_numbers(before, column, weights)
        elif before is not None:
            yield from _of_shares(before, column, weights)


def _of_numbers(before: Numbers, column: Observed, weights: Floats) -> Iterator[_Test]:
    missing = np.isnan(column.values)
    total = float(weights[~missing].sum())
    yield from _of_missing(before.name, before.missing, before.known, weights, missing)
    if not before.points or total < LEAST_PATIENTS:
        return
    points = sorted(set(before.points))
    places = [before.points.index(point) for point in points]
    old = _cumulative(np.array(before.below)[places], np.array(before.up_to)[places])
    new = _cumulative(*counts_at(column.values, weights, points))
    psi = _psi(np.diff(old, prepend=0, append=before.known), np.diff(new, prepend=0, append=total))
    if len(points) > _FEW_POINTS:
        largest = float(np.abs(old / before.known - new / total).max())
        p = float(special.kolmogorov(sqrt(before.known * total / (before.known + total)) * largest))
        yield _Test(before.name, p, psi, lambda: _of_quantiles(before, column, weights))
        return
    splits = [_fisher(a, before.known - a, b, total - b) for a, b in zip(old, new, strict=True)]
    at = int(np.argmin(splits))
    word = ("below", "at most")[at % 2]
    shares = new[at] / total, old[at] / before.known
    text = f"{word} {points[at // 2]:.4g} in {shares[0]:.0%}, in training in {shares[1]:.0%}"
    yield _Test(before.name, min(1.0, splits[at] * _num_different(old, new, before.known, total)), psi, lambda: text)


def _of_shares(before: Shares, column: Observed, weights: Floats) -> Iterator[_Test]:
    old, new = np.array([before.counts.get(name, 0.0) for name in column.categories]), counts_of(column, weights)
    yield from _of_missing(before.name, before.missing, float(old.sum()), weights, np.isnan(column.values))
    num_old, num_new = float(old.sum()), float(new.sum())
    if num_old < LEAST_PATIENTS or num_new < LEAST_PATIENTS:
        return
    each = [_fisher(a, num_old - a, b, num_new - b) for a, b in zip(old, new, strict=True)]
    at = int(np.argmin(each))
    present = int(((old > 0) | (new > 0)).sum())
    times = 1 if present <= 2 else present  # of two shares, one is the other's rest
    text = f"'{column.categories[at]}' in {new[at] / num_new:.0%}, in training in {old[at] / num_old:.0%}"
    yield _Test(before.name, min(1.0, each[at] * times), _psi(old, new), lambda: text)


def _of_missing(
    name: str, missing: float, known: float, weights: Floats, now: Sequence[bool] | object
) -> Iterator[_Test]:
    new = float(weights[np.asarray(now, dtype=bool)].sum())
    total, before = float(weights.sum()), missing + known
    if (missing or new) and before >= LEAST_PATIENTS:
        p = _fisher(missing, known, new, total - new)
        psi = _psi(np.array([missing, known]), np.array([new, total - new]))
        text = f"the value is missing in {new / total:.0%}, in training in {missing / before:.0%}"
        yield _Test(name, p, psi, lambda: text)


def _of_quantiles(before: Numbers, column: Observed, weights: Floats) -> str:
    """Return what differs in words: the median, or else how far the values reach."""
    low, median, high = quantiles(column.values, weights, (0.1, 0.5, 0.9))
    middle, edge = len(before.points) // 2, len(before.points) // 2 - 4
    if before.points[middle - 1] <= median <= before.points[middle + 1]:
        return (
            f"the middle 80 % lie between {low:.4g} and {high:.4g}, in training between {before.points[edge]:.4g} and "
            f"{before.points[-1 - edge]:.4g}"
        )
    return f"the median is {median:.4g}, in training {before.points[middle]:.4g}"


def _cumulative(below: Floats, up_to: Floats) -> Floats:
    """Return the counts below and up to each point in turn."""
    return np.stack([below, up_to], axis=1).ravel()


def _num_different(old: Floats, new: Floats, num_old: float, num_new: float) -> int:
    """Return how many of the splits are not the same one again, nor one that nobody lies beyond."""
    pairs = {(a, b) for a, b in zip(old.tolist(), new.tolist(), strict=True)}
    return max(1, len(pairs - {(0.0, 0.0), (num_old, num_new)}))


def _fisher(old_in: float, old_out: float, new_in: float, new_out: float) -> float:
    table = np.maximum(np.round([[old_in, old_out], [new_in, new_out]]), 0)
    if not table.sum(axis=0).all() or not table.sum(axis=1).all():
        return 1.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    if expected.min() >= _LARGE:
        return float(scipy.stats.chi2_contingency(table, correction=False).pvalue)
    return float(scipy.stats.fisher_exact(table.astype(np.int64)).pvalue)


def _psi(old: Floats, new: Floats) -> float:
    bins = (old > 0) | (new > 0)
    q, p = old[bins] + 0.5, new[bins] + 0.5
    q, p = q / q.sum(), p / p.sum()
    return float(((p - q) * np.log(p / q)).sum())


def _sentence(test: _Test, p: float) -> str:
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{test.column}: {test.words()} ({shown}, PSI {test.psi:.2f})"
