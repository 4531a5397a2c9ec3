"""Finds the mask of each picture in a folder, and decodes it: numbers of classes, as whoever drew it wrote them.

A mask is a PNG, BMP or TIFF of one channel, or a NIfTI volume whose slices are those of the picture's. Formats that
lose something would invent classes along every edge. Of two classes it may also hold 0 and 255.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilium.client.data.base import Bad
from consilium.client.data.nifti import decode_nifti, is_nifti
from consilium.client.data.picture_files import FoundFile, walk
from consilium.client.data.pictures import BOMBS, DECODE_ERRORS, MAX_FILE_BYTES, MAX_PIXELS, quiet, turn_of
from consilium.common.errors import DataError, clean
from consilium.common.study.segmentation_task import SegmentationTask

IMAGES, MASKS = "images", "masks"
"""Folders of pictures and of their masks."""
SUFFIXES = (".bmp", ".nii", ".nii.gz", ".png", ".tif", ".tiff")
"""Endings of the names of masks."""
FORMATS = ("BMP", "PNG", "TIFF")
_MODES = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I")
"""Pillow's modes of pictures of one channel; of a palette it is the place in it that counts."""
_WHITE = 255

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures with the path of their masks, which may lack, and how many masks have no picture."""

    pictures: tuple[FoundFile, ...]
    masks: tuple[Path | None, ...]
    lonely: int


def find_pairs(folder: Path, *, who: str) -> Pairs:
    """Return the pictures below `images`, each with the file of the same name, but for its ending, below `masks`.

    Args:
        who: the start of the error sentence.

    Raises:
        DataError: a folder is missing, no picture is there, or two files have one name.
        OSError: a folder cannot be listed.
    """
    for name in (IMAGES, MASKS):
        if not (folder / name).is_dir():
            raise DataError(
                f"{who}: data folder '{folder}' has no folder '{name}', expected pictures in '{IMAGES}' and their "
                f"masks, under the same names, in '{MASKS}'"
            )
    pictures = tuple(file for file in walk(folder / IMAGES) if file.is_picture)
    if not pictures:
        raise DataError(f"{who}: no picture in folder '{folder / IMAGES}'")
    masks = [file for file in walk(folder / MASKS) if file.suffix in SUFFIXES]
    of_name = _by_name(masks, MASKS, who=who)
    wanted = _by_name(pictures, IMAGES, who=who)
    lonely = len(of_name.keys() - wanted.keys())
    return Pairs(pictures, tuple(of_name.get(_name_of(file)) for file in pictures), lonely)


def _name_of(file: FoundFile) -> str:
    """Return a file's path below its folder, without its ending."""
    return "/".join(file.parts).removesuffix(file.path.name[-len(file.suffix) :] if file.suffix else "")


def _by_name(files: Sequence[FoundFile], folder: str, *, who: str) -> Mapping[str, Path]:
    found = dict[str, Path]()
    for file in files:
        if (other := found.setdefault(_name_of(file), file.path)) is not file.path:
            raise DataError(
                f"{who}: folder '{folder}' has '{clean(other.name)}' and '{clean(file.path.name)}', expected one file "
                "of a name, whatever its ending"
            )
    return found


def decode_masks(
    path: Path, task: SegmentationTask, sizes: Sequence[tuple[int, int]], *, name: str
) -> list[Mask] | Bad:
    """Return the masks in a file, one for each picture of its picture's file, as `(size, size)`; or why there are none.

    Args:
        sizes: height and width of each of these pictures.
        name: what sentences call the mask.
    """
    who = f"mask '{name}'"
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            return Bad(f"{who} has {size} bytes, at most {MAX_FILE_BYTES} are read")
        with quiet(), path.open("rb") as source:
            content = source.read()
        planes = _planes(content, task, who=who)
    except BOMBS:
        return Bad(f"{who} declares more pixels than Pillow decodes, at most {MAX_PIXELS} are decoded here")
    except DECODE_ERRORS:
        return Bad(f"{who} is corrupt or not one of {', '.join(FORMATS)}, NIfTI")
    if isinstance(planes, Bad):
        return planes
    if len(planes) != len(sizes):
        return Bad(f"{who} has {len(planes)} slices, its picture {len(sizes)}")
    found = list[Mask]()
    for plane, sides in zip(planes, sizes, strict=True):
        mask = checked_mask(plane, task, sides, who=who)
        if isinstance(mask, Bad):
            return mask
        found.append(mask)
    return found


def _planes(content: bytes, task: SegmentationTask, *, who: str) -> list[npt.NDArray[Any]] | Bad:
    if is_nifti(content):
        decoded = decode_nifti(io.BytesIO(content), task.slices, name=who, most=MAX_PIXELS)
        return decoded if isinstance(decoded, Bad) else [frame.values[..., 0] for frame in decoded.frames]
    with quiet(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if (pixels := image.width * image.height) > MAX_PIXELS:
            return Bad(f"{who} declares {pixels} pixels, at most {MAX_PIXELS} are decoded")
        if image.mode not in _MODES:
            return Bad(f"{who} has pixels of kind {image.mode}, expected one channel with numbers of classes")
        turn = turn_of(image)
        return [np.asarray(image if turn is None else image.transpose(turn))]


def checked_mask(plane: npt.NDArray[Any], task: SegmentationTask, size: tuple[int, int], *, who: str) -> Mask | Bad:
    """Return a mask `(H, W)` as numbers of classes `(size, size)`, the nearest pixel's; or why it cannot be used.

    Args:
        size: height and width of its picture.
        who: what sentences call it.
    """
    if plane.shape != size:
        seen, wanted = (f"{height} x {width}" for height, width in (plane.shape, size))
        return Bad(f"{who} has {seen} pixels, its picture {wanted}")
    known, count = np.unique(plane), len(task.classes)
    if not np.isfinite(known.astype(np.float64)).all() or not (known == np.rint(known.astype(np.float64))).all():
        return Bad(f"{who} holds numbers that are not whole, expected numbers of classes")
    if count == 2 and _WHITE in known and set(known.tolist()) <= {0, _WHITE}:
        plane, known = plane == _WHITE, np.array([0, 1])
    if known.min() < 0 or known.max() >= count:
        also = f", or 0 and {_WHITE}" if count == 2 else ""
        return Bad(f"{who} holds a number that is no class, expected 0 to {count - 1}{also}")
    mask = np.ascontiguousarray(plane.astype(np.uint8))
    if mask.shape == (task.size, task.size):
        return mask
    return np.asarray(Image.fromarray(mask).resize((task.size, task.size), Image.Resampling.NEAREST))
