"""`consilium demo`: a server and several hospitals as separate processes on this machine, end to end.

Built from what a real study uses: `consilium server start`, one `consilium site start` per hospital with
its own key, data and state folder, and the code behind `consilium run`.
"""

import _thread
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import ConsiliumError, RunFailed, error_named
from common.files import check_writable
from common.processes import PARENT_VARIABLE, free_port
from consilium.run import new_run_folder
from consilium.scenario import DemoOptions, make_federation, make_plan, make_sites, run_studies, weights_file
from server.control import Control
from server.superlink import ServerHome, stop_processes

Processes = dict[str, tuple["subprocess.Popen[bytes]", Path]]
"""Running processes with their logs, by a name for people."""


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
        federation = make_federation(options, folder / "hospitals")
    except ConsiliumError:
        shutil.rmtree(folder)
        raise
    home = ServerHome(folder / "server")
    address = f"localhost:{free_port()}"
    console.print(f"consilium demo: {federation.title}", highlight=False)
    console.print(f"run folder: {folder}", highlight=False)
    with _running_server(home, address, folder) as server:
        weights = weights_file(options, federation, console)
        plan = make_plan(options, federation, weights)
        sites = make_sites(folder / "hospitals", federation, address, home.ca, weights)
        _wait_for_server(home, server, folder)
        with Control(home) as control:
            for name, site in sites.items():
                control.approve(site.parent / "site.key.pub", name=name)
        with _running_sites(sites, options) as processes:
            processes["the server"] = (server, folder / "server" / "server.log")
            with _Guard(processes):
                report = run_studies(plan, home, folder, console)
    console.print(f"everything took {time.monotonic() - began:.0f} s; all processes have ended", highlight=False)
    return report


# --- processes --------------------------------------------------------------------------------------


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
    command += ["--metrics", ""]  # the demo watches itself
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
