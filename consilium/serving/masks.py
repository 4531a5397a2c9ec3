"""Masks as pictures, written next to the predictions."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilium.common.errors import StateError
from consilium.common.host.files import write_atomically

_COLOURS = (
    *((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0)),
    (204, 121, 167),
)
"""Of Okabe and Ito, which people who see colours differently tell apart; black is the background."""
_PALETTE = [part for number in range(256) for part in _COLOURS[number and (number - 1) % 7 + 1]]


def folder_of(out: Path) -> Path:
    """Return the folder of the masks that belong to a file of predictions."""
    return out.with_name(f"{out.stem}-masks")


def file_of(place: int) -> str:
    """Return the name of the mask of the picture in a place, from 0."""
    return f"{place + 1:05}.png"


def write_masks(masks: Iterable[npt.NDArray[np.uint8]], out: Path) -> None:
    """Write masks `(H, W)` next to a file of predictions, readable by their owner alone.

    Raises:
        StateError: one cannot be written, or one of before not removed.
    """
    for old in folder_of(out).glob("[0-9]" * 5 + ".png"):  # of other pictures
        try:
            old.unlink()
        except OSError as error:
            raise StateError(f"cannot remove '{old}': {error.strerror or error}") from error
    for place, mask in enumerate(masks):
        write_atomically(folder_of(out) / file_of(place), png_of(mask), mode=0o600)


def png_of(mask: npt.NDArray[np.uint8]) -> bytes:
    """Return a mask `(H, W)` as a PNG whose pixels are the classes' numbers, each shown in a colour of its own."""
    image, content = Image.new("P", (mask.shape[1], mask.shape[0])), io.BytesIO()
    image.frombytes(np.ascontiguousarray(mask).tobytes())
    image.putpalette(_PALETTE)
    image.save(content, format="PNG")
    return content.getvalue()
