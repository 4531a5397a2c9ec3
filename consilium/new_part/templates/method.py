"""my_part: the head is personal and pulled a little towards where it was before the round.

Say here where your method comes from: authors, title, year, link, and the formula.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from consilium.client.methods import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.parts import MethodSettings, Part


class MyPartSettings(MethodSettings):
    """The backbone is shared; the head is personal and does not go far in one round."""

    kind: Literal["my_part"] = "my_part"
    pull: float = Field(default=0.1, ge=0)
    """Strength of the pull of the head towards where it was; 0 is FedPer."""


@dataclass(frozen=True)
class MyPart:
    """The head is personal; `pull` >= 0."""

    pull: float

    def shared(self, model: Model) -> frozenset[str]:
        """Return the names that may leave the site: every one outside the head."""
        return frozenset(model.names) - model.head

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train backbone and head together."""
        parameters = dict(model.module.named_parameters())
        before = {name: parameters[name].detach().clone() for name in model.head}

        def pulled(name: str, parameter: Tensor) -> Tensor:
            return self.pull * (parameter - before.get(name, parameter)).detach()

        return Outcome(memory, train(model, work, correction=pulled))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work: the local-only model gets as much."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the received backbone with the site's own head."""
        return model.module


PART = Part(MyPartSettings, MyPart)
