"""Weights of which some arrays are multiplied by a factor, each computed when it is asked for."""

from collections.abc import Iterator, Mapping

import numpy as np

from consilium.common.weights.arrays import Array, Spec, Weights, block, spec


class Scaled(Mapping[str, Array]):
    """Arrays times their factors, in their own dtypes; those without a factor are as they were.

    The arrays may lie on disk: one is held at a time, and of a block no more than the block is read.
    """

    def __init__(self, weights: Weights, factors: Mapping[str, float]) -> None:
        self._weights, self._factors = weights, factors

    def __getitem__(self, name: str) -> Array:
        return self._times(name, self._weights[name])

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def block(self, name: str, start: int, stop: int, *, into: Array | None = None) -> Array:
        """Return elements `start` to `stop` of the flattened array; they may be read into `into`."""
        return self._times(name, block(self._weights, name, start, stop, into=into))

    def spec(self, name: str) -> Spec:
        """Return the array's shape and dtype, reading nothing."""
        return spec(self._weights, name)

    def _times(self, name: str, array: Array) -> Array:
        if name not in self._factors:
            return array
        scaled: Array = np.multiply(array, self._factors[name], dtype=array.dtype)
        return scaled
