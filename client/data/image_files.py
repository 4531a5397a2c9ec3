"""Finds a site's image files, and the class, the patient and the part of each by its folders and its name."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consilium.client.data.base import Bad
from consilium.client.data.dicom import patient_in
from consilium.client.data.parts import KNOWN, index_file, part_of
from consilium.client.data.picture_files import (
    FORMAT_OF,
    MOST_LEVELS,
    SUFFIXES,
    FoundFile,
    Tally,
    is_picture,
    suffix_of,
    walk,
)
from consilium.common.errors import ConfigError, DataError
from consilium.common.host.extras import missing
from consilium.common.study.image_task import ImageTask
from consilium.common.study.patterns import EXAMPLE, file_pattern
from consilium.common.study.site import ImageFolderData
from consilium.common.study.training import SplitConfig

FOLDER, ANY = "folder", "any"
DICOM_PATIENT = "dicom:PatientID"
"""As `split.group`: the patient is the one of the DICOM file's header."""


@dataclass(frozen=True)
class ImageFile:
    """An image file and its class, or its label `()` or labels `(L,)` as a table says.

    Its patient and its part are None where the study's split does not ask for them.
    """

    path: Path
    label: int | npt.NDArray[np.float64]
    patient: str | None
    part: int | None


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of a site, in order, and a sentence on what was read and what was passed over.

    Args:
        bad: why others cannot be used that a table names.
        note: what else is to be said.
    """

    files: tuple[ImageFile, ...]
    tally: Tally
    depth: int
    bad: tuple[Bad, ...] = ()
    note: str = ""

    def sentence(self, *, read: Sequence[ImageFile]) -> str:
        """Return what was read, by suffix, and what was passed over and why."""
        tally = replace(self.tally, read=Counter(suffix_of(file.path) for file in read))
        return "; ".join(part for part in (tally.sentence(depth=self.depth), self.note) if part)

    @property
    def lacks_pictures(self) -> bool:
        """Whether pictures were passed over that could be read with another setting or an extra."""
        return bool(self.tally.deep or self.tally.lacking)


def list_folders(folder: Path) -> list[Path]:
    """Return the sub-folders that are not hidden, sorted by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_images(folder: Path) -> list[Path]:
    """Return the image files that are not hidden, sorted by name; other files are left out."""
    return sorted(
        entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file() and is_picture(entry)
    )


def labelled_files(config: ImageFolderData, task: ImageTask, split: SplitConfig, *, site: str) -> Listing:
    """Return the images below a site's folder, in the order of the study's classes and of the file names.

    Raises:
        ConfigError: `split.group`, `split.parts` or `data.depth` is not one for a folder of images.
        DataError: no folder, an unknown class or part, no image, or an image whose patient cannot be known.
        OSError: a folder cannot be listed.
    """
    folder, who = config.path, f"site '{site}'"
    if not folder.is_dir():
        seen = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{who}: data folder '{folder}' {seen}")
    by_folder = split.group == FOLDER
    patient, depth = patient_in_class(split.group, who=who), _depth(config, by_folder=by_folder, who=who)
    tally, files = Tally(), list[tuple[int, ImageFile]]()
    for top, part in _tops(folder, task, split, site=site):
        for class_folder in top:
            if class_folder.name not in task.classes:
                raise _unknown_class(class_folder, task.classes, site=site)
            label = task.classes.index(class_folder.name)
            for file in _wanted(class_folder, depth, config.formats, tally):
                if by_folder and len(file.parts) == 1:
                    raise DataError(
                        f"{who}: image '{file.path.name}' lies in class '{class_folder.name}' itself, expected in a "
                        f"folder of its patient, as split.group = '{FOLDER}' says"
                    )
                files.append((label, ImageFile(file.path, label, patient(file), part)))
    _count_loose(folder, split, tally)
    if not files:
        where = "patients' folders" if by_folder else "sub-folders"
        seen = tally.sentence(depth=depth)
        expected = f"expected files {', '.join(SUFFIXES)}"
        raise DataError(f"{who}: no image in the {where} of '{folder}', {expected}{seen and f'; {seen}'}")
    ordered = sorted(files, key=lambda one: (one[0], one[1].path.name, one[1].path.parent))
    return Listing(tuple(file for _, file in ordered), tally, depth)


def _depth(config: ImageFolderData, *, by_folder: bool, who: str) -> int:
    """Return how many folders deep below a class images are looked for."""
    if config.depth is None:
        return int(by_folder)
    if config.depth == 0 and by_folder:
        raise ConfigError(
            f"{who}: data.depth is 0, but split.group = '{FOLDER}' reads class/patient/picture: set data.depth = 1, or "
            'more, or "any"'
        )
    return MOST_LEVELS if config.depth == ANY else int(config.depth)


def _wanted(folder: Path, depth: int, formats: Sequence[str] | None, tally: Tally) -> Iterator[FoundFile]:
    """Yield the pictures in a class's folder that are to be read, and count all others."""
    for file in walk(folder):
        level = len(file.parts) - 1
        if not file.is_picture or (formats is not None and FORMAT_OF[file.suffix] not in formats):
            tally.others[file.suffix] += 1
        elif file.extra is not None:
            tally.lacking[file.suffix, file.extra] += 1
        elif level > depth:
            tally.deep[file.suffix, level] += 1
        else:
            yield file


def _count_loose(folder: Path, split: SplitConfig, tally: Tally) -> None:
    """Count the files that lie in the data folder itself, where no class is."""
    known = {index_file(split.parts)}
    for entry in folder.iterdir():
        if entry.is_file() and not entry.name.startswith(".") and entry.name not in known:
            tally.others[suffix_of(entry)] += 1


def patient_in_class(group: str | None, *, who: str) -> Callable[[FoundFile], str | None]:
    """Return the function that reads whose an image below its class is; a folder's is the first one below the class.

    Raises:
        ConfigError: as of `patient_of`.
    """
    patient = patient_of(group, who=who)
    if patient is None:
        return lambda file: None
    if group == FOLDER:
        return lambda file: file.parts[0]

    def of(file: FoundFile) -> str:
        if (found := patient(file.path)) is None:
            raise DataError(f"{who}: image '{file.path.name}' {no_patient(group)}, as split.group = '{group}' asks for")
        return found

    return of


def no_patient(group: str | None) -> str:
    """Return in words why it is not known whose a picture is."""
    if group == DICOM_PATIENT:
        return "names no patient in a DICOM header"
    return "lies in no folder of its patient" if group == FOLDER else "has a name that does not fit"


def patient_of(group: str | None, *, who: str) -> Callable[[Path], str | None] | None:
    """Return the function that reads whose a file is from its path, or its DICOM header; None where that says nothing.

    Args:
        group: as `split.group`; without it there is no function.
        who: the start of the error sentence.

    Raises:
        ConfigError: `group` is none for pictures, or reads DICOM, which the extra for it does.
    """
    if group is None:
        return None
    if group == FOLDER:
        return lambda path: path.parent.name
    if group == DICOM_PATIENT:
        if find_spec("pydicom") is None:
            raise missing(f"split.group = '{DICOM_PATIENT}'", "pydicom")
        return patient_in
    pattern = file_pattern(group)
    if pattern is None:
        raise ConfigError(
            f"{who}: split.group is '{group}', expected for a folder of images '{FOLDER}' or a pattern of file "
            f"names with the patient in brackets, e.g. '{EXAMPLE}', or '{DICOM_PATIENT}'"
        )

    def of(path: Path) -> str | None:
        found = pattern.search(path.name)
        return None if found is None else found[1] or None

    return of


def _tops(
    folder: Path, task: ImageTask, split: SplitConfig, *, site: str
) -> Iterator[tuple[Sequence[Path], int | None]]:
    """Yield the folders of classes, together with the part that their images belong to."""
    found = [sub for sub in list_folders(folder) if sub.name != task.test]
    if not found:
        raise DataError(
            f"site '{site}': data folder '{folder}' has no sub-folder, expected one for each of {list(task.classes)}"
        )
    if split.parts is None or index_file(split.parts) is not None:
        yield found, None
        return
    if split.parts != FOLDER:
        raise ConfigError(
            f"site '{site}': split.parts is '{split.parts}', expected for a folder of images '{FOLDER}' or a .csv file"
        )
    for sub in found:
        if (part := part_of(sub.name)) is None:
            raise DataError(
                f"site '{site}': folder '{sub.name}' is none of {KNOWN}, as split.parts = '{FOLDER}' expects above the "
                "classes"
            )
        yield list_folders(sub), part


def _unknown_class(folder: Path, classes: tuple[str, ...], *, site: str) -> DataError:
    same = [name for name in classes if name.casefold() == folder.name.casefold()]
    hint = f"; upper and lower case differ: rename the folder to '{same[0]}'" if same else ""
    return DataError(
        f"site '{site}': class '{folder.name}' is not in the study's classes {list(classes)} (folder '{folder}'){hint}"
    )
