"""Many featherweight sites against one deployed server: seconds, processor time and memory; writes results/fleet.csv.

    python benchmarks/fleet.py [N ...] [--rounds R]

All N sites attend from one asyncio process, each with a key, a certificate, a TLS connection and the real connection
code of a site (`client/wire/connection.py`); they compute nothing and check nothing (`echo_site.Echo`). The server is
`consilium server start`, the study is run as `consilium run` does. Server and sites share this machine's cores.
"""

import argparse
import asyncio
import contextlib
import csv
import io
import itertools
import json
import logging
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from echo_site import Echo
from measuring.processes import cpu_seconds
from rich.console import Console

from consilium.client.process.shared_memory import Box
from consilium.client.wire.connection import Connection
from consilium.client.wire.place import Place
from consilium.common.host.keys import make_site_key
from consilium.common.host.ports import free_port
from consilium.common.host.signing_requests import make_signing_request, read_signing_request
from consilium.common.study.load import parse_study
from consilium.demo.processes import running_server, wait_for_server
from consilium.running.live_view import View
from consilium.running.run import run_study
from consilium.server.operations.home import ServerHome
from consilium.server.wire.registry import Registry
from consilium.server.wire.submission import Control

RESULTS = Path(__file__).parent / "results" / "fleet.csv"
FIELDS = (
    "sites",
    "approve_seconds",
    "connect_seconds",
    "round_seconds",
    "round_p95_seconds",
    "server_cpu_seconds_per_round",
    "run_cpu_seconds_per_round",
    "server_idle_mb",
    "server_peak_mb",
    "server_threads",
    "server_idle_cpu_percent",
)
CONNECTING = 50
"""How many sites connect at a time."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sites", nargs="*", type=int, default=[1, 8, 64, 256, 1000])
    parser.add_argument("--rounds", type=int, default=12, help="0: only connect and wait")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds to watch the waiting server")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = []
    for number in arguments.sites:
        rows.append(measure(number, rounds=arguments.rounds, idle=arguments.idle))
        print(json.dumps(rows[-1]), flush=True)
    write(rows)


def write(rows: list[dict[str, Any]]) -> None:
    """Write rows to the results, in place of those of as many sites."""
    before: dict[str, dict[str, Any]] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            before = {row["sites"]: row for row in csv.DictReader(file)}
    merged = before | {str(row["sites"]): row for row in rows}
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(merged.values(), key=lambda row: int(row["sites"])))


def measure(number: int, *, rounds: int, idle: float) -> dict[str, Any]:
    """Return the row of so many sites."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        folder = Path(name)
        home, address = ServerHome(folder / "server"), f"localhost:{free_port()}"
        home.prepare(["localhost", "127.0.0.1"])
        row: dict[str, Any] = {"sites": number}
        began = time.monotonic()
        places = approve(home, folder / "sites", address, [f"site{index:05d}" for index in range(number)])
        row["approve_seconds"] = round(time.monotonic() - began, 2)
        with running_server(home, address, folder) as server:
            wait_for_server(home, server, folder)
            time.sleep(3)  # its spare process imports
            with fleet(places) as connected:
                began = time.monotonic()
                connected.wait()
                wait_until_online(home, number)
                row["connect_seconds"] = round(time.monotonic() - began, 2)
                pid = home.address().pid
                before, since = cpu_seconds([pid]), time.monotonic()
                time.sleep(idle)
                used = cpu_seconds([pid]) - before
                row["server_idle_cpu_percent"] = round(100 * used / (time.monotonic() - since), 2)
                row["server_idle_mb"] = round(memory_mb(pid, "VmRSS"))
                if rounds:
                    row |= run_rounds(home, folder, places, rounds, pid)
                row["server_peak_mb"] = round(memory_mb(pid, "VmHWM"))
                row["server_threads"] = len(list(Path(f"/proc/{pid}/task").iterdir()))
        return row


def approve(home: ServerHome, folder: Path, address: str, names: Sequence[str]) -> list[Place]:
    """Make keys and certificates of all sites, before the server starts."""
    registry = Registry(home.path)
    registry._commit = registry._take  # type: ignore[method-assign]  # the file once, not once per site
    places = []
    for site in names:
        where = folder / site
        where.mkdir(parents=True)
        make_site_key(where / "site.key", comment=site)
        request = read_signing_request(make_signing_request(where / "site.key", name=site))
        (where / "site.pem").write_bytes(registry.approve(request, name=site))
        places.append(
            Place(
                name=site,
                server=address,
                authorities=home.ca,
                certificate=where / "site.pem",
                key=where / "site.key",
                study_key=home.study_public,
                settings=where / "site.toml",
                log=where / "events.jsonl",
            )
        )
    Registry._commit(registry, registry._entries)
    return places


@contextmanager
def fleet(places: list[Place], kind: type[Echo] = Echo) -> Iterator[threading.Event]:
    """Have all sites attend from a thread of this process; yields what is set when all are connected."""
    connected, stop = threading.Event(), threading.Event()

    async def attend_all() -> None:
        box = Box()
        sites = [Connection(place, kind(box, 0, study_key=None, site=place.name)) for place in places]
        tasks = []
        for batch in itertools.batched(sites, CONNECTING) if hasattr(itertools, "batched") else _batches(sites):
            tasks += [asyncio.ensure_future(site.run()) for site in batch]
            while not all(site.is_connected for site in batch):
                await asyncio.sleep(0.005)
        connected.set()
        while not stop.is_set():
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(attend_all()), name="fleet")
    thread.start()
    try:
        yield connected
    finally:
        stop.set()
        thread.join()


def _batches(sites: list[Connection]) -> Iterator[list[Connection]]:
    for start in range(0, len(sites), CONNECTING):
        yield sites[start : start + CONNECTING]


def wait_until_online(home: ServerHome, number: int) -> None:
    """Wait until the server sees all of them."""
    with Control(home) as control:
        while sum(status == "online" for status in control.sites().values()) < number:
            time.sleep(0.1)


def run_rounds(home: ServerHome, folder: Path, places: list[Place], rounds: int, pid: int) -> dict[str, Any]:
    """Run a study of empty rounds."""
    study = parse_study(
        {
            "name": "fleet",
            "sites": [place.name for place in places],
            "rounds": rounds,
            "task": {
                "kind": "table",
                "classes": ["no", "yes"],
                "label": "ill",
                "columns": {"dose": {"kind": "number"}},
            },
            "model": {"name": "linear"},
            "training": {"steps": 1, "batch_size": 32},
        },
        source="benchmark",
    )
    before = cpu_seconds([pid])
    with watching_run(pid) as seen:
        run_study(study, home, folder / "runs" / "fleet", View(Console(file=io.StringIO()), title="fleet"))
    lines = (folder / "runs" / "fleet" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    stamps = [
        datetime.fromisoformat(event["time"]).timestamp()
        for event in map(json.loads, lines)
        if event["event"] == "checkpoint"
    ]
    seconds = [after - earlier for earlier, after in itertools.pairwise(stamps[1:])]
    return {
        "round_seconds": round(statistics.median(seconds), 4),
        "round_p95_seconds": round(sorted(seconds)[int(0.95 * (len(seconds) - 1))], 4),
        "server_cpu_seconds_per_round": round((cpu_seconds([pid]) - before) / rounds, 4),
        "run_cpu_seconds_per_round": round(max(seen.values(), default=0.0) / rounds, 4),
    }


@contextmanager
def watching_run(pid: int) -> Iterator[Mapping[int, float]]:
    """Note the processor time that each of the server's child processes has taken since now."""
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.1):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                with contextlib.suppress(OSError):
                    used = cpu_seconds([int(child)])
                    first.setdefault(int(child), used)
                    last[int(child)] = used - first[int(child)]

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield last
    finally:
        stopped.set()
        thread.join()


def memory_mb(pid: int, which: str) -> float:
    """Return a size of a process from the kernel's status, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(which))


if __name__ == "__main__":
    main()
