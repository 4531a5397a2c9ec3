"""Large payloads: those of tasks down to the sites, those of replies up from them, each in pieces from an offset on."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc

from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import PIECE_BYTES, PROGRESS_BYTES, PROGRESS_SECONDS
from consilium.server.wire.callers import Callers, parsed, within
from consilium.server.wire.tasks import Offer, Task, Tasks
from consilium.server.wire.turns import Turns

log = logging.getLogger(__name__)

DOWNLOADS = 4
"""How many payloads are sent at a time, not counting those that are read slowly."""
SLOT_SECONDS = 2.0
"""How long a site that reads slowly may delay the pieces for others."""
TURN_SECONDS = 60.0
"""How long a turn may last while others wait; a longer upload goes on in another."""


class Answered(Protocol):
    """The function that is called when a task has its answer, or will never have one."""

    def __call__(self, task: Task, *, problem: str = "", detail: str = "", text: bytes = b"") -> None:
        """Hand it over."""
        ...


class Transfers:
    """The calls `Fetch` and `Deliver`.

    Args:
        grant: tells a site that it may send; False where it is not connected.
    """

    def __init__(self, callers: Callers, tasks: Tasks, answered: Answered, grant: Callable[[Task], bool]) -> None:
        self._callers, self._tasks, self._answered = callers, tasks, answered
        self.turns = Turns(grant, self._give_up)
        self.fetching: dict[str, asyncio.Task[Any]] = {}
        self._downloads = asyncio.Semaphore(DOWNLOADS)

    def _give_up(self, task: Task) -> None:
        detail = f"site '{task.site}' had its turn to send {task.lost_turns} times and sent nothing"
        self._answered(task, problem="protocol", detail=detail)

    async def fetch(self, request: bytes, context: Any) -> None:
        """Send the payload of a task, from an offset on."""
        async with self._callers.admitted(context) as peer:
            wanted = parsed(pb.FetchRequest, request)
            task = self._tasks.of(wanted.task, site=peer.site)
            if task is None or task.outgoing is None or wanted.offset > task.size:
                await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such payload for this site")
                return
            began, offset, slot = time.monotonic(), wanted.offset, _Slot(self._downloads)
            try:
                with (
                    self._callers.transfer(peer),
                    self._only_fetch(peer.site),
                    task.outgoing.open("rb", buffering=0) as file,
                ):
                    while offset < task.size:
                        data = os.pread(file.fileno(), PIECE_BYTES, offset)
                        if not data:
                            break
                        await slot.take()
                        await self._send_piece(data, context, slot)
                        offset += len(data)
            finally:
                slot.give_back()
            task.busy += time.monotonic() - began

    async def _send_piece(self, data: bytes, context: Any, slot: "_Slot") -> None:
        """Send a piece; give the slot back if the site reads it slowly.

        Raises:
            TimeoutError: it is read too slowly.
        """
        piece, seconds = pb.Piece(data=data).SerializeToString(), PROGRESS_SECONDS * len(data) / PROGRESS_BYTES
        timer = asyncio.get_running_loop().call_later(SLOT_SECONDS, slot.give_back)
        try:
            await within(seconds, context.write(piece))
        finally:
            timer.cancel()

    @contextmanager
    def _only_fetch(self, site: str) -> Iterator[None]:
        """End an earlier download of the same site: the connection that it is for may be long gone."""
        this = asyncio.current_task()
        assert this is not None
        if (before := self.fetching.get(site)) is not None:
            before.cancel("another download has taken its place")
        self.fetching[site] = this
        try:
            yield
        finally:
            if self.fetching.get(site) is this:
                del self.fetching[site]

    async def deliver(self, _: AsyncIterator[bytes], context: Any) -> bytes:
        """Receive the payload of a reply whose turn it is."""
        async with self._callers.admitted(context) as peer:
            first = parsed(pb.Piece, await within(PROGRESS_SECONDS, context.read()))
            await self._callers.check_still_known(peer, context)
            task = self._tasks.of(first.task, site=peer.site)
            if task is None or task.offer is None or first.offset != task.received or not self.turns.begin(task):
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it is not the turn of this payload")
                return b""
            offer, before, began = task.offer, task.received, time.monotonic()
            try:
                with self._callers.transfer(peer):
                    await self._receive(task, offer, first, context)
            finally:
                task.busy += time.monotonic() - began
                if self._is_wanted(task, offer):
                    self.turns.end(task, moved=task.received >= before + min(PROGRESS_BYTES, offer.size))
            return pb.Delivered(size=task.received).SerializeToString()

    def _is_wanted(self, task: Task, offer: Offer) -> bool:
        """Return whether this payload is still waited for: its task has no answer, and no later offer."""
        return task.offer is offer and self._tasks.of(task.id, site=task.site) is task

    async def _receive(self, task: Task, offer: Offer, first: pb.Piece, context: Any) -> None:
        """Write pieces to the task's file until the payload is whole, too long, or the site is too slow."""
        began = time.monotonic()
        piece, moved, deadline = first, 0, began + PROGRESS_SECONDS
        with task.incoming.open("r+b", buffering=0) as file:
            while True:
                if len(piece.data) > PIECE_BYTES or task.received + len(piece.data) > offer.size:
                    detail = f"site '{task.site}' sent more than the {offer.size} bytes it announced"
                    self._answered(task, problem="protocol", detail=detail)
                    await context.abort(grpc.StatusCode.OUT_OF_RANGE, detail)
                if not self._wrote(file.fileno(), piece.data, task):
                    await context.abort(grpc.StatusCode.INTERNAL, "the server cannot keep this payload")
                moved += len(piece.data)
                if task.received == offer.size:
                    self._answered(task, text=offer.text)
                    return
                if moved >= PROGRESS_BYTES:
                    moved, deadline = 0, time.monotonic() + PROGRESS_SECONDS
                    if self.turns.waiting and time.monotonic() - began > TURN_SECONDS:
                        return
                content = await within(max(0.0, deadline - time.monotonic()), context.read())
                piece = parsed(pb.Piece, content)
                if not self._is_wanted(task, offer):
                    await context.abort(grpc.StatusCode.NOT_FOUND, "nobody waits for this payload any more")

    def _wrote(self, file: int, data: bytes, task: Task) -> bool:
        """Write a piece; on an error of the disk, the task is answered with that."""
        try:
            done = os.pwrite(file, data, task.received)
            while done < len(data):
                done += os.pwrite(file, data[done:], task.received + done)
        except OSError as error:
            detail = f"the server cannot write the reply of site '{task.site}': {error.strerror or error}"
            log.error("payload not kept site=%s error=%s", task.site, error)
            self._answered(task, problem="protocol", detail=detail)
            return False
        task.received += len(data)
        return True


class _Slot:
    """One of the few places for downloads, which bound the memory that gRPC needs for payloads on their way."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places, self._held = places, False

    async def take(self) -> None:
        """Wait for a place, unless this download has one."""
        if not self._held:
            await self._places.acquire()
            self._held = True

    def give_back(self) -> None:
        """Let another download have the place."""
        if self._held:
            self._held = False
            self._places.release()
