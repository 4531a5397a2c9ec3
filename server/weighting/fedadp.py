"""FedAdp: updates that point where the mean of all updates points count more.

Wu, Wang: Fast-Convergent Federated Learning with Adaptive Weighting, IEEE Transactions on Cognitive
Communications and Networking 2021, https://arxiv.org/abs/2012.00661

    theta_k = arccos(<D_k, Dbar> / (|D_k| |Dbar|)),        Dbar = sum_k (n_k / n) D_k
    x_k = mean of theta_k over the rounds that the site took part in
    f(x) = alpha * (1 - exp(-exp(-alpha * (x - 1)))),        value_k = exp(f(x_k) - max_j f(x_j))

with D_k = `Update.delta` over the trained arrays, angles in radians. With the factor `size` too, this is the paper's
n_k exp(f(x_k)): dividing by the largest value changes no share, and no alpha is too large. An update that is zero,
or that points nowhere because the mean is zero, has the angle pi / 2. A site's mean angle is kept while it is away.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from consilium.server.weighting.contract import Evidence, Reading, normalised, recall, remember

EXPONENT_LIMIT = 700.0
"""exp of more overflows a float; exp(-exp(700)) is 0 to any precision."""
ROUNDING = 1e-12


@dataclass(frozen=True)
class FedAdp:
    """Gompertz function of the angle, `alpha` steep and high."""

    alpha: float

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return every site's value in (0, 1], 1 for the smallest mean angle."""
        angles = _angles(evidence)
        means, counts = recall(memory, "angle"), recall(memory, "count")
        for site, angle in angles.items():
            counts[site] = counts.get(site, 0.0) + 1
            before = means.get(site, angle)
            means[site] = before + (angle - before) / counts[site]
        smoothed = {site: means[site] for site in angles}
        heights = {site: self._height(angle) for site, angle in smoothed.items()}
        highest = max(heights.values())
        values = {site: math.exp(height - highest) for site, height in heights.items()}
        signals = {"angle": angles, "mean_angle": smoothed}
        return Reading(values, signals, remember("angle", means) | remember("count", counts))

    def _height(self, angle: float) -> float:
        return self.alpha * (1 - math.exp(-math.exp(min(EXPONENT_LIMIT, -self.alpha * (angle - 1)))))


def _angles(evidence: Evidence) -> dict[str, float]:
    """Return the angle of each update to the mean update, reading one array of one site at a time."""
    shares, mean_square = normalised(evidence.sizes), 0.0
    inner, square = dict.fromkeys(evidence.sites, 0.0), dict.fromkeys(evidence.sites, 0.0)
    for name in evidence.optimised:
        mean = evidence.mixed(name, shares)
        mean_square += float(np.vdot(mean, mean))
        for update in evidence.updates:
            own = update.delta[name].astype(np.float64)
            inner[update.site] += float(np.vdot(own, mean))
            square[update.site] += float(np.vdot(own, own))
    lengths = {site: math.sqrt(value) * math.sqrt(mean_square) for site, value in square.items()}
    known = {site: length > ROUNDING * square[site] for site, length in lengths.items()}  # else the mean is 0
    cosines = {site: inner[site] / lengths[site] if known[site] else 0.0 for site in lengths}
    return {site: math.acos(min(1.0, max(-1.0, cosine))) for site, cosine in cosines.items()}
