"""Reads pictures for a finished model: a file, a folder of any shape, an `.npz` file, arrays, or uploaded files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consilium.client.data.arrays import (
    check_bytes,
    check_classes,
    check_levels,
    prepared,
    usable_pictures,
)
from consilium.client.data.base import Bad, Inputs, Unread
from consilium.client.data.columns import Floats
from consilium.client.data.frames import normalised
from consilium.client.data.image_files import DICOM_PATIENT, FOLDER
from consilium.client.data.input_rows import numbers_of
from consilium.client.data.label_arrays import ArrayLabels, label_arrays, name_arrays, read_labels
from consilium.client.data.label_files import LABELS, NamedFile, named_files
from consilium.client.data.picture_files import SUFFIXES, is_picture, suffix_of, walk
from consilium.client.data.picture_owners import Owners, reader_of
from consilium.client.data.pictures import Sized, sized_pixels
from consilium.common.data.npz import Array, array_names, channels_last, read_npz
from consilium.common.data.tables import SUFFIXES as TABLES
from consilium.common.errors import DataError, clean
from consilium.common.study.task import PictureTask

_OTHERS = (".avif", ".gif", ".heic", ".heif", ".jp2", ".mha", ".nrrd", ".psd", ".raw", ".svs")
"""Pictures in formats that are not read: they are named, where other files beside pictures are left out."""
_WHO = "the data"

Content = Path | bytes


def read_pictures(path: Path, task: PictureTask, *, labelled: bool, keep: Sequence[str], group: str | None) -> Inputs:
    """Read a picture file, a folder of them, or an `.npz` file.

    Raises:
        DataError: no such file, one that is none of these, no picture, or texts to keep where a picture has none.
        ConfigError: `group` is not one for a folder of pictures.
    """
    shown = clean(str(path))
    if labelled and (table := _table(path, task)) is not None:
        return _named(table, task, keep=keep, group=group)
    try:
        files = _files(path, task)
    except OSError as error:
        raise DataError(f"'{shown}' cannot be read: {error.strerror or error}") from error
    if len(files) == 1 and files[0][1].suffix.lower() == ".npz":
        return _read_npz(files[0][1], task, labelled=labelled, keep=keep, group=group)
    _keep_nothing(keep)
    if labelled and not (task.classes and path.is_dir()):
        expected = "a folder with one sub-folder per class" if task.classes else f"a table, such as {LABELS}"
        seen = "has no labels" if path.is_dir() else "is one picture without a label"
        raise DataError(f"'{shown}' {seen}, expected {expected}")
    whose = Owners(reader_of(group, dict(files), who=_WHO), clean(group or ""), task.classes)
    return _labelled(files, task, whose) if labelled else _decoded(files, task, whose)


def _files(path: Path, task: PictureTask) -> list[tuple[str, Path]]:
    """Return the pictures, or the `.npz` file, that a path stands for, by their names.

    Raises:
        DataError: there is none.
        OSError: a folder cannot be listed.
    """
    shown, expected = clean(str(path)), f"files {', '.join(SUFFIXES)}"
    if path.is_file():
        if path.suffix.lower() != ".npz" and not is_picture(path):
            raise DataError(f"'{shown}' is no picture, expected {expected}, a folder of them or an .npz file")
        return [(path.name, path)]
    if not path.is_dir():
        seen = "is neither file nor folder" if path.exists() else "does not exist"
        raise DataError(f"'{shown}' {seen}, expected a picture, a folder of pictures or an .npz file")
    files = sorted(
        ("/".join(file.parts), file.path)
        for file in walk(path, without=[task.test] if task.test is not None else [])
        if file.suffix in (*SUFFIXES, *_OTHERS)
    )
    if any(suffix_of(file) in SUFFIXES for _, file in files):
        return files
    arrays = sorted(entry for entry in path.glob("*.npz") if entry.name != task.test)
    if len(arrays) == 1:
        return [(arrays[0].name, arrays[0])]
    hint = f"; it has {len(files)} in other formats, e.g. '{clean(files[0][0], 100)}': convert them" if files else ""
    hint += f"; it has {len(arrays)} .npz files: name one" if arrays else ""
    raise DataError(f"folder '{shown}' has no picture, expected {expected}{hint}")


def of_contents(contents: Mapping[str, bytes], task: PictureTask) -> Inputs:
    """Decode the bytes of picture files.

    Raises:
        DataError: no picture.
    """
    if not contents:
        raise DataError("there is no picture, expected at least one")
    return _decoded(list(contents.items()), task, Owners())


def of_array(array: npt.NDArray[Any], task: PictureTask) -> Inputs:
    """Take pictures `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`.

    Raises:
        DataError: another shape or type, or no picture.
    """
    images = channels_last(np.asarray(array), where="the pictures")
    check_levels(images, task, where="the pictures")
    return _of_images(images, None, task, where="")


def _read_npz(path: Path, task: PictureTask, *, labelled: bool, keep: Sequence[str], group: str | None) -> Inputs:
    where, names = f"file '{clean(path.name)}'", array_names(path, who=_WHO)
    wanted = label_arrays(task) if labelled else ()
    more = [*keep, *([group] if group is not None else []), *wanted]
    known = name_arrays(task, names) if labelled else ()
    held = read_npz(path, list(dict.fromkeys(["x", *more, *known])), who=_WHO)
    images = channels_last(held["x"], where=where)
    check_levels(images, task, where=where)
    check_classes(held.get("classes"), task.classes, where=where)
    labels = read_labels(held, task, len(images), each="image", where=where) if labelled else None
    texts = {name: _texts(held[name], name, len(images), where=where) for name in more if name not in wanted}
    return _of_images(images, labels, task, where=f"{where}, ", texts=texts, keep=keep, group=group)


def _of_images(
    images: Array,
    labels: ArrayLabels | None,
    task: PictureTask,
    *,
    where: str,
    texts: Mapping[str, Sequence[str]] | None = None,
    keep: Sequence[str] = (),
    group: str | None = None,
) -> Inputs:
    who = where.rstrip(", ") or "the array"
    if not len(images):
        raise DataError(f"{who} has no picture, expected at least one")
    check_bytes(len(images), task, where=who)
    usable, unread, held = list[int](), list[Unread](), texts or {}
    for number, found in enumerate(usable_pictures(images, labels, task, where=where)):
        if isinstance(found, Bad):
            unread.append(Unread(str(number), found.reason))
        else:
            usable.append(found)
    rows = np.array(usable, dtype=np.int64)
    return Inputs(
        x=torch.from_numpy(prepared(images, rows, task)),
        names=tuple(map(str, usable)),
        y=None if labels is None else labels.taken(rows),
        groups=None if group is None else numbers_of([held[group][row] for row in usable]),
        unread=tuple(unread),
        kept={name: tuple(held[name][row] for row in usable) for name in keep},
        sizes=((int(images.shape[1]), int(images.shape[2])),) * len(usable),
    )


def _texts(array: Array, name: str, count: int, *, where: str) -> list[str]:
    if array.shape != (count,) or array.dtype.kind not in "iufbU":
        raise DataError(
            f"{where}: array '{clean(name)}' has type {array.dtype} and shape {array.shape}, expected {count} numbers "
            "or texts, one for each picture"
        )
    return [str(value) for value in array.tolist()]


def _keep_nothing(keep: Sequence[str]) -> None:
    if keep:
        raise DataError(f"pictures have no column '{clean(keep[0])}' to keep, only tables have")


def _table(path: Path, task: PictureTask) -> Path | None:
    """Return the table that names each picture with its label, where the labels are in one; None where there is none.

    It is the file itself, or `labels.csv` in a folder.
    """
    if task.classes:
        return None
    table = path / LABELS if path.is_dir() else path
    return table if table.is_file() and table.suffix.lower() in TABLES else None


def _named(table: Path, task: PictureTask, *, keep: Sequence[str], group: str | None) -> Inputs:
    """Decode the pictures that a table names; a group that is no pattern is a column of the table."""
    _keep_nothing(keep)
    column = group if group is not None and group not in (FOLDER, DICOM_PATIENT) and "(" not in group else None
    found = named_files(table, task, more=[] if column is None else [column], who=_WHO)
    files = [one for one in found if isinstance(one, NamedFile)]
    owners = {} if column is None else {one.name: one.cells[column] or None for one in files}
    paths = {one.name: one.path for one in files}
    read = reader_of(group, paths, who=_WHO) if column is None else lambda path: owners.get(path.as_posix())
    whose = Owners(read, clean(group or ""))
    decoded = _decoded([(one.name, one.path) for one in files], task, whose, [one.label for one in files])
    unread = [Unread(one.name, one.reason) for one in found if isinstance(one, Bad)]
    return replace(decoded, unread=(*unread, *decoded.unread))


def _labelled(files: Sequence[tuple[str, Path]], task: PictureTask, whose: Owners) -> Inputs:
    """Decode pictures in one sub-folder per class, in the order in which a site reads them."""
    known, unread = list[tuple[int, str, Path]](), list[Unread]()
    for name, path in files:
        folder, _, rest = name.partition("/")
        if rest and folder in task.classes:
            known.append((task.classes.index(folder), name, path))
            continue
        same = [label for label in task.classes if rest and label.casefold() == folder.casefold()]
        seen = f"folder '{clean(folder)}' is none of the classes" if rest else "it lies in no class's folder"
        hint = f"; upper and lower case differ from '{same[0]}'" if same else ""
        reason = f"image '{clean(name)}': {seen}, expected a folder for each of {list(task.classes)}{hint}"
        unread.append(Unread(clean(name), reason))
    known.sort(key=lambda one: (one[0], one[2].name, one[2].parent))
    found = _decoded([(name, path) for _, name, path in known], task, whose, [label for label, _, _ in known])
    return replace(found, unread=(*unread, *found.unread))


def _decoded(
    files: Sequence[tuple[str, Content]],
    task: PictureTask,
    whose: Owners,
    labels: Sequence[int | Floats] | None = None,
) -> Inputs:
    check_bytes(len(files) * len(task.slices.at), task, where="the pictures")
    pictures, used, names, unread = list[Sized](), list[int](), list[str](), list[Unread]()
    for place, (name, content) in enumerate(files):
        pixels = _pixels(name, content, task, whose)
        if isinstance(pixels, str):
            unread.append(Unread(clean(name), pixels))
            continue
        pictures += [(normalised(one, task), size) for one, size in pixels]
        used += [place] * len(pixels)
        names += names_of(clean(name), len(pixels))
    owners = [] if whose.of is None else [whose.whose(files[place][0]) or "" for place in used]
    if whose.of is None and len(set(used)) < len(used):
        owners = [files[place][0] for place in used]  # slices of one volume are one patient's
    x = np.stack([one for one, _ in pictures]) if pictures else np.empty((0, *task.input_shape), dtype=np.float32)
    return Inputs(
        x=torch.from_numpy(x),
        names=tuple(names),
        y=None if labels is None else _stacked([labels[place] for place in used], task),
        groups=None if whose.of is None and not owners else numbers_of(owners),
        unread=tuple(unread),
        sizes=tuple(size for _, size in pictures),
    )


def names_of(name: str, count: int) -> list[str]:
    """Return the names of the pictures in a file: its own, or its own with each slice's number."""
    return [name] if count == 1 else [f"{name}#{at:02}" for at in range(1, count + 1)]


def _stacked(labels: Sequence[int | Floats], task: PictureTask) -> torch.Tensor:
    shape = (0, *([len(task.label_names)] if task.label_names else []))
    y = np.stack([np.asarray(label) for label in labels]) if labels else np.empty(shape)
    return torch.from_numpy(y).to(torch.int64 if task.classes else torch.float32)


def _pixels(name: str, content: Content, task: PictureTask, whose: Owners) -> list[Sized] | str:
    """Return the pictures of a file `(C, size, size)` in 0..1, each with its own size, or why there are none."""
    if (problem := whose.problem(name, content)) is not None:
        return problem
    if isinstance(content, Path) and suffix_of(content) not in SUFFIXES:
        return f"image '{clean(name)}' is in a format that is not read, expected one of {', '.join(SUFFIXES)}"
    found = sized_pixels(content, task, name=clean(name))
    return found.reason if isinstance(found, Bad) else found
