"""The server's long-lived process: Flower's SuperLink with TLS and node authentication, and its SuperExec.

Only the Fleet API (gRPC) faces the sites. Control and Runtime API are unauthenticated in Flower, so they
listen on the loopback interface only, and tasks need the secret that this process makes.

A server's home folder holds `ca.pem` (given to the sites), `server.pem`, the private keys, `sites.json` with the
approved sites, `objects/` with payloads under way, and `server.json` with the addresses that `consilium run` uses.
"""

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from common.errors import ConfigError, ConnectionRefused, RunFailed
from common.files import write_atomically
from common.identity import make_server_identity
from common.processes import check_port_free
from server.records import JOURNAL_VARIABLE, OBJECTS_VARIABLE

log = logging.getLogger(__name__)

TASK_POLL_SECONDS = "0.1"


@dataclass(frozen=True)
class ServerHome:
    """The folder of one server."""

    path: Path

    def prepare(self, hosts: Sequence[str]) -> None:
        """Make the folder (owner only), certificates and secret where they are missing."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        if not (self.path / "server.pem").exists():
            make_server_identity(self.path, hosts=hosts)
        if not self.secret.exists():
            write_atomically(self.secret, secrets.token_hex(32).encode(), mode=0o600)

    @property
    def ca(self) -> Path:
        """The certificate that sites trust."""
        return self.path / "ca.pem"

    @property
    def secret(self) -> Path:
        """Shared between SuperLink and SuperExec."""
        return self.path / "superexec.secret"

    @property
    def journal(self) -> Path:
        """The event log of all runs, which the metrics are made from."""
        return self.path / "journal.jsonl"

    @property
    def objects(self) -> Path:
        """The payloads that are under way between runs and sites."""
        return self.path / "objects"

    def address(self) -> "ServerAddress":
        """Return where the running server listens.

        Raises:
            ConnectionRefused: no server has been started in this folder.
        """
        file = self.path / "server.json"
        if not file.is_file():
            raise ConnectionRefused(
                f"no server has been started in '{self.path}'; start one with 'consilium server start'"
            )
        return ServerAddress(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens: `fleet` for the sites, `control` (loopback) for the coordinator."""

    fleet: str
    control: str
    pid: int


def start_server(
    home: ServerHome, *, fleet: str, control_port: int, hosts: Sequence[str], metrics: str | None = None
) -> None:
    """Run a server until it is stopped (SIGINT or SIGTERM).

    Args:
        fleet: `host:port` on which sites connect.
        hosts: names and addresses in the server's certificate.
        metrics: `host:port` of the pages for monitoring; none without it.

    Raises:
        PortInUse: one of the ports is taken.
        RunFailed: SuperLink or SuperExec ended by itself.
    """
    host, _, port = fleet.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"address must be host:port, got '{fleet}'")
    check_port_free(host, int(port), what="the address for the sites (--address)")
    check_port_free("127.0.0.1", control_port, what="the coordinator's port (--control-port)")
    home.prepare(hosts)
    control = f"127.0.0.1:{control_port}"
    environment = {
        **os.environ,
        JOURNAL_VARIABLE: str(home.journal.resolve()),
        OBJECTS_VARIABLE: str(home.objects.resolve()),
        # At INFO, flwr writes two lines whenever somebody asks who is connected: every 5 s, for the metrics.
        "FLWR_LOG_LEVEL": os.environ.get("FLWR_LOG_LEVEL", "WARNING"),
        "FLWR_HOME": str((home.path / "flwr").resolve()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # flwr-serverapp
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_SECONDS,
    }
    children: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        if metrics:
            from server.exporter import exporting  # imports Control, which imports this module

            stack.enter_context(exporting(home, metrics, is_up=lambda: bool(children) and children[0].poll() is None))
        stack.callback(_clean_up, home, children)
        children.append(subprocess.Popen(_superlink_command(home, fleet, control_port), env=environment))
        _wait_until_listening(children[0], control)
        children.append(subprocess.Popen(_superexec_command(home, control), env=environment))
        address = ServerAddress(fleet=fleet, control=control, pid=os.getpid())
        write_atomically(home.path / "server.json", json.dumps(asdict(address)).encode())
        log.info("server started address=%s metrics=%s; stop it with Ctrl-C", fleet, metrics or "none")
        _watch(children)


def _clean_up(home: ServerHome, children: Sequence["subprocess.Popen[bytes]"]) -> None:
    (home.path / "server.json").unlink(missing_ok=True)
    stop_processes(children)


def _script(name: str) -> str:
    """Return a console script of the running environment, whether or not it is on PATH."""
    return str(Path(sys.executable).parent / name)


def _superlink_command(home: ServerHome, fleet: str, control_port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "server.superlink_process", str(home.path)),
        *("--ssl-ca-certfile", str(home.ca)),
        *("--ssl-certfile", str(home.path / "server.pem")),
        *("--ssl-keyfile", str(home.path / "server.key")),
        "--enable-supernode-auth",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(home.secret)),
        *("--host", "127.0.0.1", "--port", str(control_port)),
        *("--fleet-api-address", fleet),
        "--disable-runtime-dependency-installation",
    ]


def _superexec_command(home: ServerHome, control: str) -> list[str]:
    return [
        _script("flower-superexec"),
        *("--runtime-api-address", control),
        *("--root-certificates", str(home.ca)),
        *("--superexec-auth-secret-file", str(home.secret)),
        *("--parent-pid", str(os.getpid())),
    ]


def _wait_until_listening(process: subprocess.Popen[bytes], address: str, timeout_seconds: float = 60) -> None:
    import socket

    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RunFailed(f"the SuperLink ended at its start with exit code {process.returncode}; see the log above")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RunFailed(f"the SuperLink does not listen on {address} after {timeout_seconds:g} s")


def _watch(children: list["subprocess.Popen[bytes]"]) -> None:
    """Return on SIGINT or SIGTERM; raise when a child ends by itself."""
    stopped = threading.Event()

    def stop(*_: int | FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    while not stopped.wait(0.2):
        for child in children:
            if child.poll() is not None:
                raise RunFailed(f"{Path(str(child.args[0])).name} ended by itself with exit code {child.returncode}")  # type: ignore[index]


def stop_processes(children: Sequence["subprocess.Popen[Any]"], *, patience_seconds: float = 8) -> None:
    """Ask every process to end, wait for all of them together, and kill what is left."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + patience_seconds
    for child in children:
        try:
            child.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
