"""FedAvg: the mean of the sites' updates, weighted by their numbers of examples.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data, AISTATS 2017, algorithm 1, https://arxiv.org/abs/1602.05629

    w(t+1) = w(t) + sum_k (n_k / n) * delta_k,    n = sum_k n_k over the accepted updates

with `n_k` = `Update.num_examples` and `delta_k` = `Update.delta`. Integer buffers are rounded to the nearest.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from common.weights import Weights, add_scaled, weighted_mean
from server.strategies.base import ServerState, Step, Update


@dataclass(frozen=True)
class FedAvg:
    """Weighted mean by number of examples; keeps no memory."""

    def init(self, weights: Weights) -> ServerState:
        """Return the state before round 1."""
        return ServerState(round=0, weights=weights)

    def apply(self, state: ServerState, updates: Iterable[Update]) -> Step:
        """Return `weights + sum(share_k * delta_k)`; updates are summed in the order of site names."""
        ordered = sorted(updates, key=lambda update: update.site)
        if not ordered:
            raise ValueError("FedAvg needs at least one update, got none")
        total = sum(update.num_examples for update in ordered)
        shares = {update.site: update.num_examples / total for update in ordered}
        mean = weighted_mean([update.delta for update in ordered], list(shares.values()))
        return Step(ServerState(state.round + 1, add_scaled(state.weights, mean), state.memory), shares)
