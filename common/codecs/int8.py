"""int8: whole numbers from -127 to 127 times a scale, rounded at random so that no update is biased.

Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding, NIPS 2017, with the largest magnitude in place of the 2-norm, https://arxiv.org/abs/1610.02132

    scale = max|x| / 127,    code = floor(x / scale + u),  u uniform in [0, 1),    decoded = scale * code

with one `name:scale` per array, or per `block` elements of the flattened array.

Bound: |error| <= scale for each value, and its mean over the seeds is 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from consilium.common.codecs.base import (
    SCALE,
    Form,
    dequantise,
    is_floating,
    num_scales,
    quantise,
    scale_dtype,
    size_of,
)
from consilium.common.weights.arrays import Array, Spec, Weights, is_float

LEVELS = 127


@dataclass(frozen=True)
class Int8:
    """One byte per value.

    Args:
        block: elements that share a scale; 0 is the whole array.
    """

    block: int
    error_feedback: bool
    lossless: ClassVar[bool] = False
    ends: ClassVar[bool] = True

    def form(self, like: Form) -> Form:
        """Return int8 arrays of the same shapes, with their scales."""
        result: dict[str, Spec] = dict(like)
        for name, spec in like.items():
            if is_floating(spec):
                result[name] = (spec[0], np.dtype(np.int8))
                result[name + SCALE] = ((num_scales(size_of(spec), self.block),), scale_dtype(spec[1]))
        return result

    def encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return codes and scales; there is no memory."""
        result, chance = dict(arrays), np.random.default_rng(seed)
        for name in sorted(arrays):
            if is_float(arrays[name]):
                codes, scale = quantise(arrays[name], LEVELS, self.block, chance)
                result[name], result[name + SCALE] = codes.reshape(arrays[name].shape), scale
        return result, {}

    def decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        """Return `scale * code`."""
        return {
            name: dequantise(name, arrays[name], arrays[name + SCALE], self.block, spec)
            if is_floating(spec)
            else arrays[name]
            for name, spec in like.items()
        }
