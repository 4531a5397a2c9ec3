"""Writes users' rows into a folder of arrays, some users at a time, with a study to begin with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from consilium.common.errors import ConfigError
from consilium.common.host.disk import check_room
from consilium.common.host.files import not_written, write_atomically
from consilium.devices.population import OFFSETS, Array, X, Y

USERS, STUDY = "users", "study.toml"
"""What a folder of made users has: the arrays, and a study of them."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of some users, one user after the other.

    Args:
        counts: how many rows each user has.
        groups: each user's group; empty where they have none.
    """

    x: Array
    y: Array
    counts: Sequence[int]
    groups: Sequence[str] = ()


def write_users(
    folder: Path, pieces: Iterable[Rows], *, row: np.dtype[Any], shape: tuple[int, ...], total: int, group: str | None
) -> int:
    """Write users into `folder` and return how many there are.

    Args:
        row: the type of a row's numbers, each row of `shape`.
        total: how many rows there are in all.
        group: what the users' groups are called; None: they have none.

    Raises:
        StateError: there is no room for them.
    """
    counts, groups = list[int](), list[str]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_room(folder, total * (int(np.prod(shape)) * row.itemsize + 8), what="the users' arrays")
        x = np.lib.format.open_memmap(folder / X, "w+", row, (total, *shape))
        y = np.lib.format.open_memmap(folder / Y, "w+", np.dtype(np.int64), (total,))
        done = 0
        for piece in pieces:
            x[done : done + len(piece.y)], y[done : done + len(piece.y)] = piece.x, piece.y
            done += len(piece.y)
            counts += piece.counts
            groups += piece.groups
        x.flush()
        y.flush()
        np.save(folder / OFFSETS, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        if group is not None:
            np.save(folder / f"{group}.npy", np.array(groups))
    except OSError as error:
        raise not_written(folder, error) from error
    return len(counts)


def write_study(path: Path, name: str, task: Mapping[str, Any], learning_rate: float, **settings: Any) -> None:
    """Write a study of made users to begin with."""
    values = {
        "name": name,
        "rounds": 20,
        "evaluate_every": 5,
        "task": task,
        "training": {"epochs": 1, "batch_size": 10, "learning_rate": learning_rate, "momentum": 0.0},
        "split": {"test": 0.2, "validation": 0.0},
        **settings,
    }
    write_atomically(path, tomli_w.dumps(values).encode())


def cohort_for(users: int) -> int:
    """Return how many users a round of a study to begin with takes: a hundredth, and from 50 to 1,000 if there are."""
    return min(users, max(50, min(1000, users // 100)))


def check_sizes(users: int, rows: int) -> None:
    """Check how much is made.

    Raises:
        ConfigError: nobody, or rows of which none could be measured on.
    """
    if users < 1:
        raise ConfigError(f"--users: must be at least 1, got {users}")
    if rows < 5:
        raise ConfigError(f"--rows: must be at least 5, of which one is measured on, got {rows}")
