"""Reads pictures and their masks: two folders with files of the same names, or one `.npz` file."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from consilium.client.data.arrays import (
    check_bytes,
    check_classes,
    check_levels,
    npz_file,
    raw_pictures,
    usable_pictures,
)
from consilium.client.data.base import Bad, RawData, keep_usable, kind_mismatch
from consilium.client.data.frames import Decoded, NoPicture, Pixels, normalised, pixels_of
from consilium.client.data.image_files import FOLDER, no_patient, patient_of
from consilium.client.data.mask_files import MASKS, Mask, Pairs, checked_mask, decode_masks, find_pairs
from consilium.client.data.parts import index_file, parts_in_file
from consilium.client.data.picture_facts import PictureFacts
from consilium.client.data.picture_files import FoundFile
from consilium.client.data.pictures import decode
from consilium.common.data.groups import copies_of_pictures
from consilium.common.data.npz import Array, array_names, channels_last, read_npz
from consilium.common.errors import ConfigError, DataError, clean
from consilium.common.study.segmentation_task import SegmentationTask
from consilium.common.study.site import DataConfig, MasksData
from consilium.common.study.task import Task
from consilium.common.study.training import SplitConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Example:
    """A picture as the study's are, its mask, and the place of its file among the pictures."""

    pixels: Pixels
    mask: Mask
    place: int


def read_masks(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read `<path>/images/<name>.<ending>` with `<path>/masks/<name>.<ending>`, in the order of the pictures' paths.

    Names may hold folders, the same ones in both; with `split.group = "folder"` the first one is the patient's. Slices
    of one volume are one patient's. Pictures become what those of a task of images do; masks hold the numbers of the
    study's classes (of two also 0 and 255), have as many pixels as their picture, and are resized by taking the nearest
    one. Or read `x` `(N, H, W)`, with channels on a fourth axis or without, and `y` `(N, H, W)` of an `.npz` file.

    `y` of the result is uint8 `(N, size, size)`.

    Raises:
        ConfigError: the study's task is not about masks, or `split.group` or `split.parts` is none for such data.
        DataError: no folder or picture, or more than `max_skipped` pictures that cannot be used: corrupt, without a
            mask, or with one of another size or with a number that is no class.
    """
    if not (isinstance(config, MasksData) and isinstance(task, SegmentationTask)):
        raise kind_mismatch(config, task, site=site)
    if not (config.path / MASKS).is_dir() and (config.path.suffix.lower() == ".npz" or _has_arrays(config.path)):
        return _read_npz(config, task, split, site=site)
    try:
        pairs = find_pairs(config.path, site=site)
    except OSError as error:
        raise DataError(f"site '{site}': cannot list data folder '{config.path}': {error.strerror or error}") from error
    return _read_files(config, task, split, pairs, site=site)


def _has_arrays(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.npz"))


def _read_files(config: MasksData, task: SegmentationTask, split: SplitConfig, pairs: Pairs, *, site: str) -> RawData:
    facts = PictureFacts(task)
    patients = _patients(pairs.pictures, split.group, site=site)
    found = _decoded(pairs, task, facts, folder=config.path)
    usable, num_skipped = keep_usable(found, site=site, max_skipped=config.max_skipped)
    if not usable:
        raise DataError(f"site '{site}': no usable picture with a mask in '{config.path}', {num_skipped} skipped")
    check_bytes(len(usable), task, where=f"site '{site}'")
    x, used = np.stack([one.pixels for one in usable]), [one.place for one in usable]
    names = [file.path.relative_to(config.path).as_posix() for file in pairs.pictures]
    odd = tuple(facts.odd())
    for sentence in odd:
        _log.warning("pictures look wrong site=%s what=%s", site, sentence)
    owners = names if patients is None and len(set(used)) < len(used) else patients  # slices of one volume
    return RawData(
        x=torch.from_numpy(x),
        y=torch.from_numpy(np.stack([one.mask for one in usable])),
        num_skipped=num_skipped,
        copies=copies_of_pictures(x),
        patients=None if owners is None else [owners[place] for place in used],
        parts=None
        if split.parts is None
        else parts_in_file(config.path / _index(split.parts, site=site), names, used, key="file", site=site),
        reading=(f"{pairs.lonely} masks without a picture are passed over",) if pairs.lonely else (),
        seen=tuple(facts.seen()),
        odd=odd,
    )


def _decoded(pairs: Pairs, task: SegmentationTask, facts: PictureFacts, *, folder: Path) -> Iterator[_Example | Bad]:
    """Yield every picture with its mask, or why one cannot be used."""
    for place, (file, mask) in enumerate(zip(pairs.pictures, pairs.masks, strict=True)):
        name = clean(file.path.relative_to(folder).as_posix(), 200)
        if mask is None:
            yield Bad(f"image '{name}' has no mask, expected a file of the same name in folder '{MASKS}'")
            continue
        decoded = decode(file.path, task, name=name)
        if isinstance(decoded, NoPicture):
            yield Bad(f"image '{name}' is no picture inside")
        elif isinstance(decoded, Bad):
            yield decoded
        else:
            shown = clean(mask.relative_to(folder).as_posix(), 200)
            yield from _examples(decoded, mask, task, facts, place, names=(name, shown))


def _examples(
    decoded: Decoded, mask: Path, task: SegmentationTask, facts: PictureFacts, place: int, *, names: tuple[str, str]
) -> Iterator[_Example | Bad]:
    sizes = [frame.values.shape[:2] for frame in decoded.frames]
    masks = decode_masks(mask, task, [(int(height), int(width)) for height, width in sizes], name=names[1])
    if isinstance(masks, Bad):
        yield masks
        return
    pictures = list[Pixels]()
    for frame in decoded.frames:
        pixels = pixels_of(frame, task, name=f"image '{names[0]}'")
        if isinstance(pixels, Bad):
            yield pixels
            return
        pictures.append(normalised(pixels, task))
    facts.add_file(decoded)
    yield from (_Example(*pair, place) for pair in zip(pictures, masks, strict=True))


def _patients(files: Sequence[FoundFile], group: str | None, *, site: str) -> list[str] | None:
    """Return whose each picture is, by the first folder below `images` or by its name; None without `split.group`.

    Raises:
        ConfigError: `group` is none for pictures.
        DataError: a picture's folder, name or DICOM header does not say it.
    """
    who = f"site '{site}'"
    of = patient_of(group, who=who)
    if of is None:
        return None
    found = list[str]()
    for file in files:
        owner = (file.parts[0] if len(file.parts) > 1 else None) if group == FOLDER else of(file.path)
        if owner is None:
            shown = clean("/".join(file.parts), 200)
            raise DataError(f"{who}: image '{shown}' {no_patient(group)}, as split.group = '{group}' asks for")
        found.append(owner)
    return found


def _index(parts: str, *, site: str) -> str:
    """Return the name of the file that says which picture is for what.

    Raises:
        ConfigError: `split.parts` names no such file.
    """
    if (name := index_file(parts)) is None:
        raise ConfigError(f"site '{site}': split.parts is '{parts}', expected for pictures with masks a .csv file")
    return name


def _read_npz(config: MasksData, task: SegmentationTask, split: SplitConfig, *, site: str) -> RawData:
    who = f"site '{site}'"
    file = npz_file(config.path, without=task.test, who=who)
    parts = None if index_file(split.parts) else split.parts
    named = "classes" if "classes" in array_names(file, who=who) else None
    more = [name for name in (split.group, parts, named) if name is not None]
    held = read_npz(file, ["x", "y", *more], who=who)
    where = f"{who}: file '{file.name}'"
    check_classes(held.get("classes"), task.classes, where=where)
    images, masks = channels_last(held["x"], where=where), held["y"]
    check_levels(images, task, where=where)
    _check_masks(masks, images, where=where)
    usable, num_skipped = keep_usable(
        _usable(images, masks, task, where=f"file '{file.name}', "), site=site, max_skipped=config.max_skipped
    )
    if not usable:
        raise DataError(f"{where}: no usable picture, {num_skipped} skipped")
    rows, y = np.array([row for row, _ in usable], dtype=np.int64), np.stack([mask for _, mask in usable])
    return raw_pictures(
        held, images, rows, torch.from_numpy(y), task, split, num_skipped=num_skipped, file=file, site=site
    )


def _check_masks(masks: Array, images: Array, *, where: str) -> None:
    if masks.dtype.kind not in "biu":
        raise DataError(f"{where}: array 'y' has type {masks.dtype}, expected whole numbers: the classes of pixels")
    if masks.shape != images.shape[:3]:
        raise DataError(
            f"{where}: array 'y' has shape {masks.shape}, expected {images.shape[:3]}: a mask for each picture, of its "
            "size"
        )


def _usable(
    images: Array, masks: Array, task: SegmentationTask, *, where: str
) -> Iterator[tuple[int, npt.NDArray[np.uint8]] | Bad]:
    """Yield the number of each picture and its mask, or why one of them cannot be used."""
    size = (int(images.shape[1]), int(images.shape[2]))
    for row, found in enumerate(usable_pictures(images, None, task, where=where)):
        if isinstance(found, Bad):
            yield found
            continue
        mask = checked_mask(masks[row].astype(np.int64), task, size, who=f"{where}mask {row}")
        yield mask if isinstance(mask, Bad) else (row, mask)
