"""The users of a simulation: one file of rows that is mapped into memory, and where each user's rows begin in it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consilium.common.errors import DataError, clean
from consilium.common.model import Preprocessing
from consilium.common.study.scale import Scale
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import PictureTask, Task

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

X, Y, OFFSETS = "x.npy", "y.npy", "offsets.npy"
"""Files of a folder of users: inputs and labels of all rows, a user's rows together, and where each user's begin."""
_BLOCK_BYTES = 2**26
"""So much of a file is looked at at a time."""
_MOST_GROUPS = 1000


@dataclass(frozen=True, eq=False)
class Population:
    """Users as places in a file. Nothing of a user is held in memory.

    Args:
        folder: with `x.npy`, `y.npy` and `offsets.npy`.
        users: how many take part, the first of the file.
        task: what the rows are.
        groups: the file with each user's group, `(users,)`; None where users have none.
        scale: by which number columns are scaled; None where they are not.
    """

    folder: Path
    users: int
    task: Task
    groups: Path | None = None
    scale: Scale | None = None

    @cached_property
    def _x(self) -> Array:
        return mapped(self.folder / X)

    @cached_property
    def _y(self) -> Array:
        return mapped(self.folder / Y)

    @cached_property
    def _offsets(self) -> Array:
        return mapped(self.folder / OFFSETS)

    def let_go(self) -> None:
        """Unmap the files until they are asked for again: what was read, and megabytes around it, counts as memory."""
        for name in ("_x", "_y", "_offsets"):
            self.__dict__.pop(name, None)

    def spans(self, users: Ints) -> tuple[Ints, Ints]:
        """Return where each user's rows begin, and how many there are."""
        offsets = self._offsets
        begin = offsets[users].astype(np.int64)
        return begin, offsets[users + 1].astype(np.int64) - begin

    def digest(self) -> str:
        """Return the sha256 of all files of rows, and of how they are scaled.

        Raises:
            DataError: a file cannot be read.
        """
        whole = hashlib.sha256(b"" if self.scale is None else self.scale.model_dump_json().encode())
        for name in (OFFSETS, X, Y):
            try:
                with (self.folder / name).open("rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise DataError(f"file '{clean(name)}' cannot be read: {error.strerror or error}") from error
        return whole.hexdigest()

    @property
    def rows(self) -> int:
        """How many rows all users have."""
        return int(self._offsets[self.users])

    def labels(self, rows: Ints) -> Tensor:
        """Return the labels of some rows, in the shape of `rows`: int64 classes, or float32 numbers as answered."""
        found = torch.from_numpy(np.asarray(self._y[rows]))
        return found.long() if self.task.number is None else self.task.number.to_model(found.double()).float()

    def inputs(self, rows: Ints) -> Tensor:
        """Return the inputs of some rows `(*rows, *shape)`, float32, scaled."""
        x = torch.from_numpy(np.asarray(self._x[rows.reshape(-1)])).float()
        if isinstance(self.task, PictureTask):
            x = _pictures(x, self.task)
        elif self.scale is not None and self.task.scaled_columns:
            mean, std = self._scaling
            x = (x - mean) / std
        return x.view(*rows.shape, *self.task.input_shape)

    @cached_property
    def _scaling(self) -> tuple[Tensor, Tensor]:
        """The mean and the deviation of every feature."""
        of = Preprocessing.of_scale(self.task, self.scale)
        return torch.tensor(of.mean), torch.tensor(of.std)

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """The groups' names, in order.

        Raises:
            DataError: there are more than a table can tell of.
        """
        if self.groups is None:
            return ()
        found = np.unique(mapped(self.groups)[: self.users])
        if len(found) > _MOST_GROUPS:
            raise DataError(
                f"devices.groups: {len(found)} different groups in '{self.groups.name}', at most {_MOST_GROUPS}"
            )
        return tuple(clean(str(name), 100) for name in found.tolist())

    def groups_of(self, users: Ints) -> Ints:
        """Return the number of each user's group."""
        if self.groups is None:
            return np.zeros(len(users), dtype=np.int64)
        return np.searchsorted(np.unique(mapped(self.groups)[: self.users]), mapped(self.groups)[users])


def mapped(path: Path) -> Array:
    """Return an array that is read where it is asked for; what was read before does not stay with this process.

    Raises:
        DataError: there is no such file, or it holds something else than numbers or texts.
    """
    where = f"file '{clean(str(path))}'"
    try:
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        if "Python objects" in str(error) or "allow_pickle" in str(error):
            raise DataError(f"{where} holds Python objects, which are never unpickled; expected numbers") from error
        raise DataError(f"{where} is damaged or no .npy array") from error
    return found


def checked(folder: Path, study: StudyConfig, *, scale: Scale | None = None) -> Population:
    """Return the users in a folder, checked to the last row.

    Args:
        scale: of a table's number columns, where the study does not say it.

    Raises:
        DataError: a file is missing, or what it holds is not what the study says.
        ConfigError: there are fewer users than the study wants.
    """
    task, devices = study.task, study.devices
    assert devices is not None
    offsets, x, y = (mapped(folder / name) for name in (OFFSETS, X, Y))
    where = f"data '{clean(str(folder))}'"
    _check_offsets(offsets, len(x), where=where)
    users = len(offsets) - 1
    if devices.users is not None and devices.users > users:
        raise DataError(f"{where}: has {users} users, and the study wants {devices.users}: set devices.users (--users)")
    users = devices.users or users
    if devices.cohort > users:
        raise DataError(f"{where}: has {users} users, and devices.cohort takes {devices.cohort} in a round: set less")
    if len(y) != len(x):
        raise DataError(f"{where}: {len(x)} rows in {X} and {len(y)} labels in {Y}, expected as many")
    _check_inputs(folder, x, task, where=where)
    _check_labels(folder, y, task, where=where)
    fixed = None if isinstance(task, PictureTask) else task.fixed_scale or scale
    return Population(folder, users, task, _groups(folder, devices.groups, len(offsets) - 1, where=where), fixed)


def _check_offsets(offsets: Array, rows: int, *, where: str) -> None:
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 2:
        raise DataError(
            f"{where}: {OFFSETS} has type {offsets.dtype} and shape {offsets.shape}, expected whole numbers, one more "
            "than there are users, and a user at least"
        )
    if int(offsets[0]) != 0:
        raise DataError(f"{where}: the first of {OFFSETS} is {int(offsets[0])}, expected 0")
    for begin in range(0, len(offsets) - 1, _BLOCK_BYTES // 8):
        part = offsets[begin : begin + _BLOCK_BYTES // 8 + 1].astype(np.int64)
        if (wrong := np.flatnonzero(np.diff(part) <= 0)).size:
            user = begin + int(wrong[0])
            seen = "no rows" if part[wrong[0]] == part[wrong[0] + 1] else "an offset below the one before"
            raise DataError(f"{where}: user {user} has {seen} in {OFFSETS}, which must rise from user to user")
    if int(offsets[-1]) > rows:
        raise DataError(f"{where}: {OFFSETS} ends at row {int(offsets[-1])}, but {X} has {rows} rows")


def _check_inputs(folder: Path, x: Array, task: Task, *, where: str) -> None:
    expected = task.input_shape
    if isinstance(task, PictureTask):
        size, channels = task.size, task.channels
        shapes = {(size, size, channels), *([(size, size)] if channels == 1 else [])}
        if x.dtype != np.uint8 or x.shape[1:] not in shapes:
            raise DataError(
                f"{where}: {X} has type {x.dtype} and pictures of shape {x.shape[1:]}, expected uint8 and "
                f"{' or '.join(map(str, sorted(shapes, key=len)))} (task.size, task.channels)"
            )
        return
    if x.dtype.kind not in "iufb" or x.shape[1:] != expected:
        raise DataError(
            f"{where}: {X} has type {x.dtype} and rows of shape {x.shape[1:]}, expected numbers of shape {expected}"
        )
    if x.dtype.kind == "f":
        for begin, part in _blocks(folder / X):
            bad = ~np.isfinite(part.reshape(len(part), -1)).all(axis=1)
            if bad.any():
                raise DataError(f"{where}: row {begin + int(bad.argmax())} of {X} has a number that is not finite")


def _check_labels(folder: Path, y: Array, task: Task, *, where: str) -> None:
    numbers = task.number is not None
    if y.ndim != 1 or y.dtype.kind not in ("iuf" if numbers else "iu"):
        what = "numbers" if numbers else "whole numbers, the classes from 0"
        raise DataError(f"{where}: {Y} has type {y.dtype} and shape {y.shape}, expected {what}, one for each row")
    for begin, part in _blocks(folder / Y):
        bad = ~np.isfinite(part) if numbers else (part < 0) | (part >= len(task.classes))
        if bad.any():
            row = begin + int(bad.argmax())
            allowed = f"expected 0 to {len(task.classes) - 1}"
            seen = "is not finite" if numbers else f"is {int(part[bad.argmax()])}, {allowed}"
            raise DataError(f"{where}: the label of row {row} {seen}")


def _groups(folder: Path, name: str | None, users: int, *, where: str) -> Path | None:
    if name is None:
        return None
    path = folder / f"{Path(name).name}.npy"
    found = mapped(path)
    if found.shape != (users,) or found.dtype.kind not in "iuU":
        raise DataError(
            f"{where}: '{clean(path.name)}' (devices.groups) has type {found.dtype} and shape {found.shape}, expected "
            f"{users} whole numbers or texts, one for each user"
        )
    return path


def _blocks(path: Path) -> Iterator[tuple[int, Array]]:
    """Yield pieces of an array with the number of the first row of each; mapped anew, so that none stays."""
    array = mapped(path)
    size = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    for begin in range(0, len(array), size):
        yield begin, np.array(mapped(path)[begin : begin + size])


def _pictures(x: Tensor, task: PictureTask) -> Tensor:
    """Return pictures `(N, C, H, W)` of levels 0 to 255, as every reader of pictures scales them."""
    channels = task.channels
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(-1, 1, 1).expand(channels, 1, 1) for values in (task.mean, task.std))
    return (x / 255 * task.pixel_max - mean) / std
