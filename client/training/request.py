"""What a method asks for when it trains, as a value, and who takes the steps: this site by itself, or many at once.

Where nobody else is named, a site takes its own steps (`consilium.client.training.loop`). In one process whoever runs
many sites can name a trainer that waits until all of them have asked, and trains what is alike as one stack.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from consilium.client.models import Model
from consilium.client.training.work import LocalWork

Correction = Callable[[str, Tensor], Tensor]
"""`correction(name, parameter)` is added to the parameter's gradient before each step."""

Forward = Callable[[Tensor], Any]
"""`forward(x)` answers a batch: with logits `(B, outputs)`, or with whatever the `loss` given along takes."""

Loss = Callable[[Any, Tensor], Tensor]
"""`loss(answer, y)` is the mean loss of a batch, given what `forward` answered."""


@dataclass(frozen=True, eq=False)
class Pull:
    """The correction `strength * (parameter - anchor) + shift`, by name; a name without either has none.

    Args:
        strength: of each name in `anchor`.
        anchor, shift: tensors of the parameters' shapes.
    """

    strength: Mapping[str, float] = field(default_factory=dict)
    anchor: Mapping[str, Tensor] = field(default_factory=dict)
    shift: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        """Return the term of a parameter."""
        shift = self.shift.get(name)
        if name not in self.anchor:
            return torch.zeros_like(parameter) if shift is None else shift
        pull = self.strength[name] * (parameter - self.anchor[name])
        return pull if shift is None else pull + shift


Arrays = Mapping[str, Tensor]
"""Stacked arrays `(S, *shape)` of S sites, by their names."""

GradientAt = Callable[[Arrays, int], dict[str, Tensor]]
"""`gradient(point, stream)` returns the gradient of this step's batch of a stream, at values of the parameters."""

OwnStep = Callable[[Arrays, Arrays, GradientAt, int], None]
"""`step(parameters, arrays, gradient, number)` moves stacks in place; the first step's number is 0."""


@dataclass(frozen=True, eq=False)
class OwnSteps:
    """Steps that are a method's own and not the optimiser's.

    Args:
        alone: takes them all at one site, as deployed, and returns the mean loss.
        step: takes one step of a stack of sites; None where no stack can take them.
        streams: works of which each step draws a batch; all of as many steps.
        settings: of the method, equal in a stack.
        arrays: what moves along with the parameters, in place.
        loss_of: the stream whose first gradient in a step gives that step's loss.
    """

    alone: Callable[[], float]
    step: OwnStep | None = None
    streams: tuple[LocalWork, ...] = ()
    settings: Hashable = None
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    loss_of: int = 0


@dataclass(frozen=True, eq=False)
class Training:
    """One call of `train`: what is trained, how much of it, and in which way; the arguments are those of `train`.

    Args:
        own: the steps of `train_by`, in place of the optimiser's.
    """

    model: Model
    work: LocalWork
    names: Collection[str] | None = None
    correction: Correction | None = None
    forward: Forward | None = None
    loss: Loss | None = None
    extra: Mapping[str, nn.Parameter] | None = None
    own: OwnSteps | None = None


Trainer = Callable[[Training], float]
"""A trainer changes the model of what it is given in place, and returns the mean loss over the batches."""

_trainer: ContextVar[Trainer | None] = ContextVar("trainer", default=None)


@contextmanager
def trained_by(trainer: Trainer) -> Iterator[None]:
    """Within the block, and in this thread alone, training is done by `trainer`."""
    token = _trainer.set(trainer)
    try:
        yield
    finally:
        _trainer.reset(token)


def trainer_here() -> Trainer | None:
    """Return who trains in place of the site itself; None where nobody does."""
    return _trainer.get()
