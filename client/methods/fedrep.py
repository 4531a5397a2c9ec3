"""FedRep: the backbone is shared, the head is personal; a round trains the head first, then the backbone.

Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared Representations for Personalized Federated Learning,
ICML 2021, algorithm 1, https://arxiv.org/abs/2102.07078

    head_k <- SGD on the head for `head_epochs` passes, under the received backbone;
    backbone_k <- SGD on the backbone for the study's work, under the new head_k;  only the backbone is sent
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.seeds import seed_for


@dataclass(frozen=True)
class FedRep:
    """The head is personal, and trained for `head_epochs` >= 1 passes before the backbone."""

    head_epochs: int

    serves_as_held: ClassVar[bool] = True

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name outside the head."""
        return frozenset(model.names) - model.head

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train the head, then what else is trainable; the loss is the mean over the batches of both."""
        first = self._head_work(work)
        total = train(model, first, names=model.head) * first.num_steps
        total += train(model, work, names=model.trainable - model.head) * work.num_steps
        return Outcome(memory, total / (first.num_steps + work.num_steps))

    def budget(self, work: LocalWork) -> Budget:
        """Return as many batches as head and backbone together see in a round."""
        return Budget(replace(work, epochs=None, steps=self.private_steps(work)))

    def private_steps(self, work: LocalWork) -> int:
        """Return the steps of both: the head that is trained first forms the backbone's gradients."""
        return self._head_work(work).num_steps + work.num_steps

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the received backbone with the site's own head."""
        return model.module

    def _head_work(self, work: LocalWork) -> LocalWork:
        return work.tuned(epochs=self.head_epochs, seed=seed_for(work.seed, "head"))
