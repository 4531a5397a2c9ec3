"""Local training only: the baseline that joining a federation must beat. Nothing is shared."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork


@dataclass(frozen=True)
class Local:
    """Every array is personal."""

    serves_as_held: ClassVar[bool] = True

    def shared(self, model: Model) -> frozenset[str]:
        """Return no name."""
        return frozenset()

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable; nothing leaves, so nothing has noise."""
        return Outcome(memory, train(model, work.free))

    def private_steps(self, work: LocalWork) -> int:
        """Return 0."""
        return 0

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the model as it is."""
        return model.module
