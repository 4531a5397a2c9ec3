"""Named arrays of a model and the arithmetic on them: float64 reductions, exact integers."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from common.errors import UpdateRejected

Array = npt.NDArray[np.generic]
Weights = Mapping[str, Array]


def is_float(array: Array) -> bool:
    """Tell whether an array holds floating-point numbers (integer buffers are averaged exactly)."""
    return bool(np.issubdtype(array.dtype, np.floating))


def subtract(after: Weights, before: Weights) -> dict[str, Array]:
    """Return the delta `after - before`, each array in its own dtype.

    Integer arrays are subtracted exactly. Both arguments must have the same names and shapes.
    """
    check_like(after, before, who="delta")
    return {name: np.subtract(after[name], before[name], dtype=after[name].dtype) for name in before}


def add_scaled(weights: Weights, delta: Weights, scale: float = 1.0) -> dict[str, Array]:
    """Return `weights + scale * delta`, computed in float64, in the dtypes of `weights`.

    Names that `delta` lacks are kept as they are. Integer arrays are rounded to the nearest.
    """
    result = dict(weights)
    for name, change in delta.items():
        total = weights[name].astype(np.float64) + scale * change.astype(np.float64)
        result[name] = _cast(total, weights[name])
    return result


def weighted_mean(items: Sequence[Weights], shares: Sequence[float]) -> dict[str, Array]:
    """Return the weighted mean of several weights: `sum(s_k * w_k) / sum(s_k)`; integers are exact below 2**53.

    Reads one array of one item at a time, so that weights kept on disk need no more memory than one of them.

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
    result = {}
    for name, first in items[0].items():
        mean = np.zeros(first.shape, dtype=np.float64)
        for item, share in zip(items, shares, strict=True):
            array = item[name]
            check_array(name, array, first, who="weighted mean")
            mean += (share / total) * array.astype(np.float64)
        result[name] = _cast(mean, first)
    return result


def _cast(values: npt.NDArray[np.float64], like: Array) -> Array:
    with np.errstate(over="ignore"):  # too large for the dtype becomes infinite, which check_finite tells
        return (values if is_float(like) else np.rint(values)).astype(like.dtype)


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
        raise UpdateRejected(
            "names", f"{who}: arrays differ: missing {missing or 'none'}, unexpected {extra or 'none'}"
        )


def check_array(name: str, seen: Array, expected: Array, *, who: str) -> None:
    """Check that one array has the shape and dtype of another.

    Raises:
        UpdateRejected: with reason `shape` or `dtype`.
    """
    if seen.shape != expected.shape:
        raise UpdateRejected("shape", f"{who}: array '{name}' has shape {seen.shape}, expected {expected.shape}")
    if seen.dtype != expected.dtype:
        raise UpdateRejected("dtype", f"{who}: array '{name}' has dtype {seen.dtype}, expected {expected.dtype}")


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
    floats = (array for array in weights.values() if is_float(array))
    return float(np.sqrt(sum(float(np.sum(np.square(a.astype(np.float64)))) for a in floats)))


def dot(one: Weights, other: Weights, names: Iterable[str]) -> float:
    """Return the inner product over the arrays in `names`, in float64, array by array."""
    pairs = ((one[name].astype(np.float64), other[name].astype(np.float64)) for name in names)
    return float(sum(np.vdot(a, b) for a, b in pairs))


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
        sha.update(array.tobytes())
    return sha.hexdigest()
