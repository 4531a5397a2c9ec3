"""int4: whole numbers from -7 to 7 times a scale, two to a byte, rounded at random so that no update is biased.

Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding, NIPS 2017, with the largest magnitude in place of the 2-norm, https://arxiv.org/abs/1610.02132

    scale = max|x| / 7,    code = floor(x / scale + u),  u uniform in [0, 1),    decoded = scale * code

with one `name:scale` per `block` elements of the flattened array, or one per array. The byte of a pair is
`(first + 8) + 16 * (second + 8)`.

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

LEVELS, SHIFT = 7, 8


@dataclass(frozen=True)
class Int4:
    """Half a byte per value.

    Args:
        block: elements that share a scale; 0 is the whole array.
    """

    block: int
    error_feedback: bool
    lossless: ClassVar[bool] = False
    ends: ClassVar[bool] = True

    def form(self, like: Form) -> Form:
        """Return one byte per pair of values, with the scales."""
        result: dict[str, Spec] = dict(like)
        for name, spec in like.items():
            if is_floating(spec):
                size = size_of(spec)
                result[name] = (((size + 1) // 2,), np.dtype(np.uint8))
                result[name + SCALE] = ((num_scales(size, self.block),), scale_dtype(spec[1]))
        return result

    def encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return packed codes and scales; there is no memory."""
        result, chance = dict(arrays), np.random.default_rng(seed)
        for name in sorted(arrays):
            if is_float(arrays[name]):
                codes, result[name + SCALE] = quantise(arrays[name], LEVELS, self.block, chance)
                pairs = np.append(codes, np.zeros(len(codes) % 2, np.int8)).reshape(-1, 2).view(np.uint8) + SHIFT
                result[name] = pairs[:, 0] | pairs[:, 1] << 4
        return result, {}

    def decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        """Return `scale * code`."""
        result = {name: arrays[name] for name in like}
        for name, spec in like.items():
            if is_floating(spec):
                packed = arrays[name].astype(np.int16)
                codes = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[: size_of(spec)] - SHIFT
                result[name] = dequantise(name, codes, arrays[name + SCALE], self.block, spec)
        return result
