"""What a site's test pictures say of how well models' masks fit: the mean Dice, in draws of the patients."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from consilium.common.intervals.evidence import DRAWS, Evidence, times_drawn
from consilium.common.intervals.rare import carried_by, patients_of
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.common.segmentation.overlap import TRUE, Floats, dice, mean_of, of_classes


def evidence_of(
    counts: Mapping[str, Floats], groups: NDArray[np.int64] | None, *, who: str = "test"
) -> dict[str, Evidence]:
    """Return the evidence of each model's counts `(N, C, 3)`, all in the same draws; none without any class.

    Draws are NaN where the score hangs on fewer than `LEAST_PATIENTS` (`carriers`).

    Args:
        groups: the patient of each picture `(N,)`; None: every picture is one.
        who: names the draws.
    """
    size = len(next(iter(counts.values())))
    times = times_drawn(size, groups, who=who)
    found = dict[str, Evidence]()
    for name, own in counts.items():
        each = dice(own)
        value = float(mean_of(of_classes(each)))
        if not np.isnan(value):
            enough = carriers(own[..., TRUE] > 0, groups) >= LEAST_PATIENTS
            draws = mean_of(of_classes(each, times))[None] if enough else np.full((1, DRAWS), np.nan)
            found[name] = Evidence(values=np.array([value]), draws=draws, groups=groups, num_rows=size)
    return found


def carriers(there: NDArray[np.bool_], groups: NDArray[np.int64] | None) -> float:
    """Return how many patients a mean over classes hangs on: of each class those in whose pictures it is.

    Args:
        there: whether each picture's truth has each class `(N, C)`.
        groups: the patient of each picture `(N,)`; None: every picture is one.
    """
    return carried_by(patients_of(column, groups) for column in there.T)
