"""Reads images from one `.npz` file: array `x` of images, array `y` of class numbers, or times and events."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from consilium.client.data.base import Bad, RawData, keep_usable, kind_mismatch
from consilium.client.data.frames import SIXTEEN_BITS, Frame, Pixels, normalised, pixels_of
from consilium.client.data.label_arrays import ArrayLabels, label_arrays, name_arrays, read_labels
from consilium.client.data.parts import KNOWN, TEST, TRAIN, index_file, part_of, parts_in_file
from consilium.client.data.picture_facts import PictureFacts
from consilium.common.data.groups import Ints, copies_of_pictures
from consilium.common.data.npz import Array, array_names, channels_last, read_npz
from consilium.common.errors import DataError
from consilium.common.study.site import ArraysData, DataConfig
from consilium.common.study.task import ImageTask, PictureTask, Task
from consilium.common.study.training import SplitConfig

# Rounding to float16 and back can leave a value a little above 1.
_ABOVE_ONE = 1e-3
MAX_BYTES = 2**36
"""Most memory for the resized images of a file: a million images of one pixel are a file of 1 MB."""


def read_arrays(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read `x` and `y` of an `.npz` file, in the order of the file.

    `x` has shape `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)` with C 1 or 3; uint8 in 0..255, uint16 or floats in
    the study's `pixel_range` (without it 0..65535, or 0..1), or int16 in that range. What is not uint8 and has shape
    `(N, H, W)` with H other than W is refused: it may be a series.
    `y` has shape `(N,)`, integers that index the study's classes; with `task.survival` there are two arrays of that
    shape in its place, as the study names them. If the file also has an array `classes` (names),
    it must equal the study's classes. An image becomes `(C, size, size)` float32 as in a folder of images: greyscale
    or RGB by the task's channels, resized (bilinear), scaled to 0..pixel_max, minus mean, divided by std. The same
    8-bit images in a folder give the same tensors.

    Raises:
        ConfigError: the study's task is not about images.
        DataError: no such file, a file or array that cannot be used, or more than `max_skipped` images with a
            number that is not finite or out of range, or with a label that is no class.
    """
    if not (isinstance(config, ArraysData) and isinstance(task, ImageTask)):
        raise kind_mismatch(config, task, site=site)
    who = f"site '{site}'"
    file = npz_file(config.path, without=task.test, who=who)
    names = array_names(file, who=who)
    parts = None if index_file(split.parts) else split.parts
    more = [*name_arrays(task, names), *(name for name in (split.group, parts) if name is not None)]
    held = read_npz(file, ["x", *label_arrays(task), *more], who=who)
    where = f"{who}: file '{file.name}'"
    check_classes(held.get("classes"), task.classes, where=where)
    images = channels_last(held["x"], where=where)
    check_levels(images, task, where=where)
    labels = read_labels(held, task, len(images), each="image", where=where)
    examples = usable_pictures(images, labels, task, where=f"file '{file.name}', ")
    usable, num_skipped = keep_usable(examples, site=site, max_skipped=config.max_skipped)
    if not usable:
        raise DataError(f"{where}: no usable image, {num_skipped} skipped")
    rows = np.array(usable, dtype=np.int64)
    return raw_pictures(
        held, images, rows, labels.taken(rows), task, split, num_skipped=num_skipped, file=file, site=site
    )


def raw_pictures(
    held: Mapping[str, Array],
    images: Array,
    rows: Ints,
    y: torch.Tensor,
    task: PictureTask,
    split: SplitConfig,
    *,
    num_skipped: int,
    file: Path,
    site: str,
) -> RawData:
    """Return the data of the pictures `images[rows]` of a file, whose labels are `y`.

    Args:
        held: the file's arrays, those that `split` names among them.

    Raises:
        DataError: they are too large together, or an array that `split` names says nothing of one.
    """
    where, facts = f"site '{site}': file '{file.name}'", PictureFacts(task)
    check_bytes(len(rows), task, where=where)
    x = prepared(images, rows, task, facts)
    return RawData(
        x=torch.from_numpy(x),
        y=y,
        num_skipped=num_skipped,
        copies=copies_of_pictures(x),
        seen=tuple(facts.seen()),
        odd=tuple(facts.odd()),
        patients=None if split.group is None else patients_of(held[split.group], split.group, rows, len(images), where),
        parts=parts_of(held, split, rows, len(images), file=file, site=site),
    )


def patients_of(array: Array, name: str, rows: Ints, count: int, where: str) -> list[str]:
    """Return the patient of each used example, from the array that `split.group` names."""
    if array.shape != (count,) or array.dtype.kind not in "iuU":
        raise DataError(
            f"{where}: array '{name}' (split.group) has type {array.dtype} and shape {array.shape}, expected {count} "
            "whole numbers or texts, one for each example"
        )
    return [str(value) for value in array[rows].tolist()]


def parts_of(
    held: Mapping[str, Array], split: SplitConfig, rows: Ints, count: int, *, file: Path, site: str
) -> Ints | None:
    """Return the part of each used example, by an index file, an array of words, or one that is True for test."""
    if split.parts is None:
        return None
    if (index := index_file(split.parts)) is not None:
        keys = [str(number) for number in range(count)]
        return parts_in_file(file.parent / index, keys, rows.tolist(), key="row", site=site)
    array, where = held[split.parts], f"site '{site}': file '{file.name}': array '{split.parts}' (split.parts)"
    if array.shape != (count,) or array.dtype.kind not in "bU":
        raise DataError(
            f"{where} has type {array.dtype} and shape {array.shape}, expected {count} words or booleans (test or not)"
        )
    if array.dtype.kind == "b":
        return np.where(array[rows], TEST, TRAIN).astype(np.int64)
    parts = [part_of(word) for word in array[rows].tolist()]
    if None in parts:
        raise DataError(f"{where}, example {rows[parts.index(None)]}: the word is none of {KNOWN}")
    return np.array(parts, dtype=np.int64)


def npz_file(path: Path, *, without: str | None, who: str) -> Path:
    """Return the one `.npz` file that a site's data path stands for, but not the study's common test set."""
    if path.suffix.lower() == ".npz" and path.is_file():
        return path
    if not path.is_dir():
        seen = "is not an .npz file" if path.exists() else "does not exist"
        raise DataError(f"{who}: data path '{path}' {seen}, expected an .npz file or a folder with one")
    try:
        entries = [entry for entry in path.iterdir() if entry.suffix.lower() == ".npz"]
    except OSError as error:
        raise DataError(f"{who}: cannot list data path '{path}': {error.strerror or error}") from error
    files = [entry for entry in entries if not entry.name.startswith(".") and entry.name != without and entry.is_file()]
    if len(files) != 1:
        raise DataError(f"{who}: data folder '{path}' has {len(files)} .npz files, expected exactly one")
    return files[0]


def check_classes(names: Array | None, classes: tuple[str, ...], *, where: str) -> None:
    """Refuse class names that differ from the study's: in another order, every label would be wrong."""
    if names is not None and (names.dtype.kind != "U" or tuple(names.ravel().tolist()) != classes):
        raise DataError(f"{where}: array 'classes' differs from the study's classes {list(classes)}")


def check_bytes(count: int, task: PictureTask, *, where: str) -> None:
    """Refuse more images than fit into `MAX_BYTES`."""
    if (size := count * task.channels * task.size**2 * 4) > MAX_BYTES:
        raise DataError(f"{where}: {count} images of the study's size take {size} bytes, at most {MAX_BYTES}")


def check_levels(images: Array, task: PictureTask, *, where: str) -> None:
    """Refuse pictures `(N, H, W, C)` of which nothing says what is black and what is white."""
    if images.dtype == np.uint8 or isinstance(task.pixel_range, tuple) or task.pixel_range == "picture":
        return
    if task.pixel_range == "window":
        raise DataError(f"{where}: array 'x' states no window, as task.pixel_range = 'window' asks for")
    if images.dtype.kind == "i":
        raise DataError(
            f"{where}: array 'x' has type {images.dtype}, of which nothing says what is black and what is white: set "
            "task.pixel_range in the study, such as [-1000, 1000] for Hounsfield units"
        )


def usable_pictures(images: Array, labels: ArrayLabels | None, task: PictureTask, *, where: str) -> Iterator[int | Bad]:
    """Yield the number of each image `(N, H, W, C)`, or why it cannot be used; without labels none is looked at."""
    floats = images.dtype.kind == "f"
    for row in range(len(images)):
        image = f"{where}image {row}"
        if labels is not None and not labels.usable[row]:
            yield Bad(f"{image}: {labels.problem}")
        elif floats and not np.isfinite(images[row]).all():
            yield Bad(f"{image}: a pixel is not a finite number")
        elif floats and task.pixel_range is None and not 0 <= images[row].min() <= images[row].max() <= 1 + _ABOVE_ONE:
            yield Bad(
                f"{image}: a pixel is outside 0..1, which is what floats in 'x' must hold without task.pixel_range"
            )
        else:
            yield row


def prepared(images: Array, rows: Ints, task: PictureTask, facts: PictureFacts | None = None) -> Pixels:
    """Return images `(N, H, W, C)` of these numbers as `(M, channels, size, size)`, as the study's images are.

    Args:
        facts: where the pictures' levels and sizes are counted.
    """
    x = np.empty((len(rows), task.channels, task.size, task.size), dtype=np.float32)
    for place, row in enumerate(rows):
        frame = frame_of(images[row])
        if facts is not None:
            facts.add(frame)
        pixels = pixels_of(frame, task, name=f"image {row}")
        assert not isinstance(pixels, Bad)  # `check_levels` and `usable_pictures` have said what is none
        x[place] = normalised(pixels, task)
    return x


def frame_of(image: Array) -> Frame:
    """Return a picture `(H, W, C)` of an array as one of a file."""
    if image.dtype.kind == "u" and image.dtype.itemsize == 2:
        return Frame(image, SIXTEEN_BITS)
    return Frame(image, (0.0, 1.0) if image.dtype.kind == "f" else None)
