"""bf16: the upper half of a float32, rounded to the nearest and to even where two are equally near.

    code = (bits + 0x7fff + (bits >> 16 & 1)) >> 16,    decoded bits = code << 16

with `bits` = those of `x` as float32; codes travel as uint16, since NumPy has no bfloat16.

Bound: |error| <= 2**-8 |x| + 2**-133, and magnitudes from 3.39e38 on are refused. Coarser than fp16 and a little
quicker; arrays of two bytes pass through: there is nothing to gain.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from consilium.common.codecs.base import Form, is_floating
from consilium.common.weights.arrays import Array, Spec, Weights


def _coded(spec: Spec) -> bool:
    return is_floating(spec) and spec[1].itemsize > 2


@dataclass(frozen=True)
class Bf16:
    """Two bytes per value."""

    error_feedback: bool
    lossless: ClassVar[bool] = False
    ends: ClassVar[bool] = True

    def form(self, like: Form) -> Form:
        """Return uint16 arrays of the same shapes."""
        return {name: (spec[0], np.dtype(np.uint16)) if _coded(spec) else spec for name, spec in like.items()}

    def encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the rounded upper halves; there is no memory."""
        result = dict(arrays)
        for name, array in arrays.items():
            if _coded((array.shape, array.dtype)):
                bits = array.astype(np.float32).view(np.uint32)
                rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
                result[name] = np.asarray(rounded >> np.uint32(16)).astype(np.uint16)
        return result, {}

    def decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        """Return the values in their own dtypes."""
        result = {name: arrays[name] for name in like}
        for name, spec in like.items():
            if _coded(spec):
                bits = np.asarray(arrays[name].astype(np.uint32) << np.uint32(16))
                result[name] = bits.view(np.float32).astype(spec[1])
        return result
