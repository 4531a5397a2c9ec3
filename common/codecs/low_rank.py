"""low_rank: a matrix as the product of two narrow ones, found by one step of power iteration per round.

Vogels, Karimireddy, Jaggi: PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization,
NeurIPS 2019, algorithm 1, https://arxiv.org/abs/1905.13727

    P = orthonormal columns of X Q',    Q = X^T P,    decoded = P Q^T

with `X` = an array as a matrix `(first dimension, all others)`, `Q'` = the `Q` of the round before (`memory`;
random before the first round), `P` under the array's name and `Q` as `name:right`, `rank` columns each. The paper
averages the factors of all sites; here each site has its own, since not all take part in every round. The
chain keeps the difference as residual (error feedback).

Arrays with fewer than two dimensions pass through, and those whose factors would be no smaller.

Bound: decoded is X projected on `rank` directions, so the squared error is never more than its squared norm;
a matrix of rank <= `rank` is exact but for rounding.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from consilium.common.codecs.base import RIGHT, Form, bytes_of, form_of, is_floating, scale_dtype, size_of
from consilium.common.weights.arrays import Array, Spec, Weights

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LowRank:
    """Two narrow matrices for each large one.

    Args:
        rank: columns of either, >= 1.
    """

    rank: int
    error_feedback: bool
    lossless: ClassVar[bool] = False
    ends: ClassVar[bool] = False

    def form(self, like: Form) -> Form:
        """Return the two factors of each matrix that is large enough."""
        result: dict[str, Spec] = dict(like)
        for name, spec in like.items():
            if self._gains(spec):
                rows, columns = _matrix(spec)
                result[name] = ((rows, self.rank), scale_dtype(spec[1]))
                result[name + RIGHT] = ((columns, self.rank), scale_dtype(spec[1]))
        return result

    def encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the factors, and each `Q` by the array's name as memory."""
        result, kept, chance = dict(arrays), dict[str, Array](), np.random.default_rng(seed)
        for name, spec in sorted(form_of(arrays).items()):
            if self._gains(spec):
                matrix = arrays[name].astype(np.float64).reshape(_matrix(spec))
                start = _start(memory.get(name), (matrix.shape[1], self.rank), chance)
                left = np.linalg.qr(matrix @ start)[0]
                right = (matrix.T @ left).astype(scale_dtype(spec[1]))
                result[name], result[name + RIGHT] = left.astype(scale_dtype(spec[1])), right
                kept[name] = right
        return result, kept

    def decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        """Return the products."""
        result = {name: arrays[name] for name in like}
        for name, (shape, dtype) in like.items():
            if self._gains((shape, dtype)):
                left, right = arrays[name].astype(np.float64), arrays[name + RIGHT].astype(np.float64)
                product = np.zeros((len(left), len(right)))
                for column in range(self.rank):  # not `@`: how BLAS sums differs from one machine to another
                    product += np.multiply.outer(left[:, column], right[:, column])
                result[name] = product.astype(dtype).reshape(shape)
        return result

    def _gains(self, spec: Spec) -> bool:
        if not is_floating(spec) or len(spec[0]) < 2:
            return False
        return self.rank * sum(_matrix(spec)) * scale_dtype(spec[1]).itemsize < bytes_of(spec)


def _matrix(spec: Spec) -> tuple[int, int]:
    rows = spec[0][0]
    return rows, size_of(spec) // max(rows, 1)


def _start(before: Array | None, shape: tuple[int, int], chance: np.random.Generator) -> Floats:
    """Return the `Q` of the round before; a random one where there is none that fits, or it shows no direction."""
    if before is not None and before.shape == shape and before.any():
        return before.astype(np.float64)
    return chance.standard_normal(shape)
