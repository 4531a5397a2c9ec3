"""Named arrays of a model and the arithmetic on them: float64 reductions, exact integers."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from common.errors import UpdateRejected

Array = npt.NDArray[np.generic]
Weights = Mapping[str, Array]

BLOCK, ROWS = 2**17, 8
"""How many elements are worked on at a time, of how many arrays: 8 MB in float64, which fit a processor's cache."""


def is_float(array: Array) -> bool:
    """Tell whether an array holds floating-point numbers (integer buffers are averaged exactly)."""
    return bool(np.issubdtype(array.dtype, np.floating))


def subtract(after: Weights, before: Weights) -> dict[str, Array]:
    """Return the delta `after - before`, each array in its own dtype.

    Integer arrays are subtracted exactly. Both arguments must have the same names and shapes.
    """
    check_like(after, before, who="delta")
    return {name: np.subtract(after[name], before[name], dtype=after[name].dtype) for name in before}


def add_scaled(weights: Weights, delta: Weights, scale: float = 1.0, *, reuse: bool = False) -> dict[str, Array]:
    """Return `weights + scale * delta`, computed in float64, in the dtypes of `weights`.

    Names that `delta` lacks are kept as they are. Integer arrays are rounded to the nearest.

    Args:
        reuse: the arrays of `delta`, of the same dtypes, become those of the result.
    """
    result = dict(weights)
    for name, change in delta.items():
        array = weights[name]
        added = change if reuse else np.empty(array.shape, array.dtype)
        flat, before, change = added.reshape(-1), array.reshape(-1), change.reshape(-1)
        for part in _parts(array.size):
            total = change[part].astype(np.float64)
            total *= scale
            total += before[part].astype(np.float64)
            _cast(total, flat[part])
        result[name] = added
    return result


def weighted_mean(items: Sequence[Weights], shares: Sequence[float]) -> dict[str, Array]:
    """Return the weighted mean of several weights: `sum(s_k * w_k) / sum(s_k)`; integers are exact below 2**53.

    Reads one block of the items at a time, so that weights kept on disk need hardly any memory. The sums are those
    of `numpy.einsum`, in the order of the items: equal on every run, whatever the number of threads.

    Args:
        items: one or more weights with equal names, shapes and dtypes.
        shares: one share per item, each finite and >= 0, not all zero.

    Raises:
        ValueError: no items, or shares that are negative, not finite, or all zero.
        UpdateRejected: items that differ in names, shapes or dtypes.
    """
    if not items:
        raise ValueError("weighted_mean needs at least one item, got none")
    total = float(np.sum(np.asarray(shares, dtype=np.float64)))
    if not all(np.isfinite(s) and s >= 0 for s in shares) or total <= 0:
        raise ValueError(f"shares must be finite, >= 0 and not all zero, got {list(shares)}")
    for item in items[1:]:
        check_names(item, items[0], who="weighted mean")
    if len(items) != len(shares):
        raise ValueError(f"one share per item: got {len(items)} items and {len(shares)} shares")
    portions = np.asarray(shares, dtype=np.float64) / total
    longest = min(BLOCK, max((math.prod(spec(items[0], name)[0]) for name in items[0]), default=0))
    rows, sums = np.empty((min(ROWS, len(items)), longest)), np.empty((2, longest))
    result = {}
    for name in items[0]:
        shape, dtype = spec(items[0], name)
        for item in items[1:]:
            check_spec(name, spec(item, name), (shape, dtype), who="weighted mean")
        mean, read = np.empty(shape, dtype), np.empty(longest, dtype)
        flat = mean.reshape(-1)
        for part in _parts(flat.size):
            length = part.stop - part.start
            total_sum, more = sums[0, :length], sums[1, :length]
            for first in range(0, len(items), ROWS):
                some = items[first : first + ROWS]
                for row, item in zip(rows, some, strict=False):
                    row[:length] = block(item, name, part.start, part.stop, into=read)
                some_shares, some_rows = portions[first : first + ROWS], rows[: len(some), :length]
                np.einsum("k,kb->b", some_shares, some_rows, out=more if first else total_sum)
                if first:
                    total_sum += more
            _cast(total_sum, flat[part])
        result[name] = mean
    return result


def _parts(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _cast(values: npt.NDArray[np.float64], into: Array) -> None:
    with np.errstate(over="ignore"):  # too large for the dtype becomes infinite, which check_finite tells
        into[...] = values if is_float(into) else np.rint(values)


def block(weights: Weights, name: str, start: int, stop: int, *, into: Array | None = None) -> Array:
    """Return elements `start` to `stop` of an array, flattened; of one kept on disk only these are read.

    Args:
        into: memory that may be used for what is read, of the array's dtype and at least so long.
    """
    if isinstance(weights, InBlocks):
        return weights.block(name, start, stop, into=into)
    return weights[name].reshape(-1)[start:stop]


def spec(weights: Weights, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Return an array's shape and dtype, without reading one that is kept on disk."""
    if isinstance(weights, InBlocks):
        return weights.spec(name)
    return weights[name].shape, weights[name].dtype


@runtime_checkable
class InBlocks(Protocol):
    """Weights of which a part can be read without the rest."""

    def block(self, name: str, start: int, stop: int, *, into: Array | None = None) -> Array:
        """Return elements `start` to `stop` of the flattened array; they may lie in `into`."""
        ...

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        """Return the array's shape and dtype."""
        ...


def check_like(weights: Weights, like: Weights, *, who: str) -> None:
    """Check that `weights` has the names, shapes and dtypes of `like`.

    Raises:
        UpdateRejected: with reason `names`, `shape` or `dtype`, and a sentence that names the array.
    """
    check_names(weights, like, who=who)
    for name, expected in like.items():
        check_array(name, weights[name], expected, who=who)


def check_names(weights: Weights, like: Weights, *, who: str) -> None:
    """Check that `weights` has the names of `like`.

    Raises:
        UpdateRejected: with reason `names`.
    """
    if weights.keys() != like.keys():
        missing, extra = sorted(set(like) - set(weights)), sorted(set(weights) - set(like))
        raise UpdateRejected("names", f"{who}: arrays differ: missing {_listed(missing)}, unexpected {_listed(extra)}")


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{list(names[:most])}{more}" if names else "none"


def check_array(name: str, seen: Array, expected: Array, *, who: str) -> None:
    """Check that one array has the shape and dtype of another.

    Raises:
        UpdateRejected: with reason `shape` or `dtype`.
    """
    check_spec(name, (seen.shape, seen.dtype), (expected.shape, expected.dtype), who=who)


def check_spec(
    name: str,
    seen: tuple[tuple[int, ...], np.dtype[np.generic]],
    expected: tuple[tuple[int, ...], np.dtype[np.generic]],
    *,
    who: str,
) -> None:
    """Check that a shape and dtype are the expected ones.

    Raises:
        UpdateRejected: with reason `shape` or `dtype`.
    """
    if seen[0] != expected[0]:
        raise UpdateRejected("shape", f"{who}: array '{name}' has shape {seen[0]}, expected {expected[0]}")
    if seen[1] != expected[1]:
        raise UpdateRejected("dtype", f"{who}: array '{name}' has dtype {seen[1]}, expected {expected[1]}")


def check_finite(weights: Weights, *, who: str) -> None:
    """Check that no array holds NaN or infinity.

    Raises:
        UpdateRejected: with reason `not_finite` and how many values of which array are bad.
    """
    for name, array in weights.items():
        if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise UpdateRejected(
                "not_finite", f"{who}: array '{name}' has {bad} NaN or infinite of {array.size} values"
            )


def norm(weights: Weights) -> float:
    """Return the Euclidean norm over all floating-point arrays, in float64."""
    return float(np.sqrt(sum(_squares(weights, name, None) for name in weights)))


def distance(after: Weights, before: Weights) -> float:
    """Return the Euclidean norm of `after - before` over all floating-point arrays, in float64."""
    return float(np.sqrt(sum(_squares(after, name, before) for name in after)))


def _squares(weights: Weights, name: str, minus: Weights | None) -> float:
    shape, dtype = spec(weights, name)
    if not np.issubdtype(dtype, np.floating):
        return 0.0
    total = 0.0
    for part in _parts(math.prod(shape)):
        values = block(weights, name, part.start, part.stop).astype(np.float64)
        if minus is not None:
            values -= block(minus, name, part.start, part.stop).astype(np.float64)
        total += float(np.sum(np.square(values, out=values)))
    return total


def dot(one: Weights, other: Weights, names: Iterable[str]) -> float:
    """Return the inner product over the arrays in `names`, in float64, block by block."""
    total = 0.0
    for name in names:
        for part in _parts(math.prod(spec(one, name)[0])):
            values = block(one, name, part.start, part.stop).astype(np.float64)
            total += float(np.vdot(values, block(other, name, part.start, part.stop).astype(np.float64)))
    return total


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
