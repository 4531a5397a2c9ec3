"""Whole weights to bytes and back where the receiver does not know their form: initial weights, full broadcasts.

Law: `decode(encode(weights))` is `weights`, bit for bit. Bytes from outside never run code: the container is
safetensors, of which the header is read and compared with the one that its arrays must have. Where the form is known,
use a `Chain`.
"""

from dataclasses import dataclass

from consilium.common.codecs.base import Payload, form_of
from consilium.common.codecs.container import pack, read_form, unpack
from consilium.common.weights.arrays import Array, Weights


@dataclass(frozen=True)
class Identity:
    """Every array as it is, in one container; decoding is exact."""

    def encode(self, weights: Weights) -> bytes:
        """Return the container of `weights`.

        Raises:
            ValueError: a dtype that does not travel.
        """
        return pack(weights, form_of(weights))

    def decode(self, payload: Payload) -> dict[str, Array]:
        """Return the arrays of a container; they are read-only and lie in `payload`.

        Raises:
            ProtocolError: bytes that `encode` does not write.
        """
        return unpack(payload, read_form(payload), copy=False)
