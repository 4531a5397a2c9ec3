"""top_k: only the largest values travel, with their positions; the others are sent in later rounds.

Stich, Cordonnier, Jaggi: Sparsified SGD with Memory, NeurIPS 2018, algorithm 1, https://arxiv.org/abs/1809.07599

    k = ceil(fraction * size),    decoded = x at the k positions of largest |x|, 0 elsewhere

per array, at least one value of each. Positions travel as distances, `name:index`: the first position, then
from each to the next; small numbers, which zstd shrinks. The chain keeps the rest as residual (error feedback).

Bound: the k largest are exact, and the squared error is at most (1 - k / size) of the squared norm.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from consilium.common.codecs.base import INDEX, Form, is_floating, size_of
from consilium.common.errors import ProtocolError
from consilium.common.weights.arrays import Array, Spec, Weights, is_float


@dataclass(frozen=True)
class TopK:
    """The largest values of each array.

    Args:
        fraction: of the values that travels, in (0, 1].
    """

    fraction: float
    error_feedback: bool
    lossless: ClassVar[bool] = False
    ends: ClassVar[bool] = False

    def form(self, like: Form) -> Form:
        """Return `k` values per array, flat, with `k` distances in the narrowest dtype that holds the last position."""
        result: dict[str, Spec] = dict(like)
        for name, spec in like.items():
            if is_floating(spec):
                count = self._count(size_of(spec))
                result[name] = ((count,), spec[1])
                result[name + INDEX] = ((count,), np.min_scalar_type(max(size_of(spec) - 1, 0)))
        return result

    def encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the largest values and their distances; there is no memory apart from the chain's residual."""
        form = self.form({name: (array.shape, array.dtype) for name, array in arrays.items()})
        result = dict(arrays)
        for name, array in arrays.items():
            if is_float(array):
                flat, (count,) = array.reshape(-1), form[name][0]
                order = np.argpartition(np.abs(flat), flat.size - count) if flat.size else np.arange(0)
                kept = np.sort(order[flat.size - count :])
                result[name] = flat[kept]
                result[name + INDEX] = np.diff(kept, prepend=0).astype(form[name + INDEX][1])
        return result, {}

    def decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        """Return the values at their positions and 0 elsewhere.

        Raises:
            ProtocolError: positions that do not rise, or beyond the array.
        """
        result = {name: arrays[name] for name in like}
        for name, (shape, dtype) in like.items():
            if is_floating((shape, dtype)):
                size, steps = size_of((shape, dtype)), arrays[name + INDEX]
                # no sum can wrap: each step is below `size` before any is added
                if steps.size and (int(steps.max()) >= size or not steps[1:].all() or int(steps.sum()) >= size):
                    raise ProtocolError(f"positions of array '{name}' do not rise within its {size} values")
                flat = np.zeros(size, dtype)
                flat[np.cumsum(steps, dtype=np.int64)] = arrays[name]
                result[name] = flat.reshape(shape)
        return result

    def _count(self, size: int) -> int:
        # 0.07 * 100 is 7.000000000000001 in floating point, and keeps 7 all the same
        return min(size, max(1, math.ceil(round(self.fraction * size, 9))))
