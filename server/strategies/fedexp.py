"""FedExP: a server step that grows with how much the sites' updates differ, and the mean of the last two iterates.

Jhunjhunwala, Wang, Joshi: FedExP: Speeding Up Federated Averaging via Extrapolation, ICLR 2023, algorithm 1,
https://arxiv.org/abs/2301.09604

    step(t) = max(1, sum_k p_k * |delta_k|**2 / (2 * (|sum_k p_k * delta_k|**2 + epsilon)))
    w(t+1) = w(t) + step(t) * sum_k p_k * delta_k
    served(t+1) = (w(t) + w(t+1)) / 2, after the first round w(1)

with `p_k` = `shares` and norms over all optimised arrays together. Sites that agree give a step of 1, which is FedAvg;
M sites at right angles, with equal norms and shares, M / 2. `epsilon` keeps the step small where the mean is all but 0;
the authors' code multiplies it by the number of sites and lets it decay over the rounds. Sites train from the iterates
w, and the validation numbers of the rounds are those of the iterates; the mean is what is served at the end, and saved.
Buffers and integers take the mean of the updates.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from consilium.common.weights.arithmetic import add_scaled, dot, subtract
from consilium.common.weights.arrays import Weights, with_prefix
from consilium.server.strategies.contract import SERVED, ServerState, Step, Update, by_site, mean_delta


@dataclass(frozen=True)
class FedExP:
    """Weighted mean with a step of its own; `epsilon` > 0, in squared units of the weights."""

    epsilon: float

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1, which serves the initial weights."""
        state = ServerState(0, weights, buffers)
        return replace(state, memory=with_prefix({name: weights[name] for name in state.optimised}, SERVED))

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after the extrapolated step."""
        ordered = by_site(updates)
        mean = mean_delta(ordered, shares, state.optimised)
        squares = sum(shares[update.site] * dot(update.delta, update.delta, state.optimised) for update in ordered)
        step = max(1.0, squares / (2 * (dot(mean, mean, state.optimised) + self.epsilon)))
        weights = add_scaled(state.weights, mean_delta(ordered, shares, state.averaged))
        weights = add_scaled(weights, mean, step)
        new, old = ({name: arrays[name] for name in mean} for arrays in (weights, state.weights))
        served = new if state.round == 0 else add_scaled(old, subtract(new, old), 0.5)
        memory = with_prefix(served, SERVED)
        return Step(replace(state, round=state.round + 1, weights=weights, memory=memory), shares)
