"""Submit a study to a running server, follow its event log, and write the report."""

import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from common.errors import ConnectionRefused, RunFailed, error_named
from common.events import Follower
from common.study.study import StudyConfig
from consilium.running.live_view import View
from server.operations.home import ServerHome
from server.study.run_folder import RunFolder
from server.wire.submission import Control

POLL_SECONDS, STATUS_SECONDS, MAX_UNANSWERED = 0.05, 3.0, 20
"""A server that is started again within a minute is waited for: its runs go on by themselves."""


def new_run_folder(runs: Path, name: str) -> Path:
    """Return a folder `runs/<time>-<name>` that does not exist yet."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = runs / f"{stamp}-{name}"
    for number in range(2, 100):
        if not folder.exists():
            break
        folder = runs / f"{stamp}-{name}-{number}"
    return folder


def run_study(study: StudyConfig, home: ServerHome, folder: Path, view: View) -> dict[str, Any]:
    """Run a study on a running server, follow it, and return its result (the content of `result.json`).

    Args:
        folder: where the server writes; with a checkpoint in it, the run continues from there.

    Raises:
        ConsiliumError: what ended the run.
        KeyboardInterrupt: Ctrl-C; the run goes on at the server.
    """
    seen = submit_study(study, home, folder)
    return follow_run(home, folder, view, seen=seen)


def submit_study(study: StudyConfig, home: ServerHome, folder: Path) -> int:
    """Start a run at the server; return how many events its folder held before.

    Raises:
        ConfigError: a run of this name is going on.
        ConnectionRefused: no server runs.
    """
    records = RunFolder(folder)
    seen = len(records.read_events())
    with Control(home) as control:
        records.log("submitted", run=folder.name, study=study.name)
        control.submit(study, folder=folder)
    return seen


def follow_run(home: ServerHome, folder: Path, view: View, *, seen: int = 0) -> dict[str, Any]:
    """Show the events of a run until it ends, and return its result.

    Args:
        seen: how many events are passed over.

    Raises:
        ConsiliumError: what ended the run, or that the server is gone for good.
        KeyboardInterrupt: Ctrl-C; the run goes on.
    """
    records = RunFolder(folder)
    with view:
        follow_events(records, seen, view, home)
    result: dict[str, Any] = json.loads(records.result.read_text(encoding="utf-8"))
    return result


class Shows(Protocol):
    """What shows the events of a run."""

    def show(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        ...

    def tick(self) -> None:
        """Be called again and again, events or not."""
        ...


def follow_events(records: RunFolder, seen: int, view: Shows, home: ServerHome) -> None:
    """Show the events of a run until it ends.

    Args:
        seen: how many events are passed over.

    Raises:
        ConsiliumError: what ended the run, or that the server is gone for good.
    """
    log, asked, unanswered = Follower(records.events), time.monotonic(), 0
    passed_over = seen
    while True:
        events = log.new()
        resumed = max((place for place, event in enumerate(events) if event["event"] == "submitted"), default=0)
        for place, event in enumerate(events[passed_over:], start=passed_over):
            view.show(event)
            if place < resumed:
                continue  # the end of an attempt that was resumed since is not the run's
            match event["event"]:
                case "finished":
                    return
                case "failed":
                    raise error_named(event["error"], event["message"])
                case "stopped":
                    raise RunFailed(_stopped(records))
        passed_over = max(0, passed_over - len(events))
        if not events and time.monotonic() - asked > STATUS_SECONDS:
            asked = time.monotonic()
            try:
                _check_runs(records, home)
                unanswered = 0
            except ConnectionRefused:
                unanswered += 1
                if unanswered == MAX_UNANSWERED:
                    raise
        view.tick()
        time.sleep(POLL_SECONDS)


def _stopped(records: RunFolder) -> str:
    mend = (
        f"'consilium run STUDY.toml --resume {records.path}' continues it"
        if records.checkpoint.is_file()
        else "it left no checkpoint to continue from, so a new run is needed"
    )
    return f"run '{records.path.name}' was stopped; {mend}"


def _check_runs(records: RunFolder, home: ServerHome) -> None:
    """Check that the server still has this run going on.

    Raises:
        RunFailed: it ended without a word in its log.
        ConnectionRefused: the server does not answer.
    """
    with Control(home) as control:
        entry = next((entry for entry in control.runs() if entry.name == records.path.name), None)
    if entry is None or (entry.state == "failed" and not _has_ended(records)):
        detail = entry.detail if entry is not None else "it is not known there"
        raise RunFailed(f"the server's run ended without a result: {detail}")


def _has_ended(records: RunFolder) -> bool:
    return bool((events := records.read_events()) and events[-1]["event"] in ("finished", "failed", "stopped"))


def save_report(folder: Path, result: dict[str, Any], comparisons: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Write `report.json`, `report.html` and `rounds.csv` into a run folder and return the report."""
    from consilium.report.page import write_report
    from consilium.report.report import build_report

    report = build_report(result, comparisons)
    write_report(folder, report)
    return report
