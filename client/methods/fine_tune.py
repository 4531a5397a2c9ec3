"""FedAvg with local fine-tuning: everything is shared, a site serves its own continuation of the global model.

Wu, Li, Charles, Xu et al.: Motley: Benchmarking Heterogeneity and Personalization in Federated Learning,
2022, section 3, https://arxiv.org/abs/2206.09262

    v_k = SGD(w, own training data, `epochs` or `steps`, `learning_rate`), over all layers or the head only

The personal weights v_k are made anew from the weights received; they never enter the update. `optimiser` is SGD
whatever the study trains with, with the study's momentum where that is SGD as well and without any otherwise; "adam"
is Adam at `learning_rate`. Weight decay is the study's.
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
class FineTune:
    """Fine-tune for `epochs` passes, or `steps` batches, by `optimiser` at `learning_rate`, over `layers`."""

    epochs: int
    steps: int | None
    optimiser: Literal["sgd", "adam"]
    learning_rate: float
    layers: Literal["all", "head"]

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable, as FedAvg does."""
        return Outcome(memory, train(model, work))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work, and the fine-tuning."""
        return Budget(work, before_serving=self._tuning(work))

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Fine-tune the received weights on the site's own training examples."""
        train(model, self._tuning(work), names=model.head if self.layers == "head" else None)
        return model.module

    def _tuning(self, work: LocalWork) -> LocalWork:
        return work.free.tuned(
            epochs=self.epochs,
            steps=self.steps,
            optimiser=self.optimiser,
            learning_rate=self.learning_rate,
            seed=seed_for(work.seed, "fine_tune"),
        )
