"""Finds a site's image files, and the class, the patient and the part of each by its folders and its name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from consilium.client.data.parts import KNOWN, index_file, part_of
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.patterns import EXAMPLE, file_pattern
from consilium.common.study.task import ImageTask
from consilium.common.study.training import SplitConfig

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FOLDER = "folder"


@dataclass(frozen=True)
class ImageFile:
    """An image file and its class; its patient and its part are None where the study's split does not ask for them."""

    path: Path
    label: int
    patient: str | None
    part: int | None


@dataclass(frozen=True)
class _Patients:
    """Where a file's patient is written: nowhere, in the folder below the class, or in the file's name."""

    folders: bool
    of: Callable[[Path], str | None]


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


def labelled_files(folder: Path, task: ImageTask, split: SplitConfig, *, site: str) -> list[ImageFile]:
    """Return the images below a site's folder, in the order of the study's classes and of the file names.

    Raises:
        ConfigError: `split.group` or `split.parts` is not one for a folder of images.
        DataError: no folder, an unknown class or part, no image, or an image whose patient cannot be known.
        OSError: a folder cannot be listed.
    """
    if not folder.is_dir():
        seen = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"site '{site}': data folder '{folder}' {seen}")
    patients = _patients(split.group, site=site)
    files = list[ImageFile]()
    for top, part in _tops(folder, task, split, site=site):
        for label, path in _in_classes(top, task.classes, patients, site=site):
            files.append(ImageFile(path, label, patients.of(path), part))
    if not files:
        where = "patients' folders" if patients.folders else "sub-folders"
        raise DataError(f"site '{site}': no image in the {where} of '{folder}', expected files {', '.join(SUFFIXES)}")
    return sorted(files, key=lambda file: (file.label, file.path.name, file.path.parent))


def _patients(group: str | None, *, site: str) -> _Patients:
    patient = patient_of(group, who=f"site '{site}'")
    if patient is None:
        return _Patients(False, lambda path: None)

    def of(path: Path) -> str:
        if (found := patient(path)) is None:
            raise DataError(f"site '{site}': the name of image '{path.name}' does not fit split.group = '{group}'")
        return found

    return _Patients(group == FOLDER, of)


def patient_of(group: str | None, *, who: str) -> Callable[[Path], str | None] | None:
    """Return the function that reads whose an image is from its path, None where its name does not fit.

    Args:
        group: as `split.group`; without it there is no function.
        who: the start of the error sentence.

    Raises:
        ConfigError: `group` is neither "folder" nor a pattern of file names.
    """
    if group is None:
        return None
    if group == FOLDER:
        return lambda path: path.parent.name
    pattern = file_pattern(group)
    if pattern is None:
        raise ConfigError(
            f"{who}: split.group is '{group}', expected for a folder of images '{FOLDER}' or a pattern of file "
            f"names with the patient in brackets, e.g. '{EXAMPLE}'"
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


def _in_classes(
    folders: Sequence[Path], classes: tuple[str, ...], patients: _Patients, *, site: str
) -> Iterator[tuple[int, Path]]:
    for folder in folders:
        if folder.name not in classes:
            raise _unknown_class(folder, classes, site=site)
        label = classes.index(folder.name)
        if not patients.folders:
            yield from ((label, path) for path in list_images(folder))
            continue
        if loose := list_images(folder):
            raise DataError(
                f"site '{site}': image '{loose[0].name}' lies in class '{folder.name}' itself, expected in a folder of "
                f"its patient, as split.group = '{FOLDER}' says"
            )
        yield from ((label, path) for patient in list_folders(folder) for path in list_images(patient))


def _unknown_class(folder: Path, classes: tuple[str, ...], *, site: str) -> DataError:
    same = [name for name in classes if name.casefold() == folder.name.casefold()]
    hint = f"; upper and lower case differ: rename the folder to '{same[0]}'" if same else ""
    return DataError(
        f"site '{site}': class '{folder.name}' is not in the study's classes {list(classes)} (folder '{folder}'){hint}"
    )
