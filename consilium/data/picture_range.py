"""Which levels are black and white in a pool of pictures of more than 8 bits."""

import numpy as np

from consilium.common.data.npz import Array

_MOST_BITS = 14
"""Bits of what a detector has at most where it does not use all 16."""


def range_of(images: Array) -> tuple[tuple[float, float] | None, list[str]]:
    """Return `task.pixel_range` of pictures `(N, H, W, C)`, None where none is needed, and a sentence about it.

    None is needed for uint8, for uint16 of which more than 14 bits are used, and for floats in 0..1.
    """
    low, high = float(np.nanmin(images)), float(np.nanmax(images))
    if images.dtype == np.uint8 or (images.dtype.kind == "f" and low >= 0 and high <= 1):
        return None, []
    return range_between(low, high, whole=images.dtype.kind == "u")


def range_between(low: float, high: float, *, whole: bool) -> tuple[tuple[float, float] | None, list[str]]:
    """Return `task.pixel_range` of pictures with these levels, None where none is needed, and a sentence about it.

    Args:
        whole: whether the levels are those of whole numbers of 16 bits, black at 0.
    """
    if whole:
        bits = max(int(high).bit_length(), 8)
        if bits > _MOST_BITS:
            return None, []
        wanted, how = (0.0, 2.0**bits - 1), f"as where {bits} of 16 bits are used"
    else:
        wanted, how = (float(np.floor(low)), float(max(np.ceil(high), np.floor(low) + 1))), "which is all of them"
    shown = f"[{wanted[0]:.0f}, {wanted[1]:.0f}]"
    return wanted, [
        f"the pixels are from {low:,.6g} to {high:,.6g}: the study has task.pixel_range = {shown}, {how}; set a "
        "narrower one where only some levels matter"
    ]
