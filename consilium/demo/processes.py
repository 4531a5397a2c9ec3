"""A deployment on this machine: the server and the sites as processes of the command line, ended with their caller."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from consilium.common.errors import RunFailed, error_named
from consilium.common.host.parents import PARENT_VARIABLE, stop_processes
from consilium.server.operations.home import ServerHome

Processes = dict[str, tuple["subprocess.Popen[bytes]", Path]]
"""Running processes with their logs, by a name for people."""


def spawn(arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a consilium command in a process group of its own, with its output in `log`."""
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid()), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "consilium", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def running_server(home: ServerHome, address: str, folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a server whose files lie in `folder` and stop it at the end."""
    home.prepare(["localhost", "127.0.0.1"])
    log = folder / "server" / "server.log"
    server = spawn(["server", "start", "--home", str(home.path), "--address", address, "--metrics", ""], log)
    try:
        yield server
    finally:
        stop_processes([server])


def wait_for_server(home: ServerHome, server: "subprocess.Popen[bytes]", folder: Path, seconds: float = 60) -> None:
    """Wait until the server can be used.

    Raises:
        RunFailed: it did not start in time, or ended; with its last words.
    """
    deadline = time.monotonic() + seconds
    while not (home.path / "server.json").exists():
        if server.poll() is not None:
            raise ended(server, folder / "server" / "server.log", "the server")
        if time.monotonic() > deadline:
            raise RunFailed(f"the server did not start within {seconds:g} s; see '{folder / 'server' / 'server.log'}'")
        time.sleep(0.05)


def ended(process: "subprocess.Popen[bytes]", log: Path, who: str) -> Exception:
    """Return the error that a process which ended by itself left in its log."""
    last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
    name, _, message = (last[0] if last else "").partition(": ")
    text = message if name.endswith("Error") or (name[:1].isupper() and " " not in name) else (last or [""])[0]
    return error_named(name, f"{who} ended with exit code {process.returncode}: {text} (log: {log})")


@contextmanager
def running_sites(sites: Mapping[str, Path]) -> "Iterator[Processes]":
    """Start every site of `site.toml` files by name, and stop them at the end."""
    started: Processes = {}
    try:
        for name, path in sites.items():
            log = path.parent / "site.log"
            started[f"hospital '{name}'"] = (spawn(["site", "start", str(path)], log), log)
        yield dict(started)
    finally:
        stop_processes([process for process, _ in started.values()])
