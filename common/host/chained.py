"""An append-only log of JSON lines, each with the SHA-256 of the line before it: no line can be changed or left out.

A line holds `number` (from 1) and `before` (SHA-256 of the bytes of the line before it, 64 zeros for the first) with
the fields of its entry. The head of a log is the SHA-256 of its last line; whoever knows an earlier head, and how many
lines it had, can tell whether the log was changed, cut or put back since.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.common.errors import StateError
from consilium.common.host.files import open_in

START = "0" * 64
"""Head of an empty log."""


@dataclass(frozen=True)
class Head:
    """How far a log has come: its number of lines, and the SHA-256 of the last one."""

    count: int = 0
    sha256: str = START


class ChainedLog:
    """One such log in a file; several processes may append to it.

    Args:
        what: names the log in errors, e.g. `privacy ledger`.
    """

    def __init__(self, path: Path, *, what: str) -> None:
        self.path, self._what = path, what
        self._head, self._size = Head(), 0

    def append(self, entry: Mapping[str, Any]) -> Head:
        """Append an entry and return the new head; the line is on the disk when this returns.

        What a crash left of an unfinished line is cut off first: nobody was told that it was written.

        Raises:
            StateError: the log was changed, or cannot be written.
        """
        try:
            with self._locked() as descriptor:
                self._catch_up(descriptor)
                line = self._line(entry)
                os.ftruncate(descriptor, self._size)
                _write(descriptor, line + b"\n", at=self._size)
                os.fsync(descriptor)
                self._size += len(line) + 1
                self._head = Head(self._head.count + 1, hashlib.sha256(line).hexdigest())
                return self._head
        except OSError as error:
            raise StateError(f"cannot write the {self._what} '{self.path}': {error.strerror or error}") from error

    def head(self) -> Head:
        """Return how far the log has come.

        Raises:
            StateError: the log was changed, or cannot be read.
        """
        return self.read()[1]

    def read(self) -> tuple[list[dict[str, Any]], Head]:
        """Return all entries, without `number` and `before`, and the head; an unfinished last line is none.

        Raises:
            StateError: a line was changed, left out or added; names it.
        """
        lines = list(self.heads())
        own = [{name: value for name, value in entry.items() if name not in ("number", "before")} for entry, _ in lines]
        return own, lines[-1][1] if lines else Head()

    def heads(self) -> Iterator[tuple[dict[str, Any], Head]]:
        """Yield every line with the head of the log up to it.

        Raises:
            StateError: a line was changed, left out or added; names it.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"cannot read the {self._what} '{self.path}': {error.strerror or error}") from error
        head = Head()
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            entry, head = self._next(line, head)
            yield entry, head

    def holds(self, head: Head) -> bool:
        """Return whether the log went through this head: it is no other log, and was neither cut nor put back.

        Raises:
            StateError: a line was changed.
        """
        return head == Head() or any(one == head for _, one in self.heads())

    def _line(self, entry: Mapping[str, Any]) -> bytes:
        whole = {"number": self._head.count + 1, "before": self._head.sha256, **entry}
        return json.dumps(whole, allow_nan=False).encode()

    def _next(self, line: bytes, head: Head) -> tuple[dict[str, Any], Head]:
        where = f"{self._what} '{self.path}', line {head.count + 1}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StateError(f"{where}: damaged, it is not JSON") from error
        if not isinstance(entry, dict) or (entry.get("number"), entry.get("before")) != (head.count + 1, head.sha256):
            raise StateError(f"{where}: the line before it was changed or left out, or this one was added")
        return entry, Head(head.count + 1, hashlib.sha256(line).hexdigest())

    def _catch_up(self, descriptor: int) -> None:
        """Take in what other processes have appended; all of it anew if the file is shorter than it was."""
        size = os.fstat(descriptor).st_size
        if size < self._size:
            self._head, self._size = Head(), 0
        content = _read(descriptor, size - self._size, at=self._size)
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            _, self._head = self._next(line.rstrip(b"\n"), self._head)
            self._size += len(line)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = open_in(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _write(descriptor: int, content: bytes, *, at: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, at)
        content, at = content[written:], at + written


def _read(descriptor: int, size: int, *, at: int) -> bytes:
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, at)):
        parts.append(part)
        size, at = size - len(part), at + len(part)
    return b"".join(parts)
