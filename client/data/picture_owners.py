"""Whose the pictures are that a finished model answers: by their folders, their names or their headers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from consilium.client.data.image_files import DICOM_PATIENT, FOLDER, no_patient, patient_of
from consilium.common.errors import clean


@dataclass(frozen=True)
class Owners:
    """Whose a picture is: by its folder, or its name; None where nothing says so.

    Args:
        group: as it was asked for.
        classes: names of the folders that are no patients.
    """

    of: Callable[[Path], str | None] | None = None
    group: str = ""
    classes: tuple[str, ...] = ()

    def whose(self, name: str) -> str | None:
        """Return whose a picture is, by its path; None where it does not say so, or nobody asked."""
        parts = name.split("/")
        below = parts[1:] if len(parts) > 1 and parts[0] in self.classes else parts
        if self.group == FOLDER:
            return below[0] if len(below) > 1 else None
        return None if self.of is None else self.of(Path(name))

    def problem(self, name: str, content: Path | bytes) -> str | None:
        """Return why it cannot be known whose a picture is, None where it can."""
        if self.of is None or not isinstance(content, Path) or self.whose(name) is not None:
            return None
        if self.group == FOLDER:
            return f"image '{clean(name)}' lies in its class's folder itself, expected in a folder of its patient"
        if self.group == DICOM_PATIENT:
            return f"image '{clean(name)}' {no_patient(self.group)}"
        return f"image '{clean(name)}': its name does not fit the pattern '{self.group}' of patients"


def reader_of(group: str | None, paths: Mapping[str, Path], *, who: str) -> Callable[[Path], str | None] | None:
    """Return the function that reads whose a picture is from its name, by which `paths` says where its header is.

    Raises:
        ConfigError: `group` is not one for a folder of pictures.
    """
    read = patient_of(group, who=who)
    if read is None or group != DICOM_PATIENT:
        return read

    @cache
    def in_header(path: Path) -> str | None:
        return read(paths[path.as_posix()])

    return in_header
