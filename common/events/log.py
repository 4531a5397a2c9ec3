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
from consilium.common.events.chain import linked
from consilium.common.host.files import open_in


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
    """

    path: Path
    labels: Mapping[str, str] = field(default_factory=dict)

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
            with os.fdopen(open_in(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # gone with the file's descriptor
                file.write(linked(lines, file.fileno()))
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        except OSError as error:
            raise StateError(f"cannot write '{self.path}': {error.strerror or error}") from error

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
        self._offset = self._lines = 0

    def new(self, on_problem: Callable[[StateError], None] = _refuse) -> list[E]:
        """Return the events that were completed since the last call; from the start if the file shrank.

        Args:
            on_problem: called with the error of an unusable event, which is then skipped.

        Raises:
            StateError: a known event lacks a field, or has a wrong one; names the line.
        """
        events = []
        for line in self._whole_lines():
            self._lines += 1
            try:
                event = self._vocabulary.read(line, where=f"{self._path}, line {self._lines}")
            except StateError as problem:
                on_problem(problem)
                continue
            if event is not None:
                events.append(event)
        return events

    def _whole_lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._offset = self._lines = 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()
