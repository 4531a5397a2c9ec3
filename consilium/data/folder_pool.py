"""A pool of picture files in a folder for each class: its task, and its division as copies, byte for byte."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from consilium.common.data.groups import Copies, first_of
from consilium.common.errors import DataError, StateError, listed
from consilium.common.host.files import scratch, write_atomically
from consilium.common.study.patterns import file_pattern
from consilium.common.study.task import ImageTask
from consilium.data.picture_range import range_between
from consilium.data.table_pool import Labels

FOLDER = "folder"
"""As a group: the first folder below a class is a patient."""
_LARGEST = 224
"""Side of the pictures of a study to start from, where those of the pool are larger."""


@dataclass(frozen=True)
class PoolFile:
    """A picture file: its path, and that below its class in parts."""

    path: Path
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """What pictures are like.

    Args:
        side: the median of their longer sides, in pixels.
        sizes: a sentence on their sizes; "" where all are squares of one size.
        channels: 1 where all are grey.
        levels: the lowest and the highest one, where the files do not say which are black and white.
        whole: whether these are whole numbers of 16 bits.
    """

    side: int
    sizes: str
    channels: Literal[1, 3]
    levels: tuple[float, float] | None
    whole: bool


@dataclass(frozen=True, eq=False)
class FolderPool:
    """Picture files in the order of their classes and paths, class numbers `y` of shape `(N,)`, and the classes' names.

    Args:
        look: levels and sizes of all pictures.
        copies: which pictures have the same pixels.
        test: which are in a folder called test above the classes `(N,)`; None where there are no such folders.
        patients: whose each picture is; None where that was not asked for.
        group: what says whose a picture is.
        reading: how many files were read and passed over.
    """

    files: tuple[PoolFile, ...]
    y: Labels
    classes: tuple[str, ...]
    look: Look
    copies: Copies
    test: npt.NDArray[np.bool_] | None
    patients: tuple[str, ...] | None
    group: str | None
    reading: str

    def whose(self, group: str) -> list[str]:
        """Return whose each picture is."""
        assert self.patients is not None
        return list(self.patients)

    @cached_property
    def names(self) -> list[str]:
        """Return what each picture is called below its class at a site: by its name, or by its folders and its name.

        Raises:
            DataError: two would have one name, or one would name another patient.
        """
        return _names(self)

    def only(self, rows: Labels) -> "FolderPool":
        """Return the pool of some of its pictures."""
        places = rows.tolist()
        return replace(
            self,
            files=tuple(self.files[place] for place in places),
            y=self.y[rows],
            copies=Copies(first_of(self.copies.first[rows].tolist())),
            test=None,
            patients=None if self.patients is None else tuple(self.patients[place] for place in places),
        )


def folder_task(pool: FolderPool, *, test: str | None) -> tuple[ImageTask, list[str]]:
    """Return the task of a pool of picture files, and sentences on what was assumed for it."""
    look, sentences, levels = pool.look, list[str](), None
    size = min(max(look.side, 4), _LARGEST)
    if look.sizes or size != look.side:
        sentences.append(f"the pictures are {look.sizes or 'larger'}: every site resizes them to task.size = {size}")
    if look.levels is not None:
        levels, said = range_between(*look.levels, whole=look.whole)
        sentences += said
    task = ImageTask(
        classes=pool.classes,
        size=size,
        channels=look.channels,
        pixel_range=levels,
        mean=(0.5,),
        std=(0.25,),
        test=test,
    )
    return task, sentences


def write_files(folder: Path, pool: FolderPool, rows: Labels) -> None:
    """Copy picture files into a site's folder, as `class/picture`, or `class/patient/picture` by folders of patients.

    Raises:
        DataError: a file cannot be read, or two would have one name.
        StateError: one cannot be written.
    """
    with scratch():  # the study is written last, and safely
        for row in rows.tolist():
            try:
                content = pool.files[row].path.read_bytes()
            except OSError as error:
                raise DataError(f"cannot read '{pool.files[row].path}': {error.strerror or error}") from error
            write_atomically(folder / pool.classes[pool.y[row]] / pool.names[row], content)


def digest_of_files(files: Iterable[Path], folder: Path) -> str:
    """Return the SHA-256 of the paths in a folder and the contents of files, in hexadecimal digits.

    Raises:
        StateError: a file cannot be read any more.
    """
    whole = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StateError(f"cannot read '{path}': {error.strerror or error}") from error
        whole.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()


def _names(pool: FolderPool) -> list[str]:
    """Return what each picture is called below its class at a site: by its name, or by its folders and its name."""
    depth, labels = int(pool.group == FOLDER), [pool.classes[label] for label in pool.y.tolist()]
    kept = ["/".join([*file.parts[:depth], file.parts[-1]]) for file in pool.files]
    times, names = Counter(zip(labels, kept, strict=True)), list[str]()
    for place, (file, label, name) in enumerate(zip(pool.files, labels, kept, strict=True)):
        if times[label, name] > 1:
            name = "/".join([*file.parts[:depth], "-".join(file.parts[depth:])])
            _check_patient(pool, place, name)
        names.append(name)
    twice = [
        f"'{label}/{name}'" for (label, name), count in Counter(zip(labels, names, strict=True)).items() if count > 1
    ]
    if twice:
        raise DataError(f"several pictures would be called {listed(twice, 3)}: give them different names")
    return names


def _check_patient(pool: FolderPool, place: int, name: str) -> None:
    """Check that a pattern of file names reads the same patient in a picture's new name."""
    pattern = None if pool.group is None else file_pattern(pool.group)
    if pattern is None or pool.patients is None:
        return
    patient = pattern.search(name)
    if patient is None or patient[1] != pool.patients[place]:
        raise DataError(
            f"several pictures of class '{pool.classes[pool.y[place]]}' are called '{pool.files[place].path.name}', "
            f"and with its folders in its name --group '{pool.group}' would read another patient: give them different "
            "names"
        )
