"""How many patients a score hangs on, where some of its parts hang on few: a bootstrap does not see what one tells."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def patients_of(rows: NDArray[np.bool_], groups: NDArray[np.int64] | None) -> int:
    """Return how many patients have one of some rows, a mask `(N,)`.

    Args:
        groups: the patient of each row `(N,)`; None: every row is one.
    """
    return int(rows.sum()) if groups is None else len(np.unique(groups[rows]))


def carried_by(counts: Iterable[int]) -> float:
    """Return how many patients, all in one part, would leave the mean of parts as uncertain: `L^2 / sum(1 / n)`.

    The variance of a part is about one over the patients that it hangs on, those of its rarer kind; a part that hangs
    on nobody is no part of the mean.

    Args:
        counts: of each part, how many patients it hangs on.
    """
    known = [count for count in counts if count]
    return len(known) ** 2 / sum(1 / count for count in known) if known else 0.0
