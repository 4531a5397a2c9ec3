"""Draws which rows go to which of two parts: those that scikit-learn's `train_test_split` draws from the same seed.

That function (1.9) is what FLamby divides by. Ours has the same draws in the same order, so a division stays what it is
whatever release is installed, and a site starts without importing scikit-learn, which takes about a second.
"""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def draw_two_parts(num_rows: int, num_kept: int, classes: Indices | None, *, seed: int) -> tuple[Indices, Indices]:
    """Return which of `num_rows` rows are kept, `num_kept` of them, and which are held out: all others.

    Args:
        classes: the class of each row `(num_rows,)`, which both parts then have in the proportion of the whole; None:
            rows are drawn from all.
    """
    chance, num_held = np.random.RandomState(seed), num_rows - num_kept
    if classes is None:
        order = chance.permutation(num_rows).astype(np.int64)
        return order[num_held:], order[:num_held]
    _, code, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    from_class = _proportional(sizes, num_kept, chance)
    _proportional(sizes - from_class, num_held, chance)  # all the rest; but its draws come first
    kept, held = list[Indices](), list[Indices]()
    for members, num in zip(np.split(np.argsort(code, kind="stable"), np.cumsum(sizes)[:-1]), from_class, strict=True):
        shuffled = members[chance.permutation(len(members))]
        kept.append(shuffled[:num])
        held.append(shuffled[num:])
    return chance.permutation(np.concatenate(kept)), chance.permutation(np.concatenate(held))


def _proportional(sizes: Indices, num: int, chance: np.random.RandomState) -> Indices:
    """Return how many of `num` rows each class gives: its share rounded down, then one more where most was cut off."""
    exact = sizes / sizes.sum() * num
    given: npt.NDArray[np.float64] = np.floor(exact)
    cut_off, missing = exact - given, int(num - given.sum())
    for most in np.unique(cut_off)[::-1]:
        if missing <= 0:
            break
        alike = np.flatnonzero(cut_off == most)
        chosen = chance.choice(alike, size=min(len(alike), missing), replace=False)
        given[chosen] += 1
        missing -= len(chosen)
    return np.asarray(given, dtype=np.int64)
