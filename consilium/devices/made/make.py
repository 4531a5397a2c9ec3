"""`consilium data users`: users made up, or taken from a file, with a study to begin with."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilium.common.data.npz import array_names, read_npz
from consilium.common.errors import DataError, clean
from consilium.devices.convert import USER
from consilium.devices.made import characters, handwriting, homes
from consilium.devices.made.writing import STUDY, USERS, Rows, check_sizes, cohort_for, write_study, write_users

_MOST_CLASSES = 1000
_TOGETHER = 512


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of users that are made up, or read.

    Args:
        make: gives so many users with so many rows each, from a seed.
        row: the type of a row's numbers, each row of `shape`.
        group: what the users' groups are called.
        learning_rate: of the study to begin with.
    """

    make: Callable[[int, int, int], Iterator[Rows]]
    row: type[np.generic]
    shape: tuple[int, ...]
    task: Mapping[str, Any]
    model: Mapping[str, Any]
    group: str
    learning_rate: float = 0.2


_WINDOW = characters.BEFORE * len(characters.LETTERS)
KINDS = {
    "handwriting": Kind(
        handwriting.handwriting, np.uint8, (28, 28), handwriting.TASK, handwriting.MODEL, handwriting.GROUP
    ),
    "characters": Kind(
        characters.speakers,
        np.uint8,
        (_WINDOW,),
        characters.TASK,
        characters.MODEL,
        characters.GROUP,
        learning_rate=2.0,
    ),
    "homes": Kind(homes.homes, np.float32, (len(homes.COLUMNS),), homes.TASK, homes.MODEL, homes.GROUP),
}


def make_users(what: str, out: Path, *, users: int, rows: int, seed: int) -> dict[str, Any]:
    """Write users and a study of them into a folder; return what there is to say.

    Args:
        what: one of `KINDS`; or an `.npz` file with arrays `x`, `y` and `user`, in any order; or a play as text.
        users, rows: how many are made up, of a play the most rows of a speaker.

    Raises:
        DataError: a file cannot be used.
        ConfigError: so many cannot be made.
        StateError: there is no room.
    """
    check_sizes(users, rows)
    if (kind := KINDS.get(what)) is not None:
        return _written(out, what, kind, kind.make(users, rows, seed), total=users * rows)
    file = Path(what)
    if file.suffix.lower() == ".txt":
        pieces = characters.speakers_of(file, rows)
        return _written(out, "speakers", KINDS["characters"], pieces, total=sum(len(piece.y) for piece in pieces))
    if file.suffix.lower() != ".npz":
        raise DataError(f"'{clean(what)}': expected one of {', '.join(KINDS)}, or a file that ends in .npz or .txt")
    return _of_arrays(file, out)


def _written(out: Path, name: str, kind: Kind, pieces: Iterable[Rows], *, total: int) -> dict[str, Any]:
    row = np.dtype(kind.row)
    count = write_users(out / USERS, pieces, row=row, shape=kind.shape, total=total, group=kind.group)
    devices = {"cohort": cohort_for(count), "groups": kind.group, "private": count >= 50}
    write_study(out / STUDY, name, kind.task, kind.learning_rate, model=kind.model, devices=devices)
    return {"users": count, "rows": total, "study": out / STUDY, "data": out / USERS}


def _of_arrays(file: Path, out: Path) -> dict[str, Any]:
    """Sort the rows of a file by their users."""
    who = f"file '{clean(file.name)}'"
    if lacking := [name for name in ("x", "y", USER) if name not in array_names(file, who=who)]:
        raise DataError(f"{who} has no array '{lacking[0]}', expected x, y and {USER}")
    held = read_npz(file, ("x", "y", USER), who=who)
    x, y, user = held["x"], held["y"], held[USER]
    if user.ndim != 1 or not len(x) == len(y) == len(user) > 0 or y.ndim != 1 or x.ndim < 2:
        shapes = f"{x.shape}, {y.shape} and {user.shape}"
        raise DataError(f"{who}: x, y and {USER} have shapes {shapes}, expected as many rows")
    if y.dtype.kind not in "iu" or int(y.min()) < 0 or int(y.max()) >= _MOST_CLASSES:
        raise DataError(f"{who}: y has type {y.dtype}, expected classes as whole numbers from 0, below {_MOST_CLASSES}")
    order = np.argsort(user, kind="stable")
    begins = np.concatenate([[0], np.flatnonzero(user[order][1:] != user[order][:-1]) + 1, [len(order)]])
    pictures = x.dtype == np.uint8 and x.ndim == 3 and x.shape[1] == x.shape[2]
    x = x if pictures else x.astype(np.float32)

    def pieces() -> Iterator[Rows]:
        for start in range(0, len(begins) - 1, _TOGETHER):
            ends = begins[start : start + _TOGETHER + 1]
            rows = order[ends[0] : ends[-1]]
            yield Rows(x[rows], y[rows].astype(np.int64), np.diff(ends).tolist())

    shape = x.shape[1:]
    count = write_users(out / USERS, pieces(), row=x.dtype, shape=shape, total=len(order), group=None)
    classes = [str(number) for number in range(max(2, int(y.max()) + 1))]
    task: dict[str, Any] = {"kind": "features", "shape": list(shape), "classes": classes}
    if pictures:
        task = {"kind": "images", "size": shape[0], "channels": 1, "classes": classes}
    devices = {"cohort": cohort_for(count), "private": count >= 50}
    write_study(out / STUDY, "users", task, 0.1, model={"name": "mlp"}, devices=devices)
    return {"users": count, "rows": len(order), "study": out / STUDY, "data": out / USERS}
