"""A run's end of the private socket between it and the server's process: tasks out, answers in."""

import select
import socket
import time
from collections import deque
from collections.abc import Iterable

from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.frames import Frames, framed

_CHUNK_BYTES = 2**20
_ASK_BYTES = 2**25
ORPHANED = 75
"""Exit code of a run whose server has ended; not an error's code, so the next server goes on with the run."""


class RunLink:
    """Sends tasks and collects answers; for one thread.

    Args:
        connection: a connected socket whose other end is the server's process.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._frames = connection, Frames()
        self._socket.setblocking(True)
        self._online: set[str] = set()
        self._answers: deque[pb.Answer] = deque()
        self._jobs: deque[str] = deque()

    def job(self) -> str:
        """Wait for the job (JSON), for as long as it takes.

        Raises:
            SystemExit: the server's process has ended; all methods below raise it too.
        """
        while not self._jobs:
            self._read(None)
        return self._jobs.popleft()

    def online(self) -> frozenset[str]:
        """Return the names of the sites that are connected now."""
        while self._read(0):
            pass
        return frozenset(self._online)

    def attending(self) -> frozenset[str]:
        """Return the connected sites as last reported, reading nothing from the socket; for other threads too."""
        return frozenset(self._online)

    def ask(self, tasks: Iterable[pb.Outgoing]) -> None:
        """Send tasks to their sites, in frames of bounded size: each small payload is in its task."""
        batch, size = list[pb.Outgoing](), 0
        for task in tasks:
            batch.append(task)
            size += task.ByteSize()
            if size > _ASK_BYTES:
                self._send(pb.FromRun(ask=pb.Ask(tasks=batch)))
                batch, size = [], 0
        if batch:
            self._send(pb.FromRun(ask=pb.Ask(tasks=batch)))

    def forget(self, tasks: Iterable[bytes]) -> None:
        """Stop waiting for some tasks."""
        self._send(pb.FromRun(forget=pb.Forget(tasks=tasks)))

    def answers(self, seconds: float) -> list[pb.Answer]:
        """Return the answers that have come; wait up to `seconds` for the first."""
        deadline = time.monotonic() + seconds
        while self._read(0):
            pass
        while not self._answers and (left := deadline - time.monotonic()) > 0:
            self._read(left)
        found = list(self._answers)
        self._answers.clear()
        return found

    def _send(self, message: pb.FromRun) -> None:
        try:
            self._socket.sendall(framed(message.SerializeToString()))
        except OSError as error:
            raise SystemExit(ORPHANED) from error

    def _read(self, seconds: float | None) -> bool:
        """Read the messages that have arrived, waiting up to `seconds`; return whether there were any."""
        readable, _, _ = select.select([self._socket], [], [], seconds)
        if not readable:
            return False
        try:
            content = self._socket.recv(_CHUNK_BYTES)
        except OSError as error:
            raise SystemExit(ORPHANED) from error
        if not content:
            raise SystemExit(ORPHANED)
        for frame in self._frames.feed(content):
            self._take(pb.ToRun.FromString(frame))
        return True

    def _take(self, message: pb.ToRun) -> None:
        match message.WhichOneof("message"):
            case "job":
                self._jobs.append(message.job)
            case "came":
                self._online.update(message.came.names)
            case "left":
                self._online.difference_update(message.left.names)
            case "answer":
                self._answers.append(message.answer)
