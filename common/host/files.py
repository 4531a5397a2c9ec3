"""Write files so that a crash leaves the old one or the new one, never half of either."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TypeAlias

from consilium.common.errors import DiskFull, StateError, clean

Buffer: TypeAlias = bytes | memoryview

_PROCESS, _NUMBERS = secrets.token_hex(4), itertools.count()
"""Parts of temporary files' names, so that these differ even between machines that share a folder."""

MOST_SCRATCH_BYTES = 2**29
"""How much a block of `scratch` keeps in memory in place of files; the rest goes to the disk."""


class Scratch:
    """What a block of `scratch` keeps in memory in place of files, by their paths; it is gone with the block."""

    def __init__(self, most_bytes: int) -> None:
        """Keep nothing yet."""
        self._most, self._held = most_bytes, 0
        self._kept: dict[Path, tuple[object, int]] = {}

    def put(self, path: Path, value: object, *, size: int = 0) -> bool:
        """Keep a value in place of the file at `path`; return False, keeping nothing, where there is no room.

        Args:
            size: its bytes.
        """
        self.drop(path)
        if self._held + size > self._most:
            return False
        self._kept[path], self._held = (value, size), self._held + size
        return True

    def get(self, path: Path) -> object | None:
        """Return what is kept in place of a file; None where nothing is."""
        return self._kept.get(path, (None, 0))[0]

    def drop(self, path: Path) -> bool:
        """Let go of what is kept in place of a file; return whether something was."""
        _, size = known = self._kept.pop(path, (None, 0))
        self._held -= size
        return known != (None, 0)


_scratch: ContextVar[Scratch | None] = ContextVar("scratch", default=None)


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
            if _scratch.get() is None:
                os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error, also="; the previous version is kept") from error
    finally:  # whatever went wrong, the pieces themselves too
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def not_written(path: Path, error: OSError, *, also: str = "") -> StateError:
    """Return the error of a file that could not be written, and whose disk is full if that is why."""
    kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StateError
    return kind(f"cannot write '{path}': {error.strerror or error}{also}")


_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-([0-9]{1,10})-[0-9]+\.tmp")
"""What `write_atomically` calls a file before it has its own name."""


def sweep(folder: Path, *, depth: int = 0) -> int:
    """Delete what killed processes left of files that they were writing, and return how many there were.

    Whoever calls it has the folder's lock; files of this process, and of one that runs on this machine, stay.

    Args:
        depth: how many folders deep below `folder` they are looked for.
    """
    swept = 0
    for place, folders, names in os.walk(folder):
        if len(Path(place).relative_to(folder).parts) >= depth:
            folders.clear()
        for name in names:
            found = _TEMPORARY.fullmatch(name)
            if found is not None and found[1] != _PROCESS and not _is_running(int(found[2])):
                with contextlib.suppress(OSError):
                    Path(place, name).unlink()
                    swept += 1
    return swept


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is one that `write_atomically` has not finished."""
    return _TEMPORARY.fullmatch(name) is not None


def _is_running(number: int) -> bool:
    if number in (0, os.getpid()):  # an earlier process had this one's number, as in a container
        return False
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # it is another user's
    return True


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
def scratch(*, most_bytes: int = MOST_SCRATCH_BYTES) -> Iterator[None]:
    """Do not force files to the disk within the block: for folders that are of no use after it.

    What only the block itself reads again may lie in memory in place of a file, and what only people read later is not
    written.

    Args:
        most_bytes: how much lies in memory.
    """
    token = _scratch.set(Scratch(most_bytes))
    try:
        yield
    finally:
        _scratch.reset(token)


def scratch_here() -> Scratch | None:
    """Return what the block of `scratch` around this keeps in memory; None outside of one."""
    return _scratch.get()


def _sync_folder(folder: Path) -> None:
    if _scratch.get() is not None:
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
        file: is made where it is missing, and stays; it says who has the lock.
        otherwise: the sentence for a process that comes second, to which the other one's number and machine are added.

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
            raise StateError(f"{otherwise}{_owner(descriptor)}") from error
        _note_owner(descriptor)
        yield
    finally:
        os.close(descriptor)


def check_free(file: Path, *, otherwise: str) -> None:
    """Check that nobody has the lock in a file, which is not made where it is missing.

    Raises:
        StateError: another process has it, or the file cannot be opened.
    """
    if file.is_file():
        with only_one(file, otherwise=otherwise):
            pass


def _note_owner(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # the lock holds on a full disk too
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)


def _owner(descriptor: int) -> str:
    """Return who has a lock, as its file says, in brackets; empty where it does not."""
    with contextlib.suppress(OSError, ValueError):
        number, host = os.pread(descriptor, 300, 0).decode().split()
        return f" (process {int(number)} on '{clean(host, 100)}')"
    return ""


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
