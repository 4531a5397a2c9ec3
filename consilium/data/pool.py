"""A pool: all examples of a study in one place, before they are divided among sites."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from consilium.common.data.groups import Copies, copies_of_pictures
from consilium.common.data.npz import Array, array_names, channels_last, read_npz
from consilium.common.data.tables import SUFFIXES, TABLES_IN_WORDS, TEXT_SUFFIXES, Form
from consilium.common.errors import ConfigError, DataError
from consilium.data.feature_pool import FeaturePool, are_features, class_labels, feature_pool, patients_in
from consilium.data.folder_pool import FolderPool
from consilium.data.options import SplitOptions
from consilium.data.progress import Progress, silent
from consilium.data.table_pool import Labels, TablePool, read_table
from consilium.data.text_pool import PlainPool
from consilium.data.time_pool import read_time_table

_PARTS = ("train", "val", "test")
PART, _IS_TEST = "part", "is_test"
"""Arrays that say which images are an official test set."""


@dataclass(frozen=True, eq=False)
class ImagePool:
    """Images `x` as they lie in the file, class numbers `y` of shape `(N,)`, and what the classes are called.

    Args:
        test: which images `(N,)` are an official test set; None where the file says nothing of it.
        patients: whose each image is, as an array of the file says; None where none was asked for.
    """

    x: Array
    y: Labels
    classes: tuple[str, ...]
    test: npt.NDArray[np.bool_] | None = None
    patients: Array | None = None

    @cached_property
    def images(self) -> Array:
        """Return a view of `x` of shape `(N, H, W, C)`."""
        return channels_last(self.x, where="pool")

    @property
    def copies(self) -> Copies:
        """Return which images have the same pixels."""
        return copies_of_pictures(self.x)

    def whose(self, group: str) -> list[str]:
        """Return whose each image is."""
        assert self.patients is not None
        return [str(value) for value in self.patients.tolist()]

    def only(self, rows: Labels) -> "ImagePool":
        """Return the pool of some of its images."""
        patients = None if self.patients is None else self.patients[rows]
        return ImagePool(self.x[rows], self.y[rows], self.classes, patients=patients)


ArrayPool: TypeAlias = ImagePool | FeaturePool
"""What an `.npz` file can be."""
Pool: TypeAlias = ArrayPool | FolderPool | TablePool | PlainPool
"""What can be divided."""


def read_pool(path: Path, options: SplitOptions, *, progress: Progress = silent) -> Pool:
    """Read a pool: `.npz` with images or with other numbers, a table, a folder of picture files, or texts.

    An `.npz` file holds `x`, `y` and, if it likes, `classes` (names; else the numbers) and which images are an official
    test set (`part`: words such as train and test; or `is_test`: booleans). Or it holds MedMNIST's arrays
    `train_images`, `train_labels` and likewise `val_`, `test_`, or those of Keras `x_train`, `y_train`, `x_test`,
    `y_test`, of which those that are there are put one after the other. Rows of a table without a label are left out
    and counted.

    Args:
        options: say what of it is learned, and how it is read.
        progress: is told how many pictures are read.

    Raises:
        ConfigError: a table without a label, or images with one.
        DataError: the file cannot be used.
    """
    if not path.exists() or not (path.is_file() or path.is_dir()):
        raise DataError(f"pool '{path}' {'is not a file' if path.exists() else 'does not exist'}")
    if options.next is not None:
        from consilium.data.text_folder import read_plain  # and with it torch

        return read_plain(path, options.next, group=options.group)
    if path.is_dir():
        return _read_files(path, options, progress)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        if options.label is not None:
            raise ConfigError("--label is for tables; the labels of an .npz file are its array 'y'")
        number = options.tolerance is not None
        return read_arrays(path, group=options.group, label_is_number=number, series=options.series)
    if suffix not in (*SUFFIXES, *TEXT_SUFFIXES):
        raise DataError(f"pool '{path}' is neither an .npz file nor a {TABLES_IN_WORDS}, nor a folder of pictures")
    return _read_table(path, options)


def _read_files(path: Path, options: SplitOptions, progress: Progress) -> FolderPool | TablePool:
    """Read a folder of pictures, or of texts where there are no pictures."""
    if options.label is not None:
        raise ConfigError("--label is for tables; the class of a picture file is the folder that it lies in")
    from consilium.data.picture_folder import read_folder  # and with it torch
    from consilium.data.text_folder import holds_texts, read_text_folder

    if not holds_texts(path):
        return read_folder(path, group=options.group, progress=progress)
    if options.form != Form():
        raise ConfigError("--delimiter and the like are for tables; texts in folders have no rows")
    return read_text_folder(path, group=options.group)


def _read_table(path: Path, options: SplitOptions) -> TablePool:
    """Read a table's file: rows of series, with several labels, with a time and an event, or with one label."""
    number, form = options.tolerance is not None, options.form
    if options.series:
        from consilium.data.series_table import columns_of, read_series_table  # and with it torch

        others = [options.group, options.column]
        columns = columns_of(options.series_column, options.time_column, options.label, others)
        return read_series_table(path, columns, label_is_number=number, form=form)
    if options.label_names:
        from consilium.data.label_pool import read_label_table  # and with it torch

        return read_label_table(path, options.label_names, form)
    if options.label is None:
        raise ConfigError("a table needs --label, the column with the class or number to learn")
    if options.event is not None:
        return read_time_table(path, options.label, options.event, form)
    return read_table(path, options.label, label_is_number=number, form=form, text=options.text)


def read_arrays(
    path: Path, *, group: str | None = None, label_is_number: bool = False, series: bool = False
) -> ArrayPool:
    """Read the pool in an `.npz` file: images, or where `x` is `(N, D)` or has five dimensions or more, numbers.

    Args:
        group: the array that says whose each example is.
        series: `x` is series over time, `(N, T, C)` or `(N, T)`.

    Raises:
        DataError: an array is missing or not as it should be.
    """
    who = f"pool '{path}'"
    names = array_names(path, who=who)
    x, y, test = _pooled(path, names, who=who)
    if not series and not are_features(x):
        return read_images(path, group=group)
    return feature_pool(
        x,
        y,
        lambda: class_labels(path, y, len(x), names, None, who=who),
        label_is_number=label_is_number,
        test=test,
        patients=patients_in(path, group, len(x), who=who),
        series=series,
        who=who,
    )


def read_images(path: Path, *, classes: tuple[str, ...] | None = None, group: str | None = None) -> ImagePool:
    """Read the pool of images in an `.npz` file.

    Args:
        classes: what the classes are called, if the file does not say.
        group: the array that says whose each image is.

    Raises:
        DataError: an array is missing or not as it should be.
    """
    who = f"pool '{path}'"
    names = array_names(path, who=who)
    x, y, test = _pooled(path, names, who=who)
    channels_last(x, where=who)
    labels, called = class_labels(path, y, len(x), names, classes, who=who)
    return ImagePool(x, labels, called, test, patients_in(path, group, len(x), who=who))


def _pooled(path: Path, names: frozenset[str], *, who: str) -> tuple[Array, Array, npt.NDArray[np.bool_] | None]:
    """Return images, labels, and which of them are an official test set."""
    layouts = [(part, f"{part}_images", f"{part}_labels") for part in _PARTS]
    layouts += [(part, f"x_{part}", f"y_{part}") for part in _PARTS]
    parts = [layout for layout in layouts if layout[1] in names]
    if "x" in names or not parts:
        marks = [name for name in (PART, _IS_TEST) if name in names][:1]
        held = read_npz(path, ["x", "y", *marks], who=who)
        return held["x"], held["y"], _official(held[marks[0]], marks[0], len(held["x"]), who=who) if marks else None
    held = read_npz(path, [name for _, *both in parts for name in both], who=who)
    images, labels = [held[name] for _, name, _ in parts], [held[name] for *_, name in parts]
    if len({(image.shape[1:], image.dtype) for image in images}) > 1:
        raise DataError(f"{who}: the images of {', '.join(part for part, *_ in parts)} differ in shape or type")
    if any(label.ndim not in (1, 2) or label.shape[1:] not in ((), (1,)) for label in labels):
        raise DataError(f"{who}: expected one label for each image")
    tests = [np.full(len(image), part == "test") for image, (part, *_) in zip(images, parts, strict=True)]
    official = np.concatenate(tests) if any(part == "test" for part, *_ in parts) else None
    return np.concatenate(images), np.concatenate([label.reshape(-1) for label in labels]), official


def _official(array: Array, name: str, count: int, *, who: str) -> npt.NDArray[np.bool_]:
    if array.shape != (count,) or array.dtype.kind not in "bU":
        raise DataError(
            f"{who}: array '{name}' has type {array.dtype} and shape {array.shape}, expected {count} words or booleans"
        )
    return array if array.dtype.kind == "b" else np.char.lower(array) == "test"


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
