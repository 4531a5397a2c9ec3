"""A bad line for tests: a TCP proxy that delays, throttles, resets, swallows, cuts short, or is not there at all."""

import asyncio
import random
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from consilium.common.host.ports import free_port

PIECE_BYTES = 65_536
MOST_PIECES = 64
"""So many pieces are on their way at most, in each direction of a connection."""


@dataclass(frozen=True)
class Line:
    """What a line does to what it carries.

    Args:
        delay_seconds: until a piece arrives, in each direction.
        jitter_seconds: by so much more or less; pieces stay in order.
        bytes_per_second: of each direction of each connection; None: as fast as it goes.
        resets: probability that a piece, of at most 64 kB, resets its connection instead of arriving.
    """

    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float | None = None
    resets: float = 0.0


GOOD = Line()


class Link:
    """Forwards connections to a port of this machine, in a loop and a thread of its own, until it is closed.

    Args:
        target: the port.
        seed: of the accidents.
    """

    def __init__(self, target: int, *, seed: int = 0) -> None:
        self.port, self._target = free_port(), target
        self.line, self.resets, self.short = GOOD, 0, 0
        self._random = random.Random(seed)
        self._writers = set[asyncio.StreamWriter]()
        self._tasks = set["asyncio.Task[None]"]()
        self._server: asyncio.Server | None = None
        self._to_shorten = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"link {self.port}", daemon=True)
        self._thread.start()
        self._flows = self._call(self._flowing())
        self.back()

    # --- what a test does with it -----------------------------------------------------------------

    def away(self) -> None:
        """Cut all connections and refuse new ones: the cable is out, and the machine says so."""
        self._call(self._stop_listening())
        self.cut()

    def back(self) -> None:
        """Take connections again, and let flow what a hole has held up."""
        self._call(self._listen())
        self._loop.call_soon_threadsafe(self._flows.set)

    def hole(self) -> None:
        """Carry nothing any more, without a word to either end; new connections get no answer."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def cut(self) -> None:
        """Reset all connections that there are."""
        self._call(self._abort_all())

    def cut_short(self) -> None:
        """Have the next piece end in its middle, and its connection with it, as if all had been sent."""
        self._to_shorten = 1

    def close(self) -> None:
        """End it."""
        self.away()
        self._call(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --- in its loop --------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _flowing(self) -> asyncio.Event:
        flows = asyncio.Event()
        flows.set()
        return flows

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _abort_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            await self._flows.wait()
            back, there = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(there)
            await asyncio.gather(self._carry(reader, there), self._carry(back, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()
                    self._writers.discard(end)
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one direction of a connection to its end."""
        on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_PIECES)
        delivering = asyncio.ensure_future(self._deliver(on_its_way, writer))
        arrival = 0.0
        try:
            with suppress(OSError):
                while content := await reader.read(self._piece()):
                    line = self.line
                    if line.bytes_per_second is not None:
                        await asyncio.sleep(len(content) / line.bytes_per_second)
                    if self._random.random() < line.resets:
                        self.resets += 1
                        writer.transport.abort()
                        return
                    jitter = self._random.uniform(-line.jitter_seconds, line.jitter_seconds)
                    arrival = max(arrival, time.monotonic() + max(0.0, line.delay_seconds + jitter))
                    await on_its_way.put((arrival, content))
                await on_its_way.put((arrival, b""))
                await delivering
        finally:
            delivering.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await delivering
            writer.transport.abort()

    async def _deliver(self, on_its_way: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        while True:
            arrival, content = await on_its_way.get()
            await asyncio.sleep(max(0.0, arrival - time.monotonic()))
            await self._flows.wait()
            if self._to_shorten and len(content) > 1:
                self._to_shorten, self.short = 0, self.short + 1
                writer.write(content[: len(content) // 2])
                content = b""
            if not content:
                writer.close()
                await writer.wait_closed()
                return
            writer.write(content)
            await writer.drain()

    def _piece(self) -> int:
        """Return how much is carried at a time: of a slow line so little that it flows."""
        rate = self.line.bytes_per_second
        return PIECE_BYTES if rate is None else max(1024, min(PIECE_BYTES, int(rate / 10)))
