"""Concordance: of two patients of whom it is known who had the event first, was that one given the higher risk?

Harrell, Califf, Pryor, Lee, Rosati, "Evaluating the Yield of Medical Tests", JAMA 1982,
doi:10.1001/jama.1982.03320430047030. A pair (i, j) is comparable if i had the event, and j was seen later than that, or
was censored at the same time; pairs with an event each at the same time are not. With the risks r

    c = sum over comparable pairs of w_i ([r_i > r_j] + 1/2 [r_i = r_j]) / sum over comparable pairs of w_i

Harrell's c has w = 1. It depends on who was censored when. Uno's c (Uno, Cai, Pencina, D'Agostino, Wei, "On the
C-statistics for evaluating overall adequacy of risk prediction procedures with censored survival data", Statistics in
Medicine 2011, doi:10.1002/sim.4154, equation 6) has w_i = 1 / G(t_i)^2, where G is the Kaplan-Meier curve of being
censored, of training patients.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from consilium.common.survival.curves import censoring
from consilium.common.survival.times import Floats, Times

_CELLS_AT_ONCE = 4_000_000


def harrell(of: Times, risks: Floats) -> float | None:
    """Return Harrell's c of risks `(N,)`, in [0, 1]; None where no two patients can be compared."""
    return _concordance(of, risks, np.ones(len(of)))


def uno(of: Times, risks: Floats, *, training: Times) -> float | None:
    """Return Uno's c of risks `(N,)`, in [0, 1].

    Args:
        training: the patients whose censoring the weights are of.

    None where no two patients can be compared, and where a patient had the event when every training patient was
    censored already, so that nothing is known of how many are.
    """
    weights = censoring_weights(of, training=training)
    return None if weights is None else _concordance(of, risks, weights)


def censoring_weights(of: Times, *, training: Times) -> Floats | None:
    """Return what Uno's c multiplies each patient's pairs by `(N,)`; None where it is not known, as in `uno`."""
    left = censoring(training).at(of.times)
    if not len(training) or (left[of.events] <= 0).any():
        return None
    return np.asarray(np.divide(1.0, left**2, out=np.zeros_like(left), where=left > 0))


def of_draws(of: Times, risks: Floats, times_drawn: Floats, weights: Floats | None = None) -> Floats:
    """Return Harrell's c in draws of the patients `(D,)`; NaN where a draw has no two that can be compared.

    Args:
        times_drawn: how often each patient is in each draw `(D, N)`.
        weights: of each patient's pairs `(N,)`, for Uno's c; None: 1 for all.
    """
    weights = np.ones(len(of)) if weights is None else weights
    right, all_pairs = np.zeros(len(times_drawn)), np.zeros(len(times_drawn))
    for rows, comparable, ordered in _pairs(of, risks):
        first = times_drawn[:, rows] * weights[rows]
        right += (first * (times_drawn @ (comparable * ordered).T)).sum(axis=1)
        all_pairs += (first * (times_drawn @ comparable.T)).sum(axis=1)
    return np.asarray(np.divide(right, all_pairs, out=np.full(len(right), np.nan), where=all_pairs > 0))


def _concordance(of: Times, risks: Floats, weights: Floats) -> float | None:
    right = total = 0.0
    for rows, comparable, ordered in _pairs(of, risks):
        right += float(weights[rows] @ (comparable * ordered).sum(axis=1))
        total += float(weights[rows] @ comparable.sum(axis=1))
    return right / total if total > 0 else None


def _pairs(of: Times, risks: Floats) -> Iterator[tuple[NDArray[np.int64], Floats, Floats]]:
    """Yield patients with an event `(B,)`, whom each can be compared with `(B, N)`, and whether the order is right."""
    for rows in _in_blocks(np.flatnonzero(of.events), max(1, _CELLS_AT_ONCE // max(1, len(of)))):
        at, risk = of.times[rows, None], risks[rows, None]
        comparable = (of.times > at) | ((of.times == at) & ~of.events)
        ordered = (risk > risks) + 0.5 * (risk == risks)
        yield rows, comparable.astype(np.float64), ordered


def _in_blocks(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
