"""The deltas of one round on disk, so that the server's memory does not grow with the number of sites.

A stored delta is a mapping that reads an array from the file each time it is asked for, or a block of it.
Sites answer in any order and strategies read in the order of names, as often as they need to.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from consilium.common.codecs import Form
from consilium.common.codecs.container import offsets
from consilium.common.errors import StateError
from consilium.common.weights.arrays import Array, Spec, Weights, bytes_view


@dataclass(frozen=True)
class _Place:
    """Where an array lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class StoredArrays(Mapping[str, Array]):
    """One site's arrays in a spool; every access to an array reads it from the file, names need no reading.

    Raises:
        StateError: on access, when the file cannot be read.
        ValueError: on access, when the spool is closed.
    """

    def __init__(self, file: IO[bytes], places: Mapping[str, _Place]) -> None:
        self._file, self._places = file, places

    def __getitem__(self, name: str) -> Array:
        place = self._places[name]
        return self._read(place.offset, np.empty(place.shape, place.dtype))

    def __contains__(self, name: object) -> bool:
        return name in self._places  # the mapping's own way would read the array; comparing keys asks for every name

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def block(self, name: str, start: int, stop: int, *, into: Array | None = None) -> Array:
        """Return elements `start` to `stop` (0 <= start <= stop) of the flattened array, reading no others.

        Args:
            into: memory to read them into, of the array's dtype and large enough.
        """
        place = self._places[name]
        first, last = min(start, place.size), min(stop, place.size)
        part = np.empty(last - first, place.dtype) if into is None else into[: last - first]
        return self._read(place.offset + first * place.dtype.itemsize, part)

    def spec(self, name: str) -> Spec:
        """Return an array's shape and dtype, reading nothing."""
        place = self._places[name]
        return place.shape, place.dtype

    def _read(self, offset: int, into: Array) -> Array:
        view, done = bytes_view(into), 0
        number = self._file.fileno()  # a closed file has none: its number may be another file's by now
        try:
            while done < len(view):
                count = os.preadv(number, [view[done:]], offset + done)
                if count == 0:
                    raise StateError("the round's spool file was cut short on disk")
                done += count
        except OSError as error:
            raise StateError(f"cannot read the round's updates from disk: {error.strerror or error}") from error
        return into


class Spool:
    """A nameless file in `folder` that is gone when the spool is closed, or when the process ends."""

    def __init__(self, folder: Path) -> None:
        """Open the file.

        Raises:
            StateError: the folder is unwritable.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".spool-", buffering=0)  # noqa: SIM115  closed in __exit__
        except OSError as error:
            raise StateError(f"cannot write in '{folder}': {error.strerror or error}") from error
        self._end = 0
        self._adopted: list[IO[bytes]] = []

    def keep(self, weights: Weights) -> StoredArrays:
        """Write arrays to the file and return where they can be read.

        Raises:
            StateError: the disk is full.
        """
        places = {}
        try:
            for name, array in weights.items():
                content, done = bytes_view(array), 0
                places[name] = _Place(self._end, array.shape, array.dtype)
                while done < len(content):
                    done += os.pwrite(self._file.fileno(), content[done:], self._end + done)
                self._end += done
        except OSError as error:
            raise StateError(f"cannot write the round's updates to disk: {error.strerror or error}") from error
        return StoredArrays(self._file, places)

    def adopt(self, file: IO[bytes], form: Form, names: Mapping[str, str]) -> StoredArrays:
        """Take arrays where they lie in the file of a payload, which is closed with the spool; nothing is copied.

        Args:
            form: of the container in `file`.
            names: what each array is to be called, and its name in the container.
        """
        self._adopted.append(file)
        starts = offsets(form)
        return StoredArrays(file, {name: _Place(starts[there], *form[there]) for name, there in names.items()})

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._file, *self._adopted):
            file.close()
