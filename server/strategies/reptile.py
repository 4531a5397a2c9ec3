"""Reptile, the server's half: a step towards the mean of the sites' weights that shrinks over the rounds.

Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018, algorithm 2,
https://arxiv.org/abs/1803.02999

    w(t) = w(t-1) + eps(t) * sum_k p_k * delta_k
    eps(t) = step * (1 - (t - 1) / rounds)  with `anneal`,  else step

with t the round from 1, `p_k` = `shares` (equal ones in the paper) and `delta_k` = `Update.delta`. Buffers and
integers take the whole mean.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, mean_delta


@dataclass(frozen=True)
class Reptile:
    """Weighted mean times `step` in (0, 1], which shrinks from round to round of `rounds` if `anneal`."""

    step: float
    anneal: bool
    rounds: int

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return ServerState(0, weights, buffers)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after the step; after the planned rounds an annealed step is 0."""
        ordered = by_site(updates)
        left = max(0.0, 1 - state.round / self.rounds) if self.anneal else 1.0
        weights = add_scaled(state.weights, mean_delta(ordered, shares, state.averaged))
        weights = add_scaled(weights, mean_delta(ordered, shares, state.optimised), self.step * left)
        return Step(replace(state, round=state.round + 1, weights=weights), shares)
