"""A server of ours with its sites, as processes on this machine, and studies in which hardly anything is computed."""

import io
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from consilium.common.host.parents import stop_processes
from consilium.common.host.ports import free_port
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import NumberColumn, TableTask
from consilium.data.federation import Federation
from consilium.demo.processes import running_server, running_sites, wait_for_server
from consilium.demo.scenario import certify, make_sites
from consilium.running.live_view import View
from consilium.running.run import run_study
from consilium.server.operations.home import ServerHome
from consilium.server.wire.submission import Control


@dataclass(frozen=True)
class Deployment:
    """A running server with its sites."""

    home: ServerHome
    folder: Path
    task: TableTask
    sites: tuple[str, ...]


@contextmanager
def deployment(num_sites: int, *, echo_megabytes: int | None = None) -> Iterator[Deployment]:
    """Start a server and sites with 60 rows of one column each, or sites that send back what comes."""
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        folder = Path(name)
        task = TableTask(classes=("no", "yes"), label="ill", columns={"dose": NumberColumn()})
        data = {f"site{i}": _write_patients(folder / "data" / f"site{i}") for i in range(num_sites)}
        home, address = ServerHome(folder / "server"), f"localhost:{free_port()}"
        with running_server(home, address, folder) as server:
            sites = make_sites(folder / "sites", Federation(task, data, "table", "speed"), address, None)
            wait_for_server(home, server, folder)
            with Control(home) as control:
                certify(sites, home, lambda request, name: control.approve(request, name=name))
            running = running_sites(sites) if echo_megabytes is None else echoing_sites(sites, echo_megabytes)
            with running:
                yield Deployment(home, folder, task, tuple(sites))


@contextmanager
def echoing_sites(sites: Mapping[str, Path], megabytes: int) -> Iterator[None]:
    """Start sites that send back what comes."""
    script = str(Path(__file__).parents[1] / "echo_site.py")
    started: list[subprocess.Popen[bytes]] = []
    try:
        for path in sites.values():
            with (path.parent / "site.log").open("ab") as log:
                command = [sys.executable, script, str(path), str(megabytes)]
                started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        yield
    finally:
        stop_processes(started)


def _write_patients(folder: Path) -> Path:
    rows = [f"{index % 7},{'yes' if index % 7 > 3 else 'no'}" for index in range(60)]
    folder.mkdir(parents=True)
    (folder / "patients.csv").write_text("\n".join(["dose,ill", *rows]) + "\n", encoding="utf-8")
    return folder


def study(where: Deployment, name: str, **changes: Any) -> StudyConfig:
    """Return a study in which hardly anything is computed: one step of logistic regression."""
    values: dict[str, Any] = {
        "name": name,
        "sites": list(where.sites),
        "rounds": 22,
        "task": where.task.model_dump(),
        "model": {"name": "linear"},
        "training": {"steps": 1, "batch_size": 32},
    }
    return parse_study(values | changes, source="benchmark")


def run_ours(where: Deployment, config: StudyConfig) -> list[dict[str, Any]]:
    """Run a study and return its events."""
    folder = where.folder / "runs" / config.name
    run_study(config, where.home, folder, View(Console(file=io.StringIO()), title=config.name))
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def round_seconds(events: list[dict[str, Any]]) -> list[float]:
    """Return the seconds from one checkpoint to the next: everything that a round takes, but the first two rounds."""
    times = [datetime.fromisoformat(event["time"]).timestamp() for event in events if event["event"] == "checkpoint"]
    return [after - before for before, after in itertools.pairwise(times[1:])]
