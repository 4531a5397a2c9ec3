"""FedCE: sites count by how much the others lack without them, in direction and in predictions.

Jiang, Roth, Li, Yang, Zhao, Nath, Xu, Dou, Xu: Fair Federated Medical Image Segmentation via Client Contribution
Estimation, CVPR 2023, section 3, https://arxiv.org/abs/2303.16520

    s_k = mean over the site's rounds of cos(D_k, sum_{j != k} p_j D_j),        c_k = max(0, 1 - s_k)
    value_k = N(c)_k + N(e)_k  ("plus")   or   N(c)_k N(e)_k / sum_j N(c)_j N(e)_j  ("times")
    N(x)_k = (x_k + 1e-6) / sum_j (x_j + 1e-6)

with D_k = `Update.delta` over the trained arrays, e_k = the metric `without.error` (error rate, at the site, of the
received weights with its own last update taken out) and p_k = the site's value when it last took part, relative to
the mean of its round; 1 for a site that is new. Over this round's sites p sums to 1. Without others to compare with
(one site, or deltas of zero) the cosine is 0. Needs no full participation: a site's cosine and p wait for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from consilium.common.study.signals import WITHOUT_ERROR
from consilium.server.weighting.contract import Evidence, PerSite, Reading, normalised, recall, remember

EPSILON, ROUNDING = 1e-6, 1e-12


@dataclass(frozen=True)
class FedCe:
    """Novelty and error, added or multiplied as `mode` says."""

    mode: Literal["plus", "times"]

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return every site's contribution, > 0."""
        errors, sites = evidence.metric(WITHOUT_ERROR), evidence.sites
        coefficients, means, counts = (recall(memory, what) for what in ("coefficient", "cosine", "count"))
        shares = normalised({site: coefficients.get(site, 1.0) for site in sites})
        cosines = _cosines_to_others(evidence, shares)
        for site, cosine in cosines.items():
            counts[site] = counts.get(site, 0.0) + 1
            before = means.get(site, cosine)
            means[site] = before + (cosine - before) / counts[site]
        novelty = {site: max(0.0, 1 - means[site]) for site in sites}
        values = self._joined(_shared_out(novelty), _shared_out(errors))
        coefficients |= {site: value * len(sites) for site, value in normalised(values).items()}
        kept = remember("coefficient", coefficients) | remember("cosine", means) | remember("count", counts)
        return Reading(values, {"cosine": cosines, "novelty": novelty, "without_error": errors}, kept)

    def _joined(self, novelty: PerSite, errors: PerSite) -> dict[str, float]:
        if self.mode == "plus":
            return {site: novelty[site] + errors[site] for site in novelty}
        return normalised({site: novelty[site] * errors[site] for site in novelty})


def _shared_out(values: PerSite) -> dict[str, float]:
    return normalised({site: value + EPSILON for site, value in values.items()})


def _cosines_to_others(evidence: Evidence, shares: PerSite) -> dict[str, float]:
    """Return each update's cosine with the mixture of the others, reading one array of one site at a time."""
    inner, square, rest_square = (dict.fromkeys(evidence.sites, 0.0) for _ in range(3))
    for name in evidence.optimised:
        mixture = evidence.mixed(name, shares)
        for update in evidence.updates:
            own = update.delta[name].astype(np.float64)
            rest = mixture - shares[update.site] * own
            inner[update.site] += float(np.vdot(own, rest))
            square[update.site] += float(np.vdot(own, own))
            rest_square[update.site] += float(np.vdot(rest, rest))
    lengths = {site: math.sqrt(square[site]) * math.sqrt(rest_square[site]) for site in square}
    known = {site: length > ROUNDING * square[site] for site, length in lengths.items()}  # else the rest is 0
    return {site: max(-1.0, min(1.0, inner[site] / lengths[site])) if known[site] else 0.0 for site in lengths}
