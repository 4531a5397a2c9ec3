"""An append-only event log: one JSON object per line, with `time` (ISO 8601, UTC) and `event`.

It is the audit trail, the source of live views and metrics, and the only channel from short-lived processes (runs)
to long-lived ones. Its lines are a hash chain (`chain.py`); several processes may append to one log.
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, Protocol, Self, TypeVar

from consilium.common.errors import StateError
from consilium.common.events.chain import Link, linked
from consilium.common.events.parts import PART_BYTES, parts_of, put_away, read_part
from consilium.common.host.files import not_written, open_in, scratch_here


class Event(Protocol):
    """Something that happened: an immutable record of what a log calls `name`."""

    name: ClassVar[str]
    for_the_record: ClassVar[bool]
    """Whether no program reads it: it is there for people."""

    @property
    def time(self) -> datetime:
        """When, in UTC."""
        ...

    def values(self) -> dict[str, Any]:
        """Return its own fields as JSON has them, without the time."""
        ...

    @classmethod
    def read(cls, content: Mapping[str, Any], *, where: str) -> Self:
        """Return the event in a line of a log; unknown fields are ignored.

        Raises:
            StateError: a field is missing or wrong; names `where`.
        """
        ...


E = TypeVar("E", bound=Event)


class Vocabulary(Generic[E]):
    """The events of one kind of log."""

    def __init__(self, *events: type[E]) -> None:
        self.events: Mapping[str, type[E]] = {event.name: event for event in events}

    def read(self, line: bytes, *, where: str) -> E | None:
        """Return the event of a line; None for an unknown event, and for a line that a crash cut off.

        Args:
            where: what an error names.

        Raises:
            StateError: a known event lacks a field, or has a wrong one.
        """
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):  # a cut line: no part of an object is valid JSON
            return None
        known = self.events.get(str(content.get("event"))) if isinstance(content, dict) else None
        if known is None:
            return None
        return known.read(content, where=f"event '{known.name}' in {where}")


@dataclass(frozen=True)
class EventLog:
    """The log in one file.

    Args:
        labels: fields that every event of this writer carries.
        endless: the log belongs to no run, so that it grows as long as there are any: its oldest lines are put away.
    """

    path: Path
    labels: Mapping[str, str] = field(default_factory=dict)
    endless: bool = False

    def log(self, event: Event) -> None:
        """Append one event; its line is on the disk when this returns, and all lines before it.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        self.append([self.line(event)])

    def line(self, event: Event) -> str:
        """Return an event as a line of this log, without its place in the chain."""
        head = json.dumps({"time": event.time.isoformat(), "event": event.name, **self.labels})
        fields = json.dumps(event.values(), allow_nan=False)
        return head if fields == "{}" else f"{head[:-1]}, {fields[1:]}"

    def append(self, lines: Sequence[str], *, durable: bool = True) -> None:
        """Append lines that `line` made, each with its number and the SHA-256 of the line before it.

        Args:
            durable: force them to the disk, with all before them; else they are with the system, and only a power cut
                can lose them.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        try:
            while not self._append(lines, durable):
                pass
        except OSError as error:
            raise not_written(self.path, error) from error

    def _append(self, lines: Sequence[str], durable: bool) -> bool:
        """Append lines; return False where the file was another one by the time that it was locked.

        Raises:
            OSError: it cannot be written; what was written of the lines is cut off again.
        """
        descriptor = open_in(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # gone with the descriptor
            if self.endless and os.fstat(descriptor).st_size >= PART_BYTES and self._is_at(descriptor):
                put_away(self.path, descriptor)
            if self.endless and not self._is_at(descriptor):
                return False
            content, before = linked(lines, descriptor), os.fstat(descriptor).st_size
            try:
                while content:
                    content = content[os.write(descriptor, content) :]
                if durable and scratch_here() is None:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)
                raise
            return True
        finally:
            os.close(descriptor)

    def _is_at(self, descriptor: int) -> bool:
        """Return whether an open file still is the log: another process may have put it away."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def read(self, vocabulary: Vocabulary[E]) -> list[E]:
        """Return all whole events so far: neither an unfinished last line, nor one that a crash cut off.

        Raises:
            StateError: a known event lacks a field, or has a wrong one; names the line.
        """
        return Follower(self.path, vocabulary).new()


def _refuse(problem: StateError) -> NoReturn:
    raise problem


class Follower(Generic[E]):
    """Reads a log that grows: each call of `new` returns the events since the last; for one reader."""

    def __init__(self, path: Path, vocabulary: Vocabulary[E]) -> None:
        self._path, self._vocabulary = path, vocabulary
        self._first = b""
        self._offset = self._lines = 0

    def new(self, on_problem: Callable[[StateError], None] = _refuse) -> list[E]:
        """Return the events that were completed since the last call; from the start if the log is another one.

        Args:
            on_problem: called with the error of an unusable event, which is then skipped.

        Raises:
            StateError: a known event lacks a field, or has a wrong one; names the line.
        """
        events = []
        for line in self._whole_lines(on_problem):
            self._lines += 1
            try:
                event = self._vocabulary.read(line, where=f"{self._path}, line {self._lines}")
            except StateError as problem:
                on_problem(problem)
                continue
            if event is not None:
                events.append(event)
        return events

    def _whole_lines(self, on_problem: Callable[[StateError], None]) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                first, earlier = file.readline(), list[bytes]()
                if first != self._first:  # another file; its number on the disk may be that of the one before
                    self._offset, self._first, earlier = 0, first, self._put_away(first, on_problem)
                elif file.seek(0, os.SEEK_END) < self._offset:
                    self._offset = self._lines = 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return earlier + whole.splitlines()

    def _put_away(self, first: bytes, on_problem: Callable[[StateError], None]) -> list[bytes]:
        """Return the lines that were put away since the last call.

        Args:
            first: the first line of the log as it is now; where it continues none, it is another log.
        """
        link = Link.of(first.rstrip(b"\n"))
        before = link.line - 1 if link is not None else 0
        if before < self._lines:
            self._lines = 0
        lines = list[bytes]()
        for last, part in parts_of(self._path):
            if self._lines < last <= before:
                try:
                    whole = read_part(part).splitlines()
                except StateError as problem:
                    on_problem(problem)
                    continue
                lines += whole[max(0, len(whole) - (last - self._lines - len(lines))) :]
        self._lines = before - len(lines)
        return lines
