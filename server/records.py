"""What a run leaves on the server's disk: an append-only event log, the checkpoint, the result."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.events import EventLog
from common.files import write_atomically

JOURNAL_VARIABLE = "CONSILIUM_JOURNAL"
"""Where the server's own event log is: every run's events, for the metrics of the long-lived process."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run under one folder.

    Args:
        journal: a second log that gets every event too, with `study` and `run`; the server's own.
    """

    path: Path
    journal: EventLog | None = None

    @property
    def events(self) -> Path:
        """The run's append-only event log."""
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

    def log(self, event: str, *, durable: bool = True, **fields: Any) -> None:
        """Append one event to the run's log, and to the journal.

        Args:
            durable: whether the run's log is forced to the disk; the journal, from which metrics are made, never is.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        EventLog(self.events).log(event, durable=durable, **fields)
        if self.journal is not None:
            self.journal.log(event, durable=False, **fields)

    def read_events(self) -> list[dict[str, Any]]:
        """Return all whole events of the run so far."""
        return EventLog(self.events).read()

    def save_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`."""
        write_atomically(self.result, json.dumps(result, indent=1, allow_nan=False).encode())
