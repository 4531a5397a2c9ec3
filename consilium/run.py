"""Submit a study to a running server, follow its event log, and write the report."""

import contextlib
import json
import signal
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from common.config import StudyConfig
from common.errors import ConfigError, ConnectionRefused, RunFailed, StateError, error_named
from common.events import EventLog
from consilium.view import View
from server.control import Control
from server.records import RunFolder
from server.superlink import ServerHome

POLL_SECONDS, STATUS_SECONDS, MAX_UNANSWERED = 0.05, 3.0, 3


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
    """Run a study on a running server and return its result (the content of `result.json`).

    Args:
        folder: where the server writes; with a checkpoint in it, the run continues from there.

    Raises:
        ConsiliumError: what ended the run.
        KeyboardInterrupt: Ctrl-C; the run is stopped on the server first.
    """
    records = RunFolder(folder)
    seen = len(records.read_events())
    records.log("submitted", run=folder.name, study=study.name)
    with Control(home) as control:
        run_id = control.submit(study, folder=folder)
        try:
            with view:
                _follow(records, seen, view, control, run_id)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _stop_quietly(control, run_id)
            with contextlib.suppress(StateError):  # the server's log, for its metrics: a run that is stopped is killed
                EventLog(home.journal, {"study": study.name, "run": folder.name}).log("stopped")
            raise
    result: dict[str, Any] = json.loads(records.result.read_text(encoding="utf-8"))
    return result


def _follow(records: RunFolder, seen: int, view: View, control: Control, run_id: int) -> None:
    asked, unanswered = time.monotonic(), 0
    while True:
        events = records.read_events()
        for event in events[seen:]:
            view.show(event)
            if event["event"] == "finished":
                return
            if event["event"] == "failed":
                raise error_named(event["error"], event["message"])
        if len(events) == seen and time.monotonic() - asked > STATUS_SECONDS:
            asked = time.monotonic()
            try:
                status, details = control.status(run_id)
                unanswered = 0
            except ConnectionRefused:
                unanswered += 1  # a busy server drops a request now and then
                if unanswered == MAX_UNANSWERED:
                    raise
                continue
            if status == "finished" and len(records.read_events()) == seen:
                raise RunFailed(f"the server's run ended without a result: {details or 'no details'}")
        seen = len(events)
        view.tick()
        time.sleep(POLL_SECONDS)


def _stop_quietly(control: Control, run_id: int) -> None:
    with contextlib.suppress(ConfigError, ConnectionRefused):  # it has ended already, or the server is gone
        control.stop(run_id)


def save_report(folder: Path, result: dict[str, Any], comparisons: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Write `report.json`, `report.html` and `rounds.csv` into a run folder and return the report."""
    from consilium.report import build_report
    from consilium.report_page import write_report

    report = build_report(result, comparisons)
    write_report(folder, report)
    return report
