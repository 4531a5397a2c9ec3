"""Submit a study to a running server, follow it, and write the report."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.common.errors import ConfigError
from consilium.common.events.run import RunSubmitted
from consilium.common.host.files import check_free
from consilium.common.results import RunResult
from consilium.common.study.study import StudyConfig
from consilium.running.follow import follow_events
from consilium.running.live_view import View
from consilium.server.operations.home import ServerHome
from consilium.server.study.run_folder import RunFolder
from consilium.server.wire.submission import Control

if TYPE_CHECKING:
    from consilium.report.report import Report


def new_run_folder(runs: Path, name: str) -> Path:
    """Return a folder `runs/<time>-<name>` that does not exist yet."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = runs / f"{stamp}-{name}"
    for number in range(2, 100):
        if not folder.exists():
            break
        folder = runs / f"{stamp}-{name}-{number}"
    return folder


def run_study(study: StudyConfig, home: ServerHome, folder: Path, view: View) -> RunResult:
    """Run a study on a running server, follow it, and return its result.

    Args:
        folder: where the server writes; with a checkpoint in it, the run continues from there.

    Raises:
        ConsiliumError: what ended the run.
        KeyboardInterrupt: Ctrl-C; the run goes on at the server.
    """
    earlier = submit_study(study, home, folder)
    return follow_run(home, folder, view, skip=earlier)


def submit_study(study: StudyConfig, home: ServerHome, folder: Path, *, update: bool = False) -> int:
    """Start a run at the server; return how many events its folder held before.

    Args:
        update: the run has ended, and only asks the sites without a row in its result.

    Raises:
        ConfigError: a run of this name is going on; nothing is written then.
        StateError: a process of another server runs it.
        ConnectionRefused: no server runs.
    """
    records = RunFolder(folder)
    going_on = f"run '{folder.name}' is going on already; 'consilium stop {folder.name}' ends it"
    check_free(folder / ".lock", otherwise=going_on)  # before anything is written into its log
    earlier = len(records.read_events())
    with Control(home) as control:
        if any(entry.name == folder.name and entry.state == "running" for entry in control.runs()):
            raise ConfigError(going_on)
        records.log(RunSubmitted(run=folder.name, study=study.name))
        control.submit(study, folder=folder, update=update)
    return earlier


def follow_run(home: ServerHome, folder: Path, view: View, *, skip: int = 0) -> RunResult:
    """Show the events of a run until it ends, and return its result.

    Args:
        skip: how many events are not shown, from the first.

    Raises:
        ConsiliumError: what ended the run, or that the server is gone for good.
        KeyboardInterrupt: Ctrl-C; the run goes on.
    """
    records = RunFolder(folder)
    with view:
        follow_events(records, view, home, skip=skip)
    return RunResult.model_validate_json(records.result.read_bytes())


def save_report(folder: Path, result: RunResult, others: Mapping[str, RunResult] | None = None) -> "Report":
    """Write `report.json`, `report.html` and `rounds.csv` into a run folder and return the report.

    Args:
        others: runs that the report compares this one with, by their labels.
    """
    from consilium.report.files import write_report
    from consilium.report.report import build_report

    report = build_report(result, others)
    write_report(folder, report)
    return report
