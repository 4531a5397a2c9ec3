"""Reads pictures for a finished model of masks, without their masks or with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilium.client.data.arrays import check_bytes, check_classes, npz_file, patients_of, prepared
from consilium.client.data.base import Bad, Inputs, Unread
from consilium.client.data.input_pictures import names_of, read_pictures
from consilium.client.data.input_rows import numbers_of
from consilium.client.data.mask_files import IMAGES, MASKS, Mask, find_pairs
from consilium.client.data.masks import Example, decoded_pairs, images_and_masks, patients_of_files, usable_masks
from consilium.client.data.picture_facts import PictureFacts
from consilium.common.data.npz import array_names, read_npz
from consilium.common.errors import DataError, clean
from consilium.common.study.segmentation_task import SegmentationTask

_WHO = "the data"


def read_mask_inputs(
    path: Path, task: SegmentationTask, *, labelled: bool, keep: Sequence[str], group: str | None
) -> Inputs:
    """Read pictures; with `labelled` those of a folder `images` with their masks in a folder `masks`, or a file's.

    Law: of pictures that a site also trains on, `x` and `y` are bit for bit those of `RawData`. Without `labelled`, of
    a folder with both of these folders the pictures alone are read.

    Raises:
        DataError: as of `read_pictures`, or there are no masks.
        ConfigError: `group` is none for pictures.
    """
    pairs = (path / MASKS).is_dir() and (path / IMAGES).is_dir()
    if not labelled:
        return read_pictures(path / IMAGES if pairs else path, task, labelled=False, keep=keep, group=group)
    if keep:
        raise DataError(f"pictures have no column '{clean(keep[0])}' to keep, only tables have")
    if path.suffix.lower() == ".npz" or (path.is_dir() and not pairs and any(path.glob("*.npz"))):
        return _of_npz(path, task, group=group)
    return _of_files(path, task, group=group)


def _of_files(path: Path, task: SegmentationTask, *, group: str | None) -> Inputs:
    pairs, used, unread = find_pairs(path, who=_WHO), list[Example](), list[Unread]()
    owners = patients_of_files(pairs.pictures, group, who=_WHO)
    check_bytes(len(pairs.pictures) * len(task.slices.at), task, where=_WHO)
    for found in decoded_pairs(pairs, task, PictureFacts(task), folder=path):
        if isinstance(found, Bad):
            unread.append(Unread(found.name, found.reason))
        else:
            used.append(found)
    files, names = [clean("/".join(file.parts)) for file in pairs.pictures], list[str]()
    places = [one.place for one in used]
    for place in dict.fromkeys(places):
        names += names_of(files[place], places.count(place))
    if owners is None and len(set(places)) < len(places):
        owners = files  # slices of one volume are one patient's
    x = np.stack([one.pixels for one in used]) if used else np.empty((0, *task.input_shape), dtype=np.float32)
    return Inputs(
        x=torch.from_numpy(x),
        names=tuple(names),
        y=_stacked([one.mask for one in used], task),
        groups=None if owners is None else numbers_of([owners[place] for place in places]),
        unread=tuple(unread),
        sizes=tuple(one.size for one in used),
    )


def _of_npz(path: Path, task: SegmentationTask, *, group: str | None) -> Inputs:
    file = npz_file(path, without=task.test, who=_WHO)
    where, known = f"file '{clean(file.name)}'", array_names(file, who=_WHO)
    more = [name for name in (group, "classes" if "classes" in known else None) if name is not None]
    held: Any = read_npz(file, ["x", "y", *more], who=_WHO)
    check_classes(held.get("classes"), task.classes, where=where)
    images, masks = images_and_masks(held, task, where=where)
    check_bytes(len(images), task, where=where)
    usable, unread = list[tuple[int, Mask]](), list[Unread]()
    for number, found in enumerate(usable_masks(images, masks, task, where=f"{where}, ")):
        if isinstance(found, Bad):
            unread.append(Unread(str(number), found.reason))
        else:
            usable.append(found)
    rows = np.array([row for row, _ in usable], dtype=np.int64)
    owners = None if group is None else patients_of(held[group], group, rows, len(images), where)
    return Inputs(
        x=torch.from_numpy(prepared(images, rows, task)),
        names=tuple(map(str, rows.tolist())),
        y=_stacked([mask for _, mask in usable], task),
        groups=None if owners is None else numbers_of(owners),
        unread=tuple(unread),
        sizes=((int(images.shape[1]), int(images.shape[2])),) * len(usable),
    )


def _stacked(masks: Sequence[Mask], task: SegmentationTask) -> torch.Tensor:
    return torch.from_numpy(np.stack(masks) if masks else np.empty((0, task.size, task.size), dtype=np.uint8))
