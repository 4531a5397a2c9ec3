"""Reptile at the site: train as FedAvg does; serve the global weights after a few local steps.

Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018, algorithm 2, https://arxiv.org/abs/1803.02999

    phi_k = phi, after the round's local steps;        the server moves phi towards the mean of phi_k
    served_k = phi, after `adapt_steps` local steps at `adapt_learning_rate`

The step towards the mean is the server strategy of the same name; the inner optimiser is the study's.
"""

from dataclasses import dataclass, replace

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.seeds import seed_for


@dataclass(frozen=True)
class Reptile:
    """Adapt for `adapt_steps` batches at `adapt_learning_rate` before serving."""

    adapt_steps: int
    adapt_learning_rate: float

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable, as FedAvg does."""
        return Outcome(memory, train(model, work))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work, and the adaptation."""
        return Budget(work, before_serving=self._adapting(work))

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Adapt the received weights on the site's training examples."""
        if (adapting := self._adapting(work)) is not None:
            train(model, adapting)
        return model.module

    def _adapting(self, work: LocalWork) -> LocalWork | None:
        if not self.adapt_steps:
            return None
        seed, rate = seed_for(work.seed, "adapt"), self.adapt_learning_rate
        return replace(work.free, steps=self.adapt_steps, epochs=None, learning_rate=rate, rates=None, seed=seed)
