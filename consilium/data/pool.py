"""A pool: all examples of a study in one place, before they are divided among sites."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consilium.common.data.groups import Copies, Values, codes_of, copies_of_pictures, copies_of_rows
from consilium.common.data.npz import Array, array_names, channels_last, read_npz
from consilium.common.data.tables import MISSING, csv_records, parquet_records
from consilium.common.errors import ConfigError, DataError, clean, is_clean
from consilium.common.study.names import MAX_CLASS_NAME

Labels = npt.NDArray[np.int64]

_PARTS = ("train", "val", "test")
PART, _IS_TEST = "part", "is_test"
"""Arrays that say which images are an official test set."""
_LARGEST = float(np.finfo(np.float32).max)


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


@dataclass(frozen=True, eq=False)
class TablePool:
    """Rows of text under a header; `y` of shape `(N,)` numbers the classes in the column `label`.

    Where the label is a number, `numbers` has it `(N,)`, and all rows are one class, called as the label.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    label: str
    y: Labels
    classes: tuple[str, ...]
    num_unlabelled: int
    numbers: npt.NDArray[np.float64] | None = None

    def column(self, name: str) -> list[str]:
        """Return the cells of a column, '' where one is missing.

        Raises:
            ConfigError: there is no such column.
        """
        if name not in self.header:
            raise ConfigError(f"the table has no column '{name}', its columns are {list(self.header)}")
        place = self.header.index(name)
        return ["" if is_missing(row[place]) else row[place] for row in self.rows]

    @property
    def copies(self) -> Copies:
        """Return which rows are exact copies."""
        values = Values()
        values.start(self.header)
        return copies_of_rows(codes_of([values.of(row) for row in self.rows]))

    def whose(self, group: str) -> list[str]:
        """Return whose each row is.

        Raises:
            ConfigError: there is no such column.
            DataError: a row has no value in it.
        """
        patients = self.column(group)
        if gaps := patients.count(""):
            raise DataError(f"{gaps} rows have no value in column '{group}', so it is not known whose they are")
        return patients


def is_missing(cell: str) -> bool:
    """Return whether a cell of a table counts as empty."""
    return cell.casefold() in MISSING


def read_pool(
    path: Path, *, label: str | None = None, label_is_number: bool = False, group: str | None = None
) -> ImagePool | TablePool:
    """Read a pool: `.npz` with images, or a `.csv` or `.parquet` table.

    An `.npz` file holds `x`, `y` and, if it likes, `classes` (names; else the numbers) and which images are an official
    test set (`part`: words such as train and test; or `is_test`: booleans). Or it holds MedMNIST's arrays
    `train_images`, `train_labels` and likewise `val_`, `test_`, or those of Keras `x_train`, `y_train`, `x_test`,
    `y_test`, of which those that are there are put one after the other. Rows of a table without a label are left out
    and counted.

    Args:
        group: the column or array that says whose each example is.

    Raises:
        ConfigError: a table without `label`, or images with one.
        DataError: the file cannot be used.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"pool '{path}' {'is not a file' if path.exists() else 'does not exist'}")
    if suffix == ".npz":
        if label is not None:
            raise ConfigError("--label is for tables; the labels of an .npz file are its array 'y'")
        return read_images(path, group=group)
    if suffix not in (".csv", ".parquet"):
        raise DataError(f"pool '{path}' is neither an .npz file nor a .csv or .parquet table")
    if label is None:
        raise ConfigError("a table needs --label, the column with the class or number to learn")
    return read_table(path, label, label_is_number=label_is_number)


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
    if y.dtype.kind not in "iu" or y.shape != (len(x),):
        raise DataError(f"{who}: the labels have type {y.dtype} and shape {y.shape}, expected {len(x)} whole numbers")
    y = y.astype(np.int64)
    if "classes" in names:
        held = read_npz(path, ["classes"], who=who)["classes"]
        if held.dtype.kind != "U" or held.ndim != 1:
            raise DataError(f"{who}: array 'classes' has type {held.dtype}, expected names as text")
        classes = tuple(held.tolist())
    if classes is None:
        classes = tuple(str(number) for number in range(int(y.max(initial=-1)) + 1)) if y.min(initial=0) >= 0 else ()
    if len(y) == 0 or y.min() < 0 or y.max() >= len(classes):
        raise DataError(f"{who}: the labels are not all in 0..{len(classes) - 1}, or there is no example")
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise DataError(f"{who}: expected at least two classes with different names, got {list(classes)}")
    _check_names(classes, who=who)
    patients = read_npz(path, [group], who=who)[group] if group is not None else None
    if patients is not None and (patients.shape != (len(x),) or patients.dtype.kind not in "iuU"):
        raise DataError(
            f"{who}: array '{group}' has type {patients.dtype} and shape {patients.shape}, expected "
            f"{len(x)} whole numbers or texts, one for each image"
        )
    return ImagePool(x, y, classes, test, patients)


def _check_names(classes: Sequence[str], *, who: str) -> None:
    """Refuse names that no study can have, for they are shown in everybody's tables and logs."""
    for name in classes:
        if not is_clean(name) or len(name) > MAX_CLASS_NAME:
            what = "a control character in it" if not is_clean(name) else f"{len(name)} characters"
            most = f"none, and at most {MAX_CLASS_NAME} characters"
            raise DataError(f"{who}: class '{clean(name, 80)}' has {what}, expected {most}")


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


def read_table(path: Path, label: str, *, label_is_number: bool = False) -> TablePool:
    """Read the pool of rows in a `.csv` or `.parquet` file.

    Raises:
        DataError: the file cannot be read, has no such column, or the column holds no classes, or no numbers.
    """
    who = f"pool '{path}'"
    parquet = path.suffix.lower() == ".parquet"
    records = parquet_records(path, who=who) if parquet else csv_records(path, who=who)
    first = next(records, None)
    header = tuple(name.strip() for name in first[1]) if first is not None else ()
    if len(set(header)) < len(header) or label not in header:
        what = "two columns of one name" if label in header else f"no column '{label}'"
        raise DataError(f"{who} has {what}, its columns are {list(header)}")
    place = header.index(label)
    rows: list[tuple[str, ...]] = []
    num_unlabelled = 0
    for where, fields in records:
        if len(fields) != len(header):
            raise DataError(f"{who}, {where}: expected {len(header)} fields as in the header, got {len(fields)}")
        row = tuple(field.strip() for field in fields)
        if is_missing(row[place]):
            num_unlabelled += 1
        else:
            rows.append(row)
    if label_is_number:
        if any(not is_number(row[place]) for row in rows):
            raise DataError(f"{who}: column '{label}' has text in it or a number that is too large, expected numbers")
        numbers = np.array([float(row[place]) for row in rows], dtype=np.float64)
        if len(np.unique(numbers)) < 2:
            raise DataError(f"{who}: column '{label}' is the same in every row, expected different numbers")
        return TablePool(header, tuple(rows), label, np.zeros(len(rows), np.int64), (label,), num_unlabelled, numbers)
    classes = in_order({row[place] for row in rows})
    if len(classes) < 2:
        values = "a single value" if classes else "no value"
        raise DataError(f"{who}: column '{label}' has {values}, expected at least two classes")
    if len(classes) > max(20, len(rows) // 10):
        raise DataError(
            f"{who}: column '{label}' has {len(classes)} different values in {len(rows)} rows, expected classes; "
            "if it is a number to predict, say with --tolerance how far an answer may be from it"
        )
    _check_names(classes, who=who)
    codes = {name: number for number, name in enumerate(classes)}
    y = np.array([codes[row[place]] for row in rows], dtype=np.int64)
    return TablePool(header, tuple(rows), label, y, classes, num_unlabelled)


def is_number(text: str) -> bool:
    """Return whether a site reads a cell as a number: finite in float32, and not like an identifier."""
    try:
        return "_" not in text and abs(float(text)) <= _LARGEST
    except ValueError:
        return False


def in_order(texts: set[str]) -> tuple[str, ...]:
    """Return texts in the order of the numbers they are, or of the alphabet."""
    try:
        return tuple(sorted(texts, key=lambda text: (float(text), text)))
    except ValueError:
        return tuple(sorted(texts))


def site_slug(text: str) -> str:
    """Return a site name made of any text: lower case, '-' for what a name may not hold, '' if nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63]


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
