"""Masks in a picture's own size, from answers in the size that the study's pictures are resized to."""

import torch
from torch import Tensor
from torch.nn import functional

MOST_PIXELS = 2**32
"""Most pixels of all masks that are answered at once: 4 GB."""


def mask_in_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class of every pixel of a picture `(H, W)`, uint8: of equally likely ones the first.

    Each class's logits are resized bilinearly, as the picture was, and then the largest is taken: outlines become
    smooth, where the nearest pixel's class would leave steps. One class at a time, for a picture may be large.

    Args:
        logits: `(C, h, w)`, finite.
        size: height and width of the picture, H and W.
    """
    if tuple(logits.shape[1:]) == size:
        return logits.argmax(dim=0).to(torch.uint8)
    best, found = _resized(logits[0], size), torch.zeros(size, dtype=torch.uint8)
    for number, plane in enumerate(logits[1:], start=1):
        values = _resized(plane, size)
        found[values > best] = number
        best = torch.maximum(best, values)
    return found


def _resized(plane: Tensor, size: tuple[int, int]) -> Tensor:
    wide = functional.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=False, antialias=True)
    return wide[0, 0]
