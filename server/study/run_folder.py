"""A run's files on the server's disk: an append-only event log, the checkpoint, the result."""

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from consilium.common.errors import StateError
from consilium.common.events.log import EventLog
from consilium.common.events.run import STUDY_EVENTS, RunEvent
from consilium.common.host.files import scratch_here, write_atomically
from consilium.common.results import RunResult
from consilium.server.study.checkpoint_files import is_resumable

log = logging.getLogger(__name__)

JOURNAL_VARIABLE = "CONSILIUM_JOURNAL"
"""Environment variable with the path of the server's journal: every run's events, for the server's metrics."""

NOTES_SECONDS = 0.2
"""How long notes are gathered before they are written: with 1,000 sites, each by itself takes longer than the round."""


@dataclass
class _Gathered:
    """Lines that are not written yet, when the last ones were (`time.monotonic`), and how many the journal lacks."""

    lines: list[str] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    written: float = 0.0
    lost: int = 0


@dataclass(frozen=True)
class RunFolder:
    """The files of one run under one folder.

    Args:
        journal: a second log that gets every event too, with `study` and `run`; the server's own.
    """

    path: Path
    journal: EventLog | None = None
    _gathered: _Gathered = field(default_factory=_Gathered, repr=False, compare=False)

    @property
    def events(self) -> Path:
        """The run's append-only event log."""
        return self.path / "events.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The last ServerState; those of the two rounds before lie beside it."""
        return self.path / "checkpoint.safetensors"

    @property
    def is_resumable(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return is_resumable(self.checkpoint)

    @property
    def model(self) -> Path:
        """The folder of the final global model."""
        return self.path / "model"

    @property
    def scale(self) -> Path:
        """The scale of the inputs, where the study leaves it to the handshake."""
        return self.path / "scale.json"

    @property
    def result(self) -> Path:
        """The result, from which the report is made."""
        return self.path / "result.json"

    def log(self, event: RunEvent) -> None:
        """Append one event to the run's log, where it is on the disk when this returns, and to the journal.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        self._take(event)
        self._write(durable=True)

    def note(self, event: RunEvent) -> None:
        """Append one event of many: it is in the log within moments, and on the disk with the next one that is logged.

        In `scratch`, whose log nobody reads, it is left out.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        if scratch_here() is not None:
            return
        self._take(event)
        if time.monotonic() - self._gathered.written > NOTES_SECONDS:
            self._write(durable=False)

    def _take(self, event: RunEvent) -> None:
        self._gathered.lines.append(EventLog(self.events).line(event))
        if self.journal is not None:
            self._gathered.journal.append(self.journal.line(event))

    def _write(self, *, durable: bool) -> None:
        EventLog(self.events).append(self._gathered.lines, durable=durable)
        self._gathered.lines.clear()
        if self.journal is not None:
            self._write_journal(self.journal)
        self._gathered.written = time.monotonic()

    def _write_journal(self, journal: EventLog) -> None:
        """Write for the server's metrics: never forced to the disk, and no reason to end: the run's own log has all."""
        try:
            journal.append(self._gathered.journal, durable=False)
            self._gathered.lost = 0
        except StateError as error:
            if not self._gathered.lost:
                log.warning("%s; metrics lack events until it can be written", error)
            self._gathered.lost += len(self._gathered.journal)
        self._gathered.journal.clear()

    def read_events(self) -> list[RunEvent]:
        """Return all whole events of a study's run so far.

        Raises:
            StateError: a known event lacks a field, or has a wrong one.
        """
        return EventLog(self.events).read(STUDY_EVENTS)

    def save_result(self, result: RunResult) -> None:
        """Write `result.json`, a line for each of its entries: of many sites and rounds it is long."""
        content = result.model_dump(mode="json")
        lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items())
        write_atomically(self.result, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
