"""The site's worker process: started, given one plan at a time, stopped when it takes too long, started again.

The worker has torch, the data and the model in its memory; this process, which talks to the server, has none of
them. They meet on a pair of sockets that nobody else can open. A worker that dies in the middle of a plan closes
its end, so that the server is told within moments, and why.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from client.box import Box
from common.config import SiteConfig
from common.processes import PARENT_VARIABLE

log = logging.getLogger(__name__)

WATCH_SECONDS, EARLY_SECONDS, MAX_EARLY_DEATHS = 0.5, 30.0, 3
ANSWER, ERROR = b"answer", b"error"
COMMAND = (sys.executable, "-m", "client.worker")


@dataclass(frozen=True)
class Parcel:
    """A plan or a reply.

    Args:
        text: JSON.
        payload: a small one.
        boxed: how many bytes of a large one lie in the box.
    """

    text: str
    payload: bytes | None = None
    boxed: int = 0


def send(connection: Connection, parcel: Parcel) -> None:
    """Send a parcel as three frames."""
    for frame in (parcel.text.encode(), parcel.payload or b"", b"%d" % parcel.boxed):
        connection.send_bytes(frame)


def receive(connection: Connection) -> Parcel:
    """Return the next parcel.

    Raises:
        EOFError: the other end was closed.
    """
    text, payload, boxed = (connection.recv_bytes() for _ in range(3))
    return Parcel(text.decode(), payload or None, int(boxed))


class WorkerFailed(Exception):
    """The worker could not answer a plan; the text may go to the server."""


class Worker:
    """Keeps one worker process running until `stop`.

    Args:
        settings: the site's `site.toml`.
    """

    def __init__(self, config: SiteConfig, settings: Path) -> None:
        self._settings, self._memory = settings.resolve(), config.memory_limit_mb
        threads = {"OMP_NUM_THREADS": str(config.threads)}
        self._environment = {**os.environ, **threads, PARENT_VARIABLE: str(os.getpid())}
        self.inbox, self.outbox = Box(), Box()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._started = 0.0
        self._early_deaths = 0
        self._busy = threading.Lock()  # held while the process is started or answers
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="worker-supervisor", daemon=True)
        self.gave_up = False

    def start(self) -> None:
        """Start the process, and a thread that starts it again when it ends without a plan to answer."""
        self._spawn()
        self._watcher.start()

    def is_alive(self) -> bool:
        """Return whether the process runs; it may still be importing torch."""
        return self._process is not None and self._process.poll() is None

    def answer(self, plan: Parcel, *, seconds: float) -> Parcel:
        """Have a plan answered.

        Args:
            plan: a payload in it, or in `inbox`.
            seconds: after so long the process is stopped, for nobody waits for its answer any more.

        Returns:
            The reply, with a payload in it, or in `outbox` until the next call.

        Raises:
            WorkerFailed: it could not, died or was stopped; a new process is on its way.
        """
        with self._busy:
            if not self.is_alive():
                self._spawn()
            process, connection = self._process, self._connection
            assert process is not None
            assert connection is not None
            late = threading.Event()

            def stop_late() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(seconds, stop_late)
            timer.daemon = True
            timer.start()
            try:
                send(connection, plan)
                kind = connection.recv_bytes()
                reply = receive(connection)
            except (EOFError, OSError):
                cause = "it was stopped because a task took longer than the study's round_timeout_seconds"
                ended = _cause(process.wait())
                cause = cause if late.is_set() else ended
                log.error("worker ended cause=%s; starting it again", cause)
                if not self._stopping.is_set():
                    self._spawn()
                raise WorkerFailed(f"the site's worker process ended while it answered: {cause}") from None
            finally:
                timer.cancel()
            self._early_deaths = 0
            if kind == ERROR:
                raise WorkerFailed(reply.text)
            return reply

    def rest(self) -> None:
        """Give back the memory of payloads: there has been nothing to do for a while."""
        with self._busy:
            self.inbox.clear()
            self.outbox.clear()

    def stop(self) -> None:
        """End the process, and start no other."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._watcher.is_alive():
            self._watcher.join(timeout=2)

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = [theirs.fileno(), self.inbox.descriptor, self.outbox.descriptor]
            command = [*COMMAND, str(self._settings), *map(str, numbers)]
            command += ["--memory-mb", str(self._memory)] if self._memory is not None else []
            try:
                self._process = subprocess.Popen(command, env=self._environment, pass_fds=numbers)
            except OSError as error:
                ours.close()
                raise WorkerFailed(f"the site's worker process cannot be started: {error.strerror or error}") from error
        if self._connection is not None:
            self._connection.close()
        self._connection = Connection(ours.detach())
        self._started = time.monotonic()

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            if self.is_alive() or not self._busy.acquire(blocking=False):
                continue  # whoever is busy with it sees its end itself
            try:
                if self._stopping.is_set() or self.is_alive() or self._process is None:
                    continue
                early = time.monotonic() - self._started < EARLY_SECONDS
                self._early_deaths = self._early_deaths + 1 if early else 0
                log.error("worker ended cause=%s; starting it again", _cause(self._process.returncode))
                if self._early_deaths >= MAX_EARLY_DEATHS:
                    log.error("worker died %d times in a row right after its start; this site stops", MAX_EARLY_DEATHS)
                    self.gave_up = True
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                with contextlib.suppress(WorkerFailed):  # no process can be started just now; again in a moment
                    self._spawn()
            finally:
                self._busy.release()


def _cause(code: int) -> str:
    if code >= 0:
        return f"it left with exit code {code}"
    killed = " (often the kernel's, when memory runs out)" if code == -signal.SIGKILL else ""
    return f"it was killed by {signal.Signals(-code).name}{killed}"
