"""What leaves a site of scores that are no shares of right answers: each with its standard error."""

import math
from collections.abc import Mapping

import numpy as np

from consilium.common.intervals.evidence import Evidence
from consilium.common.protocol.counts import LEAST_ERROR, Estimate, Estimates


def estimates_of(evidence: Mapping[str, Evidence], *, neutral: float) -> Estimates:
    """Return the score of each model with its standard error, by the names of `Estimates`, and personal less local.

    Args:
        evidence: of each model that the test split says a score of, all in the same draws.
        neutral: the score of models that say nothing, or the same of all rows, which no draw changes.
    """
    told = {name: _estimate(one, neutral=neutral) for name, one in evidence.items()}
    if "local" in evidence and "personal" in evidence:
        alone, joined = evidence["local"], evidence["personal"]
        draws = None if joined.draws is None or alone.draws is None else joined.draws - alone.draws
        told["difference"] = _estimate(Evidence(values=joined.values - alone.values, draws=draws), neutral=0.0)
    return Estimates(**told)


def _estimate(evidence: Evidence, *, neutral: float) -> Estimate:
    """Return a number with the standard deviation of its draws; where all are the same, they say nothing: then 1."""
    value = float(evidence.values[0])
    draws = evidence.draws[~np.isnan(evidence.draws)] if evidence.draws is not None else np.zeros(0)
    error = float(draws.std(ddof=1)) if len(draws) > 1 else math.inf
    if error < LEAST_ERROR:
        error = 0.0 if value == neutral else 1.0
    return Estimate(value=value, error=min(error, 1.0))
