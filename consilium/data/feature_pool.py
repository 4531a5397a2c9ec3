"""A pool of numbers of any shape: features of another model, measurements, volumes; and the task of such a pool."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from consilium.common.data.groups import Copies, coded, copies_of_pictures, copies_of_rows
from consilium.common.data.npz import Array, read_npz
from consilium.common.errors import DataError
from consilium.common.study.features_task import MAX_SCALED, FeaturesTask
from consilium.common.study.series_task import SeriesTask
from consilium.data.table_pool import Labels, check_names, regression_of

_PICTURES = (3, 4)
"""Dimensions of arrays of pictures: `(N, H, W)`, or with channels."""
_MAX_CODED = 1_000
"""Rows of up to this many features are compared as those of a table, as sites do."""


@dataclass(frozen=True, eq=False)
class FeaturePool:
    """Numbers `x` `(N, ...)` as they lie in the file, class numbers `y` `(N,)`, and what the classes are called.

    Where the label is a number, `numbers` has it `(N,)`, and all examples are one class, called `y`.

    Args:
        test: which examples `(N,)` are an official test set; None where the file says nothing of it.
        patients: whose each example is, as an array of the file says; None where none was asked for.
        series: whether `x` is series over time, `(N, T, C)` or `(N, T)`.
    """

    x: Array
    y: Labels
    classes: tuple[str, ...]
    numbers: npt.NDArray[np.float64] | None = None
    test: npt.NDArray[np.bool_] | None = None
    patients: Array | None = None
    series: bool = False

    @cached_property
    def copies(self) -> Copies:
        """Return which examples have the same numbers and label."""
        labels = self.y if self.numbers is None else self.numbers
        if not self.series and self.x.ndim == 2 and self.x.shape[1] <= _MAX_CODED:
            return copies_of_rows(coded(self.x, labels))
        return copies_of_pictures(np.ascontiguousarray(self.x))

    def whose(self, group: str) -> list[str]:
        """Return whose each example is."""
        assert self.patients is not None
        return [str(value) for value in self.patients.tolist()]

    def only(self, rows: Labels) -> "FeaturePool":
        """Return the pool of some of its examples."""
        numbers, patients = (None if one is None else one[rows] for one in (self.numbers, self.patients))
        return replace(self, x=self.x[rows], y=self.y[rows], numbers=numbers, test=None, patients=patients)

    @property
    def arrays(self) -> dict[str, Array]:
        """The arrays of a file with this pool, but for whose each example is."""
        if self.numbers is not None:
            return {"x": self.x, "y": self.numbers}
        return {"x": self.x, "y": self.y, "classes": np.array(self.classes)}


def are_features(x: Array) -> bool:
    """Say whether an array holds examples that are no pictures: rows of numbers `(N, D)`, or volumes."""
    return x.ndim == 2 or x.ndim > max(_PICTURES)


def feature_pool(
    x: Array,
    y: Array,
    labels: Callable[[], tuple[Labels, tuple[str, ...]]],
    *,
    label_is_number: bool,
    test: npt.NDArray[np.bool_] | None,
    patients: Array | None,
    series: bool = False,
    who: str,
) -> FeaturePool:
    """Return the pool of examples that are no pictures.

    Args:
        labels: returns class numbers and their names, where the label is a class.
        series: whether `x` is series over time.
        who: the file, for sentences.

    Raises:
        DataError: `x` or `y` are not as they should be.
    """
    if x.dtype.kind not in "fiub" or not x.size:
        raise DataError(f"{who}: array 'x' has type {x.dtype} and shape {x.shape}, expected numbers, at least one")
    if series and x.ndim not in (2, 3):
        raise DataError(f"{who}: array 'x' has shape {x.shape}, expected series (N, T, C) or (N, T), as --series says")
    if not label_is_number:
        return FeaturePool(x, *labels(), test=test, patients=patients, series=series)
    if y.dtype.kind not in "fiu" or y.shape != (len(x),) or not bool(np.isfinite(y).all()):
        raise DataError(
            f"{who}: array 'y' has type {y.dtype} and shape {y.shape}, expected {len(x)} finite numbers (--tolerance "
            "says that the label is a number)"
        )
    numbers = y.astype(np.float64)
    if numbers.std() == 0:
        raise DataError(f"{who}: all labels are the same number, so there is nothing to learn")
    return FeaturePool(x, np.zeros(len(x), dtype=np.int64), ("y",), numbers, test, patients, series)


def class_labels(
    path: Path, y: Array, count: int, names: frozenset[str], known: tuple[str, ...] | None, *, who: str
) -> tuple[Labels, tuple[str, ...]]:
    """Return class numbers `(N,)` and what the classes are called: as the file's `classes` says, `known`, or numbers.

    Raises:
        DataError: the labels or the names are not as they should be.
    """
    if y.dtype.kind not in "iu" or y.shape != (count,):
        raise DataError(f"{who}: the labels have type {y.dtype} and shape {y.shape}, expected {count} whole numbers")
    labels, classes = y.astype(np.int64), known
    if "classes" in names:
        held = read_npz(path, ["classes"], who=who)["classes"]
        if held.dtype.kind != "U" or held.ndim != 1:
            raise DataError(f"{who}: array 'classes' has type {held.dtype}, expected names as text")
        classes = tuple(held.tolist())
    if classes is None:
        most = int(labels.max(initial=-1)) + 1
        classes = tuple(map(str, range(most))) if labels.min(initial=0) >= 0 else ()
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"{who}: the labels are not all in 0..{len(classes) - 1}, or there is no example")
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise DataError(f"{who}: expected at least two classes with different names, got {list(classes)}")
    check_names(classes, who=who)
    return labels, classes


def patients_in(path: Path, group: str | None, count: int, *, who: str) -> Array | None:
    """Return the array that says whose each example is; None where none is asked for.

    Raises:
        DataError: it is not one number or text for each example.
    """
    if group is None:
        return None
    patients = read_npz(path, [group], who=who)[group]
    if patients.shape != (count,) or patients.dtype.kind not in "iuU":
        raise DataError(
            f"{who}: array '{group}' has type {patients.dtype} and shape {patients.shape}, expected "
            f"{count} whole numbers or texts, one for each example"
        )
    return patients


def features_task(pool: FeaturePool, *, tolerance: float | None, test: str | None) -> FeaturesTask | SeriesTask:
    """Return the task of a pool: rows of numbers are scaled by all sites' training rows, other shapes stay as they are.

    Channels of series are scaled too, and called x1, x2, ...; short series are filled up to the longest.
    Where the label is a number, it is centred and scaled by mean and standard deviation of the pool's, to three digits
    of the latter.
    """
    shape, number = pool.x.shape[1:], regression_of(pool.numbers, tolerance)
    if pool.series:
        return SeriesTask(
            channels=tuple(f"x{place}" for place in range(1, (*shape, 1)[1] + 1)),
            length=shape[0],
            short="pad" if np.isnan(pool.x).any() else "refuse",
            classes=pool.classes if number is None else (),
            regression=number,
            scale="federation",
            test=test,
        )
    scale: Literal["federation"] | None = "federation" if len(shape) == 1 and shape[0] <= MAX_SCALED else None
    if number is None:
        return FeaturesTask(shape=shape, classes=pool.classes, scale=scale, test=test)
    return FeaturesTask(shape=shape, regression=number, scale=scale, test=test)
