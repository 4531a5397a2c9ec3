"""How well one label is ranked: the area under its ROC curve, over the examples of which it is known.

Hanley, McNeil: The Meaning and Use of the Area under a Receiver Operating Characteristic (ROC) Curve, Radiology 1982,
doi:10.1148/radiology.143.1.7063747. With the scores s of positive examples i and negative examples j, of which each is
there w times,

    AUROC = sum over pairs w_i w_j ([s_i > s_j] + 1/2 [s_i = s_j]) / sum over pairs w_i w_j
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_CELLS_AT_ONCE = 4_000_000


def auroc(positive: Mask, scores: Floats) -> float | None:
    """Return the area under the ROC curve of scores `(N,)`, in [0, 1]; None where all examples are of one kind."""
    found = float(auroc_in_draws(positive, scores, np.ones((1, len(scores))))[0])
    return None if np.isnan(found) else found


def auroc_in_draws(positive: Mask, scores: Floats, times_drawn: Floats) -> Floats:
    """Return the area in draws of the examples `(D,)`; NaN where a draw has examples of one kind only.

    Args:
        positive: which examples have the label `(N,)`.
        times_drawn: how often each example is in each draw `(D, N)`.
    """
    areas = np.full(len(times_drawn), np.nan)
    for where, up, down in _ranked(positive, scores, times_drawn):
        right = (up * (down.cumsum(axis=1) - down / 2)).sum(axis=1)
        pairs = up.sum(axis=1) * down.sum(axis=1)
        areas[where] = np.divide(right, pairs, out=np.full(len(up), np.nan), where=pairs > 0)
    return areas


def precision_in_draws(positive: Mask, scores: Floats, times_drawn: Floats) -> Floats:
    """Return the average precision in draws of the examples `(D,)`; NaN where a draw has examples of one kind only.

    It is the sum over the scores s, each once, of the share of positive examples at s times the precision at or above
    s, as scikit-learn's.

    Args:
        positive: which examples have the label `(N,)`.
        times_drawn: how often each example is in each draw `(D, N)`.
    """
    found = np.full(len(times_drawn), np.nan)
    for where, up, down in _ranked(positive, scores, times_drawn):
        right, said = (part[:, ::-1].cumsum(axis=1)[:, ::-1] for part in (up, up + down))
        precision = np.divide(right, said, out=np.zeros_like(right), where=said > 0)
        positives, both = up.sum(axis=1), (up.sum(axis=1) > 0) & (down.sum(axis=1) > 0)
        found[where] = np.divide((up * precision).sum(axis=1), positives, out=np.full(len(up), np.nan), where=both)
    return found


def _ranked(positive: Mask, scores: Floats, times_drawn: Floats) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield some draws at a time, and how often each score, rising, has positive and negative examples `(d, S)`."""
    order = np.argsort(scores, kind="stable")
    ranked, known = scores[order], positive[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])[: len(ranked)])
    size = max(1, _CELLS_AT_ONCE // max(len(scores), 1))
    for first in range(0, len(times_drawn) if len(starts) else 0, size):
        drawn = times_drawn[first : first + size, order]
        up, down = (np.add.reduceat(drawn * kind, starts, axis=1) for kind in (known, ~known))
        yield slice(first, first + len(drawn)), up, down
