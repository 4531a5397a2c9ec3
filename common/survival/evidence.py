"""What a site's test patients say of how well models rank them: Harrell's c, in draws of the patients."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from consilium.common.intervals.evidence import Evidence, times_drawn
from consilium.common.survival.concordance import harrell, of_draws
from consilium.common.survival.times import Floats, Times


def evidence_of(
    of: Times, risks: Mapping[str, Floats], groups: NDArray[np.int64] | None, *, who: str = "test"
) -> dict[str, Evidence]:
    """Return the evidence of each model's risks `(N,)`, all in the same draws; none where no two can be compared.

    Args:
        groups: the patient of each row `(N,)`; None: every row is one.
        who: names the draws.
    """
    drawn = times_drawn(len(of), groups, who=who)
    found: dict[str, Evidence] = {}
    for name, own in risks.items():
        if (value := harrell(of, own)) is not None:
            draws = of_draws(of, own, drawn)[None]
            found[name] = Evidence(values=np.array([value]), draws=draws, groups=groups, num_rows=len(of))
    return found
