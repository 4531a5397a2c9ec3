"""FedAvg with local fine-tuning: everything is shared, a site serves its own continuation of the global model.

Wu, Li, Charles, Xu et al.: Motley: Benchmarking Heterogeneity and Personalization in Federated Learning,
2022, section 3, https://arxiv.org/abs/2206.09262

    v_k = SGD(w, own training data, `epochs` or `steps`, `learning_rate`), over all layers or the head only

The personal weights v_k are made anew from the weights received; they never enter the update.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from client.methods.base import Budget, Memory, Outcome
from client.models import Model
from client.training import LocalWork, train
from common.seeds import seed_for


@dataclass(frozen=True)
class FineTune:
    """Fine-tune for `epochs` passes, or `steps` batches, at `learning_rate`, over `layers`."""

    epochs: int = 5
    steps: int | None = None
    learning_rate: float = 0.01
    layers: Literal["all", "head"] = "all"

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable, as FedAvg does."""
        return Outcome(memory, train(model, work))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work, and the fine-tuning: `epochs` passes at `learning_rate`."""
        return Budget(work, before_serving=self._tuning(work))

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Fine-tune the received weights on the site's own training examples."""
        train(model, self._tuning(work), names=model.head if self.layers == "head" else None)
        return model.module

    def _tuning(self, work: LocalWork) -> LocalWork:
        seed = seed_for(work.seed, "fine_tune")
        tuned = work.tuned(epochs=self.epochs, learning_rate=self.learning_rate, seed=seed)
        return tuned if self.steps is None else replace(tuned, epochs=None, steps=self.steps)
