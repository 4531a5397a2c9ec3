"""Makes hospitals' data folders from public data: digits, heart disease, or any folder of images."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

from consilium.client.data.base import Bad
from consilium.client.data.image_files import list_folders, list_images
from consilium.client.data.pictures import decode
from consilium.common.errors import DataError
from consilium.common.host.files import write_atomically
from consilium.common.seeds import seed_for
from consilium.common.study.task import CategoryColumn, Column, ImageTask, NumberColumn, TableTask
from consilium.data.federation import Federation

Pixels = npt.NDArray[np.float64]


# --- digits ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scanner:
    """How a site's device shows an image in 0..255: `offset + contrast * pixel + noise`."""

    contrast: float
    offset: float
    noise: float


_SCANNERS = {
    "berlin": _Scanner(contrast=1.0, offset=0.0, noise=0.0),
    "lyon": _Scanner(contrast=0.35, offset=90.0, noise=12.0),
    "porto": _Scanner(contrast=-1.0, offset=255.0, noise=20.0),
}

# Examples of each class "0".."9" at each site: every class is everywhere, none is equally common.
# The sums are 1000, 500 and 200, and no class needs more than the set's 174 examples of its rarest.
_DIGITS_PER_CLASS = {
    "berlin": (140, 140, 140, 140, 140, 80, 70, 60, 50, 40),
    "lyon": (20, 20, 20, 20, 20, 80, 80, 80, 80, 80),
    "porto": (8, 8, 8, 8, 8, 12, 20, 34, 40, 54),
}
_DIGIT_SIZE = 16


def digits_hospitals(folder: Path) -> Federation:
    """Write scikit-learn's real digits as three hospitals that differ in classes and in scanner.

    `berlin` has 1000 clean images, `lyon` 500 of low contrast, `porto` 200 inverted ones; no image is at
    two sites. Files are `folder/<site>/data/<class>/<nnnn>.png`, with the number of the image in the set.
    The same files at every call.
    """
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    orders = {
        label: np.random.default_rng(seed_for("digits", label)).permutation(np.flatnonzero(labels == label))
        for label in range(10)
    }
    taken = dict.fromkeys(orders, 0)
    for site, counts in _DIGITS_PER_CLASS.items():
        for label, count in enumerate(counts):
            chosen = orders[label][taken[label] : taken[label] + count]
            taken[label] += count
            _write_digits(folder / site / "data" / str(label), images, chosen, _SCANNERS[site])
    task = ImageTask(
        classes=tuple(str(label) for label in range(10)), size=_DIGIT_SIZE, channels=1, mean=(0.5,), std=(0.25,)
    )
    folders = {site: folder / site / "data" for site in _DIGITS_PER_CLASS}
    return Federation(task, folders, "images", "handwritten digits, three hospitals with different scanners")


def _write_digits(folder: Path, images: Pixels, chosen: npt.NDArray[np.int64], scanner: _Scanner) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in chosen:
        noise = np.random.default_rng(seed_for("scanner", int(number))).normal(size=(_DIGIT_SIZE, _DIGIT_SIZE))
        ink = (images[number] * 255 / 16).astype(np.float32)
        large = np.asarray(Image.fromarray(ink).resize((_DIGIT_SIZE, _DIGIT_SIZE), Image.Resampling.BILINEAR))
        shown = scanner.offset + scanner.contrast * large + scanner.noise * noise
        Image.fromarray(shown.round().clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.png")


# --- heart disease ---------------------------------------------------------------------------------

_HEART_SITES = ("cleveland", "hungarian", "switzerland", "va")
_HEART_COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg",
    "thalach", "exang", "oldpeak", "slope", "ca", "thal",
)  # fmt: skip
# FLamby drops these three: outside Cleveland they are mostly missing.
_HEART_UNUSED = ("slope", "ca", "thal")
_HEART_CATEGORIES = {"cp": ("1", "2", "3", "4"), "restecg": ("0", "1", "2")}


def heart_disease_hospitals(source: Path, folder: Path) -> Federation:
    """Write the four hospitals of UCI Heart Disease as `folder/<site>/data/patients.csv`.

    `source` holds `processed.<site>.data` as published by UCI. The task is that of FLamby's
    Fed-Heart-Disease: 13 features, disease or not, rows with a missing value dropped, which leaves
    303, 261, 46 and 130 rows.

    Raises:
        DataError: a source file is missing or has other than 14 columns.
        StateError: `folder` cannot be written.
    """
    for site in _HEART_SITES:
        rows = list(_heart_rows(source / f"processed.{site}.data"))
        write_atomically(folder / site / "data" / "patients.csv", _csv([(*_HEART_COLUMNS, "disease"), *rows]))
    columns: dict[str, Column] = {
        name: CategoryColumn(values=_HEART_CATEGORIES[name]) if name in _HEART_CATEGORIES else NumberColumn()
        for name in _HEART_COLUMNS
        if name not in _HEART_UNUSED
    }
    task = TableTask(classes=("no", "yes"), label="disease", columns=columns, missing="drop_row")
    return Federation(
        task, {site: folder / site / "data" for site in _HEART_SITES}, "table", "heart disease, four real hospitals"
    )


def _heart_rows(file: Path) -> Iterator[tuple[str, ...]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read as text"
        raise DataError(f"heart disease: source file '{file}' {reason}") from error
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        cells = ["" if cell.strip() == "?" else cell.strip() for cell in text.split(",")]
        if len(cells) != len(_HEART_COLUMNS) + 1 or not cells[-1].isdigit():
            raise DataError(
                f"heart disease: source file '{file}', line {line}: expected 14 columns, the last a whole number"
            )
        yield (*cells[:-1], "yes" if int(cells[-1]) > 0 else "no")


def _csv(rows: list[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


# --- any folder of images --------------------------------------------------------------------------

# How many images of each class at each site are opened to tell greyscale from colour.
_SAMPLED = 5
_ANY = ImageTask(classes=("a", "b"), pixel_range="picture")
"""A task by which every picture can be read."""


def image_folder_hospitals(source: Path, *, size: int = 32) -> Federation:
    """Use `source/<site>/<class>/<image file>` as it lies; nothing is copied.

    Classes are all names that occur, sorted; a site's name is its folder's, in lower case and with '-'
    for what a site name may not hold. Images are read as greyscale if all of a sample are.

    Raises:
        DataError: no folder, fewer than two sites or classes, or two folders with one site name.
    """
    if not source.is_dir():
        raise DataError(f"image folder '{source}' does not exist or is not a folder")
    folders: dict[str, Path] = {}
    for folder in list_folders(source):
        site = _site_name(folder)
        if site in folders:
            raise DataError(
                f"folders '{folders[site].name}' and '{folder.name}' in '{source}' both give site name '{site}'"
            )
        folders[site] = folder
    classes = sorted({sub.name for folder in folders.values() for sub in list_folders(folder)})
    for what, names in (("sites", list(folders)), ("classes", classes)):
        if len(names) < 2:
            raise DataError(
                f"image folder '{source}' has {len(names)} {what}, expected at least 2 (<site>/<class>/<image>)"
            )
    channels: Literal[1, 3] = 1 if _all_grey(folders) else 3
    task = ImageTask(classes=tuple(classes), size=size, channels=channels, mean=(0.5,), std=(0.25,))
    return Federation(task, folders, "images", f"images of '{source.name}', {len(folders)} sites")


def _site_name(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:63]
    if not name:
        raise DataError(f"folder '{folder}' gives no site name, expected letters a-z or digits in it")
    return name


def _all_grey(folders: Mapping[str, Path]) -> bool:
    grey = [one for folder in folders.values() for sub in list_folders(folder) for one in _are_grey(sub)]
    return bool(grey) and all(grey)


def _are_grey(folder: Path) -> Iterator[bool]:
    for file in islice(list_images(folder), _SAMPLED):
        found = decode(file, _ANY, name=file.name)
        if not isinstance(found, Bad):  # a corrupt file is named when the site reads its data
            yield all(frame.values.shape[2] == 1 for frame in found.frames)
