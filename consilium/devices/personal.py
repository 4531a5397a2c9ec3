"""Personal weights of the users that have taken part, in one growing file, whatever their number.

A user that takes part for the first time gets the next place. A place has room for two versions, each with the round
it is of; a round writes over the older one. So a run that is stopped in a round goes on from what was there before it,
and the file is at most twice as large as what it holds.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.common.errors import StateError
from consilium.common.host.files import not_written
from consilium.devices.population import Ints

WEIGHTS, PLACES = "personal.bin", "personal.users"
Floats32 = npt.NDArray[np.float32]


class Personal:
    """The file of personal weights; to be closed.

    Args:
        folder: where it lies.
        numbers: how many numbers one user keeps.
        upto: the last round that counts; later versions are of a round that did not end.
    """

    def __init__(self, folder: Path, numbers: int, *, upto: int) -> None:
        self._path, self._upto = folder / WEIGHTS, upto
        self._version: np.dtype[Any] = np.dtype([("round", "<i8"), ("weights", "<f4", (numbers,))])
        try:
            self._weights = _opened(self._path)
            self._places = _opened(folder / PLACES)
            known = os.pread(self._places, os.fstat(self._places).st_size // 8 * 8, 0)
        except OSError as error:
            raise StateError(f"cannot open '{self._path}': {error.strerror or error}") from error
        self._place_of = {user: place for place, user in enumerate(np.frombuffer(known, dtype="<i8").tolist())}

    @property
    def place_bytes(self) -> int:
        """How many bytes a user's place takes."""
        return 2 * self._version.itemsize

    @property
    def touched(self) -> int:
        """How many users have taken part."""
        return len(self._place_of)

    def close(self) -> None:
        """Close the files."""
        os.close(self._weights)
        os.close(self._places)

    def read(self, users: Ints, initial: Floats32) -> tuple[Floats32, npt.NDArray[np.bool_]]:
        """Return each user's weights `(users, numbers)`, and who has any; others have `initial`.

        Raises:
            StateError: the file cannot be read.
        """
        found, known = np.tile(initial, (len(users), 1)), np.zeros(len(users), dtype=bool)
        for row, user in enumerate(users.tolist()):
            newest = self._newest(user)
            if newest is not None:
                found[row], known[row] = newest["weights"], True
        return found, known

    def known(self, users: Ints) -> npt.NDArray[np.bool_]:
        """Return which users have weights of their own.

        Raises:
            StateError: the file cannot be read.
        """
        return np.array([self._newest(user) is not None for user in users.tolist()], dtype=bool)

    def write(self, users: Ints, weights: Floats32, round_number: int) -> None:
        """Write weights of a round, each over the older of the user's two versions; they count once it is finished.

        Raises:
            StateError: they cannot be written; the round must not count.
        """
        try:
            new = [user for user in users.tolist() if user not in self._place_of]
            _write_all(self._places, np.array(new, dtype="<i8").tobytes(), 8 * len(self._place_of))
            self._place_of |= {user: place for place, user in enumerate(new, start=len(self._place_of))}
            version = np.zeros((), dtype=self._version)
            version["round"] = round_number
            for user, own in zip(users.tolist(), weights, strict=True):
                version["weights"] = own
                _write_all(self._weights, version.tobytes(), self._older(user))
            os.fsync(self._places)
            os.fsync(self._weights)
        except OSError as error:
            raise not_written(self._path, error) from error

    def finish(self, round_number: int) -> None:
        """Let what was written in a round count from now on."""
        self._upto = round_number

    def _versions(self, user: int) -> Any:
        place = self._place_of[user]
        try:
            held = os.pread(self._weights, self.place_bytes, place * self.place_bytes)
        except OSError as error:
            raise StateError(f"cannot read '{self._path}': {error.strerror or error}") from error
        return np.frombuffer(held.ljust(self.place_bytes, b"\0"), dtype=self._version)

    def _newest(self, user: int) -> Any:
        if user not in self._place_of:
            return None
        versions = self._versions(user)
        rounds = np.where(versions["round"] <= self._upto, versions["round"], 0)
        return versions[rounds.argmax()] if rounds.any() else None

    def _older(self, user: int) -> int:
        """Return where the version lies that may be written over."""
        rounds = self._versions(user)["round"]
        usable = np.where(rounds <= self._upto, rounds, 0)
        place = self._place_of[user] * self.place_bytes
        return place + int(usable.argmin()) * self._version.itemsize


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _write_all(descriptor: int, content: bytes, at: int) -> None:
    while content:
        done = os.pwrite(descriptor, content, at)
        content, at = content[done:], at + done
