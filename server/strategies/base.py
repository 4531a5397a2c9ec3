"""What a server strategy is: a frozen dataclass of settings, a pure `apply`, and its state as an argument."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from common.weights import Array, Weights


@dataclass(frozen=True)
class Update:
    """What one site returned for a round, decoded and checked.

    Args:
        delta: shared weights after training minus the weights as they arrived.
        num_examples: training examples behind the delta, > 0.
        metrics: what the site measured, e.g. `global.accuracy`; finite numbers.
    """

    site: str
    delta: Weights
    num_examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ServerState:
    """All that passes from one round to the next; a checkpoint holds exactly this.

    Args:
        round: rounds applied so far, 0 before the first.
        memory: arrays that a strategy keeps (momentum, control variates); empty for most.
    """

    round: int
    weights: Weights
    memory: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The state after a round, and the share (summing to 1) that each site's delta had in it."""

    state: ServerState
    shares: Mapping[str, float]


class Strategy(Protocol):
    """How the server turns updates into new global weights."""

    def init(self, weights: Weights) -> ServerState:
        """Return the state before round 1."""
        ...

    def apply(self, state: ServerState, updates: Iterable[Update]) -> Step:
        """Return the state after one round; pure, and independent of the order of updates.

        Raises:
            ValueError: no update at all (the round loop's quorum prevents it).
        """
        ...
