"""The contract of a personalisation method: what may leave the site, how to train, what the site serves.

The site composes the rest around it: arrays that are not shared are kept in the site's state and put
back before every round, so a method with a personal part needs no code to remember it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import nn

from consilium.client.models import Model, set_weights
from consilium.client.training.work import LocalWork
from consilium.common.errors import ModelError
from consilium.common.weights.arrays import Array, Weights

Memory = Mapping[str, Array]
"""Arrays that a method keeps at the site from round to round; empty for most, and at the site's first round.

A method is given its memory of the site's last update that counted: a lost or rejected reply leaves no trace.
"""


@dataclass(frozen=True)
class Outcome:
    """The result of a round's training, apart from the model itself.

    Args:
        memory: everything that the method keeps at the site; names that are not in it are forgotten.
        loss: mean training loss over the batches.
        control: the change of the site's control variate; leaves the site with the delta (SCAFFOLD only).
        metrics: numbers for the reply, e.g. `apfl.alpha`; they leave the site.
    """

    memory: Memory
    loss: float
    control: Weights = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """The local-only baseline's training, so that both sides of the comparison take as many gradients.

    Args:
        per_round: the training of every round.
        before_serving: the further training by `personalise`, each time anew; None for none.
    """

    per_round: LocalWork
    before_serving: LocalWork | None = None


class Method(Protocol):
    """A rule of the site. Settings are fields of a frozen dataclass; memory is an argument."""

    def shared(self, model: Model) -> frozenset[str]:
        """Return the state-dict names that may leave the site; everything else is personal."""
        ...

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train `model` in place from the received (and the site's personal) weights it holds.

        What `model` holds afterwards is sent (shared names, as a delta) and kept (personal names).

        In a private study `work` has noise. Law: of the examples, what is sent in this round and the later ones depends
        on nothing but `consilium.client.training.loop.train` with that work. Training that never leaves the site and
        never feeds back takes `work.free`; `personalise` always does.
        """
        ...

    def budget(self, work: LocalWork) -> Budget:
        """Return the local training that this method spends on the model that it serves, given a round's work."""
        ...

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Turn `model`, which holds the received and the personal weights, into what this site serves; return it.

        May train on the site's training examples (`work.examples`) and select on its validation examples,
        never on others. Most return `model.module`.
        """
        ...


def serves_as_held(method: Method) -> bool:
    """Say whether a method serves its model as it holds the received and the personal weights, without doing more.

    Such a method says so by `serves_as_held = True`. Law: its `personalise` returns `model.module` and changes nothing.
    """
    return bool(getattr(method, "serves_as_held", False))


@runtime_checkable
class CountsPrivateSteps(Protocol):
    """A method whose round takes another number of private steps than the round's work says."""

    def private_steps(self, work: LocalWork) -> int:
        """Return how many steps with noise a round takes."""
        ...


def private_steps(method: Method, work: LocalWork) -> int:
    """Return how many steps with noise a round of a method takes: what its privacy costs is counted in these.

    Args:
        work: the round's, with its noise.
    """
    return method.private_steps(work) if isinstance(method, CountsPrivateSteps) else work.num_steps


@runtime_checkable
class Extends(Protocol):
    """A method with buffers of its own in addition to the model's, which all sites share (`Model.extra`).

    The model's forward pass does not read them, so that what the site trains alone stays the same.
    """

    def extended(self, model: Model, input_shape: tuple[int, ...]) -> Model:
        """Return the model with these buffers, registered in its module; an example has `input_shape`."""
        ...


@runtime_checkable
class Rebuilds(Protocol):
    """A method that serves another module than the study's model."""

    def rebuilt(self, model: Model, arrays: Weights) -> nn.Module:
        """Return what `personalise` returned, from a new model and all arrays of the served one; no training data."""
        ...


def rebuilt(method: Method, model: Model, arrays: Weights) -> nn.Module:
    """Return what a method served, from a new (and extended) model and the arrays of the served module.

    Law: it answers as the module that `personalise` returned.

    Raises:
        ModelError: the arrays are not those of such a module.
    """
    return method.rebuilt(model, arrays) if isinstance(method, Rebuilds) else filled(model.module, arrays)


def filled(module: nn.Module, arrays: Weights) -> nn.Module:
    """Put arrays into a module and return it.

    Raises:
        ModelError: an array of the module is not there, or one is there that the module does not have.
    """
    if absent := sorted(set(module.state_dict()) - set(arrays)):
        raise ModelError(f"array '{absent[0]}' is not there, expected all {len(module.state_dict())} of the model")
    set_weights(module, arrays)
    return module


def extended(method: Method, model: Model, input_shape: tuple[int, ...]) -> Model:
    """Return the model that a method trains: with its buffers where it has some, else the model as it is."""
    return method.extended(model, input_shape) if isinstance(method, Extends) else model
