"""integer_delta: the difference of the bit patterns, read as whole numbers; lossless, and small after zstd.

    d = int(weights) - int(reference)  modulo 2**bits,    code = (d << 1) ^ (d >> (bits - 1))

The chain takes the difference, and hands it on as an array of its own dtype with these bits; the stage moves the
sign to the lowest bit, so that small differences of either sign begin with zeros.

Bound: exact, bit for bit.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from consilium.common.codecs.base import Form, is_floating
from consilium.common.weights.arrays import Array, Weights


def _number(kind: str, dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    return np.dtype(f"{kind}{dtype.itemsize}")


@dataclass(frozen=True)
class IntegerDelta:
    """Bit patterns as unsigned whole numbers of the same width."""

    lossless: ClassVar[bool] = True
    ends: ClassVar[bool] = True
    error_feedback: ClassVar[bool] = False

    def form(self, like: Form) -> Form:
        """Return unsigned arrays of the same shapes and widths."""
        return {name: (s[0], _number("u", s[1])) if is_floating(s) else s for name, s in like.items()}

    def encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the codes; there is no memory."""
        result = dict(arrays)
        for name, array in arrays.items():
            if np.issubdtype(array.dtype, np.floating):
                bits = array.view(_number("i", array.dtype))
                sign = np.right_shift(bits, 8 * bits.itemsize - 1)
                code = np.bitwise_xor(np.left_shift(bits, 1), sign)
                result[name] = np.asarray(code).view(_number("u", array.dtype))
        return result, {}

    def decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        """Return arrays with the bits of the difference, in their own dtypes."""
        result = {name: arrays[name] for name in like}
        for name, spec in like.items():
            if is_floating(spec):
                code = arrays[name]
                sign = np.bitwise_and(code, 1).view(_number("i", spec[1]))
                half = np.right_shift(code, 1).view(_number("i", spec[1]))
                result[name] = np.asarray(np.bitwise_xor(half, np.negative(sign))).view(spec[1])
        return result
