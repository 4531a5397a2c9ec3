"""The deltas of one round on disk, so that the server's memory does not grow with the number of sites.

The first few megabytes stay in memory: to write and read them again would take longer than a small model's whole round.

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
from consilium.common.host.files import not_written
from consilium.common.weights.arrays import Array, Spec, Weights, bytes_view

MEMORY_BYTES = 2**25
"""How much of a round's updates stays in memory."""


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


class HeldArrays(Mapping[str, Array]):
    """One site's arrays in memory, read as those in a spool's file are: whoever takes a whole one gets a copy."""

    def __init__(self, weights: Weights) -> None:
        self._weights = dict(weights)

    def __getitem__(self, name: str) -> Array:
        return self._weights[name].copy()

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def block(self, name: str, start: int, stop: int, *, into: Array | None = None) -> Array:
        """Return elements `start` to `stop` (0 <= start <= stop) of the flattened array, copying none."""
        return self._weights[name].reshape(-1)[start:stop]

    def spec(self, name: str) -> Spec:
        """Return an array's shape and dtype."""
        return self._weights[name].shape, self._weights[name].dtype


class Spool:
    """A nameless file in `folder` that is gone when the spool is closed, or when the process ends."""

    def __init__(self, folder: Path, *, memory_bytes: int = MEMORY_BYTES) -> None:
        """Open the file.

        Args:
            memory_bytes: how much is kept in memory in its place.

        Raises:
            StateError: the folder is unwritable.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".spool-", buffering=0)  # noqa: SIM115  closed in __exit__
        except OSError as error:
            raise not_written(folder, error) from error
        self._folder = folder
        self._end = self._held = 0
        self._most = memory_bytes
        self._adopted: list[IO[bytes]] = []

    def keep(self, weights: Weights) -> Weights:
        """Return arrays as they are while there is room in memory; else write them and return where they can be read.

        Raises:
            DiskFull: there is no room for them.
            StateError: they cannot be written.
        """
        size = sum(array.nbytes for array in weights.values())
        if self._held + size <= self._most:
            self._held += size
            return HeldArrays(weights)
        places = {}
        try:
            for name, array in weights.items():
                content, done = bytes_view(array), 0
                places[name] = _Place(self._end, array.shape, array.dtype)
                while done < len(content):
                    done += os.pwrite(self._file.fileno(), content[done:], self._end + done)
                self._end += done
        except OSError as error:
            raise not_written(self._folder, error, also=", where the round's updates go") from error
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
