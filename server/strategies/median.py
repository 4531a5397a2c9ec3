"""Median: each coordinate moves by the weighted median of the deltas; less than half of the shares cannot drag it away.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
ICML 2018, algorithm 1, option I, https://arxiv.org/abs/1803.01498

    w_j(t+1) = w_j(t) + med_k delta_k,j    for every coordinate j

with `delta_k` = `Update.delta`, weighted by p_k = `shares` (equal ones in the paper): the median is the value with
which the sum of the p_k of all values up to it passes 1/2, and the mean of it and the next where that sum is 1/2. So a
site that counts twice is two sites that sent the same, and sites with less than half of the shares together cannot drag
the median beyond the others' values. All arrays are treated alike, integers are rounded to the nearest. A site's share
is its part in the median (1, or 1/2 of two), averaged over the coordinates; equal values count in the order of names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, middle_mean


@dataclass(frozen=True)
class Median:
    """Coordinate-wise median; has no settings and keeps no memory."""

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return ServerState(0, weights, buffers)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after the step; the shares in it are the sites' parts in the median."""
        ordered = by_site(updates)
        delta, own = middle_mean(ordered, state.weights, shares, trim=len(ordered) / 2)
        return Step(replace(state, round=state.round + 1, weights=add_scaled(state.weights, delta)), own)
