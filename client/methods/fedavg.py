"""FedAvg at the site: everything is shared, the global model is what the site serves.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data, AISTATS 2017, algorithm 1 (ClientUpdate), https://arxiv.org/abs/1602.05629
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork


@dataclass(frozen=True)
class FedAvg:
    """Nothing is personal."""

    serves_as_held: ClassVar[bool] = True

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable."""
        return Outcome(memory, train(model, work))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the global model as it is."""
        return model.module
