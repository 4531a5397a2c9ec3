"""The site's worker process: started, given one order at a time, stopped when it takes too long, started again.

The worker has torch, the data and the model in its memory; this process, which talks to the server, has none of
them. They meet on a pair of sockets that nobody else can open. A worker that dies in the middle of an order closes
its end, so that the server learns within moments that it died, and why.

A site on a cluster has a command, such as Slurm's `srun`, that starts the worker on another machine, as soon as one is
free for it. Then the two meet on the command's input and output (process/channels.py).
"""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from consilium.client.process.channels import Channel, Parcel, start_behind, start_child
from consilium.client.process.running import Running
from consilium.client.process.shared_memory import Box
from consilium.common.errors import ProtocolError, clean
from consilium.common.host.parents import PARENT_VARIABLE, TOKEN_VARIABLE

log = logging.getLogger(__name__)

EARLY_SECONDS, MAX_EARLY_DEATHS = 30.0, 3
"""A worker that dies before it is ready or this soon after, this often in a row, is not started again."""
LOOK_SECONDS, RETRY_SECONDS = 0.05, 2.0
"""Pause between looks at a worker that starts, and before the next try if none can be started or a job failed."""
ANSWER, ERROR, READY = b"answer", b"error", b"+"
START_SECONDS = 300.0
"""How long a worker may take until it has imported everything; that is no part of an order's time."""
COMMAND = (sys.executable, "-P", "-m", "consilium.client.worker")
REMOTE_COMMAND = (sys.executable, "-P", "-m", "consilium.client.remote_worker")
QUEUE_SECONDS = 60.0
"""How often the log says that a worker behind a command has not started yet."""
REPLY_SECONDS = 2.0
"""How long before nobody waits for it any more a site says that its worker has not started yet."""


class WorkerFailed(Exception):
    """The worker could not answer an order; the text may go to the server."""


class Worker:
    """Keeps one worker process running until `stop`.

    Args:
        settings: the path of the site's `site.toml`.
        threads: how many the worker may use.
        memory_mb: how much memory it may allocate; None for no limit.
        command: what a child of this process is started by, before its arguments; none: the worker's own program.
        behind: a command that starts the worker, perhaps later and on another machine; none: a child of this process.
        lock: the file in the state folder that this process has locked, by which such a worker sees that it is in the
            same folder.
    """

    def __init__(
        self,
        settings: str,
        *,
        threads: int = 1,
        memory_mb: int | None = None,
        command: Sequence[str] = (),
        behind: Sequence[str] = (),
        lock: Path = Path(".lock"),
    ) -> None:
        self._memory = ["--memory-mb", str(memory_mb)] if memory_mb is not None else []
        self._behind, threads_of = clean(Path(behind[0]).name, 40) if behind else "", f"OMP_NUM_THREADS={threads}"
        others = {name: value for name, value in os.environ.items() if name not in (PARENT_VARIABLE, TOKEN_VARIABLE)}
        if behind:  # `env`: not every cluster passes the variables on
            options = ["--threads", str(threads), "--lock", str(lock), *self._memory]
            self._command = [*behind, "env", threads_of, *REMOTE_COMMAND, settings, *options]
            self._environment = others
        else:
            self._command = [*(command or COMMAND), settings]
            own = {"OMP_NUM_THREADS": str(threads), PARENT_VARIABLE: str(os.getpid())}
            self._environment = {**others, **own}
        self.inbox, self.outbox = Box(), Box()
        self._running: Running | None = None
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
        """Wait until the process can take orders, or is given up, but not for ever: only a command may take its time.

        While this site is not ready, it is not connected, and a run waits for it as it does for every lost site.
        """
        began = told = time.monotonic()
        while not (self._running is not None and self._running.ready):
            now = time.monotonic()
            if self.gave_up.is_set() or (now >= began + seconds and not self._behind):
                return
            if self._behind and now >= told + QUEUE_SECONDS:
                told = now
                log.info("still %s seconds=%.0f", self._waiting(), now - began)
            await asyncio.sleep(LOOK_SECONDS)

    def _waiting(self) -> str:
        """Return what a site waits for whose worker has not started yet."""
        return f"waiting for {'Slurm' if self._behind == 'srun' else repr(self._behind)} to start the worker"

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

    async def _asked(self, running: Running, order: Parcel, seconds: float) -> list[bytes]:
        try:
            seconds -= await self._until_taken(running, seconds)
            async with asyncio.timeout(seconds):
                await running.channel.send(order, self.inbox)
                return await running.channel.receive(self.outbox)
        except (asyncio.IncompleteReadError, OSError, TimeoutError, ProtocolError) as error:
            cause = await self._died(running, late=isinstance(error, TimeoutError))
            raise WorkerFailed(f"the site's worker process ended while it answered: {cause}") from None
        except asyncio.CancelledError:  # else its answer would be taken for that to the next order
            if not running.ready:  # it has no order yet, and what it has imported is of use for the next
                raise
            running.end()
            running.counted = True  # this is not to count as an early death
            await running.exit_code()
            raise

    async def _until_taken(self, running: Running, seconds: float) -> float:
        """Wait until the worker can take an order, and return how many of the order's seconds that has cost.

        What a child imports is no part of them. What a command waits for is: it may be hours.

        Raises:
            WorkerFailed: a command has not started the worker in time; it goes on waiting.
            TimeoutError: a child takes too long.
        """
        began = time.monotonic()
        patience = max(seconds / 2, seconds - REPLY_SECONDS) if self._behind else START_SECONDS
        try:
            async with asyncio.timeout(patience):
                await running.see_ready()
        except TimeoutError:
            if self._behind:
                raise WorkerFailed(f"this site is still {self._waiting()}, after {patience:.0f} s") from None
            raise
        return time.monotonic() - began if self._behind else 0.0

    async def _died(self, running: Running, *, late: bool) -> str:
        if late:
            running.end()
        code = await running.exit_code()
        cause = running.cause(code)
        if late:
            cause = "it was stopped because a task took longer than the study's round_timeout_seconds"
        log.error("worker ended cause=%s", cause)
        if not (late or running.ready):  # that is not the order's fault
            self._gives_up(running)
            return cause  # `_see_it_end` starts the next, if there is to be one
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
        running.leave()
        await running.exit_code()
        running.channel.close()

    async def _spawn(self) -> None:
        process: subprocess.Popen[bytes]
        channel: Channel
        try:
            if self._behind:
                process, channel = await start_behind(self._command, self._environment)
                log.info("%s", self._waiting())
            else:
                boxes = (self.inbox, self.outbox)
                process, channel = await start_child(self._command, self._memory, self._environment, boxes)
        except OSError as error:
            raise WorkerFailed(f"the site's worker process cannot be started: {error.strerror or error}") from error
        if self._running is not None:
            self._running.channel.close()
        self._running = Running(process, channel, self._behind)
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
        while (running := self._running) is not None and not self.gave_up.is_set():
            with contextlib.suppress(OSError):
                if await running.see_ready():
                    await running.channel.reader.read(1)
            code = await running.exit_code()
            if not running.counted:
                log.error("worker ended cause=%s", running.cause(code))
            if self._gives_up(running):
                return
            if self._behind and self._early_deaths:  # the queue is not to be asked again and again
                await asyncio.sleep(RETRY_SECONDS)
            async with self._busy:
                try:
                    await self._spawn()
                except WorkerFailed as error:
                    log.error("%s; trying again in %g s", error, RETRY_SECONDS)
            if self._running is running:
                await asyncio.sleep(RETRY_SECONDS)

    def _gives_up(self, running: Running) -> bool:
        """Count a worker's death, once; return whether it is one early death too many, so that this site stops."""
        if not running.counted:
            running.counted = True
            self._early_deaths = self._early_deaths + 1 if running.died_within(EARLY_SECONDS) else 0
        if self._early_deaths >= MAX_EARLY_DEATHS:
            log.error("worker died %d times in a row right at its start; this site stops", MAX_EARLY_DEATHS)
            self.gave_up.set()
        return self.gave_up.is_set()
