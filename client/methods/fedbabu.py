"""FedBABU: sites train a shared backbone under one fixed random head; each serves a fine-tuned copy.

Oh, Kim, Yun: FedBABU: Toward Enhanced Representation for Federated Image Classification, ICLR 2022,
algorithm 1, https://arxiv.org/abs/2106.06042

    backbone_k <- SGD on the backbone under the initial head;  only the backbone is sent
    served: SGD on (backbone, head) over own training data, `epochs`, `learning_rate`, all layers or the head only

The head is made from the study's seed, so it is equal at all sites, and no round changes it. `optimiser` of the
fine-tuning is SGD whatever the study trains with, with the study's momentum where that is SGD as well and without any
otherwise; "adam" is Adam at `learning_rate`.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.seeds import seed_for


@dataclass(frozen=True)
class FedBabu:
    """Train the backbone only; to serve, fine-tune `layers` for `epochs` passes by `optimiser` at `learning_rate`."""

    epochs: int
    optimiser: Literal["sgd", "adam"]
    learning_rate: float
    layers: Literal["all", "head"]

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name outside the head."""
        return frozenset(model.names) - model.head

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train what is trainable outside the head."""
        return Outcome(memory, train(model, work, names=model.trainable - model.head))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work, and the fine-tuning."""
        return Budget(work, before_serving=self._tuning(work))

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Fine-tune the received backbone and the initial head on the site's own training examples."""
        train(model, self._tuning(work), names=model.head if self.layers == "head" else None)
        return model.module

    def _tuning(self, work: LocalWork) -> LocalWork:
        return work.free.tuned(
            epochs=self.epochs,
            optimiser=self.optimiser,
            learning_rate=self.learning_rate,
            seed=seed_for(work.seed, "fedbabu"),
        )
