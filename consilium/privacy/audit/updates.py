"""The updates of a round as an audit has them: from the files that the study kept, or their numbers alone."""

import mmap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import IO

from consilium.common.codecs.container import read_form, unpack
from consilium.common.errors import ProtocolError, StateError
from consilium.common.events.run import UpdateAccepted
from consilium.common.protocol.plans import CONTROL
from consilium.common.weights.arrays import Array, digest
from consilium.privacy.audit.log import Attempt
from consilium.server.strategies import Update
from consilium.server.study.kept_updates import kept_update, kept_weights
from consilium.server.study.update_files import Spool


class NotKeptError(Exception):
    """An array of an update was asked for that was not kept."""


class NotKept(Mapping[str, Array]):
    """The arrays of an update that was not kept: asking for one says so."""

    def __getitem__(self, name: str) -> Array:
        raise NotKeptError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def without_arrays(attempt: Attempt) -> list[Update]:
    """Return a round's updates with what the log says of them: sizes and measurements."""
    return [
        Update(site, NotKept(), attempt.event.sites[site].num_examples, event.metrics)
        for site, event in sorted(attempt.accepted.items())
    ]


@contextmanager
def kept_updates(folder: Path, attempt: Attempt) -> Iterator[list[Update]]:
    """Yield a round's updates with their arrays, which lie on the disk and are read each time they are asked for.

    Args:
        folder: the run's.

    Raises:
        StateError: one is missing or damaged, or is not the one whose digest the log names.
    """
    with ExitStack() as files, Spool(Path(gettempdir())) as spool:  # nothing is written: files are taken as they are
        updates = []
        for bare in without_arrays(attempt):
            path = kept_update(folder, bare.site, round_number=attempt.number)
            file = files.enter_context(_opened(path))
            names = list(_arrays(path, file, expected=attempt.accepted[bare.site], place=attempt.place))
            form = read_form(_content(file))
            own = spool.adopt(file, form, {name: name for name in names if not name.startswith(CONTROL)})
            control = {name.removeprefix(CONTROL): name for name in names if name.startswith(CONTROL)}
            updates.append(Update(bare.site, own, bare.num_examples, bare.metrics, spool.adopt(file, form, control)))
        yield updates


def initial_weights(folder: Path, *, expected: str) -> dict[str, Array]:
    """Return the weights that round 1 began with.

    Args:
        expected: their digest, as the log has it.

    Raises:
        StateError: they are missing or damaged, or have another digest.
    """
    path = kept_weights(folder)
    with _opened(path) as file:
        arrays = _unpacked(path, file, copy=True)
    if digest(arrays) != expected:
        raise StateError(f"'{path}' was changed: its weights are not those whose SHA-256 the log names, {expected}")
    return arrays


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise StateError(f"cannot read '{path}', which the study keeps: {error.strerror or error}") from error
    with file:
        yield file


def _arrays(path: Path, file: IO[bytes], *, expected: UpdateAccepted, place: str) -> dict[str, Array]:
    arrays = _unpacked(path, file, copy=False)
    if (found := digest(arrays)) != expected.update:
        raise StateError(
            f"'{path}' was changed: its SHA-256 is {found[:12]}, but site '{expected.site}' sent the update "
            f"{expected.update[:12]} in the round of {place}"
        )
    return arrays


def _unpacked(path: Path, file: IO[bytes], *, copy: bool) -> dict[str, Array]:
    try:
        content = _content(file)
        return unpack(content, read_form(content), copy=copy)
    except (ProtocolError, ValueError) as error:  # an empty file cannot be mapped
        raise StateError(f"'{path}' was changed: it is no file of arrays any more ({error})") from error


def _content(file: IO[bytes]) -> memoryview:
    return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
