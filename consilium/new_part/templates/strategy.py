"""my_part: the weighted mean of the updates, with a step that shrinks from round to round.

    w(t+1) = w(t) + decay^t * sum_k p_k * delta_k

Say here where your strategy comes from: authors, title, year, link.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights
from consilium.parts import Part, StrategySettings
from consilium.server.strategies import ServerState, Step, Update, by_site
from consilium.server.strategies.contract import mean_delta


class MyPartSettings(StrategySettings):
    """Weighted mean with a step that shrinks."""

    kind: Literal["my_part"] = "my_part"
    decay: float = Field(default=0.95, gt=0, le=1)
    """Factor of the step from round to round; 1 is FedAvg."""


@dataclass(frozen=True)
class MyPart:
    """The step is `decay` to the power of the rounds before; keeps no memory."""

    decay: float

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return ServerState(0, weights, buffers)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the weights after the step; buffers and integers take the whole mean."""
        ordered = by_site(updates)
        weights = add_scaled(state.weights, mean_delta(ordered, shares, state.averaged))
        weights = add_scaled(weights, mean_delta(ordered, shares, state.optimised), self.decay**state.round)
        return Step(replace(state, round=state.round + 1, weights=weights), shares)


PART = Part(MyPartSettings, MyPart)
