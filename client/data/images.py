"""Reads a folder of image files with one sub-folder per class."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from client.data.base import Bad, RawData, keep_usable, kind_mismatch
from common.config import DataConfig, ImageFolderData, ImageTask, Task
from common.errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
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
"""An image may declare so many: 200 MB in colour. A small file can declare far more, and all would be decoded."""
MAX_FILE_BYTES = 500_000_000
"""So large a file of an image is read."""

Pixels = npt.NDArray[np.float32]


def read_images(config: DataConfig, task: Task, *, site: str) -> RawData:
    """Read `<path>/<class>/<image file>`, in the order of the study's classes and of the file names.

    An image becomes `(C, size, size)` float32: greyscale or RGB by the task's channels, resized
    (bilinear), scaled to 0..pixel_max, minus mean, divided by std. 16-bit greyscale is scaled by 65535.

    Raises:
        ConfigError: the study's task is not about images.
        DataError: no folder, an unknown class, no image, or more than `max_skipped` corrupt files.
    """
    if not (isinstance(config, ImageFolderData) and isinstance(task, ImageTask)):
        raise kind_mismatch(config, task, site=site)
    try:
        files = _labelled_files(config.path, task.classes, site=site)
    except OSError as error:
        raise DataError(f"site '{site}': cannot list data folder '{config.path}': {error.strerror or error}") from error
    decoded = _decode_all(files, task, folder=config.path)
    usable, num_skipped = keep_usable(decoded, site=site, max_skipped=config.max_skipped)
    if not usable:
        raise DataError(f"site '{site}': no usable image in '{config.path}', {num_skipped} skipped as corrupt")
    x = torch.from_numpy(np.stack([pixels for pixels, _ in usable]))
    y = torch.tensor([label for _, label in usable], dtype=torch.int64)
    return RawData(x=x, y=y, num_skipped=num_skipped, standardise=False)


def list_folders(folder: Path) -> list[Path]:
    """Return the sub-folders that are not hidden, sorted by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_images(folder: Path) -> list[Path]:
    """Return the image files that are not hidden, sorted by name; other files are left out."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )


def _labelled_files(folder: Path, classes: tuple[str, ...], *, site: str) -> list[tuple[Path, int]]:
    if not folder.is_dir():
        seen = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"site '{site}': data folder '{folder}' {seen}")
    subfolders = list_folders(folder)
    if not subfolders:
        raise DataError(
            f"site '{site}': data folder '{folder}' has no sub-folder, expected one for each of {list(classes)}"
        )
    for subfolder in subfolders:
        if subfolder.name not in classes:
            raise _unknown_class(subfolder, classes, site=site)
    files = [(file, classes.index(sub.name)) for sub in subfolders for file in list_images(sub)]
    if not files:
        raise DataError(
            f"site '{site}': no image in the sub-folders of '{folder}', expected files {', '.join(SUFFIXES)}"
        )
    return sorted(files, key=lambda pair: (pair[1], pair[0].name))


def _unknown_class(folder: Path, classes: tuple[str, ...], *, site: str) -> DataError:
    same = [name for name in classes if name.casefold() == folder.name.casefold()]
    hint = f"; upper and lower case differ: rename the folder to '{same[0]}'" if same else ""
    return DataError(
        f"site '{site}': class '{folder.name}' is not in the study's classes {list(classes)} (folder '{folder}'){hint}"
    )


def _decode_all(files: list[tuple[Path, int]], task: ImageTask, *, folder: Path) -> Iterator[tuple[Pixels, int] | Bad]:
    mean = np.asarray(task.mean, dtype=np.float32).reshape(-1, 1, 1)
    std = np.asarray(task.std, dtype=np.float32).reshape(-1, 1, 1)
    for file, label in files:
        pixels = _decode(file, task, name=file.relative_to(folder).as_posix())
        if isinstance(pixels, Bad):
            yield pixels
        else:
            yield (pixels * np.float32(task.pixel_max) - mean) / std, label


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
    """Make an error of Pillow's warning about bombs, and keep to itself what else it says of odd files."""
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
