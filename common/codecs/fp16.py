"""fp16: half-precision numbers, moved by a power of two so that an array's largest magnitude is in their range.

    code = half(x * 2**(15 - e)),    decoded = code * 2**(e - 15),    2**(e - 1) <= max|x| < 2**e

with `e` as `name:exponent`. No value is too large and none too small: a difference of 1e-8 keeps its digits.

Bound: |error| <= 2**-11 |x| + 2**-39 max|x| in each array, and half the array's own smallest number. Arrays of
two bytes pass through: there is nothing to gain.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from consilium.common.codecs.base import EXPONENT, Form, is_floating
from consilium.common.weights.arrays import Array, Spec, Weights

TOP = 15
"""Scaled magnitudes stay below 2**15: half precision ends at 65504."""


def _coded(spec: Spec) -> bool:
    return is_floating(spec) and spec[1].itemsize > 2


@dataclass(frozen=True)
class Fp16:
    """Two bytes per value."""

    error_feedback: bool
    lossless: ClassVar[bool] = False
    ends: ClassVar[bool] = True

    def form(self, like: Form) -> Form:
        """Return half-precision arrays of the same shapes, with one exponent each."""
        result: dict[str, Spec] = {}
        for name, spec in like.items():
            result[name] = (spec[0], np.dtype(np.float16)) if _coded(spec) else spec
            if _coded(spec):
                result[name + EXPONENT] = ((), np.dtype(np.int16))
        return result

    def encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return scaled half-precision values and exponents; there is no memory."""
        result = dict(arrays)
        for name, array in arrays.items():
            if _coded((array.shape, array.dtype)):
                values = array.astype(np.float64)
                exponent = np.frexp(np.max(np.abs(values), initial=0))[1]
                result[name] = np.asarray(np.ldexp(values, TOP - exponent)).astype(np.float16)
                result[name + EXPONENT] = np.array(exponent, dtype=np.int16)
        return result, {}

    def decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        """Return the values in their own dtypes; an exponent too large makes infinities, which the chain refuses."""
        result = {name: arrays[name] for name in like}
        for name, spec in like.items():
            if _coded(spec):
                exponent = arrays[name + EXPONENT].astype(np.int32)
                values = np.ldexp(arrays[name].astype(np.float64), exponent - TOP)
                result[name] = np.asarray(values).astype(spec[1])
        return result
