"""A site's long-lived process: Flower's SuperNode in this process, and one warm worker beside it.

Flower starts a Python process per message, imports torch again and polls every 3 seconds: 12 s for a
round in which nobody computes. Here the SuperNode runs with `--isolation process`, polls quickly while a
study runs and slowly when idle, and a persistent worker process (`client/worker.py`) takes
task after task; data, model and CUDA context stay in memory. A worker that dies is started again.

The app that runs is the one installed here: the bundle that the server sends is neither unpacked nor
imported. What is replaced inside flwr for this stands in `client/seams.py` and `client/worker.py`.
"""

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from flwr.supercore.exit import add_exit_handler
from flwr.supercore.exit.exit_handler import trigger_exit_handlers
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode

from client.connect import Refusals, check_connection
from client.exporter import exporting
from client.inflight import forget, noted
from client.seams import PacedTime, quicken_object_pulls, replace, ring_on_messages, tame_logs
from common.config import SiteConfig, load_site
from common.errors import ConfigError, ConnectionRefused, RunFailed
from common.processes import PARENT_VARIABLE, free_port

log = logging.getLogger(__name__)

WORKER_RESTART_SECONDS, EARLY_SECONDS, MAX_EARLY_DEATHS = 0.5, 30.0, 3
WATCH_SECONDS, ANSWER_SECONDS = 0.2, 30.0
CONNECTED_SECONDS = 60.0
"""A SuperNode that has not asked for messages for so long has lost its server (or fetches a very large one)."""


def start_site(path: Path, *, verbose: bool = False, metrics: str | None = None) -> None:
    """Run the site described by a `site.toml` until it is stopped (SIGINT or SIGTERM).

    Args:
        metrics: `host:port` of the pages for monitoring in place of the settings' `metrics_address`; empty for none.

    Raises:
        PortInUse: the port for monitoring is taken.
        ConfigError: the settings, the certificate or the key are wrong.
        ConnectionRefused: the server cannot be reached or trusted, or does not know this site's key (any more).
    """
    config = load_site(path)
    for what, file in (("ca_certificate", config.ca_certificate), ("private_key", config.private_key)):
        if not file.is_file():
            raise ConfigError(f"{what}: no such file '{file}' ({path})")
    life = _Life()
    address = config.metrics_address if metrics is None else metrics
    # The pages come first: to connect can take a minute, in which a container must not look dead.
    with exporting(config, address, is_ready=life.is_ready) if address else nullcontext():
        check_connection(config)
        log.info(
            "site joined name=%s server=%s; it now waits for studies, stop it with Ctrl-C", config.name, config.server
        )
        _run(config, path, life, verbose=verbose)


@dataclass
class _Life:
    """What tells whether this site can answer plans."""

    paced: PacedTime = field(default_factory=PacedTime)
    worker: "_Worker | None" = None

    def is_ready(self) -> bool:
        return self.worker is not None and self.worker.is_alive() and self.paced.polled_within(CONNECTED_SECONDS)


def _run(config: SiteConfig, path: Path, life: _Life, *, verbose: bool) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="consilium-") as folder:
        secret = Path(folder) / "secret"
        secret.write_text(secrets.token_hex(32))
        secret.chmod(0o600)
        os.environ["FLWR_HOME"] = folder
        worker = life.worker = _Worker(config, f"127.0.0.1:{port}", secret, Path(folder) / "in-flight.json")
        tame_logs(logging.INFO if verbose else logging.WARNING)
        quicken_object_pulls()
        replace(start_client_internal, "time", life.paced)
        ring_on_messages(worker.ring)
        refusals = Refusals(config)
        replace(start_client_internal, "make_simple_grpc_retry_invoker", refusals.make_retry_invoker)
        sys.argv = _supernode_command(config, path, port, secret)
        add_exit_handler(worker.stop, run_before_force_exit=True)
        worker.start()
        try:
            flower_supernode()
        finally:
            worker.stop()
            if worker.gave_up:  # flwr leaves with 0 for a signal; a supervisor should see a failure
                os._exit(RunFailed.exit_code)
        if refusals.reason is not None:
            for early in (True, False):  # flwr's own exit would do this; without it, its web server keeps us alive
                trigger_exit_handlers(run_before_force_exit=early)
            raise ConnectionRefused(refusals.reason)


class _Worker:
    """Keeps one worker process running; `stop` ends it and does not start another."""

    def __init__(self, config: SiteConfig, address: str, secret: Path, in_flight: Path) -> None:
        self._address, self._in_flight = address, in_flight
        self._doorbell, self._button = os.pipe()
        os.set_blocking(self._button, False)
        self._lock, self._closed = threading.Lock(), False
        self._command = [sys.executable, "-m", "client.worker", address, str(secret), str(in_flight)]
        self._command.append(str(self._doorbell))
        threads = {"OMP_NUM_THREADS": str(config.threads)}
        self._environment = {**os.environ, **threads, PARENT_VARIABLE: str(os.getpid())}
        self.gave_up = False
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._supervise, name="worker-supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ring(self) -> None:
        """Tell the worker that there may be a task."""
        with self._lock, contextlib.suppress(BlockingIOError):  # full: it has been told often enough
            if not self._closed:
                os.write(self._button, b".")

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _supervise(self) -> None:
        early_deaths = 0
        while not self._stopping.is_set() and early_deaths < MAX_EARLY_DEATHS:
            try:
                early_deaths = early_deaths + 1 if self._dies_early() else 0
            except Exception:  # no process can be started just now, say: without this thread there is no site
                log.exception("the worker cannot be looked after; trying again")
                self._stopping.wait(1)
            self._stopping.wait(WORKER_RESTART_SECONDS)
        if early_deaths == MAX_EARLY_DEATHS:
            log.error("worker died %d times in a row right after its start; this site stops", early_deaths)
            self.gave_up = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _dies_early(self) -> bool:
        """Run one worker to its end; tell whether it ended soon and by itself, without a task to blame."""
        began = time.monotonic()
        with self._lock:
            if self._stopping.is_set():
                return False
            self._process = subprocess.Popen(self._command, env=self._environment, pass_fds=[self._doorbell])
        cause = self._wait(self._process)
        if self._stopping.is_set():
            return False
        log.error("worker ended cause=%s; starting it again", cause)
        return not self._answer_for(cause) and time.monotonic() - began < EARLY_SECONDS

    def _wait(self, process: "subprocess.Popen[bytes]") -> str:
        """Wait for the worker's end, bring it about if a task takes longer than the server waits, and say why."""
        while True:
            try:
                return _cause(process.wait(timeout=WATCH_SECONDS))
            except subprocess.TimeoutExpired:
                entry = noted(self._in_flight)
                if entry is not None and time.monotonic() > entry.deadline and noted(self._in_flight) == entry:
                    process.kill()
                    process.wait()
                    return "it was stopped because a task took longer than the study's round_timeout_seconds"

    def _answer_for(self, cause: str) -> bool:
        """Answer what the worker was busy with, so that nobody waits for it; tell whether there was anything."""
        if noted(self._in_flight) is None:
            return False
        reason = f"the site's worker process ended while it answered: {cause}"
        command = [sys.executable, "-m", "client.inflight", self._address, str(self._in_flight), reason]
        try:
            subprocess.run(command, env=self._environment, timeout=ANSWER_SECONDS, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            log.error("the server was not told that a task ended error=%s", error)
        forget(self._in_flight)
        return True

    def stop(self) -> None:
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(timeout=6)
        with self._lock:  # it is stopped twice: by flwr's exit and by ours
            if not self._closed and not self._thread.is_alive():
                os.close(self._doorbell)
                os.close(self._button)
                self._closed = True


def _cause(code: int) -> str:
    if code >= 0:
        return f"it left with exit code {code}"
    killed = " (often the kernel's, when memory runs out)" if code == -signal.SIGKILL else ""
    return f"it was killed by {signal.Signals(-code).name}{killed}"


def _supernode_command(config: SiteConfig, path: Path, port: int, secret: Path) -> list[str]:
    return [
        "flower-supernode",
        *("--superlink", config.server),
        *("--root-certificates", str(config.ca_certificate)),
        *("--auth-supernode-private-key", str(config.private_key)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret)),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--node-config", f"site='{path.resolve()}'"),
    ]
