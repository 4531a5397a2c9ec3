"""q-FedAvg: sites with a higher loss count more, the more so the larger q.

Li, Sanjabi, Beirami, Smith: Fair Resource Allocation in Federated Learning, ICLR 2020, algorithm 2,
https://arxiv.org/abs/1905.10497

    L = 1 / learning_rate,    u_k = -L * delta_k
    h_k = q * F_k**(q-1) * ||u_k||**2 + L * F_k**q
    w(t+1) = w(t) - sum_k F_k**q * u_k / sum_k h_k

with `F_k` = `start.loss`, the loss of the weights as received on the site's training split, and the norm over
the optimised arrays. The shares are F_k**q / sum_j F_j**q, so that the step is their mean delta times
`sum_k L * F_k**q / sum_k h_k`; buffers and integers take the mean whole. q = 0 is FedAvg with equal shares.
L stands for the slope of the loss as the sites' steps see it, so momentum and Adam are refused (common/study/rules.py).

A site can tell any loss. From FEWEST sites on none counts for more than all others together: a loss that would give it
more is taken as the one that gives it half, as with all weightings (server/weighting/contract.py).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from consilium.common.study.signals import START_LOSS
from consilium.common.weights.arithmetic import add_scaled, dot
from consilium.common.weights.arrays import Weights
from consilium.server.strategies.contract import ServerState, Step, Update, by_site, mean_delta, measured

Floats = npt.NDArray[np.float64]

FEWEST = 4
"""Sites from which on none has more than half of the shares."""
_LEAST = 1e-10  # added to every loss, so that F**(q - 1) is finite where a loss is 0


@dataclass(frozen=True)
class QFedAvg:
    """Mean weighted by loss to the power `q` >= 0; `learning_rate` > 0 is the one that the sites train with."""

    learning_rate: float
    q: float

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return ServerState(0, weights, buffers)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after the step; the shares given are not read.

        Raises:
            ValueError: also if a site sent no `start.loss`, or a negative one.
        """
        ordered = by_site(updates)
        lipschitz = 1 / self.learning_rate
        losses = _believed(np.array([measured(update, START_LOSS) for update in ordered]) + _LEAST, self.q)
        largest = losses.max()
        powers = (losses / largest) ** self.q  # F**q without the factor largest**q, which cancels and may overflow
        slopes = self.q * (losses / largest) ** (self.q - 1) / largest
        squares = np.array([lipschitz**2 * dot(u.delta, u.delta, state.optimised) for u in ordered])
        scale = float(np.sum(lipschitz * powers) / np.sum(slopes * squares + lipschitz * powers))
        own = {u.site: float(power / powers.sum()) for u, power in zip(ordered, powers, strict=True)}
        weights = add_scaled(state.weights, mean_delta(ordered, own, state.averaged))
        weights = add_scaled(weights, mean_delta(ordered, own, state.optimised), scale)
        return Step(replace(state, round=state.round + 1, weights=weights), own)


def _believed(losses: Floats, q: float) -> Floats:
    """Return the losses, the largest one no larger than gives its site half of the shares."""
    top = int(np.argmax(losses))
    others = np.delete(losses, top)
    if q == 0 or len(losses) < FEWEST:
        return losses
    largest = others.max()
    most = math.log(largest) + math.log(float(np.sum((others / largest) ** q))) / q  # as a logarithm: q may be tiny
    if math.log(losses[top]) <= most:
        return losses
    return np.where(np.arange(len(losses)) == top, math.exp(most), losses)
