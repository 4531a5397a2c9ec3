"""Krum and Multi-Krum: only the updates that lie closest to the others are used.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent, NeurIPS 2017, section 4, https://arxiv.org/abs/1703.02757

    score_k = sum of ||delta_k - delta_j||**2 over the n - f - 2 other sites j that are closest to k
    w(t+1) = w(t) + sum of p_k * delta_k / sum of p_k, both over the `keep` sites with the lowest scores

for n updates and f = `attackers`, with `delta_k` = `Update.delta` and p_k = `shares` (equal ones in the paper).
Who is kept does not hang on the shares: a site that may count more is no less an attacker for it. The mean of those
kept lies among their updates whatever the p_k, so what the paper says of any one of them holds for it too. Distances
are over the optimised arrays and follow from the deltas' inner products. Equal scores count in the order of site names;
sites that are kept with no share at all count alike. All arrays move by the mean of the updates kept.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, gram, mean_delta


@dataclass(frozen=True)
class Krum:
    """Weighted mean of the `keep` most central updates, safe from up to `attackers` sites."""

    attackers: int
    keep: int

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return ServerState(0, weights, buffers)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after the step; the shares in it are those of the sites that are kept.

        Raises:
            ValueError: also if there are fewer than `2 * attackers + 3` or `keep + attackers + 2` updates.
        """
        ordered = by_site(updates)
        least = max(2 * self.attackers + 3, self.keep + self.attackers + 2)
        if len(ordered) < least:
            raise ValueError(
                f"krum with attackers {self.attackers} and keep {self.keep} needs at least {least} updates, "
                f"got {len(ordered)}"
            )
        products = gram(ordered, state.optimised)
        squares = np.diag(products)
        distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
        np.fill_diagonal(distances, np.inf)
        closest = np.sort(distances, axis=1)[:, : len(ordered) - self.attackers - 2]
        kept = sorted(np.argsort(closest.sum(axis=1), kind="stable")[: self.keep])
        given = np.array([shares[ordered[k].site] for k in kept])
        relative = given / given.max() if given.any() else np.ones(len(kept))  # equal shares are ones exactly
        parts = (relative / relative.sum()).tolist()
        own = {u.site: 0.0 for u in ordered} | {ordered[k].site: part for k, part in zip(kept, parts, strict=True)}
        delta = mean_delta([ordered[k] for k in kept], own, state.weights)
        return Step(replace(state, round=state.round + 1, weights=add_scaled(state.weights, delta)), own)
