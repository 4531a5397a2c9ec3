"""How well a mask fits the true one, class by class: Dice's overlap, and the 95 % Hausdorff distance of the outlines.

Of a class with pixels A in the answer and T in the truth (Dice: Measures of the Amount of Ecologic Association Between
Species, Ecology 1945, https://doi.org/10.2307/1932409)

    Dice = 2 |A and T| / (|A| + |T|)

and with dA, dT the outlines, pixels of A or T with a neighbour (left, right, above, below) outside, those of the
picture's edge too (Huttenlocher, Klanderman, Rucklidge: Comparing Images Using the Hausdorff Distance, PAMI 1993,
https://doi.org/10.1109/34.232073; 95 % in place of the maximum, as is usual for organs)

    HD95 = max( q95 of min over t in dT |a - t|, a in dA;  q95 of min over a in dA |a - t|, t in dT )

in pixels. Where the class is in neither mask, both are undefined. Where it is in one of them, Dice is 0, and HD95 is
the picture's diagonal: as far as two of its pixels can be.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy  # its ndimage is loaded when it is used first
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Masks = NDArray[np.uint8]

BOTH, ANSWERED, TRUE, DISTANCE = range(4)
"""Columns of what is kept of a picture's class: pixels in both masks, in the answer, in the truth; and HD95."""
_PERCENT = 95


def pixel_counts(truth: Masks, answers: Masks, num_classes: int) -> Floats:
    """Return the pixels `(N, C - 1, 3)` of each picture and class but the background: in both, answered, true.

    Args:
        truth, answers: numbers of classes `(N, H, W)`, below `num_classes`.
    """
    size, found = num_classes**2, np.zeros((len(truth), num_classes - 1, 3))
    for place, (true, answer) in enumerate(zip(truth, answers, strict=True)):
        pairs = true.astype(np.int64).ravel() * num_classes + answer.ravel()
        table = np.bincount(pairs, minlength=size).reshape(num_classes, num_classes)
        sums = (np.diagonal(table), table.sum(axis=0), table.sum(axis=1))
        found[place] = np.stack(sums, axis=1)[1:]
    return found


def measured(truth: Masks, answers: Masks, num_classes: int) -> Floats:
    """Return what is kept of each picture and class but the background `(N, C - 1, 4)`: its pixels, and HD95."""
    far = np.full((len(truth), num_classes - 1, 1), np.nan)
    for place, (true, answer) in enumerate(zip(truth, answers, strict=True)):
        for one in range(1, num_classes):
            far[place, one - 1] = hausdorff(answer == one, true == one)
    return np.concatenate([pixel_counts(truth, answers, num_classes), far], axis=2)


def dice(of: Floats) -> Floats:
    """Return Dice `(...)` of counts `(..., 3 or more)`; NaN where a class is in neither mask."""
    whole = of[..., ANSWERED] + of[..., TRUE]
    return np.where(whole > 0, 2 * of[..., BOTH] / np.maximum(whole, 1), np.nan)


def hausdorff(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return HD95 of two regions `(H, W)` in pixels; NaN where both are empty, the diagonal where one is."""
    if not (one.any() and other.any()):
        height, width = one.shape
        return math.nan if not (one.any() or other.any()) else math.hypot(height - 1, width - 1)
    place = _box(one | other)
    lines = [_outline(region[place]) for region in (one, other)]
    distances = scipy.ndimage.distance_transform_edt
    ways = [np.percentile(distances(~to)[line], _PERCENT) for line, to in (lines, lines[::-1])]
    return float(max(ways))


def _outline(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(region & ~scipy.ndimage.binary_erosion(region), dtype=np.bool_)


def _box(region: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the rows and columns that a region takes; distances within it are those in the whole picture."""
    taken: Sequence[NDArray[np.int64]] = [np.flatnonzero(region.any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(int(one[0]), int(one[-1]) + 1) for one in taken)


def of_classes(values: Floats, weights: Floats | None = None) -> Floats:
    """Return the mean of each class over the pictures that define it: `(C,)` of `(N, C)`; NaN where none does.

    Args:
        weights: how often each picture counts, `(draws, N)`: then `(draws, C)`.
    """
    times, known = np.ones((1, len(values))) if weights is None else weights, ~np.isnan(values)
    whole = times @ known
    found = np.where(whole > 0, times @ np.where(known, values, 0.0) / np.maximum(whole, 1), np.nan)
    return found[0] if weights is None else found


def mean_of(classes: Floats) -> Floats:
    """Return the mean over the classes `(...)` that are defined, of `(..., C)`; NaN where none is."""
    known = ~np.isnan(classes)
    whole = known.sum(axis=-1)
    return np.where(whole > 0, np.where(known, classes, 0.0).sum(axis=-1) / np.maximum(whole, 1), np.nan)
