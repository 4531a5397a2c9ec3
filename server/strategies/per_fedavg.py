"""Per-FedAvg, the server's half: the unweighted mean of the weights that the sites' meta-steps lead to.

Fallah, Mokhtari, Ozdaglar: Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach, NeurIPS 2020, algorithm 1, https://arxiv.org/abs/2002.07948

    w(t+1) = w(t) + (1 / K) * sum_k delta_k

over the K sites that sent an update, with `delta_k` = `Update.delta`; the meta-steps are the method's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, mean_delta


@dataclass(frozen=True)
class PerFedAvg:
    """Unweighted mean; has no settings and keeps no memory."""

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return ServerState(0, weights, buffers)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after the step; the shares given are not read."""
        ordered = by_site(updates)
        equal = {update.site: 1 / len(ordered) for update in ordered}
        weights = add_scaled(state.weights, mean_delta(ordered, equal, state.weights))
        return Step(replace(state, round=state.round + 1, weights=weights), equal)
