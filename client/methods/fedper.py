"""FedPer: the backbone is shared, the head is personal and never leaves the site.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers, 2019,
algorithm 1 (client), https://arxiv.org/abs/1912.00818

    (backbone, head_k) <- SGD on both from (received backbone, own head);  only the backbone is sent
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork


@dataclass(frozen=True)
class FedPer:
    """The head is personal."""

    serves_as_held: ClassVar[bool] = True

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name outside the head."""
        return frozenset(model.names) - model.head

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train backbone and head together."""
        return Outcome(memory, train(model, work))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the received backbone with the site's own head."""
        return model.module
