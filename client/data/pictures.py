"""Decodes one picture file as the study's images are: for training, and for a finished model alike."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilium.client.data.base import Bad
from consilium.common.study.task import ImageTask

# Only these decoders run on a site's files, whatever a file's name says.
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
# What Pillow's decoders raise on bytes that are not an image.
DECODE_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
MAX_PIXELS = 50_000_000
"""Most pixels that an image may declare (200 MB in colour); a small file can declare far more to be decoded."""
MAX_FILE_BYTES = 500_000_000
"""Size of the largest image file that is read."""

Pixels = npt.NDArray[np.float32]


def decode(file: Path | bytes, task: ImageTask, *, name: str) -> Pixels | Bad:
    """Return the image as `(C, size, size)` in 0..1."""
    try:
        if (size := len(file) if isinstance(file, bytes) else file.stat().st_size) > MAX_FILE_BYTES:
            return Bad(f"image '{name}' has {size} bytes, at most {MAX_FILE_BYTES} are read")
        with _strict(), Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            if (pixels := image.width * image.height) > MAX_PIXELS:
                return Bad(f"image '{name}' declares {pixels} pixels, at most {MAX_PIXELS} are decoded")
            image.load()
            if image.mode.startswith(("I", "F")):
                return _deep_grey(image, task, name=name)
            return _colours(image, task)
    except _BOMBS:
        return Bad(f"image '{name}' declares more pixels than Pillow decodes, at most {MAX_PIXELS} are decoded here")
    except DECODE_ERRORS:
        return Bad(f"image '{name}' is corrupt or not one of {', '.join(FORMATS)}")


def normalised(pixels: Pixels, task: ImageTask) -> Pixels:
    """Return a picture `(C, size, size)` in 0..1 as the study's pixel range, mean and std make it."""
    mean = np.asarray(task.mean, dtype=np.float32).reshape(-1, 1, 1)
    std = np.asarray(task.std, dtype=np.float32).reshape(-1, 1, 1)
    return (pixels * np.float32(task.pixel_max) - mean) / std


@contextmanager
def _strict() -> Iterator[None]:
    """Turn Pillow's warning about decompression bombs into an error, and silence its other warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _colours(image: Image.Image, task: ImageTask) -> Pixels:
    # A palette with transparency must pass through RGBA, or Pillow warns.
    plain = image.convert("RGBA") if image.mode in ("P", "PA") else image
    mode = "L" if task.channels == 1 else "RGB"
    right = plain if plain.mode == mode else plain.convert(mode)  # a copy only where it is needed
    small = right.resize((task.size, task.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, dtype=np.float32).reshape(task.size, task.size, task.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) / np.float32(255))


def _deep_grey(image: Image.Image, task: ImageTask, *, name: str) -> Pixels | Bad:
    """Scale 16-bit greyscale; Pillow's own conversion to 8 bits clips at 255 and would give white."""
    values = np.asarray(image, dtype=np.float32)
    if image.mode.startswith("F") or values.min() < 0 or values.max() > 65535:
        return Bad(f"image '{name}' has pixels of 32 bits, expected 8 or 16 bits")
    small = Image.fromarray(values / np.float32(65535)).resize((task.size, task.size), Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(small, dtype=np.float32)[None], task.channels, axis=0)
