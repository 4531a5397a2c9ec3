"""The contract of a codec's stage, the form of arrays, and the rounding that int8 and int4 share."""

import math
from collections.abc import Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from consilium.common.errors import ProtocolError
from consilium.common.weights.arrays import Array, Spec, Weights

Payload: TypeAlias = bytes | memoryview
"""Bytes to be decoded."""
Form: TypeAlias = Mapping[str, Spec]
"""Shapes and dtypes of named arrays: all that a receiver must know before it reads a byte."""

SCALE, EXPONENT, INDEX, RIGHT = ":scale", ":exponent", ":index", ":right"
"""Suffixes of the arrays that a stage adds to the one it codes; names of a model hold no ':'."""


class Stage(Protocol):
    """One step from arrays to smaller arrays; integer arrays pass through every stage unchanged.

    Law: `decode(encode(x), like=form_of(x))` has the names, shapes and dtypes of `x`, and the error bound in the
    stage's module holds. The form of what is encoded follows from the form of the input alone.
    """

    @property
    def lossless(self) -> bool:
        """Decoding gives every bit back."""
        ...

    @property
    def ends(self) -> bool:
        """It writes codes, which no further stage may take for numbers."""
        ...

    @property
    def error_feedback(self) -> bool:
        """The chain keeps the loss of this stage and adds it to the next difference."""
        ...

    def form(self, like: Form) -> Form:
        """Return the form of the encoded arrays for inputs of the form `like`."""
        ...

    def encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the encoded arrays and the memory for the next round; pure.

        Args:
            arrays: floating-point values are finite.
            memory: as returned by the call of the round before; empty before the first.
            seed: of this call's own chance.
        """
        ...

    def decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        """Return arrays of the form `like` from encoded ones; equal bits on every machine.

        Args:
            arrays: exactly of the form `form(like)`; their contents may be anything.

        Raises:
            ProtocolError: contents that `encode` never writes and that cannot be decoded.
        """
        ...


@runtime_checkable
class ByteStage(Protocol):
    """The last step, from the container's bytes to fewer bytes. Law: `expand(compress(x, form), form, len(x)) == x`."""

    def compress(self, content: bytes, form: Form) -> bytes:
        """Return fewer bytes.

        Args:
            content: a container: its last bytes are those of the arrays in `form`, in the order of names.
        """
        ...

    def expand(self, payload: bytes, form: Form, size: int) -> bytes:
        """Return the container, which has `size` bytes.

        Raises:
            ProtocolError: bytes that this stage did not write, or that would become more than `size`.
        """
        ...

    def max_bytes(self, size: int) -> int:
        """Return how long the payload of a container of `size` bytes can be at most."""
        ...


def form_of(weights: Weights) -> dict[str, Spec]:
    """Return the form of arrays."""
    return {name: (array.shape, array.dtype) for name, array in weights.items()}


def size_of(spec: Spec) -> int:
    """Return the number of elements."""
    return math.prod(spec[0])


def bytes_of(spec: Spec) -> int:
    """Return the number of bytes."""
    return size_of(spec) * spec[1].itemsize


def is_floating(spec: Spec) -> bool:
    """Return whether a stage acts on an array of this shape and dtype."""
    return spec[1].kind == "f"


def scale_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """Return the dtype of a scale: float64 for float64 arrays, float32 for all others."""
    return np.promote_types(dtype, np.float32)


def check_scale(name: str, scale: Array) -> npt.NDArray[np.float64]:
    """Return a scale received in float64.

    Raises:
        ProtocolError: it is negative, NaN or infinite.
    """
    values = scale.astype(np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ProtocolError(f"scale of array '{name}' is not a finite number >= 0")
    return values


def num_scales(size: int, block: int) -> int:
    """Return how many blocks `size` elements have; block 0 is one block."""
    return -(-size // (block or max(size, 1)))


def quantise(
    array: Array, levels: int, block: int, chance: np.random.Generator
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.floating]]:
    """Round `x / scale` up or down to a whole number at random, so that the mean of `scale * code` is `x`.

    The scale of a block is its largest magnitude divided by `levels`, rounded up to its dtype.

    Returns:
        codes in [-levels, levels], `(size,)`, and scales, `(num_scales(size, block),)`.
    """
    flat = array.reshape(-1).astype(np.float64)
    length = block or max(flat.size, 1)
    starts = np.arange(0, flat.size, length)
    top = np.maximum.reduceat(np.abs(flat), starts) if flat.size else np.zeros(0)
    dtype = scale_dtype(array.dtype)
    scale = (top / levels).astype(dtype)
    # rounded down, a subnormal scale could be far too small for the largest value
    scale = np.where(scale.astype(np.float64) * levels < top, np.nextafter(scale, dtype.type(np.inf)), scale)
    flat /= _spread(np.where(scale > 0, scale, 1).astype(np.float64), length, flat.size)
    flat += chance.random(flat.size)
    return np.clip(np.floor(flat, out=flat), -levels, levels).astype(np.int8), scale


def dequantise(name: str, codes: Array, scale: Array, block: int, like: Spec) -> Array:
    """Return `scale * code` in the shape and dtype of `like`.

    Raises:
        ProtocolError: a scale that is negative, NaN or infinite.
    """
    shape, dtype = like
    values = codes.reshape(-1).astype(np.float64)
    values *= _spread(check_scale(name, scale), block or max(values.size, 1), values.size)
    return values.astype(dtype).reshape(shape)


def _spread(scale: npt.NDArray[np.float64], length: int, size: int) -> npt.NDArray[np.float64]:
    """Return each block's scale for each of its elements; one block needs no copies."""
    return scale if len(scale) <= 1 else np.repeat(scale, length)[:size]
