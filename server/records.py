"""What a run leaves on the server's disk: an append-only event log, the checkpoint, the result.

`events.jsonl` holds one JSON object per line with `time` (ISO 8601, UTC) and `event`; it is the audit
trail, the source of the live view, and the only channel from the short-lived ServerApp process to others.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import StateError
from common.files import write_atomically


@dataclass(frozen=True)
class RunFolder:
    """The files of one run under one folder."""

    path: Path

    @property
    def events(self) -> Path:
        """The append-only event log."""
        return self.path / "events.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The last ServerState."""
        return self.path / "checkpoint.safetensors"

    @property
    def weights(self) -> Path:
        """The final global weights."""
        return self.path / "global.safetensors"

    @property
    def result(self) -> Path:
        """What the report is made from."""
        return self.path / "result.json"

    def log(self, event: str, **fields: Any) -> None:
        """Append one event; a line is on disk when this returns.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        line = json.dumps({"time": datetime.now(UTC).isoformat(), "event": event, **fields}, allow_nan=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.events.open("a+b") as file:
                if file.tell() and not _ends_a_line(file):
                    line = "\n" + line  # a crash cut the last line off; it must not swallow this one
                file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StateError(f"cannot write '{self.events}': {error.strerror or error}") from error

    def read_events(self) -> list[dict[str, Any]]:
        """Return all whole events so far: neither an unfinished last line, nor one that a crash cut off."""
        return list(self._parse())

    def _parse(self) -> Iterator[dict[str, Any]]:
        if not self.events.exists():
            return
        for line in self.events.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                with contextlib.suppress(ValueError):  # no part of an object is whole JSON
                    yield json.loads(line)

    def save_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`."""
        write_atomically(self.result, json.dumps(result, indent=1, allow_nan=False).encode())


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
