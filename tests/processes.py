"""A real server and real sites for tests: processes of the command line, gRPC with certificates on loopback."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from consilium.client.operations.site_folder import SiteFolder, accept_bundle, init_site
from consilium.commands.main import main
from consilium.common.host.address import Address
from consilium.common.host.ports import free_port
from consilium.common.study.bundle import Bundle
from consilium.server.operations.bundles import make_bundle
from consilium.server.operations.home import ServerHome
from consilium.server.wire.submission import Control

T = TypeVar("T")
COMMAND = [sys.executable, "-P", "-m", "consilium"]
NO_STUDY_NEEDED = "accepted_study = false\nmax_steps = 1_000_000_000\n"
"""The policy of a site that obeys studies that it has not accepted, and rounds that would never end."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def until(holds: Callable[[], T], seconds: float = 120) -> T:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return value


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in this process, without the seconds in which another one starts and imports torch."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["consilium", *arguments])
        patch.setattr("consilium.commands.main._prepare", lambda: None)  # logs and signals, which are pytest's here
        with pytest.raises(SystemExit) as ended:
            main()
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), err.getvalue())


def make_folder(
    path: Path, name: str = "berlin", server: str = "study.example.org:9092", *, kind: str = "images"
) -> SiteFolder:
    """Make a site's folder, not approved yet."""
    folder = SiteFolder(path / name)
    init_site(folder, name=name, server=server, kind=kind)
    return folder


def write(path: Path, bundle: Bundle) -> Path:
    """Write a bundle into a file."""
    path.write_bytes(bundle.to_json())
    return path


@dataclass(frozen=True)
class Server:
    """A server that runs as a process."""

    home: ServerHome
    address: str


@contextmanager
def running_server(
    folder: Path, port: int | None = None, metrics: str = "", host: str = "127.0.0.1"
) -> Iterator[Server]:
    """Start a server below `folder` and stop it at the end."""
    listening = Address(host, port or free_port())
    address = f"localhost:{listening.port}" if host == "127.0.0.1" else str(listening)
    found = Server(ServerHome(folder / "home"), address)
    command = [*COMMAND, "server", "start", "--home", str(found.home.path), "--address", str(listening)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--metrics", metrics],
            env=ENVIRONMENT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def is_ready() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        return (found.home.path / "server.json").exists()

    until(is_ready)
    try:
        yield found
    finally:
        process.terminate()
        code = process.wait(timeout=30)
    assert 0 == code


def join(server: Server, path: Path, name: str, *, kind: str = "images") -> SiteFolder:
    """Make a site's folder and have it approved, in this process; it obeys any study, as it accepts none."""
    folder = make_folder(path, name, server.address, kind=kind)
    request = folder.path / "site.csr"
    with Control(server.home) as control:
        certificate = control.approve(request, name=name)
    bundle = make_bundle(server.home, certificate, name=name, address=server.address)
    accept_bundle(folder, write(path / f"{name}.json", bundle))
    (folder.path / "policy.toml").write_text(NO_STUDY_NEEDED)
    return folder


def doses_study(name: str, *, rounds: int = 1, steps: int = 500, sites: str = '["berlin"]', **settings: Any) -> str:
    """Return a study.toml of the tables that `write_patients` writes.

    Args:
        settings: more keys of the study, as TOML has them.
    """
    more = "\n".join(f"{key} = {value}" for key, value in settings.items())
    return f"""
name = "{name}"
sites = {sites}
rounds = {rounds}
{more}

[task]
kind = "table"
classes = ["no", "yes"]
label = "ill"
[task.columns.dose]
kind = "number"

[model]
name = "linear"

[training]
steps = {steps}
"""


def write_patients(folder: Path, shift: float) -> None:
    """Write 60 rows of a dose and an illness."""
    rows = [f"{index % 7 + shift},{'yes' if index % 7 > 3 else 'no'}" for index in range(60)]
    folder.mkdir(parents=True)
    (folder / "patients.csv").write_text("\n".join(["dose,ill", *rows]) + "\n")


def start_site(settings: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a site as a process that writes into a log."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [*COMMAND, "site", "start", str(settings)], env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
        )


def run_deployed(folder: Path, study: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Path]]:
    """Run a study of the sites `early` and `late` below `folder`, a server and both sites as processes with TLS.

    Returns:
        The run's command, which succeeded; the run lies in `folder/runs`. And each site's settings by its name.
    """
    (folder / "study.toml").write_text(study)
    settings, processes = dict[str, Path](), list[subprocess.Popen[bytes]]()
    with running_server(folder) as server:
        try:
            for name, shift in (("early", 0.0), ("late", 1.5)):
                site = join(server, folder, name, kind="table")
                write_patients(site.path / "data", shift)
                settings[name] = site.settings
                processes.append(start_site(site.settings, folder / f"{name}.log"))
            done = call("run", "study.toml", "--home", str(server.home.path), "--runs", "runs", cwd=folder)
            assert 0 == done.returncode, done.stdout + done.stderr
        finally:
            for process in processes:
                process.terminate()
                process.wait(timeout=30)
    return done, settings


def worker_of(site: int) -> int:
    """The process id of a site's worker: its child that runs `consilium.client.worker`, once it has started one."""

    def workers() -> list[int]:
        children = [
            child for task in Path(f"/proc/{site}/task").iterdir() for child in (task / "children").read_text().split()
        ]
        return [int(one) for one in children if b"consilium.client.worker" in Path(f"/proc/{one}/cmdline").read_bytes()]

    return until(workers)[0]
