"""What a site's test patients say of how well models rank them: Harrell's c, in draws of the patients."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from consilium.common.intervals.evidence import Evidence, redrawn
from consilium.common.protocol.counts import Estimate, Estimates
from consilium.common.survival.concordance import harrell, of_draws
from consilium.common.survival.times import Floats, Times

DRAWS = 300
"""Draws of the bootstrap."""


def evidence_of(
    of: Times, risks: Mapping[str, Floats], groups: NDArray[np.int64] | None, *, who: str = "test"
) -> dict[str, Evidence]:
    """Return the evidence of each model's risks `(N,)`, all in the same draws; none where no two can be compared.

    Args:
        groups: the patient of each row `(N,)`; None: every row is one.
        who: names the draws.
    """
    times_drawn = np.stack(
        [
            np.bincount(rows, minlength=len(of)).astype(np.float64)
            for rows in redrawn(len(of), groups, draws=DRAWS, seed=0, who=who)
        ]
    )
    found: dict[str, Evidence] = {}
    for name, own in risks.items():
        if (value := harrell(of, own)) is not None:
            draws = of_draws(of, own, times_drawn)[None]
            found[name] = Evidence(values=np.array([value]), draws=draws, groups=groups, num_rows=len(of))
    return found


def estimates_of(of: Times, risks: Mapping[str, Floats], groups: NDArray[np.int64] | None = None) -> Estimates:
    """Return Harrell's c of each model with its standard error, by the names of `Estimates`, and personal less local.

    Args:
        risks: log risks `(N,)` of each model.
        groups: the patient of each row `(N,)`; None: every row is one.
    """
    found = evidence_of(of, risks, groups)
    told = {name: _estimate(one, neutral=0.5) for name, one in found.items()}
    if "local" in found and "personal" in found:
        alone, joined = found["local"], found["personal"]
        draws = None if joined.draws is None or alone.draws is None else joined.draws - alone.draws
        told["difference"] = _estimate(Evidence(values=joined.values - alone.values, draws=draws), neutral=0.0)
    return Estimates(**told)


def _estimate(evidence: Evidence, *, neutral: float) -> Estimate:
    """Return a number with the standard deviation of its draws; where all are the same, they say nothing: then 1.

    Args:
        neutral: the number of models that rank nobody, or alike, which no draw changes.
    """
    value = float(evidence.values[0])
    draws = evidence.draws[~np.isnan(evidence.draws)] if evidence.draws is not None else np.zeros(0)
    error = float(draws.std(ddof=1)) if len(draws) > 1 else math.inf
    return Estimate(value=value, error=min(error, 1.0) if error > 0 or value == neutral else 1.0)
