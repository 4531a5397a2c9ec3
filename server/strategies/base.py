"""What a server strategy is: a frozen dataclass of settings, a pure `apply`, and its state as an argument."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from common.weights import Array, Weights, is_float


@dataclass(frozen=True)
class Update:
    """What one site returned for a round, decoded and checked.

    Args:
        delta: shared weights after training minus the weights as they arrived. Its arrays may lie on disk
            and be read each time they are asked for: hold one at a time.
        num_examples: training examples behind the delta, > 0.
        metrics: what the site measured, e.g. `global.accuracy`; finite numbers.
        control: the change of the site's control variate (SCAFFOLD); empty for other strategies.
    """

    site: str
    delta: Weights
    num_examples: int
    metrics: Mapping[str, float]
    control: Weights = field(default_factory=dict)


@dataclass(frozen=True)
class ServerState:
    """All that passes from one round to the next; a checkpoint holds exactly this.

    Args:
        round: rounds applied so far, 0 before the first.
        buffers: names in `weights` that training does not move by gradients (BatchNorm's running statistics):
            they are averaged and never optimised.
        memory: arrays that a strategy keeps (momentum); empty for most.
        along: arrays that travel to the sites beside the weights, under a prefix (control variates, candidates).
        weighting: what the weighting keeps: numbers under `what/site`.
    """

    round: int
    weights: Weights
    buffers: frozenset[str] = frozenset()
    memory: Mapping[str, Array] = field(default_factory=dict)
    along: Mapping[str, Array] = field(default_factory=dict)
    weighting: Mapping[str, float] = field(default_factory=dict)

    @property
    def optimised(self) -> tuple[str, ...]:
        """Names of the floating-point arrays that are trained, in sorted order: what a server optimiser may act on."""
        return tuple(n for n in sorted(self.weights) if n not in self.buffers and is_float(self.weights[n]))


@dataclass(frozen=True)
class Step:
    """The state after a round, and the share (summing to 1) that each site's delta had in it."""

    state: ServerState
    shares: Mapping[str, float]


class Strategy(Protocol):
    """How the server turns updates into new global weights."""

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        ...

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after one round; pure, and independent of the order of updates.

        Args:
            shares: what the weighting gives each site, >= 0, summing to 1; a strategy that sets its own
                shares does not read them. The shares in the step are those that were used.

        Raises:
            ValueError: no update at all (the round loop's quorum prevents it).
        """
        ...


def by_site(updates: Iterable[Update]) -> Sequence[Update]:
    """Return the updates in the order of site names, so that sums do not depend on who answered first.

    Raises:
        ValueError: no update at all.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    if not ordered:
        raise ValueError("a strategy needs at least one update, got none")
    return ordered
