"""`consilium demo`: a server and several hospitals as separate processes on this machine, end to end.

Built from what a real study uses: `consilium server start`, one `consilium site start` per hospital with
its own key, data and state folder, and the code behind `consilium run`.
"""

import _thread
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from common.config import FedPerMethod, ImageTask, ModelConfig, StudyConfig, TableTask, parse_study
from common.errors import ConfigError, ConsiliumError, RunFailed, error_named
from common.files import check_writable
from common.identity import make_site_key
from common.processes import PARENT_VARIABLE, free_port
from consilium.run import new_run_folder, run_study, save_report
from consilium.sources import Federation, digits_hospitals, heart_disease_hospitals, image_folder_hospitals
from consilium.view import View
from server.control import Control
from server.superlink import ServerHome, stop_processes

Processes = dict[str, tuple["subprocess.Popen[bytes]", Path]]
"""Running processes with their logs, by a name for people."""

BACKBONE = "printed-characters.safetensors"


@dataclass(frozen=True)
class DemoOptions:
    """What a person may choose."""

    data: Literal["digits", "heart-disease", "images"] = "digits"
    data_dir: Path | None = None
    runs: Path = Path("runs")
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "consilium"
    rounds: int | None = None
    method: str | None = None
    model: str | None = None
    pretrained: Path | None = None
    seed: int = 42
    compare: bool = True
    verbose: bool = False


@dataclass(frozen=True)
class Plan:
    """The main study, and studies that the report sets beside it (label -> study)."""

    main: StudyConfig
    others: Mapping[str, StudyConfig]
    title: str


def run_demo(options: DemoOptions, console: Console) -> dict[str, Any]:
    """Run the demo and return the report; every process it started has ended when this returns or raises.

    Raises:
        ConsiliumError: what went wrong, with a sentence.
        KeyboardInterrupt: Ctrl-C.
    """
    began = time.monotonic()
    check_writable(options.runs, what="the folder for runs")
    folder = new_run_folder(options.runs, options.data)
    folder.mkdir()
    folder.chmod(0o700)
    try:
        federation = _federation(options, folder / "hospitals")
    except ConsiliumError:
        shutil.rmtree(folder)
        raise
    home = ServerHome(folder / "server")
    address = f"localhost:{free_port()}"
    console.print(f"consilium demo: {federation.title}", highlight=False)
    console.print(f"run folder: {folder}", highlight=False)
    with _running_server(home, address, folder) as server:
        sites = _make_sites(folder / "hospitals", federation, address, home)
        weights = _weights_file(options, federation, console)
        plan = _plan(options, federation, weights)
        for site in sites.values():
            (site.parent / "weights").mkdir(exist_ok=True)
            if weights is not None:
                shutil.copyfile(weights, site.parent / "weights" / weights.name)
        _wait_for_server(home, server, folder)
        with Control(home) as control:
            for name, site in sites.items():
                control.approve(site.parent / "site.key.pub", name=name)
        with _running_sites(sites, options) as processes:
            processes["the server"] = (server, folder / "server" / "server.log")
            with _Guard(processes):
                report = _run_studies(plan, home, folder, console)
    console.print(f"everything took {time.monotonic() - began:.0f} s; all processes have ended", highlight=False)
    return report


def _federation(options: DemoOptions, folder: Path) -> Federation:
    if options.data == "digits":
        return digits_hospitals(folder)
    if options.data_dir is None:
        raise ConfigError(f"--data {options.data} needs --data-dir, the folder that holds the data")
    if options.data == "heart-disease":
        return heart_disease_hospitals(options.data_dir, folder)
    return image_folder_hospitals(options.data_dir)


def _weights_file(options: DemoOptions, federation: Federation, console: Console) -> Path | None:
    """Return the pretrained weights: the user's file, or for the digits the backbone of the source task."""
    if options.pretrained is not None:
        if not options.pretrained.is_file():
            raise ConfigError(f"--pretrained: no such file '{options.pretrained}'")
        return options.pretrained
    if options.data != "digits" or options.model is not None:
        return None
    from consilium.pretrain import pretrain_backbone

    path = options.cache / BACKBONE
    if not path.exists():
        console.print("pretraining a backbone on printed characters (once; then cached) ...", highlight=False)
    task = federation.task
    assert isinstance(task, ImageTask)
    return pretrain_backbone(path, size=task.size, mean=task.mean[0], std=task.std[0])


def _plan(options: DemoOptions, federation: Federation, weights: Path | None) -> Plan:
    values = _settings(federation.task)
    values["model"]["name"] = options.model or values["model"]["name"]
    if weights is not None:
        values["model"]["pretrained"] = {
            "file": weights.name,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        }
    if options.rounds is not None:
        values["rounds"] = options.rounds
    if options.method is not None:
        values["method"] = {"kind": options.method}
    values |= {
        "name": f"demo-{options.data}",
        "sites": sorted(federation.folders),
        "seed": options.seed,
        "task": federation.task.model_dump(),
    }
    main = parse_study(values, source="demo options")
    others: dict[str, StudyConfig] = {}
    if options.compare:
        if not isinstance(main.method, FedPerMethod):
            images = isinstance(main.task, ImageTask)
            label = "personal heads (fedper, local BatchNorm)" if images else "personal heads (fedper)"
            model = main.model.model_copy(update={"batch_norm": "local" if images else "average"})
            others[label] = _varied(main, "fedper", method=FedPerMethod(), model=model)
        if main.model.pretrained is not None:
            model = main.model.model_copy(update={"pretrained": None})
            others["random initial weights"] = _varied(main, "random", model=model)
    return Plan(main, others, federation.title)


def _varied(study: StudyConfig, suffix: str, **changes: Any) -> StudyConfig:
    return study.model_copy(update={"name": f"{study.name}-{suffix}", **changes})


def _settings(task: ImageTask | TableTask) -> dict[str, Any]:
    """Return the demo's settings; chosen on the validation splits, never on the test splits."""
    common: dict[str, Any] = {"join_timeout_seconds": 90.0, "method": {"kind": "fine_tune"}}
    if isinstance(task, TableTask):  # FLamby's protocol for Fed-Heart-Disease
        training = {"steps": 100, "batch_size": 4, "learning_rate": 0.001, "momentum": 0.0}
        split = {"test": 0.34, "validation": 0.0, "seed": 43}
        return {**common, "rounds": 15, "model": {"name": "linear"}, "training": training, "split": split}
    training = {"epochs": 1, "batch_size": 32, "learning_rate": 0.02}
    model = {"name": ModelConfig().name}
    return {**common, "rounds": 12, "model": model, "training": training, "split": {"test": 0.3}}


# --- files and processes ----------------------------------------------------------------------------


def _make_sites(folder: Path, federation: Federation, address: str, home: ServerHome) -> dict[str, Path]:
    """Make each hospital's folder: key, server certificate, `site.toml`; return the settings files by name."""
    sites = {}
    for name, data in federation.folders.items():
        site = folder / name
        site.mkdir(parents=True, exist_ok=True)
        site.chmod(0o700)
        make_site_key(site / "site.key", comment=name)
        shutil.copyfile(home.ca, site / "ca.pem")
        (site / "site.toml").write_text(
            f"""\
name = "{name}"
server = "{address}"
ca_certificate = "ca.pem"
private_key = "site.key"
state_dir = "state"
weights_dir = "weights"
share_class_counts = true   # the demo's data is public; the report shows who holds what
share_error_details = true

[data]
kind = "{federation.data_kind}"
path = {str(data.resolve())!r}
""",
            encoding="utf-8",
        )
        sites[name] = site / "site.toml"
    return sites


def _spawn(arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a consilium command in a process group of its own, with its output in `log`."""
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid()), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "consilium", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def _running_server(home: ServerHome, address: str, folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    home.prepare(["localhost", "127.0.0.1"])
    log = folder / "server" / "server.log"
    command = ["server", "start", "--home", str(home.path), "--control-port", str(free_port()), "--address", address]
    server = _spawn(command, log)
    try:
        yield server
    finally:
        stop_processes([server])


def _wait_for_server(home: ServerHome, server: "subprocess.Popen[bytes]", folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not (home.path / "server.json").exists():
        if server.poll() is not None:
            raise _ended(server, folder / "server" / "server.log", "the server")
        if time.monotonic() > deadline:
            raise RunFailed(f"the server did not start within {seconds:g} s; see '{folder / 'server' / 'server.log'}'")
        time.sleep(0.05)


def _ended(process: "subprocess.Popen[bytes]", log: Path, who: str) -> Exception:
    last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
    name, _, message = (last[0] if last else "").partition(": ")
    text = message if name.endswith("Error") or (name[:1].isupper() and " " not in name) else (last or [""])[0]
    return error_named(name, f"{who} ended with exit code {process.returncode}: {text} (log: {log})")


@contextmanager
def _running_sites(sites: Mapping[str, Path], options: DemoOptions) -> "Iterator[Processes]":
    verbose = ["--verbose"] if options.verbose else []
    started: Processes = {}
    try:
        for name, path in sites.items():
            log = path.parent / "site.log"
            started[f"hospital '{name}'"] = (_spawn(["site", "start", str(path), *verbose], log), log)
        yield dict(started)
    finally:
        stop_processes([process for process, _ in started.values()])


class _Guard:
    """Interrupts the main thread when one of the processes ends by itself, so that nobody waits in vain."""

    def __init__(self, processes: "Processes") -> None:
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            if any(process.poll() is not None for process, _ in self._processes.values()):
                _thread.interrupt_main()
                return

    def __enter__(self) -> "_Guard":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is not None:
            for who, (process, log) in self._processes.items():
                if process.poll() is not None:
                    raise _ended(process, log, who)


def _run_studies(plan: Plan, home: ServerHome, folder: Path, console: Console) -> dict[str, Any]:
    result = run_study(plan.main, home, folder, View(console, title=plan.main.name))
    comparisons = []
    for label, study in plan.others.items():
        view = View(console, title=f"for comparison, {label}")
        comparisons.append(
            {"label": label, "result": run_study(study, home, folder / "comparisons" / study.name, view)}
        )
    return save_report(folder, result, comparisons)
