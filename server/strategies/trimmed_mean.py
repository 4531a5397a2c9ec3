"""Trimmed mean: the mean of each coordinate without its lowest and highest values.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
ICML 2018, algorithm 1, option II, https://arxiv.org/abs/1803.01498

    w_j(t+1) = w_j(t) + (1 / (K - 2 * trim)) * sum of the middle K - 2 * trim of delta_1,j ... delta_K,j

for every coordinate j, with `delta_k` = `Update.delta`; the paper's fraction beta is `trim` / K. All arrays are
treated alike, integers are rounded to the nearest. A site's share is its part in the mean, averaged over the
coordinates; equal values count in the order of site names. `trim` = 0 is the unweighted mean.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, middle_mean


@dataclass(frozen=True)
class TrimmedMean:
    """Coordinate-wise mean without the `trim` >= 0 lowest and the `trim` highest values."""

    trim: int

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return ServerState(0, weights, buffers)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after the step; the shares given are not read.

        Raises:
            ValueError: also if trimming leaves nothing.
        """
        ordered = by_site(updates)
        if len(ordered) <= 2 * self.trim:
            raise ValueError(
                f"a trimmed mean with trim {self.trim} needs at least {2 * self.trim + 1} updates, got {len(ordered)}"
            )
        delta, own = middle_mean(ordered, state.weights, self.trim)
        return Step(replace(state, round=state.round + 1, weights=add_scaled(state.weights, delta)), own)
