"""One picture as its file holds it, and how it becomes the pixels that a study's models see.

Pictures of 8 bits are resized in 8 bits, as Pillow does: black is 0, white 255. All others hold levels, which become

    clip((level - low) / (high - low), 0, 1)

and then are resized in float32. `low` and `high` are the study's `task.pixel_range`; without it what the file's bits
can hold. The same levels give the same tensors, whatever file or array they lie in.
"""

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilium.client.data.base import Bad
from consilium.common.study.image_task import PictureTask

Pixels = npt.NDArray[np.float32]
Values = npt.NDArray[Any]
Levels = tuple[float, float]

EIGHT_BITS: Levels = (0.0, 255.0)
SIXTEEN_BITS: Levels = (0.0, 65535.0)
# ITU-R 601-2 luma, as Pillow takes it for 8 bits.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_PERCENTILES = (1.0, 99.0)
_MOST_EXACT = 2.0**23
_silencing = threading.Lock()
"""One thread at a time puts loggers aside: another one would put back what is no logger's own."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture before it is scaled and resized.

    Args:
        values: `(H, W, C)` with C 1 (grey) or 3 (red, green, blue): uint8, or levels of any number type.
        full: the levels that the file can hold; None where nothing says so, as of floats.
        inverted: that the lowest level is white (X-rays as MONOCHROME1).
        window: levels of black and white that the file itself asks for.
    """

    values: Values
    full: Levels | None
    inverted: bool = False
    window: Levels | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width."""
        return int(self.values.shape[0]), int(self.values.shape[1])


@dataclass(frozen=True)
class NoPicture(Bad):
    """A file that is sound, but holds something else than a picture; in a folder it is passed over."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a file holds.

    Args:
        frames: the pictures that are taken from it, at least one.
        num_more: pages or frames that are not.
        named: that the file itself says that names may be burnt into its pixels.
    """

    frames: tuple[Frame, ...]
    num_more: int = 0
    named: bool = False


@contextmanager
def silent(library: str) -> Iterator[None]:
    """Keep log lines of a library and its modules back: they quote what stands in a file's header."""
    logger = logging.getLogger(library)
    with _silencing:
        handlers, propagate = logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [logging.NullHandler()], False
        try:
            yield
        finally:
            logger.handlers, logger.propagate = handlers, propagate


def pixels_of(frame: Frame, task: PictureTask, *, name: str) -> Pixels | Bad:
    """Return a picture as `(channels, size, size)` in 0..1, or why it has no levels that the study can read.

    Args:
        name: what sentences call it, such as `image 'a.png'`.
    """
    if frame.values.dtype == np.uint8:
        return _eight_bits(frame, task)
    levels = levels_of(frame, task, name=name)
    return levels if isinstance(levels, Bad) else _many_bits(frame, levels, task)


def levels_of(frame: Frame, task: PictureTask, *, name: str) -> Levels | Bad:
    """Return the levels of black and white of a picture of more than 8 bits, or why there are none."""
    if frame.values.dtype.kind == "f" and not np.isfinite(frame.values).all():
        return Bad(f"{name}: a pixel is not a finite number")
    if task.pixel_range == "picture":
        low, high = (float(level) for level in np.percentile(frame.values, _PERCENTILES))
        return _finite((low, high if high > low else low + 1), name)  # of one level only: black
    if task.pixel_range == "window":
        missing = f"{name} states no window (centre and width), as task.pixel_range = 'window' asks for"
        return Bad(missing) if frame.window is None else _finite(frame.window, name)
    if task.pixel_range is not None:
        return task.pixel_range
    if frame.full is None:
        return Bad(
            f"{name} holds numbers of which nothing says what is black and what is white, expected pixels of 8 or 16 "
            "bits, or task.pixel_range in the study, such as [-1000, 1000] for Hounsfield units"
        )
    return frame.full


def _finite(levels: Levels, name: str) -> Levels | Bad:
    if 0 < levels[1] - levels[0] < math.inf:  # not of NaN either
        return levels
    return Bad(f"{name}: the levels of black and white are no finite numbers, one above the other")


def normalised(pixels: Pixels, task: PictureTask) -> Pixels:
    """Return a picture `(C, size, size)` in 0..1 as the study's pixel range, mean and std make it."""
    mean = np.asarray(task.mean, dtype=np.float32).reshape(-1, 1, 1)
    std = np.asarray(task.std, dtype=np.float32).reshape(-1, 1, 1)
    return (pixels * np.float32(task.pixel_max) - mean) / std


def _eight_bits(frame: Frame, task: PictureTask) -> Pixels:
    values = 255 - frame.values if frame.inverted else frame.values
    picture = Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))
    mode = "L" if task.channels == 1 else "RGB"
    right = picture if picture.mode == mode else picture.convert(mode)  # a copy only where it is needed
    small = right.resize((task.size, task.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, dtype=np.float32).reshape(task.size, task.size, task.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) / np.float32(255))


def _many_bits(frame: Frame, levels: Levels, task: PictureTask) -> Pixels:
    low, high = map(float, levels)
    # Of whole numbers up to 2^24 float32 gives the quotient that float64, rounded to float32, gives: Figueroa, When is
    # double rounding innocuous?, 1995.
    whole = frame.values.dtype.kind in "iu" and frame.values.dtype.itemsize <= 2 and _is_whole(low) and _is_whole(high)
    exact: Any = frame.values.astype(np.float32 if whole else np.float64)
    exact -= low
    exact /= high - low
    shares: Pixels = np.clip(exact, 0, 1, out=exact).astype(np.float32, copy=False)
    if frame.inverted:
        shares = np.float32(1) - shares
    if task.channels == 1 and shares.shape[2] == 3:
        shares = (shares @ _LUMA)[..., None]
    planes = [_resized(shares[..., channel], task.size) for channel in range(shares.shape[2])]
    return np.ascontiguousarray(np.broadcast_to(np.stack(planes), (task.channels, task.size, task.size)))


def _is_whole(level: float) -> bool:
    return level.is_integer() and abs(level) <= _MOST_EXACT


def _resized(plane: Pixels, size: int) -> Pixels:
    if plane.shape == (size, size):
        return plane
    resized = Image.fromarray(np.ascontiguousarray(plane)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)
