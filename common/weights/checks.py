"""Refuse weights whose names, shapes, dtypes or values are not as expected."""

from collections.abc import Sequence

import numpy as np

from consilium.common.errors import UpdateRejected
from consilium.common.weights.arrays import Array, Spec, Weights


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


def check_array(name: str, array: Array, expected: Array, *, who: str) -> None:
    """Check that one array has the shape and dtype of another.

    Raises:
        UpdateRejected: with reason `shape` or `dtype`.
    """
    check_spec(name, (array.shape, array.dtype), (expected.shape, expected.dtype), who=who)


def check_spec(name: str, spec: Spec, expected: Spec, *, who: str) -> None:
    """Check that a shape and dtype are the expected ones.

    Raises:
        UpdateRejected: with reason `shape` or `dtype`.
    """
    if spec[0] != expected[0]:
        raise UpdateRejected("shape", f"{who}: array '{name}' has shape {spec[0]}, expected {expected[0]}")
    if spec[1] != expected[1]:
        raise UpdateRejected("dtype", f"{who}: array '{name}' has dtype {spec[1]}, expected {expected[1]}")


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
