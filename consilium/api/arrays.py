"""Examples as arrays, from whatever holds them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.common.errors import ConfigError, clean

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Arrays:
    """A client's examples `x` `(N, ...)` with their labels `y` `(N,)`, and whose each is, where that was given."""

    x: Array
    y: Array
    patients: Array | None = None


def array_of(value: Any, *, what: str) -> Array:
    """Return a NumPy array of an array, a tensor on any device, a list or a column of a table.

    Raises:
        ConfigError: it is none of these, an array of Python objects that are not all texts, or one with masked numbers.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    if np.ma.is_masked(value):  # a plain array of it would hold what the mask hides
        raise ConfigError(f"{what} is a masked array, with numbers that are missing: fill or leave them out")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{what} is no array: {clean(str(error), 200)}") from error
    if array.dtype.kind == "O":
        if not all(isinstance(one, str) for one in array.flat):
            raise ConfigError(f"{what} holds Python objects, or nothing in some places; expected numbers, or texts")
        array = array.astype(str)
    if array.dtype.kind not in "biufU":
        raise ConfigError(f"{what} has type {array.dtype}, expected numbers, or texts as labels")
    return array
