"""Which arrays of a model leave the site in a study, and which never do."""

from dataclasses import dataclass
from typing import Protocol

from consilium.client.models.build import Model
from consilium.common.errors import ModelError


class Sharing(Protocol):
    """The part of a personalisation method that says what may leave the site."""

    def shared(self, model: Model) -> frozenset[str]:
        """Return the state-dict names that may leave the site."""
        ...


@dataclass(frozen=True)
class Names:
    """How a model's arrays are divided in a study.

    Args:
        moving: the arrays that training may change: trainable parameters, and buffers of layers in training mode.
        shared: the part of `moving` that leaves the site.
        personal: the part of `moving` that never does.
    """

    moving: frozenset[str]
    shared: frozenset[str]
    personal: frozenset[str]


def divide(model: Model, method: Sharing) -> Names:
    """Divide a model's arrays by the method and the BatchNorm policy.

    Raises:
        ModelError: the method keeps everything personal although it is one that shares (for example
            `fedper` with `trainable = "head"`).
    """
    moving, may_leave = model.moving, method.shared(model)
    shared = moving & may_leave - model.own_batch_norm
    if may_leave and not shared:
        raise ModelError(
            f"method '{type(method).__name__}' shares nothing of this model: what is trainable is all personal; "
            "train more of it (model.trainable) or choose another method"
        )
    return Names(moving, shared, moving - shared)
