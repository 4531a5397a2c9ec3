"""FedBN: everything is shared but BatchNorm, whose weights and running statistics never leave the site.

Li, Jiang, Zhang, Kamp, Dou: FedBN: Federated Learning on Non-IID Features via Local Batch Normalization,
ICLR 2021, algorithm 1, https://arxiv.org/abs/2102.07623

    w_k <- SGD on all from (received weights, own BatchNorm);  all but BatchNorm is sent
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.errors import ModelError


@dataclass(frozen=True)
class FedBn:
    """BatchNorm is personal."""

    serves_as_held: ClassVar[bool] = True

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name outside BatchNorm layers.

        Raises:
            ModelError: the model has no BatchNorm, so that this would be FedAvg under another name.
        """
        if not model.batch_norm:
            raise ModelError(
                "method 'fedbn' keeps BatchNorm personal, but this model has none: choose method 'fedavg', or a "
                "model with BatchNorm such as 'mlp_bn' for tables"
            )
        return frozenset(model.names) - model.batch_norm

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable."""
        return Outcome(memory, train(model, work))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the received weights with the site's own BatchNorm."""
        return model.module
