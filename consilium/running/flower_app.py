"""Submit a Flower app to a running server and show what becomes of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.common.errors import ConfigError
from consilium.common.events.run import APP_EVENTS, MessagesAsked, RunEvent, RunFinished, RunSubmitted
from consilium.common.flower.app import FlowerApp, read_app
from consilium.common.flower.config import override
from consilium.common.host.files import check_writable, write_atomically
from consilium.running.follow import follow_events
from consilium.running.options import AppOptions
from consilium.running.run import new_run_folder
from consilium.server.operations.home import ServerHome
from consilium.server.study.run_folder import RunFolder
from consilium.server.wire.submission import Control

CONTENT, LOG = "app.bin", "run.log"
"""Files of a run's folder: the app in one piece, and what the ServerApp printed."""


@dataclass(frozen=True)
class Submitted:
    """A run that has begun."""

    folder: Path
    app: FlowerApp
    absent: tuple[str, ...] = ()
    """Sites that the run is for and that are not connected now."""


def submit_app(options: AppOptions, home: ServerHome) -> Submitted:
    """Start a run of an app at the server.

    Raises:
        ConfigError: it is no app, a setting or site is unknown.
        ConnectionRefused: no server runs.
    """
    app = read_app(options.app)
    config = override(app.config, options.run_config)
    with Control(home) as control:
        states = control.sites()
        sites = _sites(options.sites, set(states))
        check_writable(options.runs, what="the folder for runs")
        folder = new_run_folder(options.runs, app.name)
        folder.mkdir(mode=0o700, parents=True)
        write_atomically(folder / CONTENT, app.content, mode=0o600)
        records = RunFolder(folder)
        records.log(RunSubmitted(run=folder.name, app=app.name))
        job: dict[str, Any] = {"folder": str(folder.resolve()), "app": app.digest, "config": config, "sites": sites}
        if options.most_mb is not None:
            job["most_bytes"] = 1_000_000 * options.most_mb
        control.submit_app(job, title=app.name)
    return Submitted(folder, app, tuple(site for site in sites or states if states[site] != "online"))


def _sites(names: str | None, approved: set[str]) -> list[str] | None:
    if names is None:
        return None
    sites = [name.strip() for name in names.split(",")]
    if unknown := sorted(set(sites) - approved):
        known = ", ".join(sorted(approved)) or "none"
        raise ConfigError(f"--sites: the server has approved no site '{unknown[0]}', approved are: {known}")
    return sites


def is_app_run(folder: Path) -> bool:
    """Tell whether a run's folder is that of an app."""
    return (folder / CONTENT).is_file()


def follow_app(folder: Path, home: ServerHome, say: Callable[[str], None]) -> None:
    """Say what happens in a run, line by line, until it ends.

    Raises:
        ConsiliumError: what ended the run, or that the server is gone for good.
        KeyboardInterrupt: Ctrl-C; the run goes on.
    """
    follow_events(RunFolder(folder), _Lines(say), home, vocabulary=APP_EVENTS)


class _Lines:
    """Shows events as lines; a run in which nothing happens says so once."""

    _QUIET_SECONDS = 10.0

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._quiet_since = say, time.monotonic()
        self._problems: set[str] = set()

    def show(self, event: RunEvent) -> None:
        """Say one event."""
        self._quiet_since = time.monotonic()
        match event:
            case MessagesAsked():
                group = f" of round {event.group}" if event.group else ""
                self._say(
                    f"{event.type}{group}: {event.answered} of {event.messages} answered in {event.seconds:.2f} s"
                )
                for problem in event.problems:
                    if problem not in self._problems:  # once, and not in each round
                        self._problems.add(problem)
                        self._say(f"  {problem}")
            case RunFinished():
                self._say(f"finished after {event.seconds:.1f} s")

    def tick(self) -> None:
        """Say that nothing happens, when that is so for a while."""
        if time.monotonic() - self._quiet_since > self._QUIET_SECONDS:
            self._quiet_since = float("inf")
            self._say(f"nothing has happened for {self._QUIET_SECONDS:g} s; what the app waits for is in its {LOG}")
