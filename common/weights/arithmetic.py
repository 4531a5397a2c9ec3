"""Sums, differences, means and norms of weights, in blocks of bounded size."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from consilium.common.weights.arrays import Array, Weights, block, is_float, spec
from consilium.common.weights.checks import check_like, check_names, check_spec

BLOCK, ROWS = 2**17, 8
"""How many elements are worked on at a time, of how many arrays: 8 MB in float64, which fit a processor's cache."""


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
    portions = _portions(shares, of=len(items))
    for item in items[1:]:
        check_names(item, items[0], who="weighted mean")
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
            total, more = sums[0, :length], sums[1, :length]
            for first in range(0, len(items), ROWS):
                some = items[first : first + ROWS]
                for row, item in zip(rows, some, strict=False):
                    row[:length] = block(item, name, part.start, part.stop, into=read)
                some_shares, some_rows = portions[first : first + ROWS], rows[: len(some), :length]
                np.einsum("k,kb->b", some_shares, some_rows, out=more if first else total)
                if first:
                    total += more
            _cast(total, flat[part])
        result[name] = mean
    return result


def _portions(shares: Sequence[float], *, of: int) -> npt.NDArray[np.float64]:
    """Return the shares divided by their sum."""
    given = np.asarray(shares, dtype=np.float64)
    if not len(given) == of > 0:
        raise ValueError(f"a mean needs one item at least and one share per item: got {of} items, {len(given)} shares")
    if not (np.isfinite(given) & (given >= 0)).all() or not given.any():
        raise ValueError(f"shares must be finite, >= 0 and not all zero, got {list(shares)}")
    return given / float(np.sum(given))


def _parts(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _cast(values: npt.NDArray[np.float64], into: Array) -> None:
    with np.errstate(over="ignore"):  # values too large for the dtype become infinite, which check_finite refuses
        into[...] = values if is_float(into) else np.rint(values)


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
            others = block(other, name, part.start, part.stop).astype(np.float64) if other is not one else values
            total += float(np.vdot(values, others))
    return total
