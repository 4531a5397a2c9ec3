"""A thousand featherweight sites behind relays against the same sites at one server; writes results/relays.csv.

    python benchmarks/relays.py [--relays 10] [--sites 100] [--rounds 12]

All sites attend from one asyncio process over gRPC and TLS, as in `fleet.py`, each at its own relay, which is a process
of `consilium relay start`. Each sends an update of its own (`Told`), so that the final weights say whether a sum was
lost: `largest_difference` is that from the weights of the same sites in a study without relays, run first on the same
machine. Server, relays and sites share its cores.
"""

import argparse
import csv
import io
import json
import logging
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from echo_site import Echo
from fleet import approve, fleet, memory_mb, wait_until_online
from measuring.processes import cpu_seconds
from rich.console import Console
from safetensors.numpy import load_file

from consilium.client.process.channels import Parcel
from consilium.client.wire.place import Place
from consilium.common.codecs import Identity
from consilium.common.host.ports import free_port
from consilium.common.study.load import parse_study, study_text
from consilium.demo.processes import running_server, wait_for_server
from consilium.relay.folder import RelayFolder, accept_relay_bundle, init_relay, load_relay
from consilium.running.live_view import View
from consilium.running.run import run_study
from consilium.server.operations.bundles import make_bundle
from consilium.server.operations.home import ServerHome
from consilium.server.wire.submission import Control

RESULTS = Path(__file__).parent / "results" / "relays.csv"
FIELDS = (
    *("relays", "sites_per_relay", "connect_seconds", "round_seconds", "round_p95_seconds", "bytes_up_per_round"),
    *("server_cpu_seconds_per_round", "relay_cpu_seconds_per_round", "server_peak_mb", "relay_peak_mb"),
    "largest_difference",
)


class Told(Echo):
    """A site whose update is a number of its own in every element, so that no sum of others equals it."""

    async def answer(self, order: Parcel, *, seconds: float) -> Parcel:
        """Answer one order."""
        answer = await super().answer(order, seconds=seconds)
        if not order.payload or json.loads(answer.content)["kind"] != "round":
            return answer
        weights, number = Identity().decode(answer.payload), int(self._site.removeprefix("site"))
        delta = {name: np.full_like(array, 1e-3 * (1 + number)) for name, array in weights.items()}
        return replace(answer, payload=Identity().encode(delta))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--relays", type=int, default=10)
    parser.add_argument("--sites", type=int, default=100, help="of each relay")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    spawn, parts = multiprocessing.get_context("spawn"), (arguments.relays, arguments.sites)
    with tempfile.TemporaryDirectory(prefix="relays-") as name:
        studies = {"flat": (0, parts[0] * parts[1]), "relayed": parts}
        jobs = [(Path(name) / which, *study, arguments.rounds) for which, study in studies.items()]
        with spawn.Pool(1, maxtasksperchild=1) as pool:  # gRPC is not made for one loop after another in a process
            (flat, weights), (relayed, others) = pool.starmap(measure, jobs, chunksize=1)
    differences = [float(np.abs(weights[one] - others[one]).max()) for one in weights]
    relayed["largest_difference"] = f"{max(differences):.1e}"
    for row in (flat, relayed):
        print(json.dumps(row), flush=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([flat, relayed])


def measure(folder: Path, relays: int, sites: int, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the row of a study through so many relays, none for a flat one, and its final weights.

    Args:
        sites: of each relay, or of the flat study.
    """
    logging.disable(logging.INFO)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder.mkdir()
    names = [f"site{number:05d}" for number in range(max(1, relays) * sites)]
    parts = {f"relay{index}": names[index * sites : (index + 1) * sites] for index in range(relays)}
    study = parse_study(
        {
            "name": "relays",
            "sites": names,
            "relays": parts,
            "rounds": rounds,
            "round_timeout_seconds": 60,
            "pause_limit_seconds": 30,
            "defence": {"norm": {"kind": "off"}, "undo": False},
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
    (folder / "study.toml").write_text(study_text(study), encoding="utf-8")
    home, address = ServerHome(folder / "server"), f"localhost:{free_port()}"
    home.prepare(["localhost", "127.0.0.1"])
    row: dict[str, Any] = {"relays": relays, "sites_per_relay": sites}
    places = [] if relays else approve(home, folder / "sites", address, names)
    with ExitStack() as stack:
        server = stack.enter_context(running_server(home, address, folder))
        wait_for_server(home, server, folder)
        homes, pids = [home], [home.address().pid]
        for name, leaves in parts.items():
            below, more = stack.enter_context(running_relay(home, address, folder, name, leaves))
            homes, pids, places = [*homes, below], [*pids, below.address().pid], [*places, *more]
        connected = stack.enter_context(fleet(places, Told))
        began = time.monotonic()
        connected.wait()
        for one in homes[1:] or homes:
            wait_until_online(one, sites)
        wait_until_online(home, len(parts) or sites)
        row["connect_seconds"] = round(time.monotonic() - began, 2)
        groups = [pids[:1], *map(with_children, pids[1:])]
        before = [cpu_seconds(group) for group in groups]
        run = folder / "runs" / "relays"
        run_study(study, home, run, View(Console(file=io.StringIO()), title="relays"))
        used = [cpu_seconds(group) - since for group, since in zip(groups, before, strict=True)]
        row |= rounds_of(run)
        row["server_cpu_seconds_per_round"] = round(used[0] / rounds, 4)
        row["server_peak_mb"] = round(memory_mb(pids[0], "VmHWM"))
        if relays:
            row["relay_cpu_seconds_per_round"] = round(max(used[1:]) / rounds, 4)
            row["relay_peak_mb"] = round(max(memory_mb(pid, "VmHWM") for pid in pids[1:]))
    return row, load_file(run / "model" / "weights.safetensors")


def with_children(pid: int) -> list[int]:
    """Return a relay's process and its child, the one that computes."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())]


def rounds_of(run: Path) -> dict[str, Any]:
    """Return how long a run's rounds took, but for the first, and how much came up in one."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    stamps = [datetime.fromisoformat(one["time"]).timestamp() for one in events if one["event"] == "checkpoint"]
    seconds = [after - earlier for earlier, after in pairwise(stamps)]
    return {
        "round_seconds": round(statistics.median(seconds), 4),
        "round_p95_seconds": round(sorted(seconds)[int(0.95 * (len(seconds) - 1))], 4),
        "bytes_up_per_round": max(one["bytes_up"] for one in events if one["event"] == "round"),
    }


@contextmanager
def running_relay(
    server: ServerHome, address: str, folder: Path, name: str, leaves: list[str]
) -> Iterator[tuple[ServerHome, list[Place]]]:
    """Enrol a relay and its sites, and run it; yields its home and the sites."""
    relay, port = RelayFolder(folder / name), free_port()
    init_relay(relay, name=name, server=address)
    with Control(server) as control:
        certificate = control.approve(relay.path / "relay.csr", name=name)
    bundle = make_bundle(server, certificate, name=name, address=address, study=folder / "study.toml")
    (folder / f"{name}.json").write_bytes(bundle.to_json())
    accept_relay_bundle(relay, folder / f"{name}.json")
    home = ServerHome(load_relay(relay.settings).home)
    home.prepare(["localhost", "127.0.0.1"])
    places = approve(home, relay.path / "sites", f"localhost:{port}", leaves)
    command = [sys.executable, "-P", "-m", "consilium", "relay", "start", "--folder", str(relay.path)]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([*command, "--address", f"127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT)
    try:
        while not (home.path / "server.json").exists():
            if process.poll() is not None:
                raise SystemExit((folder / f"{name}.log").read_text(encoding="utf-8"))
            time.sleep(0.1)
        yield home, places
    finally:
        process.terminate()
        process.wait(timeout=60)


if __name__ == "__main__":
    main()
