"""FedDyn, the server's half: the mean of the sites' weights, corrected by the sum of all sites' moves so far.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization,
ICLR 2021, algorithm 1, https://openreview.net/forum?id=B7v4QMR6Z9w

    h(t+1) = h(t) - alpha / N * sum over k in S of (theta_k - w(t)),    h(0) = 0
    w(t+1) = (1 / |S|) * sum over k in S of theta_k - h(t+1) / alpha

with `theta_k - w(t)` = `Update.delta`, S the sites of the round and N = `num_sites`, all sites of the study and not
only those that sent an update. alpha cancels, and only the sites need to know it: the memory `drift/<name>` holds
-h / alpha, the sum of the deltas of all rounds over N. Every site counts the same, as in the paper, which minimises
the mean of the sites' losses: shares by size would change the way there and not the end. Buffers and integers take
the mean alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights, with_prefix
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, filled, mean_delta

KEPT = "drift/"


@dataclass(frozen=True)
class FedDyn:
    """Unweighted mean, and the sum of the deltas of all rounds over `num_sites`."""

    num_sites: int

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1, with a drift of zero."""
        state = ServerState(0, weights, buffers)
        return replace(state, memory=filled(state, KEPT))

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after the mean and the correction; the shares given are not read."""
        ordered = by_site(updates)
        equal = {update.site: 1 / len(ordered) for update in ordered}
        drift, change = {}, {}
        for name, mean in mean_delta(ordered, equal, state.optimised).items():
            moved = mean.astype(np.float64)
            before = state.memory[KEPT + name].astype(np.float64)
            drift[name] = np.asarray(before + moved * (len(ordered) / self.num_sites))
            change[name] = np.asarray(moved + drift[name])
        weights = add_scaled(state.weights, mean_delta(ordered, equal, state.averaged))
        weights = add_scaled(weights, change)
        return Step(replace(state, round=state.round + 1, weights=weights, memory=with_prefix(drift, KEPT)), equal)
