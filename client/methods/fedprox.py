"""FedProx at the site: FedAvg whose local training is pulled towards the weights received.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020,
algorithm 2, https://arxiv.org/abs/1812.06127

    w_k <- SGD on  F_k(w_k) + mu / 2 * |w_k - w|^2,    that is, mu * (w_k - w) is added to every gradient

with `w` the weights that the model holds when the round begins. The study's optimiser takes the steps; `mu` = 0
is FedAvg.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import proximal, train
from consilium.client.training.work import LocalWork


@dataclass(frozen=True)
class FedProx:
    """Nothing is personal; `mu` >= 0 is the strength of the pull."""

    mu: float

    serves_as_held: ClassVar[bool] = True

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable, near the weights received; the loss is F_k, without the pull."""
        return Outcome(memory, train(model, work, correction=proximal(model, self.mu)))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the global model as it is."""
        return model.module
