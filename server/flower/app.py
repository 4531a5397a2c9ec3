"""Runs the ServerApp of a Flower app over the wire, unchanged; its output goes to the run's own log."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp
from flwr.supercore.logger import update_console_handler
from flwr.supercore.task_identity import TaskIdentity

from consilium.common.errors import ConfigError, ConsiliumError, RunFailed, StateError, clean
from consilium.common.events.log import EventLog
from consilium.common.events.run import APP_EVENTS, AppStarted, RunFailure, RunFinished
from consilium.common.flower.app import FlowerApp, unpack_app, write_app
from consilium.common.flower.code import load_component
from consilium.common.protocol.flower_orders import SERVER_NODE, run_number
from consilium.server.flower.grid import FlowerGrid, Mission
from consilium.server.study.run_folder import RunFolder
from consilium.server.wire.outbox import Outbox, Signer
from consilium.server.wire.run_link import ORPHANED, RunLink

log = logging.getLogger(__name__)

CODE, CONTENT, LOG, FILES = "app", "app.bin", "run.log", "files"
"""In a run's folder: the app's files, the same in one piece, its printed output, and the files that it writes."""


def run_app(link: RunLink, payloads: Path, signer: Signer, job: dict[str, Any]) -> None:
    """Run an app from its start to its end; the events in the run's folder record how it went.

    Args:
        job: `folder`, `app` (the digest), `config`, and where they are set `sites` and `most_bytes`.

    Raises:
        ConsiliumError: the reason why it ended; the last event says the same.
        SystemExit: the server has ended.
    """
    folder, began = RunFolder(Path(job["folder"])), time.monotonic()
    records = EventLog(folder.events)
    try:
        if any(isinstance(event, AppStarted) for event in records.read(APP_EVENTS)):
            raise RunFailed("it was cut off, and what the app had done by then is not known here; start it again")
        app = _app(folder.path, job["app"])
        _print_to(folder.path / LOG)
        records.log(AppStarted(app=app.name, digest=app.digest, sites=job.get("sites"), config=dict(job["config"])))
        _run(link, payloads, signer, job, app, folder)
    except ConsiliumError as error:
        log.error("run failed error=%s message=%s", type(error).__name__, error)
        records.log(RunFailure(error=type(error).__name__, message=clean(str(error))))
        raise
    records.log(RunFinished(seconds=round(time.monotonic() - began, 3)))


def _run(link: RunLink, payloads: Path, signer: Signer, job: dict[str, Any], app: FlowerApp, folder: RunFolder) -> None:
    """Load the ServerApp and call it.

    Raises:
        RunFailed: it raised something.
        ConfigError: there is no ServerApp at the place that the project names.
    """
    sites = frozenset(job["sites"]) if job.get("sites") else None
    mission = Mission(signer.run, app.digest, app.content, job["config"], sites, job.get("most_bytes"))
    grid = FlowerGrid(link, Outbox(payloads, signer), mission, EventLog(folder.events).log)
    number = run_number(signer.run)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, number, SERVER_NODE
    context = Context(number, SERVER_NODE, {}, RecordDict(), dict(job["config"]))
    (folder.path / FILES).mkdir(exist_ok=True)
    os.chdir(folder.path / FILES)  # for files that the app writes to relative paths
    try:
        component = load_component(folder.path / CODE, app.components["serverapp"])
        if not isinstance(component, ServerApp):
            raise ConfigError(f"'{app.components['serverapp']}' is a {type(component).__name__}, expected a ServerApp")
        component(grid, context)
    except SystemExit as error:
        if error.code == ORPHANED:
            raise
        if error.code not in (0, None):
            raise RunFailed(f"the ServerApp of '{app.name}' ended itself with {clean(repr(error.code), 80)}") from error
    except ConsiliumError:
        raise
    except Exception as error:
        log.exception("the ServerApp failed")
        what = f"{type(error).__name__}: {clean(str(error), 300)}"
        raise RunFailed(
            f"the ServerApp of '{app.name}' failed with {what} ({LOG} in the run's folder says more)"
        ) from error


def _app(folder: Path, digest: str) -> FlowerApp:
    """Return the app that was submitted, with its files written out.

    Raises:
        ConfigError: it is no app, or not the one that was submitted.
    """
    try:
        content = (folder / CONTENT).read_bytes()
    except OSError as error:
        raise StateError(f"cannot read '{folder / CONTENT}': {error.strerror or error}") from error
    app = unpack_app(content, who=f"'{folder / CONTENT}'")
    if app.digest != digest:
        raise ConfigError(f"'{folder / CONTENT}' is not the app that was submitted: its digest is {app.digest}")
    write_app(app, folder / CODE)
    return app


def _print_to(path: Path) -> None:
    """Send everything that this process prints and logs to a file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise StateError(f"cannot write '{path}': {error.strerror or error}") from error
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
    logging.getLogger("flwr").setLevel(logging.INFO)
    logging.getLogger("flwr").propagate = False
    update_console_handler(level=logging.INFO, timestamps=True, colored=False)
