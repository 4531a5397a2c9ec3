"""identity: every array as it is.

    code = x

Bound: exact, bit for bit.
"""

from dataclasses import dataclass
from typing import ClassVar

from consilium.common.codecs.base import Form
from consilium.common.weights.arrays import Array, Weights


@dataclass(frozen=True)
class Unchanged:
    """Does nothing; a chain of nothing else carries the weights exactly."""

    lossless: ClassVar[bool] = True
    ends: ClassVar[bool] = False
    error_feedback: ClassVar[bool] = False

    def form(self, like: Form) -> Form:
        """Return `like`."""
        return like

    def encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the arrays; there is no memory."""
        return dict(arrays), {}

    def decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        """Return the arrays."""
        return dict(arrays)
