"""Reads pictures and their masks: two folders with files of the same names, or one `.npz` file."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
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
from consilium.client.data.image_files import FOLDER, list_folders, no_patient, patient_of
from consilium.client.data.mask_files import IMAGES, MASKS, Mask, Pairs, checked_mask, decode_masks, find_pairs
from consilium.client.data.parts import KNOWN, index_file, part_of, parts_in_file
from consilium.client.data.picture_facts import PictureFacts
from consilium.client.data.picture_files import FoundFile
from consilium.client.data.pictures import decode
from consilium.common.data.groups import Ints, copies_of_pictures
from consilium.common.data.npz import Array, array_names, channels_last, read_npz
from consilium.common.errors import ConfigError, DataError, clean
from consilium.common.study.segmentation_task import SegmentationTask
from consilium.common.study.site import DataConfig, MasksData
from consilium.common.study.task import Task
from consilium.common.study.training import SplitConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Example:
    """A picture as the study's are, its mask, the place of its file among the pictures, and its own size."""

    pixels: Pixels
    mask: Mask
    place: int
    size: tuple[int, int]


def read_masks(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read `<path>/images/<name>.<ending>` with `<path>/masks/<name>.<ending>`, in the order of the pictures' paths.

    Names may hold folders, the same ones in both; with `split.group = "folder"` the first one is the patient's. With
    `split.parts = "folder"` both folders lie in one for each part, `train`, `val`, `test`. Slices of one volume are one
    patient's. Pictures become what those of a task of images do; masks hold the numbers of the
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
        pairs, parts = _pairs(config.path, split.parts, who=f"site '{site}'")
    except OSError as error:
        raise DataError(f"site '{site}': cannot list data folder '{config.path}': {error.strerror or error}") from error
    return _read_files(config, task, split, pairs, parts, site=site)


def _pairs(folder: Path, parts: str | None, *, who: str) -> tuple[Pairs, list[int] | None]:
    """Return the pictures with their masks, and the part of each where folders above them say so.

    Raises:
        DataError: as of `find_pairs`, or a folder's name is no part.
    """
    if parts != FOLDER:
        return find_pairs(folder, who=who), None
    found, each = list[Pairs](), list[int]()
    for top in list_folders(folder):
        if (part := part_of(top.name)) is None:
            raise DataError(
                f"{who}: folder '{clean(top.name)}' is none of {KNOWN}, as split.parts = '{FOLDER}' expects above "
                f"'{IMAGES}' and '{MASKS}'"
            )
        found.append(find_pairs(top, who=who))
        each += [part] * len(found[-1].pictures)
    if not found:
        raise DataError(f"{who}: data folder '{folder}' has no sub-folder, expected {KNOWN}, as split.parts says")
    pictures = tuple(itertools.chain.from_iterable(one.pictures for one in found))
    masks = tuple(itertools.chain.from_iterable(one.masks for one in found))
    return Pairs(pictures, masks, sum(one.lonely for one in found)), each


def _has_arrays(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.npz"))


def _read_files(
    config: MasksData,
    task: SegmentationTask,
    split: SplitConfig,
    pairs: Pairs,
    parts: Sequence[int] | None,
    *,
    site: str,
) -> RawData:
    facts = PictureFacts(task)
    patients = patients_of_files(pairs.pictures, split.group, who=f"site '{site}'")
    found = decoded_pairs(pairs, task, facts, folder=config.path)
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
        parts=_parts_of(config, split.parts, parts, names, used, site=site),
        reading=(f"{pairs.lonely} masks without a picture are passed over",) if pairs.lonely else (),
        seen=tuple(facts.seen()),
        odd=odd,
    )


def decoded_pairs(
    pairs: Pairs, task: SegmentationTask, facts: PictureFacts, *, folder: Path
) -> Iterator[Example | Bad]:
    """Yield every picture with its mask, or why one cannot be used, by its path below the folder of pictures."""
    for place, (file, mask) in enumerate(zip(pairs.pictures, pairs.masks, strict=True)):
        for found in _examples(file, mask, task, facts, place, folder=folder):
            yield replace(found, name=clean("/".join(file.parts), 200)) if isinstance(found, Bad) else found


def _examples(
    file: FoundFile, mask: Path | None, task: SegmentationTask, facts: PictureFacts, place: int, *, folder: Path
) -> Iterator[Example | Bad]:
    name = clean(file.path.relative_to(folder).as_posix(), 200)
    if mask is None:
        yield Bad(f"image '{name}' has no mask, expected a file of the same name in folder '{MASKS}'")
        return
    decoded = decode(file.path, task, name=name)
    if isinstance(decoded, NoPicture):
        yield Bad(f"image '{name}' is no picture inside")
    elif isinstance(decoded, Bad):
        yield decoded
    else:
        masks = decode_masks(
            mask,
            task,
            [frame.size for frame in decoded.frames],
            name=clean(mask.relative_to(folder).as_posix(), 200),
        )
        yield from [masks] if isinstance(masks, Bad) else _frames(decoded, masks, task, facts, place, name=name)


def _frames(
    decoded: Decoded, masks: Sequence[Mask], task: SegmentationTask, facts: PictureFacts, place: int, *, name: str
) -> Iterator[Example | Bad]:
    pictures = list[Pixels]()
    for frame in decoded.frames:
        pixels = pixels_of(frame, task, name=f"image '{name}'")
        if isinstance(pixels, Bad):
            yield pixels
            return
        pictures.append(normalised(pixels, task))
    facts.add_file(decoded)
    for pixels, mask, frame in zip(pictures, masks, decoded.frames, strict=True):
        yield Example(pixels, mask, place, frame.size)


def patients_of_files(files: Sequence[FoundFile], group: str | None, *, who: str) -> list[str] | None:
    """Return whose each picture is, by the first folder below `images` or by its name; None without `split.group`.

    Args:
        who: the start of the error sentence.

    Raises:
        ConfigError: `group` is none for pictures.
        DataError: a picture's folder, name or DICOM header does not say it.
    """
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


def _parts_of(
    config: MasksData,
    asked: str | None,
    by_folder: Sequence[int] | None,
    names: Sequence[str],
    used: Sequence[int],
    *,
    site: str,
) -> Ints | None:
    """Return the part of each used picture, by its folder or by a file.

    Args:
        by_folder: the part of every picture, where folders say so.

    Raises:
        ConfigError: `split.parts` is neither a folder nor a file.
        DataError: the file cannot be used.
    """
    if asked is None:
        return None
    if by_folder is not None:
        return np.array([by_folder[place] for place in used], dtype=np.int64)
    if (name := index_file(asked)) is None:
        raise ConfigError(
            f"site '{site}': split.parts is '{asked}', expected for pictures with masks '{FOLDER}' or a .csv file"
        )
    return parts_in_file(config.path / name, names, used, key="file", site=site)


def _read_npz(config: MasksData, task: SegmentationTask, split: SplitConfig, *, site: str) -> RawData:
    who = f"site '{site}'"
    file = npz_file(config.path, without=task.test, who=who)
    parts = None if index_file(split.parts) else split.parts
    named = "classes" if "classes" in array_names(file, who=who) else None
    more = [name for name in (split.group, parts, named) if name is not None]
    held = read_npz(file, ["x", "y", *more], who=who)
    where = f"{who}: file '{file.name}'"
    check_classes(held.get("classes"), task.classes, where=where)
    images, masks = images_and_masks(held, task, where=where)
    usable, num_skipped = keep_usable(
        usable_masks(images, masks, task, where=f"file '{file.name}', "), site=site, max_skipped=config.max_skipped
    )
    if not usable:
        raise DataError(f"{where}: no usable picture, {num_skipped} skipped")
    rows, y = np.array([row for row, _ in usable], dtype=np.int64), np.stack([mask for _, mask in usable])
    return raw_pictures(
        held, images, rows, torch.from_numpy(y), task, split, num_skipped=num_skipped, file=file, site=site
    )


def images_and_masks(held: Mapping[str, Array], task: SegmentationTask, *, where: str) -> tuple[Array, Array]:
    """Return the pictures `(N, H, W, C)` of a file's arrays, and their masks `(N, H, W)`.

    Raises:
        DataError: they are not of these shapes, or of types that say nothing.
    """
    images, masks = channels_last(held["x"], where=where), held["y"]
    check_levels(images, task, where=where)
    if masks.dtype.kind not in "biu":
        raise DataError(f"{where}: array 'y' has type {masks.dtype}, expected whole numbers: the classes of pixels")
    if masks.shape != images.shape[:3]:
        raise DataError(
            f"{where}: array 'y' has shape {masks.shape}, expected {images.shape[:3]}: a mask for each picture, of its "
            "size"
        )
    return images, masks


def usable_masks(
    images: Array, masks: Array, task: SegmentationTask, *, where: str
) -> Iterator[tuple[int, Mask] | Bad]:
    """Yield the number of each picture and its mask, or why one of them cannot be used."""
    size = (int(images.shape[1]), int(images.shape[2]))
    for row, found in enumerate(usable_pictures(images, None, task, where=where)):
        if isinstance(found, Bad):
            yield found
            continue
        mask = checked_mask(masks[row].astype(np.int64), task, size, who=f"{where}mask {row}")
        yield mask if isinstance(mask, Bad) else (row, mask)
