"""What a site's test pictures say of how well models' masks fit: the mean Dice, in draws of the patients."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from consilium.common.intervals.evidence import Evidence, redrawn
from consilium.common.segmentation.overlap import Floats, dice, mean_of, of_classes

DRAWS = 300
"""Draws of the bootstrap."""


def evidence_of(
    counts: Mapping[str, Floats], groups: NDArray[np.int64] | None, *, who: str = "test"
) -> dict[str, Evidence]:
    """Return the evidence of each model's counts `(N, C, 3)`, all in the same draws; none without any class.

    Args:
        groups: the patient of each picture `(N,)`; None: every picture is one.
        who: names the draws.
    """
    size = len(next(iter(counts.values())))
    times = np.stack(
        [
            np.bincount(rows, minlength=size).astype(np.float64)
            for rows in redrawn(size, groups, draws=DRAWS, seed=0, who=who)
        ]
    )
    found = dict[str, Evidence]()
    for name, own in counts.items():
        each = dice(own)
        value = float(mean_of(of_classes(each)))
        if not np.isnan(value):
            draws = mean_of(of_classes(each, times))[None]
            found[name] = Evidence(values=np.array([value]), draws=draws, groups=groups, num_rows=size)
    return found
