"""Write files so that a crash leaves the old one or the new one, never half of either."""

import contextlib
import fcntl
import hashlib
import itertools
import os
import secrets
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TypeAlias

from consilium.common.errors import StateError

Buffer: TypeAlias = bytes | memoryview

_PROCESS, _NUMBERS = secrets.token_hex(4), itertools.count()
"""Parts of temporary files' names, so that these differ even between machines that share a folder."""

_durable: ContextVar[bool] = ContextVar("durable", default=True)


def write_atomically(path: Path, content: bytes | Iterable[Buffer], *, mode: int = 0o644) -> None:
    """Write `content` to `path`: temporary file in the same folder, fsync, rename, fsync the folder.

    Args:
        content: all of it, or piece by piece.

    Raises:
        StateError: the folder is missing or unwritable, or the disk is full; the old file is kept.
    """
    temporary = path.with_name(f".{path.name}.{_PROCESS}-{os.getpid()}-{next(_NUMBERS)}.tmp")
    try:
        with os.fdopen(open_in(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            for piece in [content] if isinstance(content, bytes) else content:
                file.write(piece)
            file.flush()
            if _durable.get():
                os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StateError(f"cannot write '{path}': {error.strerror or error}; the previous version is kept") from error


def open_in(path: Path, flags: int, mode: int) -> int:
    """Open a file, in a folder that is made where it is missing, and return its descriptor.

    Raises:
        OSError: as `os.open` and `mkdir` do.
    """
    try:
        return os.open(path, flags, mode)
    except FileNotFoundError:  # rare, so the folder is not checked each time
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, mode)


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """Do not force files to the disk within the block: for folders that are of no use after a power cut."""
    token = _durable.set(False)
    try:
        yield
    finally:
        _durable.reset(token)


def _sync_folder(folder: Path) -> None:
    if not _durable.get():
        return
    with contextlib.suppress(OSError):  # network shares cannot; the file itself is safe by then
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def only_one(file: Path, *, otherwise: str) -> Iterator[None]:
    """Hold a lock that no two processes can have, within the block; it is gone with the process.

    Args:
        file: is made where it is missing, and stays.
        otherwise: the sentence for a process that comes second.

    Raises:
        StateError: another process has it, or the file cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StateError(f"cannot write '{file}': {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StateError(otherwise) from error
        yield
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a file.

    Raises:
        StateError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StateError(f"cannot read '{path}': {error.strerror or error}") from error


def with_home(path: str | Path) -> str:
    """Return a path with the home folder in place of a `~` at its beginning; `~nobody` stays as it is."""
    return os.path.expanduser(path)  # noqa: PTH111 # Path's own fails on `~nobody`


def check_writable(folder: Path, *, what: str) -> None:
    """Check that a file can be written in `folder`, which is made if it is missing.

    Raises:
        StateError: it cannot; names the folder and its purpose.
    """
    probe = folder / ".write-test"
    try:
        write_atomically(probe, b"ok")
        probe.unlink()
    except (StateError, OSError) as error:
        raise StateError(f"{what} '{folder}' is not writable: {error}") from error
