"""An append-only event log: one JSON object per line, with `time` (ISO 8601, UTC) and `event`.

It is the audit trail, the source of live views and metrics, and the only channel from short-lived
processes (Flower's apps) to long-lived ones.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import StateError
from common.host.files import open_in

Event = Mapping[str, Any]


@dataclass(frozen=True)
class EventLog:
    """The log in one file.

    Args:
        labels: fields that every event of this writer carries.
    """

    path: Path
    labels: Mapping[str, str] = field(default_factory=dict)

    def log(self, event: str, **fields: Any) -> None:
        """Append one event; its line is on the disk when this returns, and all lines before it.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        self.append([self.line(stamp(event), json.dumps(fields, allow_nan=False))])

    def line(self, stamped: Event, fields: str) -> str:
        """Return an event as a line of this log.

        Args:
            stamped: what `stamp` returned.
            fields: the event's own fields, as a JSON object.
        """
        head = json.dumps({**stamped, **self.labels})
        return head if fields == "{}" else f"{head[:-1]}, {fields[1:]}"

    def append(self, lines: Sequence[str], *, durable: bool = True) -> None:
        """Append lines that `line` made.

        Args:
            durable: force them to the disk, with all before them; else they are with the system, and only a power cut
                can lose them.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        content = "".join(f"{line}\n" for line in lines)
        try:
            with os.fdopen(open_in(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+b") as file:
                if file.tell() and not _ends_a_line(file):
                    content = "\n" + content  # a crash cut the last line off; it must not swallow this one
                file.write(content.encode())
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        except OSError as error:
            raise StateError(f"cannot write '{self.path}': {error.strerror or error}") from error

    def read(self) -> list[dict[str, Any]]:
        """Return all whole events so far: neither an unfinished last line, nor one that a crash cut off."""
        return Follower(self.path).new()


def stamp(event: str) -> Event:
    """Return the beginning of an event: when, and what."""
    return {"time": datetime.now(UTC).isoformat(), "event": event}


class Follower:
    """Reads a log that grows: each call of `new` returns the events since the last; for one reader."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new(self) -> list[dict[str, Any]]:
        """Return the events that were completed since the last call; from the start if the file shrank."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # no part of an object is whole JSON
                events.append(json.loads(line))
        return events


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
