"""FedAdam: Adam at the server, with the mean update in the gradient's place.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: Adaptive Federated Optimization, ICLR 2021,
algorithm 2, https://arxiv.org/abs/2003.00295

    m(t+1) = beta1 * m(t) + (1 - beta1) * d,       m(0) = 0,         d = sum_k p_k * delta_k
    v(t+1) = beta2 * v(t) + (1 - beta2) * d**2,    v(0) = tau**2
    w(t+1) = w(t) + learning_rate * m(t+1) / (sqrt(v(t+1)) + tau)

coordinate by coordinate and without bias correction, as in the paper; `p_k` = `shares`, `delta_k` =
`Update.delta`. The memory holds `m/<name>` and `v/<name>` in float64. Buffers and integers move by the
weighted mean: an adaptive step could make a running variance negative.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from consilium.common.weights.arrays import Weights
from consilium.server.strategies.contract import ServerState, Step, Update, adaptive_init, adaptive_step


@dataclass(frozen=True)
class FedAdam:
    """Adam with decays `beta1`, `beta2` in [0, 1); `tau` > 0 bounds how far small updates are scaled up."""

    learning_rate: float
    beta1: float
    beta2: float
    tau: float

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        return adaptive_init(weights, buffers, tau=self.tau)

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after one step of Adam along the weighted mean."""
        return adaptive_step(
            state,
            updates,
            shares,
            lambda v, d: self.beta2 * v + (1 - self.beta2) * d**2,
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            tau=self.tau,
        )
