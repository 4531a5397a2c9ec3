"""Trimmed mean: the weighted mean of each coordinate without its lowest and highest values.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
ICML 2018, algorithm 1, option II, https://arxiv.org/abs/1803.01498

    w_j(t+1) = w_j(t) + (1 / (K - 2 * trim)) * sum of the middle K - 2 * trim of delta_1,j ... delta_K,j

for every coordinate j, with `delta_k` = `Update.delta`; the paper's fraction beta is `trim` / K. With the shares p_k
that a weighting gives, the part beta of the shares is left out at each end in place of `trim` values, and a site that
lies across that line counts by the part of its share that is within (`middle_mean` has the formula). Sites whose shares
are at most beta together cannot drag the mean beyond the others' values: with unequal shares that may be less than
`trim` sites. All arrays are treated alike, integers are rounded to the nearest. A site's share is its part in the mean,
averaged over the coordinates; equal values count in the order of site names. `trim` = 0 is the weighted mean.
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
        """Return the state after the step; the shares in it are the sites' parts in the mean.

        Raises:
            ValueError: also if trimming leaves nothing.
        """
        ordered = by_site(updates)
        if len(ordered) <= 2 * self.trim:
            raise ValueError(
                f"a trimmed mean with trim {self.trim} needs at least {2 * self.trim + 1} updates, got {len(ordered)}"
            )
        delta, own = middle_mean(ordered, state.weights, shares, trim=self.trim)
        return Step(replace(state, round=state.round + 1, weights=add_scaled(state.weights, delta)), own)
