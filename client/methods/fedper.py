"""FedPer: the backbone is shared, the head is personal and never leaves the site.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers, 2019,
algorithm 1 (client), https://arxiv.org/abs/1912.00818

    (backbone, head_k) <- SGD on both from (received backbone, own head);  only the backbone is sent
"""

from dataclasses import dataclass

from client.methods.base import Memory
from client.models import Model
from client.training import LocalWork, train


@dataclass(frozen=True)
class FedPer:
    """The head is personal."""

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name outside the head."""
        return frozenset(model.names) - model.head

    def train(self, model: Model, memory: Memory, work: LocalWork) -> tuple[Memory, float]:
        """Train backbone and head together."""
        return memory, train(model, work)

    def extra(self, work: LocalWork) -> LocalWork | None:
        """Return no extra work."""
        return None

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> None:
        """Serve the received backbone with the site's own head."""
