"""FedNova: updates are divided by the sites' local steps before the mean, so that no site leads by stepping more.

Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization, NeurIPS 2020, section 4, https://arxiv.org/abs/2007.07481

    w(t+1) = w(t) + (sum_k p_k * a_k) * sum_k p_k * delta_k / a_k

with `p_k` = `shares`, `delta_k` = `Update.delta` and `a_k` = `train.effective_steps`: the steps of a site,
each weighted by how much of its gradient momentum carried into the update (the L1 norm of the paper's a_k).
With equal a_k it is FedAvg. Buffers and integers move by the weighted mean.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from consilium.common.study.signals import EFFECTIVE_STEPS
from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Weights
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, mean_delta, measured


@dataclass(frozen=True)
class FedNova:
    """Weighted mean of updates per step, times the weighted mean of the steps; has no settings."""

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return ServerState(0, weights, buffers)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after the step; the shares in it are those given.

        Raises:
            ValueError: also if a site sent no `train.effective_steps`, or one that is not above 0.
        """
        ordered = by_site(updates)
        steps = {update.site: measured(update, EFFECTIVE_STEPS, above_zero=True) for update in ordered}
        rates = {site: shares[site] / count for site, count in steps.items()}
        scale = sum(shares[site] * count for site, count in steps.items()) * sum(rates.values())
        weights = add_scaled(state.weights, mean_delta(ordered, shares, state.averaged))
        weights = add_scaled(weights, mean_delta(ordered, rates, state.optimised), scale)
        return Step(replace(state, round=state.round + 1, weights=weights), shares)
