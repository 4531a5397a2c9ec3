"""LG-FedAvg: the head is shared, the backbone is personal: sites agree on the task, each sees its data its own way.

Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency: Think Locally, Act Globally: Federated Learning
with Local and Global Representations, 2020, algorithm 1, https://arxiv.org/abs/2001.01523

    (backbone_k, head) <- SGD on both from (own backbone, received head);  only the head is sent
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork


@dataclass(frozen=True)
class LgFedAvg:
    """The backbone is personal."""

    serves_as_held: ClassVar[bool] = True

    def shared(self, model: Model) -> frozenset[str]:
        """Return the names of the head."""
        return model.head

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train backbone and head together."""
        return Outcome(memory, train(model, work))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the site's own backbone with the received head."""
        return model.module
