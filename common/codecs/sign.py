"""sign: one bit per value and one magnitude per array; the rest is sent in later rounds.

Karimireddy, Rebjock, Stich, Jaggi: Error Feedback Fixes SignSGD and other Gradient Compression Schemes,
ICML 2019, algorithm 1, https://arxiv.org/abs/1901.09847

    scale = mean|x|,    decoded = scale where x >= 0, -scale elsewhere

with `name:scale`, eight signs to a byte. The chain keeps the difference as residual (error feedback), without
which the sign alone need not converge.

Bound: squared error = ||x||**2 - size * scale**2 in each array, so never more than its squared norm.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from consilium.common.codecs.base import SCALE, Form, check_scale, is_floating, scale_dtype, size_of
from consilium.common.weights.arrays import Array, Spec, Weights, is_float


@dataclass(frozen=True)
class Sign:
    """An eighth of a byte per value."""

    error_feedback: bool
    lossless: ClassVar[bool] = False
    ends: ClassVar[bool] = True

    def form(self, like: Form) -> Form:
        """Return one byte per eight values, with one scale per array."""
        result: dict[str, Spec] = dict(like)
        for name, spec in like.items():
            if is_floating(spec):
                result[name] = (((size_of(spec) + 7) // 8,), np.dtype(np.uint8))
                result[name + SCALE] = ((), scale_dtype(spec[1]))
        return result

    def encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return packed signs and scales; there is no memory apart from the chain's residual."""
        result = dict(arrays)
        for name, array in arrays.items():
            if is_float(array):
                scale = np.sum(np.abs(array), dtype=np.float64) / max(array.size, 1)
                result[name] = np.packbits(array.reshape(-1).astype(np.float64) >= 0)
                result[name + SCALE] = np.array(scale, dtype=scale_dtype(array.dtype))
        return result, {}

    def decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        """Return plus or minus the scale.

        Raises:
            ProtocolError: a scale that is negative, NaN or infinite.
        """
        result = {name: arrays[name] for name in like}
        for name, (shape, dtype) in like.items():
            if is_floating((shape, dtype)):
                scale = check_scale(name, arrays[name + SCALE])
                positive = np.unpackbits(arrays[name].astype(np.uint8), count=size_of((shape, dtype))).astype(bool)
                result[name] = np.where(positive, scale, -scale).astype(dtype).reshape(shape)
        return result
