"""FedDisco: a site's part of the examples, less how far its label distribution is from the ideal one.

Ye, Xu, Wang, Xu, Chen, Wang: FedDisco: Federated Learning with Discrepancy-Aware Collaboration, ICML 2023,
https://arxiv.org/abs/2305.19229

    value_k = max(0, n_k / n - a * d_k + b),        d_k = metric(q_k, u)

with n_k = `Update.num_examples`, n their sum over this round's sites, q_k the site's label distribution (the class
counts it shares, divided by their sum) and u the global one. As in the paper and its authors' code, u is not the
sites' pooled distribution but the one that the global model should serve: uniform over the classes of the study,
which are all that any site has. Metrics: `kl` = sum q log(q / u), then divided by the sum over this round's
sites (0 if that is 0); `l1`, `l2` = norms of q - u; `cosine` = 1 - cos(q, u). The size is in the value already. If
no value is left above 0, the round is weighted by size. Keeps no memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from consilium.server.weighting.contract import Evidence, PerSite, Reading, normalised


@dataclass(frozen=True)
class FedDisco:
    """Discrepancy by `metric`, times `a`; `b` is added to every site."""

    a: float
    b: float
    metric: Literal["kl", "l1", "l2", "cosine"]

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return every site's value, >= 0."""
        counts, parts = evidence.counts(), normalised(evidence.sizes)
        classes = sorted(set().union(*evidence.class_counts.values()))
        distances = {site: self._distance([own.get(name, 0) for name in classes]) for site, own in counts.items()}
        if self.metric == "kl":
            distances = _relative(distances)
        values = {site: max(0.0, parts[site] - self.a * distances[site] + self.b) for site in evidence.sites}
        return Reading(values, {"part": parts, "divergence": distances})

    def _distance(self, counts: list[int]) -> float:
        """Return the distance of a label distribution from the uniform one."""
        own = np.array(counts, dtype=np.float64) / sum(counts)
        uniform = np.full(len(own), 1 / len(own))
        if self.metric == "kl":
            held = own > 0  # a class that the site lacks adds 0 log 0 = 0
            return float(np.sum(own[held] * np.log(own[held] / uniform[held])))
        if self.metric == "cosine":
            return float(1 - np.vdot(own, uniform) / (np.linalg.norm(own) * np.linalg.norm(uniform)))
        return float(np.linalg.norm(own - uniform, ord=1 if self.metric == "l1" else 2))


def _relative(distances: PerSite) -> dict[str, float]:
    positive = {site: max(0.0, distance) for site, distance in distances.items()}  # KL is >= 0 but for rounding
    return normalised(positive) if sum(positive.values()) > 0 else dict.fromkeys(distances, 0.0)
