"""The site's worker process: started, given one order at a time, stopped when it takes too long, started again.

The worker has torch, the data and the model in its memory; this process, which talks to the server, has none of
them. They meet on a pair of sockets that nobody else can open. A worker that dies in the middle of an order closes
its end, so that the server learns within moments that it died, and why.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

from consilium.client.process.shared_memory import Box
from consilium.common.host.parents import PARENT_VARIABLE, exit_code
from consilium.common.wire.frames import HEADER_BYTES, frame_length, framed

log = logging.getLogger(__name__)

EARLY_SECONDS, MAX_EARLY_DEATHS = 30.0, 3
"""A worker that dies this soon after its start, this often in a row, is not started again: it would go on so."""
LOOK_SECONDS, RETRY_SECONDS = 0.05, 2.0
"""Pause between looks at a worker that starts, and before the next try if no process can be started."""
ANSWER, ERROR, READY = b"answer", b"error", b"+"
START_SECONDS = 300.0
"""How long a worker may take until it has imported everything; that is no part of an order's time."""
COMMAND = (sys.executable, "-P", "-m", "consilium.client.worker")


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


class WorkerFailed(Exception):
    """The worker could not answer an order; the text may go to the server."""


@dataclass(eq=False)
class _Process:
    """A running worker and our end of its socket."""

    process: "subprocess.Popen[bytes]"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    started: float
    ready: bool = False
    """Whether it has said that it can take orders: the first byte on its socket."""

    async def see_ready(self) -> bool:
        """Wait until it says so; return whether it did, and has not ended."""
        self.ready = self.ready or bool(await self.reader.read(1))
        return self.ready


class Worker:
    """Keeps one worker process running until `stop`.

    Args:
        settings: the path of the site's `site.toml`.
        threads: how many the worker may use.
        memory_mb: how much memory it may allocate; None for no limit.
    """

    def __init__(self, settings: str, *, threads: int = 1, memory_mb: int | None = None) -> None:
        self._command = [*COMMAND, settings]
        self._memory = ["--memory-mb", str(memory_mb)] if memory_mb is not None else []
        environment = {"OMP_NUM_THREADS": str(threads), PARENT_VARIABLE: str(os.getpid())}
        self._environment = {**os.environ, **environment}
        self.inbox, self.outbox = Box(), Box()
        self._running: _Process | None = None
        self._busy = asyncio.Lock()  # held while the process is started or answers
        self._watching: asyncio.Task[None] | None = None
        self._early_deaths = 0
        self.gave_up = asyncio.Event()

    async def start(self) -> None:
        """Start the process, and the task that starts it again when it ends without an order to answer."""
        await self._spawn()

    def is_alive(self) -> bool:
        """Return whether the process runs; it may still be importing torch."""
        return self._running is not None and self._running.process.poll() is None

    async def until_ready(self, *, seconds: float = START_SECONDS) -> None:
        """Wait until the process can take orders, or is given up, but not for ever."""
        end = time.monotonic() + seconds
        while not (self._running is not None and self._running.ready) and time.monotonic() < end:
            if self.gave_up.is_set():
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def answer(self, order: Parcel, *, seconds: float) -> Parcel:
        """Have an order answered.

        Args:
            order: a large payload of it lies in `inbox`.
            seconds: after this time nobody waits for the answer any more, and the process is stopped.

        Returns:
            The reply, with a small payload in it, or a large one in `outbox` until the next call.

        Raises:
            WorkerFailed: the worker failed, died or was stopped; a new process is being started.
        """
        async with self._busy:
            await self._stop_watching()
            try:
                if not self.is_alive():
                    await self._spawn()
                assert self._running is not None
                kind, content, payload, boxed = await self._asked(self._running, order, seconds)
            finally:
                self._watch()
            self._early_deaths = 0
            if kind == ERROR:
                raise WorkerFailed(content.decode(errors="replace"))
            return Parcel(content, payload, int(boxed))

    async def _asked(self, running: _Process, order: Parcel, seconds: float) -> list[bytes]:
        try:
            async with asyncio.timeout(START_SECONDS):
                await running.see_ready()
            async with asyncio.timeout(seconds):
                for frame in (order.content, order.payload, b"%d" % order.boxed):
                    running.writer.write(framed(frame))
                await running.writer.drain()
                return [await _frame(running.reader) for _ in range(4)]
        except (asyncio.IncompleteReadError, OSError, TimeoutError) as error:
            cause = await self._died(running, late=isinstance(error, TimeoutError))
            raise WorkerFailed(f"the site's worker process ended while it answered: {cause}") from None
        except asyncio.CancelledError:  # else its answer would be taken for that to the next order
            if not running.ready:  # it has no order yet, and what it has imported is of use for the next
                raise
            running.process.kill()
            running.started = -EARLY_SECONDS  # this is not to count as an early death
            await exit_code(running.process)
            raise

    async def _died(self, running: _Process, *, late: bool) -> str:
        if late:
            running.process.kill()
        code = await exit_code(running.process)
        cause = _cause(code)
        if late:
            cause = "it was stopped because a task took longer than the study's round_timeout_seconds"
        log.error("worker ended cause=%s; starting it again", cause)
        with contextlib.suppress(WorkerFailed):
            await self._spawn()
        return cause

    def rest(self) -> None:
        """Give back the memory of payloads: there has been nothing to do for a while."""
        self.inbox.clear()
        self.outbox.clear()

    async def stop(self) -> None:
        """End the process, and start no other."""
        await self._stop_watching()
        running, self._running = self._running, None
        if running is None:
            return
        if running.process.poll() is None:
            running.process.terminate()
        await exit_code(running.process)
        running.writer.close()

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = [theirs.fileno(), self.inbox.descriptor, self.outbox.descriptor]
            command = [*self._command, *map(str, numbers), *self._memory]
            try:
                process = subprocess.Popen(command, env=self._environment, pass_fds=numbers)
            except OSError as error:
                ours.close()
                raise WorkerFailed(f"the site's worker process cannot be started: {error.strerror or error}") from error
        if self._running is not None:
            self._running.writer.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        self._running = _Process(process, reader, writer, time.monotonic())
        if not self._busy.locked():
            self._watch()

    # --- while there is nothing to do -----------------------------------------------------------

    def _watch(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._see_it_end())

    async def _stop_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def _see_it_end(self) -> None:
        """Wait until the worker closes its socket although nobody asked it anything, and start another."""
        while (running := self._running) is not None:
            with contextlib.suppress(OSError):
                if await running.see_ready():
                    await running.reader.read(1)
            code = await exit_code(running.process)
            early = time.monotonic() - running.started < EARLY_SECONDS
            self._early_deaths = self._early_deaths + 1 if early else 0
            log.error("worker ended cause=%s; starting it again", _cause(code))
            if self._early_deaths >= MAX_EARLY_DEATHS:
                log.error("worker died %d times in a row right after its start; this site stops", MAX_EARLY_DEATHS)
                self.gave_up.set()
                return
            async with self._busy:
                try:
                    await self._spawn()
                except WorkerFailed as error:
                    log.error("%s; trying again in %g s", error, RETRY_SECONDS)
            if self._running is running:
                running.started = time.monotonic() - EARLY_SECONDS  # the same death is not counted as early again
                await asyncio.sleep(RETRY_SECONDS)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(frame_length(await reader.readexactly(HEADER_BYTES)))


def _cause(code: int) -> str:
    if code >= 0:
        return f"it left with exit code {code}"
    killed = " (often the kernel's, when memory runs out)" if code == -signal.SIGKILL else ""
    return f"it was killed by {signal.Signals(-code).name}{killed}"
