"""Finds the picture files in a folder, at which depth, and counts what is passed over and why."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from consilium.common.errors import clean, listed
from consilium.common.study.site import MOST_DEPTH, PictureFormat

MOST_LEVELS = MOST_DEPTH + 1
"""How deep folders may lie in each other."""
FORMAT_OF: Mapping[str, PictureFormat] = MappingProxyType(
    {
        ".bmp": "bmp",
        ".dcm": "dicom",
        ".dicom": "dicom",
        ".ima": "dicom",
        ".jpeg": "jpeg",
        ".jpg": "jpeg",
        ".nii": "nifti",
        ".nii.gz": "nifti",
        ".png": "png",
        ".tif": "tiff",
        ".tiff": "tiff",
        ".webp": "webp",
    }
)
"""The format of a picture by its suffix."""
SUFFIXES = tuple(FORMAT_OF)
"""Endings of names of pictures; a DICOM file may have none, or a number."""
_PACKAGES = {"dicom": "pydicom", "nifti": "nibabel"}
_DICOM = ".dicom"
_NONE = "without a suffix"
_MOST_LISTED = 8


@dataclass(frozen=True)
class FoundFile:
    """A file below a folder: its path in parts, and its suffix as `suffix_of` has it."""

    path: Path
    parts: tuple[str, ...]
    suffix: str

    @property
    def is_picture(self) -> bool:
        """Whether it is named as pictures are, or is DICOM without a name that says so."""
        return self.suffix in SUFFIXES

    @property
    def extra(self) -> str | None:
        """The extra that reads it and is not installed; None where it can be read."""
        return extra_for(self.suffix)


def extra_for(suffix: str) -> str | None:
    """Return the extra that reads pictures of a suffix, where its package is not installed."""
    extra = FORMAT_OF.get(suffix, "")
    return extra if extra in _PACKAGES and find_spec(_PACKAGES[extra]) is None else None


def suffix_of(path: Path) -> str:
    """Return how a file's name ends, in lower case: `.nii.gz` whole; `.dicom` of DICOM files named by numbers.

    Raises:
        OSError: a file without a suffix cannot be opened to see what it is.
    """
    name = path.name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    if suffix not in SUFFIXES and not suffix.strip(".0123456789") and path.name != "DICOMDIR":
        with path.open("rb") as file:
            return _DICOM if file.read(132)[128:] == b"DICM" else ""
    return suffix


def is_picture(path: Path) -> bool:
    """Return whether a file is named as pictures are, or is DICOM.

    Raises:
        OSError: it cannot be opened to see that.
    """
    return suffix_of(path) in SUFFIXES


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether a path below a folder is, or goes by, a link to somewhere that is not below it."""
    return not path.resolve().is_relative_to(folder.resolve())


def walk(folder: Path, *, without: Iterable[str] = ()) -> Iterator[FoundFile]:
    """Yield the files in a folder and those below it, by their paths; hidden ones are left out, no folder is met twice.

    Args:
        without: names of files and folders in the folder itself that are left out.

    Raises:
        OSError: a folder cannot be listed.
    """
    seen, left_out = {folder.resolve()}, set(without)

    def below(current: Path, parts: tuple[str, ...]) -> Iterator[FoundFile]:
        for entry in sorted(current.iterdir()):
            if entry.name.startswith(".") or (not parts and entry.name in left_out):
                continue
            if entry.is_dir():
                if len(parts) + 1 < MOST_LEVELS and (real := entry.resolve()) not in seen:
                    seen.add(real)
                    yield from below(entry, (*parts, entry.name))
            elif entry.is_file():
                yield FoundFile(entry, (*parts, entry.name), suffix_of(entry))

    yield from below(folder, ())


@dataclass(eq=False)
class Tally:
    """How many files were read and passed over, by suffix.

    Args:
        read: by suffix.
        others: files of other formats, or in places where no picture is looked for, by suffix.
        lacking: pictures that need an extra, by suffix and extra.
        empty: files that are no pictures inside, such as reports in DICOM, by suffix.
        deep: pictures that lie deeper below their class than is looked, by suffix and depth.
    """

    read: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    lacking: Counter[tuple[str, str]] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    deep: Counter[tuple[str, int]] = field(default_factory=Counter)

    def sentence(self, *, depth: int) -> str:
        """Return what was read and what not: `24 .png read; passed over: 3 .txt`; "" where there is no file.

        Args:
            depth: how many folders deep below a class pictures were looked for.
        """
        read = listed([f"{count} {suffix}" for suffix, count in sorted(self.read.items())], _MOST_LISTED)
        passed = self._passed_over(depth=depth)
        return "; ".join(part for part in (read and f"{read} read", passed and f"passed over: {passed}") if part)

    def _passed_over(self, *, depth: int) -> str:
        parts = [
            f"{count} {suffix} (install the extra '{extra}': pip install 'consilium[{extra}]')"
            for (suffix, extra), count in sorted(self.lacking.items())
        ]
        parts += [f"{count} {suffix} without a picture inside" for suffix, count in sorted(self.empty.items())]
        if self.deep:
            parts.append(self._too_deep(depth=depth))
        most = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
        others = [f"{count} {clean(suffix, 40) or _NONE}" for suffix, count in most]
        return ", ".join([*parts, listed(others, _MOST_LISTED, "kinds")] if others else parts)

    def _too_deep(self, *, depth: int) -> str:
        counts = Counter[str]()
        for (suffix, _), count in self.deep.items():
            counts[suffix] += count
        deepest = max(level for _, level in self.deep)
        shown = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
        wanted = f"data.depth = {deepest}" if deepest == depth + 1 else 'data.depth = "any"'
        example = " (class/patient/picture)" if deepest == 1 else ""
        return f"{shown} deeper than data.depth = {depth}: set {wanted}{example} in site.toml to read them"
