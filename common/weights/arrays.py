"""Weights: named arrays; their names, their digest, their bytes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

Weights = Mapping[str, Array]

Spec: TypeAlias = tuple[tuple[int, ...], np.dtype[np.generic]]
"""Shape and dtype of an array."""


def is_float(array: Array) -> bool:
    """Return whether an array holds floating-point numbers (integer buffers are averaged exactly)."""
    return bool(np.issubdtype(array.dtype, np.floating))


def with_prefix(weights: Weights, prefix: str) -> dict[str, Array]:
    """Return the weights under the names `prefix + name`."""
    return {prefix + name: array for name, array in weights.items()}


def under(weights: Weights, prefix: str) -> dict[str, Array]:
    """Return the weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def digest(weights: Weights) -> str:
    """Return the sha256 (hex) of names, dtypes, shapes and bytes, independent of the order of names."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name]
        sha.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        sha.update(bytes_view(array))
    return sha.hexdigest()


def bytes_view(array: Array) -> memoryview:
    """Return an array's bytes in C order, without copying those of a contiguous one."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data if flat.size else memoryview(b"")


def block(weights: Weights, name: str, start: int, stop: int, *, into: Array | None = None) -> Array:
    """Return elements `start` to `stop` of an array, flattened; of one kept on disk only these are read.

    Args:
        into: memory that may be used for what is read, of the array's dtype and large enough.
    """
    if (stored := _in_blocks(weights)) is not None:
        return stored.block(name, start, stop, into=into)
    return weights[name].reshape(-1)[start:stop]


class InBlocks(Protocol):
    """Weights of which a part can be read without the rest."""

    def block(self, name: str, start: int, stop: int, *, into: Array | None = None) -> Array:
        """Return elements `start` to `stop` of the flattened array; they may lie in `into`."""
        ...

    def spec(self, name: str) -> Spec:
        """Return the array's shape and dtype."""
        ...


def spec(weights: Weights, name: str) -> Spec:
    """Return an array's shape and dtype, without reading one that is kept on disk."""
    if (stored := _in_blocks(weights)) is not None:
        return stored.spec(name)
    return weights[name].shape, weights[name].dtype


def _in_blocks(weights: Weights) -> InBlocks | None:
    """Return weights that can be read in parts; asked by its methods, as `isinstance` takes longer than a small sum."""
    return cast(InBlocks, weights) if hasattr(weights, "block") else None
