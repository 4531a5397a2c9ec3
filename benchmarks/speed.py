"""Rounds of ours and of a stock Flower deployment side by side, on this machine; writes results/speed.csv.

    python benchmarks/speed.py [--only NAME ...] [--skip-stock]

Ours: `consilium server start` and one `consilium site start` per site, gRPC with TLS and node keys, a round as it is
(evaluate what was received, train, evaluate what is served, the local-only baseline, personal state on disk). Stock:
flwr's SuperLink and SuperNodes without TLS and keys (to its advantage), `benchmarks/stock_app`, one train and one
evaluate message per round; "tuned" sets the one polling interval that flwr takes from outside.
"""

import argparse
import csv
import io
import itertools
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from common.config import NumberColumn, StudyConfig, TableTask, parse_study
from common.processes import free_port
from consilium.local import running_server, running_sites, wait_for_server
from consilium.run import run_study
from consilium.scenario import make_sites
from consilium.sources import Federation
from consilium.view import View
from server.control import Control
from server.superlink import ServerHome, stop_processes

RESULTS = Path(__file__).parent / "results" / "speed.csv"
FIELDS = ("work", "unit", "ours", "ours_p95", "stock", "stock_tuned", "limit")
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Deployment:
    """A running server with its sites."""

    home: ServerHome
    folder: Path
    task: TableTask
    sites: tuple[str, ...]


@contextmanager
def deployment(num_sites: int) -> Iterator[Deployment]:
    """Start a server and sites with 60 rows of one column each, and wait until all are connected."""
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        folder = Path(name)
        task = TableTask(classes=("no", "yes"), label="ill", columns={"dose": NumberColumn()})
        data = {f"site{i}": _write_patients(folder / "data" / f"site{i}") for i in range(num_sites)}
        home, address = ServerHome(folder / "server"), f"localhost:{free_port()}"
        with running_server(home, address, folder) as server:
            sites = make_sites(folder / "sites", Federation(task, data, "table", "speed"), address, home.ca, None)
            wait_for_server(home, server, folder)
            with Control(home) as control:
                for site, path in sites.items():
                    control.approve(path.parent / "site.key.pub", name=site)
            with running_sites(sites):
                yield Deployment(home, folder, task, tuple(sites))


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


def stock_rounds(num_sites: int, *, rounds: int, megabytes: float = 0.0, evaluate: bool = True, tuned: bool) -> float:
    """Return the median seconds per round of a stock deployment."""
    with tempfile.TemporaryDirectory(prefix="stock-") as name:
        folder = Path(name)
        app = folder / "app"
        shutil.copytree(Path(__file__).parent / "stock_app", app)
        control, fleet = free_port(), free_port()
        home = folder / "flwr"
        home.mkdir()
        here = f'address = "127.0.0.1:{control}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n\n[superlink.here]\n{here}')
        environment = {**os.environ, **QUIET, "FLWR_HOME": str(home)}
        if tuned:
            environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "0.01"
        bins = Path(sys.executable).parent
        with (folder / "log").open("ab") as log:

            def start(*command: str) -> "subprocess.Popen[bytes]":
                return subprocess.Popen(
                    [str(bins / command[0]), *command[1:]],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

            processes = [
                start(
                    *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
                    *("--port", str(control), "--fleet-api-address", f"127.0.0.1:{fleet}"),
                )
            ]
            try:
                time.sleep(5)
                for _ in range(num_sites):
                    port = str(free_port())
                    processes.append(
                        start("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{fleet}", "--port", port)
                    )
                times = folder / "times"
                settings = f"rounds={rounds} sites={num_sites} megabytes={megabytes} times='{times}'"
                settings += f" train={str(evaluate).lower()}"
                time.sleep(3)
                done = subprocess.run(
                    [str(bins / "flwr"), "run", str(app), "here", "--stream", "--run-config", settings],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=900,
                    check=False,
                )
                if not times.exists():
                    raise RuntimeError(f"the stock run failed: {done.stdout[-2000:]} {done.stderr[-2000:]}")
                stamps = [float(line.split()[1]) for line in times.read_text().splitlines()]
            finally:
                stop_processes(processes)
    if len(stamps) < rounds + 1:
        raise RuntimeError(f"the stock run ended after {len(stamps) - 1} of {rounds} rounds")
    return statistics.median(after - before for before, after in itertools.pairwise(stamps[1:]))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--skip-stock", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    rows: list[dict[str, Any]] = []
    for name, measure in MEASURES.items():
        if not arguments.only or name in arguments.only:
            rows.extend(measure(not arguments.skip_stock))
            show(rows)
    if not arguments.only and not arguments.skip_stock:
        with RESULTS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table so far."""
    table = Table(*FIELDS)
    for row in rows:
        cells = (row.get(name, "") for name in FIELDS)
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=150).print(table)


def empty_rounds(with_stock: bool) -> list[dict[str, Any]]:
    """Rounds in which nobody computes, 2 and 8 sites, and the start of a study at warm sites."""
    rows = []
    for sites in (2, 8):
        with deployment(sites) as where:
            run_ours(where, study(where, "warm-up", rounds=2))
            began = time.time()
            events = run_ours(where, study(where, "empty"))
            seconds = round_seconds(events)
            asked = next(event for event in events if event["event"] == "asked")
            start = datetime.fromisoformat(asked["time"]).timestamp() - began
        row = {"work": f"empty round, {sites} sites", "unit": "s", "limit": 0.005, **of(seconds)}
        if with_stock and sites == 2:
            row["stock"] = stock_rounds(2, rounds=5, tuned=False)
            row["stock_tuned"] = stock_rounds(2, rounds=5, tuned=True)
        rows.append(row)
        if sites == 2:
            rows.append({"work": "study start to first plan, warm sites", "unit": "s", "ours": start, "limit": 0.01})
    return rows


def large_rounds(with_stock: bool) -> list[dict[str, Any]]:
    """100 MB of shared weights, two sites, next to nothing to train."""
    with deployment(2) as where:
        hidden = [5000, 4999]
        config = study(where, "large", rounds=6, model={"name": "mlp", "hidden": hidden}, round_timeout_seconds=300)
        seconds = round_seconds(run_ours(where, config))
    row = {"work": "100 MB of shared weights, 2 sites", "unit": "s", "limit": 0.45, **of(seconds)}
    if with_stock:
        row["stock"] = stock_rounds(2, rounds=4, megabytes=100, evaluate=False, tuned=False)
        row["stock_tuned"] = stock_rounds(2, rounds=4, megabytes=100, evaluate=False, tuned=True)
    return [row]


def of(seconds: list[float]) -> dict[str, float]:
    """Return median and 95th percentile."""
    return {"ours": float(np.median(seconds)), "ours_p95": float(np.quantile(seconds, 0.95))}


MEASURES = {"empty": empty_rounds, "large": large_rounds}

if __name__ == "__main__":
    main()
