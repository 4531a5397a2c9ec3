"""Rounds of ours and of a stock Flower deployment side by side, on this machine; writes results/speed.csv.

    python benchmarks/speed.py [--only NAME ...] [--stock PYTHON] [--before DIR] [--data DIR]

Ours: `consilium server start` and one `consilium site start` per site, gRPC with certificates on both sides, a round
as it is (evaluate what was received, train, evaluate what is served, the local-only baseline, personal state on disk).
Stock (`--stock`, the python of an environment with flwr 1.39.0, the last release with gRPC at both ends): flwr's
SuperLink and SuperNodes without TLS and keys (to its advantage), `benchmarks/stock_app`, one train and one evaluate
message per round; "tuned" sets the one polling interval that flwr takes from outside. Before (`--before`, a checkout of
an earlier commit with its own .venv): the same function of that commit's own `benchmarks/speed.py`, in the same run.
Where nothing is to be trained, `echo_site.py` answers in place of the worker with torch, as the stock app does.
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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from heart_disease import site_files
from heart_disease import study as heart_study
from rich.console import Console
from rich.table import Table

from client.flower.approved import approve
from common.flower.app import read_app
from common.host.files import scratch
from common.host.parents import stop_processes
from common.host.ports import free_port
from common.study.load import parse_study
from common.study.methods import FedAvgMethod
from common.study.study import StudyConfig
from common.study.task import NumberColumn, TableTask
from common.weights.arithmetic import weighted_mean
from consilium.data.sources import Federation, heart_disease_hospitals
from consilium.demo.processes import running_server, running_sites, wait_for_server
from consilium.demo.scenario import certify, make_sites
from consilium.running.flower_app import AppOptions, follow_app, submit_app
from consilium.running.in_process import run_in_process
from consilium.running.live_view import View
from consilium.running.run import run_study
from server.operations.home import ServerHome
from server.wire.submission import Control

Row = dict[str, Any]
MEGABYTES, ROUNDS = 100, 23
RESULTS = Path(__file__).parent / "results" / "speed.csv"
FIELDS = ("work", "unit", "ours", "ours_p95", "before", "stock", "stock_tuned", "limit")
ROOT = Path(__file__).resolve().parents[1]
STOCK_APP = ROOT / "benchmarks" / "stock_app"
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}


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
    script = str(Path(__file__).parent / "echo_site.py")
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


def stock_rounds(
    python: Path, num_sites: int, *, rounds: int, megabytes: float = 0.0, evaluate: bool = True, tuned: bool
) -> float:
    """Return the median seconds per round of a stock deployment that runs `stock_app`.

    Args:
        python: of an environment with flwr 1.39.0 and torch.
    """
    with stock_deployment(python, num_sites, tuned=tuned) as stock:
        times = stock.folder / "times"
        settings = f"rounds={rounds} sites={num_sites} megabytes={megabytes} times='{times}'"
        stock.run(STOCK_APP, f"{settings} train={str(evaluate).lower()}")
        stamps = [float(line.split()[1]) for line in times.read_text().splitlines()] if times.exists() else []
    if len(stamps) < rounds + 1:
        raise RuntimeError(f"the stock run ended after {len(stamps) - 1} of {rounds} rounds")
    return statistics.median(after - before for before, after in itertools.pairwise(stamps[1:]))


@dataclass(frozen=True)
class Stock:
    """flwr's own SuperLink with its SuperNodes."""

    folder: Path
    programs: Path
    environment: Mapping[str, str]

    def run(self, app: Path, settings: str) -> float:
        """Run an app to its end; return the seconds."""
        copy = Path(tempfile.mkdtemp(dir=self.folder)) / app.name
        shutil.copytree(app, copy, ignore=shutil.ignore_patterns("__pycache__"))
        began = time.monotonic()
        done = subprocess.run(
            [str(self.programs / "flwr"), "run", str(copy), "here", "--stream", "--run-config", settings],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the stock run failed: {done.stdout[-2000:]} {done.stderr[-2000:]}")
        return time.monotonic() - began


@contextmanager
def stock_deployment(python: Path, num_sites: int, *, tuned: bool) -> Iterator[Stock]:
    """Start a SuperLink and SuperNodes, and stop them at the end."""
    with tempfile.TemporaryDirectory(prefix="stock-") as name:
        folder = Path(name)
        control, fleet = free_port(), free_port()
        home = folder / "flwr"
        home.mkdir()
        here = f'address = "127.0.0.1:{control}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n\n[superlink.here]\n{here}')
        programs = python.parent  # flwr starts its own programs by name
        path = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        environment = {**os.environ, **QUIET, "FLWR_HOME": str(home), "PATH": path}
        if tuned:
            environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "0.01"
        started: list[subprocess.Popen[bytes]] = []
        with (folder / "log").open("ab") as log:

            def start(*command: str) -> None:
                started.append(
                    subprocess.Popen(
                        [str(programs / command[0]), *command[1:]],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

            try:
                start(
                    *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
                    *("--port", str(control), "--fleet-api-address", f"127.0.0.1:{fleet}"),
                )
                time.sleep(5)
                for _ in range(num_sites):
                    address = ("--superlink", f"127.0.0.1:{fleet}", "--port", str(free_port()))
                    start("flower-supernode", "--insecure", *address)
                time.sleep(3)
                yield Stock(folder, programs, environment)
            finally:
                stop_processes(started)


@dataclass(frozen=True)
class Peers:
    """Beside whom it is measured; None where not.

    Args:
        stock: the python of an environment with flwr 1.39.0.
        before: a checkout of an earlier commit, with `.venv`.
    """

    stock: Path | None = None
    before: Path | None = None
    data: Path | None = None

    def rows_before(self, function: str) -> dict[str, Row]:
        """Return what the earlier commit's own function of this name measures now, by the name of the work."""
        if self.before is None:
            return {}
        code = (
            "import sys, json, logging; sys.path.insert(0, 'benchmarks'); logging.disable(logging.INFO); import speed; "
            f"print(json.dumps(speed.{function}(False)))"
        )
        done = subprocess.run(
            [str(self.before / ".venv" / "bin" / "python"), "-c", code],
            cwd=self.before,
            env={**os.environ, **QUIET, "PYTHONPATH": ""},  # its own packages, not ours
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the earlier commit's {function} failed: {done.stderr[-2000:]}")
        return {row["work"]: row for row in json.loads(done.stdout.splitlines()[-1])}

    def beside(self, function: str, rows: list[Row]) -> list[Row]:
        """Return rows with the earlier commit's figures for the same work."""
        before = self.rows_before(function)
        return [row | ({"before": before[row["work"]]["ours"]} if row["work"] in before else {}) for row in rows]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--stock", type=Path, help="python of an environment with flwr 1.39.0")
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit, with its .venv")
    parser.add_argument("--data", type=Path, help="folder of UCI Heart Disease, for the rows of the simulation")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    peers = Peers(arguments.stock, arguments.before, arguments.data)
    for name, measure in MEASURES.items():
        if not arguments.only or name in arguments.only:
            rows = measure(peers)
            show(rows)
            write(rows)


def write(rows: list[Row]) -> None:
    """Write rows to the results, in place of those of the same work."""
    before: dict[str, Row] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            before = {row["work"]: row for row in csv.DictReader(file)}
    rounded = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    merged = before | {row["work"]: row for row in rounded}
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())


def show(rows: list[Row]) -> None:
    """Print the table so far."""
    table = Table(*FIELDS)
    for row in rows:
        cells = (row.get(name, "") for name in FIELDS)
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=150).print(table)


def empty_rounds(peers: Peers) -> list[Row]:
    """Rounds in which nobody computes, 2 and 8 sites, and the start of a study at warm sites."""
    rows: list[Row] = []
    for sites in (2, 8):
        with deployment(sites) as where:
            run_ours(where, study(where, "warm-up", rounds=2))
            time.sleep(5)  # a spare process for the next run is on its way
            began = time.time()
            events = run_ours(where, study(where, "empty"))
            seconds = round_seconds(events)
            asked = next(event for event in events if event["event"] == "asked")
            start = datetime.fromisoformat(asked["time"]).timestamp() - began
        row: Row = {"work": f"empty round, {sites} sites", "unit": "s", "limit": 0.005, **of(seconds)}
        if peers.stock and sites == 2:
            row["stock"] = stock_rounds(peers.stock, 2, rounds=5, tuned=False)
            row["stock_tuned"] = stock_rounds(peers.stock, 2, rounds=5, tuned=True)
        rows.append(row)
        if sites == 2:
            rows.append({"work": "study start to first plan, warm sites", "unit": "s", "ours": start, "limit": 0.01})
    return peers.beside("empty_rounds", rows)


def large_rounds(peers: Peers) -> list[Row]:
    """100 MB of shared weights, two sites: nothing to train, and a real site that takes one step."""
    with deployment(2, echo_megabytes=MEGABYTES) as where:
        config = study(where, "echo", rounds=ROUNDS, round_timeout_seconds=300)
        row: Row = {"work": "100 MB of shared weights, 2 sites, nothing to train", "unit": "s", "limit": 0.45}
        row |= of(round_seconds(run_ours(where, config)))
    if peers.stock:
        shape = {"rounds": 5, "megabytes": MEGABYTES, "evaluate": False}
        row["stock"] = stock_rounds(peers.stock, 2, **shape, tuned=False)
    with deployment(2) as where:
        model, training = {"name": "mlp", "hidden": [5000, 4999]}, {"steps": 1, "batch_size": 4}
        config = study(where, "large", rounds=ROUNDS, model=model, training=training, round_timeout_seconds=300)
        seconds = round_seconds(run_ours(where, config))
    whole: Row = {"work": "the same, a whole round of ours (1 step, baseline, state)", "unit": "s", **of(seconds)}
    return peers.beside("large_rounds", [row, whole])


def memory(peers: Peers) -> list[Row]:
    """The server's peak over its idle size, with a model of 100 MB; sites that send back what comes."""
    rows: list[Row] = []
    for sites in (2, 32, 64):
        with deployment(sites, echo_megabytes=MEGABYTES) as where:
            time.sleep(5)
            with watching(where.home) as seen:
                config = study(where, "memory", rounds=3, round_timeout_seconds=600)
                seconds = round_seconds(run_ours(where, config))
        for which, title in (("anonymous", "without"), ("resident", "with")):
            work = f"server's peak over idle, {sites} sites, {title} pages of files"
            rows.append({"work": work, "unit": "models", "ours": seen[which] / MEGABYTES, "limit": 1.0})
        rows.append({"work": f"the round of it, {sites} sites", "unit": "s", **of(seconds)})
    return peers.beside("memory", rows)


@contextmanager
def watching(home: ServerHome) -> Iterator[dict[str, float]]:
    """Watch the server's process and its runs; at the end, how far their memory was above its idle size, in MB."""
    found = {"anonymous": 0.0, "resident": 0.0}
    server = home.address().pid
    idle = [sum(sizes) for sizes in zip(*(memory_of(pid) or (0.0, 0.0) for pid in family(server)), strict=True)]
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.02):
            now = [memory_of(process) or (0.0, 0.0) for process in family(server)]
            for name, before, sizes in zip(found, idle, zip(*now, strict=True), strict=True):
                found[name] = max(found[name], sum(sizes) - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stopped.set()
        thread.join()


def family(process: int) -> list[int]:
    """Return a process and its children."""
    with suppress(OSError):
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [process, *map(int, children)]
    return [process]


def memory_of(process: int) -> tuple[float, float] | None:
    """Return a process's memory in MB: what is its own, and with pages of files; None when it is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in text.splitlines() if line.endswith("kB")}
    return sizes.get("RssAnon", 0.0) + sizes.get("RssShmem", 0.0), sizes.get("VmRSS", 0.0)


def flower_apps(peers: Peers) -> list[Row]:
    """Apps written for Flower, unmodified, two sites, on our wire and on flwr's runtime."""
    rows: list[Row] = []
    with deployment(2) as where, ExitStack() as stack:
        run_ours(where, study(where, "warm-up", rounds=2))
        stock = stack.enter_context(stock_deployment(peers.stock, 2, tuned=False)) if peers.stock else None
        for name, app, key in APPS:
            for site in where.sites:
                approve(where.folder / "sites" / site, read_app(app))
            row: Row = {"work": f"Flower app, empty round, 2 sites: {name}", "unit": "s", "limit": 0.005}
            row["ours"] = seconds_of_a_round(partial(run_app, where, app), where, key, rounds=62)
            if stock is not None:
                row["stock"] = seconds_of_a_round(partial(stock.run, app), where, key, rounds=4, times=1)
            rows.append(row)
    return rows


def run_app(where: Deployment, app: Path, settings: str) -> float:
    """Run an app at our server and sites; return the seconds."""
    began = time.monotonic()
    begun = submit_app(AppOptions(app, where.folder / "runs", run_config=settings), where.home)
    follow_app(begun.folder, where.home, lambda _: None)
    return time.monotonic() - began


def seconds_of_a_round(
    run: Callable[[str], float], where: Deployment, key: str, *, rounds: int, times: int = 3
) -> float:
    """Return the median seconds of a round where the app notes them, else what a round more takes.

    Args:
        times: how often a run is timed; the shortest counts. With more than one, sites have imported the app before.
    """
    if key == "rounds":
        notes = Path(tempfile.mkdtemp(dir=where.folder)) / "times"
        run(f"rounds={rounds} times='{notes}'")
        stamps = [float(line.split()[1]) for line in notes.read_text().splitlines()]
        return statistics.median(after - before for before, after in itertools.pairwise(stamps[1:]))
    few, many = (min(run(f"{key}={number}") for _ in range(times)) for number in (2, rounds))
    return (many - few) / (rounds - 2)


APPS = (
    ("benchmarks/stock_app", STOCK_APP, "rounds"),
    ("examples/flower_torch", ROOT / "examples" / "flower_torch", "num-server-rounds"),
    ("examples/flower_sklearn", ROOT / "examples" / "flower_sklearn", "num-server-rounds"),
)
"""Name, folder, and the setting that says how many rounds."""


def aggregation(peers: Peers) -> list[Row]:
    """The weighted mean of eight updates of 100 MB, on one core; stock: flwr's own over the same arrays."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    rng = np.random.default_rng(0)
    shape = (1000, 1000)
    updates = [{f"w{i}": rng.standard_normal(shape, dtype=np.float32) for i in range(25)} for _ in range(8)]
    size = 8 * MEGABYTES / 1000
    row: Row = {"work": "aggregation of 8 x 100 MB, float64 sums, one core", "unit": "GB/s"}
    row["ours"] = size / shortest(lambda: weighted_mean(updates, [1.0] * 8))
    into = np.empty(shape, np.float32)
    row["limit"] = size / shortest(lambda: [np.copyto(into, array) for update in updates for array in update.values()])
    if peers.stock:
        metrics = {"num-examples": 1.0}

        def as_record(update: dict[str, Any]) -> ArrayRecord:
            return ArrayRecord({name: Array(array) for name, array in update.items()})

        records = [RecordDict({"arrays": as_record(update), "metrics": MetricRecord(metrics)}) for update in updates]
        row["stock"] = size / shortest(lambda: aggregate_arrayrecords(records, "num-examples"))
    return [row]


def shortest(work: Callable[[], Any]) -> float:
    """Return the least seconds of five runs."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def idle(peers: Peers) -> list[Row]:
    """One site that waits for studies, a minute after its start."""
    with deployment(1) as where:
        run_ours(where, study(where, "warm-up", rounds=2))
        time.sleep(90)  # its worker has given memory back
        workers = processes_with(b"client.worker", str(where.folder).encode())
        sites = [int(Path(f"/proc/{worker}/stat").read_text().rpartition(") ")[2].split()[1]) for worker in workers]
        before, began = cpu_seconds(sites + workers), time.monotonic()
        time.sleep(60)
        used = 100 * (cpu_seconds(sites + workers) - before) / (time.monotonic() - began)
        own = [sum(found[1] for pid in pids if (found := memory_of(pid))) for pids in (sites, workers)]
    rows = [
        {"work": "idle site, processor (site and worker)", "unit": "% of a core", "ours": used, "limit": 0.0},
        {"work": "idle site, memory of the site without torch", "unit": "MB", "ours": own[0]},
        {"work": "idle site, memory of its worker with torch", "unit": "MB", "ours": own[1]},
    ]
    return peers.beside("idle", rows)


def processes_with(*parts: bytes) -> list[int]:
    """Return the processes that have all of these in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = path.read_bytes()
            if all(part in command for part in parts) and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def cpu_seconds(processes: list[int]) -> float:
    """Return the processor time of some processes so far."""
    fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split() for pid in processes)
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def of(seconds: list[float]) -> dict[str, float]:
    """Return median and 95th percentile."""
    return {"ours": float(np.median(seconds)), "ours_p95": float(np.quantile(seconds, 0.95))}


def simulation(peers: Peers) -> list[Row]:
    """FedAvg on four hospitals in one process, on one core, beside Flower's own simulation engine (Ray)."""
    data = peers.data
    if data is None:
        print("simulation: skipped, it needs --data, the folder of UCI Heart Disease")  # noqa: T201
        return []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="simulation-") as name:
        place = Path(name)
        federation = heart_disease_hospitals(data, place / "hospitals")
        sites = site_files(federation, place)
        rounds = 100
        for steps in (100, 1):
            config = heart_study(federation, FedAvgMethod(), 42)
            training = config.training.model_copy(update={"steps": steps})
            config = config.model_copy(update={"rounds": rounds, "training": training})
            stock = {"stock": ray_round(place, config, steps)} if peers.stock else {}
            for local_baseline in (True, False):  # stock trains no such baseline
                run = place / f"run-{steps}-{local_baseline}"
                with scratch():
                    began = time.monotonic()
                    run_in_process(config.model_copy(update={"local_baseline": local_baseline}), sites, run)
                    whole = time.monotonic() - began
                seconds = [each["seconds"] for each in json.loads((run / "result.json").read_text())["rounds"]]
                what = f"FedAvg in process, 4 hospitals, {steps} steps a round"
                what += ", with local-only baseline" if local_baseline else ""
                rows.append({"work": f"{what}: a round", "unit": "s", **of(seconds), **stock})
                rows.append({"work": f"{what}: {rounds} rounds", "unit": "s", "ours": whole})
    return rows


def ray_round(place: Path, config: StudyConfig, steps: int) -> float:
    """Return the median seconds of a round of the same study in Flower's simulation engine."""
    (place / "study.json").write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "ray_study.py"), str(place), "20", str(steps)],
        env={**os.environ, **QUIET, "PYTHONPATH": str(Path(__file__).parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the simulation failed (pip install 'flwr[simulation]'?): {done.stderr[-2000:]}")
    return statistics.median(json.loads(done.stdout.splitlines()[-1])["rounds"][1:])


MEASURES = {
    "empty": empty_rounds,
    "flower": flower_apps,
    "large": large_rounds,
    "memory": memory,
    "aggregation": aggregation,
    "idle": idle,
    "simulation": simulation,
}

if __name__ == "__main__":
    main()
