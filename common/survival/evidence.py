"""What a site's test patients say of models' risks in draws of the patients: Harrell's c, and the Brier score.

A concordance hangs on the patients whose event was seen. With fewer than `LEAST_PATIENTS` of them a bootstrap does not
see what one of them tells, so that there is a value and no interval (`benchmarks/survival_null.py`: of two models that
rank equally well one is called better in 9 % of the studies with fewer events, in 4 % of those with more).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from consilium.common.intervals.evidence import DRAWS, Evidence, times_drawn
from consilium.common.intervals.rare import patients_of
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.common.survival.concordance import harrell, of_draws
from consilium.common.survival.times import Floats, Times


def evidence_of(
    of: Times, risks: Mapping[str, Floats], groups: NDArray[np.int64] | None, *, who: str = "test"
) -> dict[str, Evidence]:
    """Return the evidence of each model's risks `(N,)`, all in the same draws; none where no two can be compared.

    The draws are NaN where fewer than `LEAST_PATIENTS` patients had the event, unless all risks are the same.

    Args:
        groups: the patient of each row `(N,)`; None: every row is one.
        who: names the draws.
    """
    drawn = times_drawn(len(of), groups, who=who)
    enough = carriers(of, groups) >= LEAST_PATIENTS
    found: dict[str, Evidence] = {}
    for name, own in risks.items():
        if (value := harrell(of, own)) is not None:
            known = enough or np.ptp(own) == 0  # the same risk for all has 1/2 whoever is drawn
            draws = of_draws(of, own, drawn)[None] if known else np.full((1, DRAWS), np.nan)
            found[name] = Evidence(values=np.array([value]), draws=draws, groups=groups, num_rows=len(of))
    return found


def carriers(of: Times, groups: NDArray[np.int64] | None) -> int:
    """Return how many patients a concordance hangs on: those whose event was seen.

    Args:
        groups: the patient of each row `(N,)`; None: every row is one.
    """
    return patients_of(of.events, groups)


def evidence_of_losses(
    losses: Mapping[str, Floats], groups: NDArray[np.int64] | None, *, who: str = "test"
) -> dict[str, Evidence]:
    """Return the evidence of each model's Brier score, the mean of its patients' losses `(N,)`, in the same draws.

    None of a model whose score is above 1: it says less than any chance would.

    Args:
        groups: the patient of each row `(N,)`; None: every row is one.
        who: names the draws.
    """
    told = {name: own for name, own in losses.items() if own.mean() <= 1}
    if not told:
        return {}
    count = len(next(iter(told.values())))
    drawn = times_drawn(count, groups, who=who)
    drawn /= drawn.sum(axis=1, keepdims=True)
    return {
        name: Evidence(values=np.array([own.mean()]), draws=(drawn @ own)[None], groups=groups, num_rows=count)
        for name, own in told.items()
    }
