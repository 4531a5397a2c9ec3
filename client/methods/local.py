"""Local training only: the baseline that joining a federation must beat. Nothing is shared."""

from dataclasses import dataclass

from client.methods.base import Memory
from client.models import Model
from client.training import LocalWork, train


@dataclass(frozen=True)
class Local:
    """Every array is personal."""

    def shared(self, model: Model) -> frozenset[str]:
        """Return no name."""
        return frozenset()

    def train(self, model: Model, memory: Memory, work: LocalWork) -> tuple[Memory, float]:
        """Train everything that is trainable."""
        return memory, train(model, work)

    def extra(self, work: LocalWork) -> LocalWork | None:
        """Return no extra work."""
        return None

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> None:
        """Serve the model as it is."""
