"""Shorten what training did to the shared weights, before it is encoded: no site moves the mean too far."""

import numpy as np

from consilium.common.weights.arithmetic import add_scaled, norm, subtract
from consilium.common.weights.arrays import Array, Weights, is_float


def shortened(after: Weights, before: Weights, clip: float) -> dict[str, Array]:
    """Return `before + delta * min(1, clip / |delta|)`, with delta = `after - before`; whole numbers stay as before.

    The server shortens once more what rounding or a codec makes longer.
    """
    delta = {
        name: change if is_float(change) else np.zeros_like(change) for name, change in subtract(after, before).items()
    }
    length = norm(delta)
    return add_scaled(before, delta, 1.0 if length <= clip else clip / length)
