"""The worker's end of what passes from its supervisor and back: shared memory, or lines over its input and output."""

import os
import select
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Protocol

from consilium.client.process.shared_memory import Box
from consilium.common.errors import ProtocolError
from consilium.common.wire.frames import HEADER_BYTES, frame_length, framed
from consilium.common.wire.limits import PIECE_BYTES, SMALL_PAYLOAD_BYTES
from consilium.common.wire.lines import LineReader, as_lines


class End(Protocol):
    """The worker's end."""

    def poll(self, seconds: float) -> bool:
        """Return whether an order, or the end of all orders, comes within this time."""
        ...

    def receive(self) -> tuple[bytes, bytes | memoryview | None]:
        """Return an order and its payload.

        Raises:
            EOFError: there will be no more.
        """
        ...

    def send(self, kind: bytes, text: bytes, payload: bytes | memoryview | None) -> None:
        """Send a reply."""
        ...


@dataclass(frozen=True)
class SharedEnd:
    """A socket, and two files in memory for large payloads."""

    connection: Connection
    inbox: Box
    outbox: Box

    def poll(self, seconds: float) -> bool:
        """Return whether there is something to read."""
        return self.connection.poll(seconds)

    def receive(self) -> tuple[bytes, bytes | memoryview | None]:
        """Return an order and its payload, a large one where it lies."""
        order, payload, boxed = (self.connection.recv_bytes() for _ in range(3))
        size = int(boxed)
        return order, self.inbox.view(size) if size else payload or None

    def send(self, kind: bytes, text: bytes, payload: bytes | memoryview | None) -> None:
        """Send a reply, a large payload through the memory."""
        small, size = _parted(payload)
        if payload is not None and size:
            self.outbox.write(payload)
        for frame in (kind, text, small, b"%d" % size):
            self.connection.send_bytes(frame)


@dataclass
class LineEnd:
    """The files of an input and an output whose lines a command passes on.

    Args:
        source, target: their numbers.
    """

    source: int
    target: int
    _lines: LineReader = field(default_factory=LineReader)
    _received: bytearray = field(default_factory=bytearray)

    def begin(self, ready: bytes) -> None:
        """Say that orders can come."""
        self._write(ready)

    def poll(self, seconds: float) -> bool:
        """Return whether there is something to read."""
        return bool(self._received or select.select([self.source], [], [], seconds)[0])

    def receive(self) -> tuple[bytes, bytes | memoryview | None]:
        """Return an order and its payload."""
        order, payload, boxed = (self._read(frame_length(self._read(HEADER_BYTES))) for _ in range(3))
        size = int(boxed)
        return order, self._read(size) if size else payload or None

    def send(self, kind: bytes, text: bytes, payload: bytes | memoryview | None) -> None:
        """Send a reply, a large payload after it."""
        small, size = _parted(payload)
        for frame in (kind, text, small, b"%d" % size):
            self._write(framed(frame))
        for start in range(0, size, PIECE_BYTES):
            assert payload is not None
            self._write(bytes(payload[start : start + PIECE_BYTES]))

    def when_closed(self, action: Callable[[], None]) -> None:
        """Do something once nobody can write to the input any more, also while an order is worked on."""
        watched = select.poll()
        watched.register(self.source, 0)  # nothing but the end

        def watch() -> None:
            while not watched.poll():
                pass
            action()

        threading.Thread(target=watch, name="follow-input", daemon=True).start()

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            if not (more := os.read(self.source, 2**18)):
                raise EOFError
            for piece in self._lines.feed(more):
                if isinstance(piece, bytes):
                    self._received += piece
        content = bytes(memoryview(self._received)[:size])
        del self._received[:size]
        return content

    def _write(self, content: bytes) -> None:
        view = memoryview(as_lines(content))
        while len(view):
            view = view[os.write(self.target, view) :]


def _parted(payload: bytes | memoryview | None) -> tuple[bytes, int]:
    """Return a payload that travels in the reply, or the size of one that is too large for it."""
    size = len(payload) if payload is not None and len(payload) > SMALL_PAYLOAD_BYTES else 0
    return (bytes(payload) if payload is not None and not size else b""), size


def check_alone(environment: Mapping[str, str], output: int) -> None:
    """Check that a command has started one worker, whose lines pass unchanged.

    Raises:
        ProtocolError: it has started several, or gives it a terminal.
    """
    if (tasks := environment.get("SLURM_STEP_NUM_TASKS", "1")) != "1":
        raise ProtocolError(f"srun starts {tasks} tasks, expected one worker: set --ntasks=1 in 'worker' of site.toml")
    if os.isatty(output):
        raise ProtocolError(
            "the worker's output is a terminal: leave --pty and --unbuffered out of 'worker' in site.toml"
        )
