"""SCAFFOLD, the server's half: keeps the mean control variate and sends it along with the weights.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning, ICML 2020, algorithm 1, https://arxiv.org/abs/1910.06378

    w(t+1) = w(t) + learning_rate * sum_k p_k * delta_k
    c(t+1) = c(t) + (1 / N) * sum_k (c_k(t+1) - c_k(t)),    c(0) = 0

with `p_k` = `shares` (equal ones in the paper), `delta_k` = `Update.delta`, `c_k(t+1) - c_k(t)` =
`Update.control`, and N = `num_sites`, all sites of the study and not only those that sent an update. c is in
`ServerState.along` under `control/<name>` for every optimised array. Buffers and integers take the whole mean.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from consilium.common.protocol.plans import CONTROL
from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights, with_prefix
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, mean_delta


@dataclass(frozen=True)
class Scaffold:
    """Weighted mean, and the mean of all `num_sites` sites' control variates."""

    learning_rate: float
    num_sites: int

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1, with control variates of zero."""
        state = ServerState(0, weights, buffers)
        zeros = {name: np.zeros_like(weights[name]) for name in state.optimised}
        return replace(state, along=with_prefix(zeros, CONTROL))

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after one step of the weights and of the control variate."""
        ordered = by_site(updates)
        weights = add_scaled(state.weights, mean_delta(ordered, shares, state.averaged))
        weights = add_scaled(weights, mean_delta(ordered, shares, state.optimised), self.learning_rate)
        control = {}
        for name in state.optimised:
            before = state.along[CONTROL + name]
            total = before.astype(np.float64)
            for update in ordered:
                total += update.control[name].astype(np.float64) / self.num_sites
            control[name] = total.astype(before.dtype)
        along = with_prefix(control, CONTROL)
        return Step(replace(state, round=state.round + 1, weights=weights, along=along), shares)
