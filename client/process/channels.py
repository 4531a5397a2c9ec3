"""The supervisor's end of what passes to a worker and back: memory that both share, or lines of text over its output.

A worker on this machine shares memory with its supervisor, and has a socket that nobody else can open. A worker that a
command starts on another machine has only what the command passes on: its input and its output.
"""

import asyncio
import contextlib
import logging
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from consilium.client.process.shared_memory import Box
from consilium.common.errors import ProtocolError, clean
from consilium.common.wire.frames import HEADER_BYTES, frame_length, framed
from consilium.common.wire.limits import PIECE_BYTES
from consilium.common.wire.lines import LineReader, Text, as_lines

log = logging.getLogger(__name__)

REPLY_FRAMES = 4
"""Of a reply: what it is, its text, a small payload, and how large a large one is."""
MOST_TEXTS = 50
"""Lines of a command's own output that are logged; further ones are not."""


@dataclass(frozen=True)
class Parcel:
    """What passes between the two processes: an order, or a reply.

    Args:
        content: a SignedOrder, or the reply's JSON.
        payload: a small one.
        boxed: how many bytes of a large one lie in the shared memory.
    """

    content: bytes
    payload: bytes = b""
    boxed: int = 0


class Channel(Protocol):
    """What passes to one worker and back."""

    @property
    def reader(self) -> asyncio.StreamReader:
        """What the worker says."""
        ...

    async def send(self, order: Parcel, inbox: Box) -> None:
        """Send an order, whose large payload lies in `inbox`."""
        ...

    async def receive(self, outbox: Box) -> list[bytes]:
        """Return the frames of a reply, whose large payload is in `outbox` then."""
        ...

    def close(self) -> None:
        """Let the worker see that nobody asks it anything any more."""
        ...


@dataclass(frozen=True, eq=False)
class SharedChannel:
    """To a child of this process: a pair of sockets, and memory for large payloads."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, order: Parcel, inbox: Box) -> None:
        """Send an order; the worker reads a large payload where it lies."""
        for frame in (order.content, order.payload, b"%d" % order.boxed):
            self.writer.write(framed(frame))
        await self.writer.drain()

    async def receive(self, outbox: Box) -> list[bytes]:
        """Return a reply's frames; the worker has written a large payload into `outbox`."""
        return [await _frame(self.reader) for _ in range(REPLY_FRAMES)]

    def close(self) -> None:
        """Close this end."""
        self.writer.close()


@dataclass(frozen=True, eq=False)
class LineChannel:
    """To a worker behind a command: everything passes as lines over the command's input and output.

    Args:
        reader: what the worker says, as `passing` puts it together.
        output: the command's own output.
        passing: reads it until its end.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    output: asyncio.ReadTransport
    passing: "asyncio.Task[None]"

    async def send(self, order: Parcel, inbox: Box) -> None:
        """Send an order and, piece by piece, its large payload."""
        for frame in (order.content, order.payload, b"%d" % order.boxed):
            self.writer.write(as_lines(framed(frame)))
        await self.writer.drain()
        for start in range(0, order.boxed, PIECE_BYTES):
            self.writer.write(as_lines(inbox.read(start, min(PIECE_BYTES, order.boxed - start))))
            await self.writer.drain()

    async def receive(self, outbox: Box) -> list[bytes]:
        """Return a reply's frames, with its large payload written into `outbox`."""
        frames = [await _frame(self.reader) for _ in range(REPLY_FRAMES)]
        size = int(frames[-1])
        for start in range(0, size, PIECE_BYTES):
            outbox.write(await self.reader.readexactly(min(PIECE_BYTES, size - start)), start)
        return frames

    def close(self) -> None:
        """Close the command's input, and read its output no more."""
        self.writer.close()
        self.output.close()
        self.passing.cancel()


async def start_child(
    command: Sequence[str], more: Sequence[str], environment: Mapping[str, str], boxes: tuple[Box, Box]
) -> tuple["subprocess.Popen[bytes]", SharedChannel]:
    """Start a worker as a child: `command SOCKET INBOX OUTBOX more`.

    Raises:
        OSError: it cannot be started.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        numbers = [theirs.fileno(), *(box.descriptor for box in boxes)]
        try:
            process = subprocess.Popen([*command, *map(str, numbers), *more], env=dict(environment), pass_fds=numbers)
        except OSError:
            ours.close()
            raise
    return process, SharedChannel(*await asyncio.open_unix_connection(sock=ours))


async def start_behind(
    command: Sequence[str], environment: Mapping[str, str]
) -> tuple["subprocess.Popen[bytes]", LineChannel]:
    """Start a worker by a command of the site's, which passes its input and output on.

    It has a session of its own, so that Ctrl-C in a terminal is for its supervisor alone.

    Raises:
        OSError: it cannot be started.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        list(command), env=dict(environment), stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True
    )
    loop, output, worker = asyncio.get_running_loop(), asyncio.StreamReader(), asyncio.StreamReader()
    source, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(output), process.stdout)
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), process.stdin
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    return process, LineChannel(worker, writer, source, loop.create_task(_pass_on(output, worker)))


async def _pass_on(output: asyncio.StreamReader, worker: asyncio.StreamReader) -> None:
    """Give what the worker says in lines to `worker`, and log what others print between them."""
    lines, texts = LineReader(), 0
    try:
        while received := await output.read(2**16):
            for piece in lines.feed(received):
                if not isinstance(piece, Text):
                    worker.feed_data(piece)
                elif (texts := texts + 1) <= MOST_TEXTS:
                    log.info("the worker's command says text=%s", clean(piece.line, 200))
    except (OSError, ProtocolError) as error:
        log.error("nothing more is read from the worker error=%s", error)
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            worker.feed_eof()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(frame_length(await reader.readexactly(HEADER_BYTES)))
