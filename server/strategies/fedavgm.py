"""FedAvgM: FedAvg with momentum at the server.

Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification,
2019, section 4.3, https://arxiv.org/abs/1909.06335

    v(t+1) = momentum * v(t) + sum_k p_k * delta_k,    v(0) = 0
    w(t+1) = w(t) + learning_rate * v(t+1)

with `p_k` = `shares` and `delta_k` = `Update.delta`; v is the memory `momentum/<name>`, in float64. Buffers and
integers have no momentum: they move by the weighted mean.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights, with_prefix
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, filled, mean_delta


@dataclass(frozen=True)
class FedAvgM:
    """Weighted mean with `momentum` in [0, 1); 0 is FedAvg."""

    learning_rate: float
    momentum: float

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1, at rest."""
        state = ServerState(0, weights, buffers)
        return replace(state, memory=filled(state, "momentum/"))

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after one step along the momentum."""
        ordered = by_site(updates)
        velocity = {}
        for name, mean in mean_delta(ordered, shares, state.optimised).items():
            before = state.memory[f"momentum/{name}"].astype(np.float64)
            velocity[name] = np.asarray(self.momentum * before + mean.astype(np.float64))
        weights = add_scaled(state.weights, mean_delta(ordered, shares, state.averaged))
        weights = add_scaled(weights, velocity, self.learning_rate)
        memory = with_prefix(velocity, "momentum/")
        return Step(replace(state, round=state.round + 1, weights=weights, memory=memory), shares)
