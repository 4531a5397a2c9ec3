"""Metrics of classes in draws of the patients, of all draws at once: scikit-learn looks for a millisecond at each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from consilium.common.labels.ranking import auroc_in_draws, precision_in_draws

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

RANKED = {"auroc": auroc_in_draws, "auprc": precision_in_draws}
COUNTED = ("balanced_accuracy", "f1")


def times_of(drawn: Sequence[Labels], count: int) -> Floats:
    """Return how often each of `count` rows is in each draw `(draws, count)`."""
    return np.stack([np.bincount(rows, minlength=count) for rows in drawn]).astype(np.float64)


def in_draws(name: str, y: Labels, probabilities: Floats, times: Floats) -> Floats:
    """Return one of `RANKED` or `COUNTED` in draws `(draws,)`; NaN where a draw does not define it.

    Args:
        y: the classes `(N,)`, 0 to C - 1.
        probabilities: `(N, C)`.
        times: how often each row is in each draw `(draws, N)`.
    """
    classes = range(probabilities.shape[1])
    parts = classes[1:] if len(classes) == 2 else classes  # of two classes the second is the positive one
    if name in RANKED:
        of_class = [RANKED[name](y == one, probabilities[:, one], times) for one in parts]
        return np.asarray(np.mean(of_class, axis=0))
    true, said = (np.eye(len(classes))[of] for of in (y, probabilities.argmax(axis=1)))
    there, answered, right = (times @ of for of in (true, said, true * said))
    with np.errstate(invalid="ignore"):
        if name == "f1":
            found = (2 * right / (there + answered))[:, parts].mean(axis=1)
            return np.where((there > 0).all(axis=1), found, np.nan)
        found = np.nansum(right / there, axis=1) / (there > 0).sum(axis=1)
    return np.where((there > 0).sum(axis=1) > 1, found, np.nan)
