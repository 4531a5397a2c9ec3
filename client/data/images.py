"""Reads a folder of image files with one sub-folder per class."""

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from consilium.client.data.base import Bad, RawData, keep_usable, kind_mismatch
from consilium.client.data.image_files import ImageFile, labelled_files
from consilium.client.data.parts import index_file, parts_in_file
from consilium.common.data.groups import Ints, copies_of_pictures
from consilium.common.errors import DataError
from consilium.common.study.site import DataConfig, ImageFolderData
from consilium.common.study.task import ImageTask, Task
from consilium.common.study.training import SplitConfig

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


def read_images(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read `<path>/<class>/<image file>`, in the order of the study's classes and of the file names.

    With `split.group = "folder"` a class has a sub-folder for each patient, with `split.parts = "folder"` the classes
    lie in folders called train, validation and test. A patient of one name in two classes is the same patient.

    An image becomes `(C, size, size)` float32: greyscale or RGB by the task's channels, resized
    (bilinear), scaled to 0..pixel_max, minus mean, divided by std. 16-bit greyscale is scaled by 65535.

    Raises:
        ConfigError: the study's task is not about images.
        DataError: no folder, an unknown class or part, no image, more than `max_skipped` corrupt files, or one that
            `split.group` or `split.parts` says nothing about.
    """
    if not (isinstance(config, ImageFolderData) and isinstance(task, ImageTask)):
        raise kind_mismatch(config, task, site=site)
    try:
        files = labelled_files(config.path, task, split, site=site)
    except OSError as error:
        raise DataError(f"site '{site}': cannot list data folder '{config.path}': {error.strerror or error}") from error
    decoded = _decode_all(files, task, folder=config.path)
    usable, num_skipped = keep_usable(decoded, site=site, max_skipped=config.max_skipped)
    if not usable:
        raise DataError(f"site '{site}': no usable image in '{config.path}', {num_skipped} skipped as corrupt")
    x = torch.from_numpy(np.stack([pixels for pixels, _ in usable]))
    used = [place for _, place in usable]
    kept = [files[place] for place in used]
    return RawData(
        x=x,
        y=torch.tensor([file.label for file in kept], dtype=torch.int64),
        num_skipped=num_skipped,
        copies=copies_of_pictures(x.numpy()),
        patients=[file.patient or "" for file in kept] if split.group is not None else None,
        parts=_parts(files, used, config.path, split, site=site) if split.parts is not None else None,
    )


def _parts(files: Sequence[ImageFile], used: Sequence[int], folder: Path, split: SplitConfig, *, site: str) -> Ints:
    index = index_file(split.parts)
    if index is None:
        return np.array([files[place].part for place in used], dtype=np.int64)
    keys = [file.path.relative_to(folder).as_posix() for file in files]
    return parts_in_file(folder / index, keys, used, key="file", site=site)


def _decode_all(files: Sequence[ImageFile], task: ImageTask, *, folder: Path) -> Iterator[tuple[Pixels, int] | Bad]:
    """Yield each image with its place in `files`, or why it cannot be used."""
    mean = np.asarray(task.mean, dtype=np.float32).reshape(-1, 1, 1)
    std = np.asarray(task.std, dtype=np.float32).reshape(-1, 1, 1)
    for place, file in enumerate(files):
        pixels = _decode(file.path, task, name=file.path.relative_to(folder).as_posix())
        if isinstance(pixels, Bad):
            yield pixels
        else:
            yield (pixels * np.float32(task.pixel_max) - mean) / std, place


def _decode(file: Path, task: ImageTask, *, name: str) -> Pixels | Bad:
    """Return the image as `(C, size, size)` in 0..1."""
    try:
        if (size := file.stat().st_size) > MAX_FILE_BYTES:
            return Bad(f"image '{name}' has {size} bytes, at most {MAX_FILE_BYTES} are read")
        with _strict(), Image.open(file, formats=FORMATS) as image:
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
