"""Whole weights to bytes and back where the receiver does not know their form: initial weights.

Law: `decode(encode(weights))` is `weights`, bit for bit. Bytes from outside never run code: the container is
safetensors, which is checked while it is read. Where the form is known, use a `Chain`.
"""

from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import ProtocolError
from common.weights import Array, Weights


@dataclass(frozen=True)
class Identity:
    """Every array as it is, in one safetensors container; decoding is exact."""

    def encode(self, weights: Weights) -> bytes:
        """Return the safetensors bytes of `weights`."""
        return save({name: np.require(array, requirements="C") for name, array in weights.items()})

    def decode(self, payload: bytes) -> dict[str, Array]:
        """Return the arrays of a safetensors container."""
        try:
            return dict(load(payload))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"payload of {len(payload)} bytes is not a safetensors container: {error}") from error
