"""FedAvg: the mean of the sites' updates, weighted by their numbers of examples or by the study's weighting.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data, AISTATS 2017, algorithm 1, https://arxiv.org/abs/1602.05629

    w(t+1) = w(t) + learning_rate * sum_k p_k * delta_k,    p_k = n_k / n under size weights

with `p_k` = `shares` and `delta_k` = `Update.delta`. The paper's step is `learning_rate` = 1; pFedMe calls it
beta. Buffers always take the whole step; integers are rounded to the nearest.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from consilium.common.weights.arithmetic import add_scaled, weighted_mean
from consilium.common.weights.arrays import Weights
from consilium.server.strategies.contract import ServerState, Step, Update, by_site


@dataclass(frozen=True)
class FedAvg:
    """Weighted mean; keeps no memory."""

    learning_rate: float

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return ServerState(0, weights, buffers)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return `weights + learning_rate * sum(share_k * delta_k)`."""
        ordered = by_site(updates)
        mean = weighted_mean([update.delta for update in ordered], [shares[update.site] for update in ordered])
        optimised = {name: mean.pop(name) for name in state.optimised}
        weights = add_scaled(add_scaled(state.weights, mean, reuse=True), optimised, self.learning_rate, reuse=True)
        return Step(replace(state, round=state.round + 1, weights=weights), shares)
