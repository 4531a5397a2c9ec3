"""What a site's test patients say of how well models rank several labels: the mean AUROC, in draws of the patients."""

import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from consilium.common.intervals.evidence import DRAWS, Evidence, blocks_drawn
from consilium.common.intervals.rare import carried_by, patients_of
from consilium.common.labels.ranking import Floats, auroc, auroc_in_draws
from consilium.common.protocol.patients import LEAST_PATIENTS

Labels = NDArray[np.floating]
"""Labels `(N, L)`: 1 where an example has one, 0 where it has not, NaN where that is not known."""


def mean_auroc(y: Labels, scores: Floats) -> float | None:
    """Return the mean AUROC over the labels of which some example has each kind; None where there is no such label.

    Args:
        y: labels `(N, L)`.
        scores: larger where a label is more probable `(N, L)`.
    """
    return mean_of([one for one in aurocs(y, scores) if one is not None])


def aurocs(y: Labels, scores: Floats) -> list[float | None]:
    """Return the AUROC of each label over the examples of which it is known; None where these are of one kind."""
    return [auroc(truth == 1, of[known]) for known, truth, of in _each(y, scores)]


def mean_of(values: list[float]) -> float | None:
    """Return the mean; None of nothing."""
    return float(np.mean(values)) if values else None


def evidence_of(
    y: Labels, scores: Mapping[str, Floats], groups: NDArray[np.int64] | None, *, who: str = "test"
) -> dict[str, Evidence]:
    """Return the evidence of each model's scores `(N, L)`, all in the same draws; none where no label has both kinds.

    In a draw the mean is over the labels that have both kinds there. Draws are NaN where the score hangs on fewer than
    `LEAST_PATIENTS` (`carriers`): one who has a label is in it in every draw that counts, so that draws hardly move.

    Args:
        groups: the patient of each row `(N,)`; None: every row is one.
        who: names the draws.
    """
    values = {name: value for name, own in scores.items() if (value := mean_auroc(y, own)) is not None}
    draws = {name: np.full((1, DRAWS), np.nan) for name in values}
    if values and carriers(y, groups) >= LEAST_PATIENTS:
        first = 0
        for drawn in blocks_drawn(len(y), groups, who=who):
            for name, of_one in draws.items():
                of_one[0, first : first + len(drawn)] = mean_in_draws(y, scores[name], drawn)
            first += len(drawn)
    return {
        name: Evidence(values=np.array([value]), draws=draws[name], groups=groups, num_rows=len(y))
        for name, value in values.items()
    }


def mean_in_draws(y: Labels, scores: Floats, drawn: Floats) -> Floats:
    """Return the mean AUROC in draws of the rows `(draws,)`; NaN where no label has both kinds.

    Args:
        drawn: how often each row is in each draw `(draws, N)`.
    """
    areas = [auroc_in_draws(truth == 1, of[known], drawn[:, known]) for known, truth, of in _each(y, scores)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(np.stack(areas), axis=0))


def carriers(y: Labels, groups: NDArray[np.int64] | None) -> float:
    """Return how many patients the mean AUROC hangs on: of each label those of its rarer kind (`carried_by`)."""
    kinds = [[patients_of(column == value, groups) for value in (1, 0)] for column in y.T]
    return carried_by(min(of) for of in kinds)


def _each(y: Labels, scores: Floats) -> list[tuple[NDArray[np.bool_], Labels, Floats]]:
    """Return of each label which rows know it, and of these what they know, and all scores of it."""
    known = ~np.isnan(y)
    return [(known[:, place], y[known[:, place], place], scores[:, place]) for place in range(y.shape[1])]
