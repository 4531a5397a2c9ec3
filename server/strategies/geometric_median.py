"""Geometric median (RFA): the point with the least weighted sum of distances to the sites' updates.

Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing
2022, algorithm 2, https://arxiv.org/abs/1912.13445

    z = sum_k a_k * delta_k,    a_k = p_k at first
    `iterations` times:  b_k = p_k / max(smoothing, ||z - delta_k||),    a_k = b_k / sum_j b_j
    w(t+1) = w(t) + z

with `p_k` = `shares` and `delta_k` = `Update.delta`. The norm is over the optimised arrays; as z is a mean of
the deltas, ||z - delta_k||**2 = (a - e_k)' G (a - e_k) for the unit vector e_k and the matrix G of the deltas'
inner products, so the deltas are read twice whatever `iterations`. All arrays move by the mean with the last
a_k, which are the shares used.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, gram, mean_delta


@dataclass(frozen=True)
class GeometricMedian:
    """Smoothed Weiszfeld: at most `iterations` >= 1; distances below `smoothing` > 0 count as that."""

    iterations: int
    smoothing: float

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return ServerState(0, weights, buffers)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after the step to the geometric median; the shares in it are its coefficients."""
        ordered = by_site(updates)
        products = gram(ordered, state.optimised)
        given = np.array([shares[update.site] for update in ordered])
        used = given / given.sum()
        for _ in range(self.iterations):
            apart = used - np.eye(len(ordered))
            distances = np.sqrt(np.maximum(np.sum((apart @ products) * apart, axis=1), 0))
            raw = given / np.maximum(self.smoothing, distances)
            before, used = used, raw / raw.sum()
            if np.array_equal(before, used):
                break
        own = {update.site: float(share) for update, share in zip(ordered, used, strict=True)}
        delta = mean_delta(ordered, own, state.weights)
        return Step(replace(state, round=state.round + 1, weights=add_scaled(state.weights, delta)), own)
