"""Reads a folder of picture files as a pool: classes, parts and patients by folders and names, as a site reads them."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from consilium.client.data.base import Bad
from consilium.client.data.frames import EIGHT_BITS, SIXTEEN_BITS, Decoded, NoPicture
from consilium.client.data.image_files import list_folders, patient_in_class
from consilium.client.data.parts import TEST, part_of
from consilium.client.data.picture_facts import PictureFacts
from consilium.client.data.picture_files import MOST_LEVELS, SUFFIXES, FoundFile, Tally, leads_out, suffix_of, walk
from consilium.client.data.pictures import decode
from consilium.common.data.groups import Copies, first_of
from consilium.common.errors import DataError, clean
from consilium.common.study.task import ImageTask
from consilium.data.folder_pool import FOLDER, FolderPool, Look, PoolFile
from consilium.data.progress import Progress, silent
from consilium.data.table_pool import check_names, in_order

_ANY = ImageTask(classes=("no", "yes"), channels=3, pixel_range="picture")
"""A task by which any picture is decoded; its size and its range are used for nothing."""


@dataclass(frozen=True, eq=False)
class _Picture:
    """A picture file: the folder of its class, its part where folders say it, and what tells its pixels."""

    label: str
    part: int | None
    file: FoundFile
    key: bytes = b""


def read_folder(folder: Path, *, group: str | None = None, progress: Progress = silent) -> FolderPool:
    """Read the pool of pictures in a folder: `class/picture`, deeper too, or `train/class/picture` and `test/...`.

    Every picture is decoded once: one that is damaged would stop a site later.

    Args:
        group: "folder" (the first one below a class is a patient), or a pattern of file names, as `split.group`.

    Raises:
        ConfigError: `group` is none for a folder of pictures.
        DataError: no class, no picture, one that is damaged, or one of which it is not known whose it is.
    """
    who, tally, facts = f"pool '{folder}'", Tally(), PictureFacts(_ANY)
    patient = patient_in_class(group, who=who)
    try:
        usable = _decoded(list(_found(folder, tally, who=who)), folder, tally, facts, progress, who=who)
    except OSError as error:
        raise DataError(f"{who}: cannot be read: {error.strerror or error}") from error
    tally.read = Counter(one.file.suffix for one in usable)
    reading, names = tally.sentence(depth=MOST_LEVELS), {one.label for one in usable}
    if len(names) < 2:
        raise DataError(
            f"{who}: pictures ({', '.join(SUFFIXES)}) are in {len(names)} folders of classes, expected at least two"
            f"{reading and f'; {reading}'}"
        )
    classes = in_order(names)
    check_names(classes, who=who)
    usable.sort(key=lambda one: (classes.index(one.label), one.file.parts))
    loose = [one.file.path.name for one in usable if group == FOLDER and len(one.file.parts) == 1]
    if loose:
        raise DataError(f"{who}: picture '{loose[0]}' lies in its class itself, expected in a patient's folder")
    parts = [one.part for one in usable]
    return FolderPool(
        files=tuple(PoolFile(one.file.path, one.file.parts) for one in usable),
        y=np.array([classes.index(one.label) for one in usable], dtype=np.int64),
        classes=classes,
        look=_look(facts),
        copies=Copies(first_of([one.key for one in usable])),
        test=None if None in parts else np.array([part == TEST for part in parts]),
        patients=None if group is None else tuple(patient(one.file) or "" for one in usable),
        group=group,
        reading=reading,
    )


def _found(folder: Path, tally: Tally, *, who: str) -> Iterator[_Picture]:
    """Yield the class, the part and the place of every picture, and count all other files."""
    tops = [(sub, part_of(sub.name)) for sub in list_folders(folder)]
    if not tops:
        raise DataError(f"{who}: expected a sub-folder for each class, there is none")
    levels = [folder]
    if all(part is not None for _, part in tops):
        levels += [top for top, _ in tops]
        tops = [(sub, part) for top, part in tops for sub in list_folders(top)]
    loose = [file for level in levels for file in sorted(level.iterdir()) if file.is_file()]
    tally.others.update(suffix_of(file) for file in loose if not file.name.startswith("."))
    for sub, part in tops:
        for file in walk(sub):
            if not file.is_picture:
                tally.others[file.suffix] += 1
            elif file.extra is not None:
                tally.lacking[file.suffix, file.extra] += 1
            elif leads_out(file.path, folder):
                name = clean(file.path.relative_to(folder).as_posix(), 100)
                raise DataError(f"{who}: '{name}' is a link that leads out of the pool, expected the picture itself")
            else:
                yield _Picture(sub.name, part, file)


def _decoded(
    found: Sequence[_Picture], folder: Path, tally: Tally, facts: PictureFacts, progress: Progress, *, who: str
) -> list[_Picture]:
    """Return the files that hold a picture, each with what tells its pixels."""
    usable, bad = list[_Picture](), list[str]()
    for done, one in enumerate(found):
        progress("pictures read", done, len(found))
        decoded = decode(one.file.path, _ANY, name=one.file.path.relative_to(folder).as_posix())
        if isinstance(decoded, NoPicture):
            tally.empty[one.file.suffix] += 1
        elif isinstance(decoded, Bad):
            bad.append(decoded.reason)
        else:
            facts.add_file(decoded)
            usable.append(replace(one, key=_key(decoded)))
    progress("pictures read", len(found), len(found))
    if bad:
        raise DataError(f"{who}: {len(bad)} of {len(found)} pictures cannot be used: {'; '.join(bad[:3])}")
    return usable


def _key(decoded: Decoded) -> bytes:
    """Return what tells the pixels of a file's pictures."""
    whole = hashlib.blake2b(digest_size=16)
    for frame in decoded.frames:
        whole.update(f"{frame.values.shape} {frame.values.dtype} {frame.full} {frame.inverted}".encode())
        whole.update(np.ascontiguousarray(frame.values).tobytes())
    return whole.digest()


def _look(facts: PictureFacts) -> Look:
    """Return what the pictures are like, of at least one."""
    sides = np.repeat([max(size) for size in facts.sizes], list(facts.sizes.values()))
    side, grey = int(np.median(sides)), all(channels == 1 for _, channels in facts.kinds)
    *_, sizes = facts.seen()
    deep = {full: kind for (full, _), kind in facts.kinds.items() if full != EIGHT_BITS}
    unknown = bool(deep) and deep.keys() <= {SIXTEEN_BITS, None}
    low = min((min(kind.low) for kind in deep.values()), default=0.0)
    high = max((max(kind.high) for kind in deep.values()), default=0.0)
    return Look(
        side,
        "" if set(facts.sizes) == {(side, side)} else sizes,
        1 if grey else 3,
        (low, high) if unknown else None,
        None not in deep,
    )
