"""A site attends: connects, waits for orders, has them answered, sends the replies, and never gives up.

One asyncio loop, one order at a time. What breaks is connected again after a pause that grows and varies; an order
whose answer is not whole at the server yet is not forgotten meanwhile.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from client.process.shared_memory import Box
from client.process.supervisor import Parcel, WorkerFailed
from client.wire.certificate import is_valid, keep_renewed, request_if_due
from client.wire.channel import Attended, NotWelcome, attend, explained, refusal_sentence
from client.wire.place import Place
from common.errors import ConfigError, ConnectionRefused, ConsiliumError, ProtocolError
from common.host.identity import read_study_public
from common.host.text import clean
from common.wire import wire_pb2 as pb
from common.wire.envelope import open_order
from common.wire.limits import EXPIRED, MAX_PAYLOAD_BYTES, MAX_WAIT_SECONDS, PIECE_BYTES, REPLACED, REVOKED, SERVICE

log = logging.getLogger(__name__)

REPLACED_SECONDS = 60.0
"""How long a site waits that another program has replaced, so that the two do not take turns."""
RENEWAL_CHECK_SECONDS = 3600.0
REST_SECONDS = 60.0
GOODBYE_SECONDS = 1.0
MAX_TASKS = 64
"""How many orders a site keeps waiting; a server that sends more is not the one it should be."""


WITHDRAWN_SECONDS = 10.0
"""For how long an order is worked on whose answer is not waited for any more, before the worker is stopped."""
_BROKEN = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError)
"""What a call raises whose connection has ended, here or there."""


class Answering(Protocol):
    """What answers orders: the supervisor of the worker."""

    inbox: Box
    outbox: Box

    async def answer(self, order: Parcel, *, seconds: float) -> Parcel:
        """Have an order answered."""
        ...

    def rest(self) -> None:
        """Give memory back."""
        ...


@dataclass(eq=False)
class _Task:
    """One order that was received, until its reply is whole at the server."""

    id: bytes
    order: bytes
    payload: bytes
    size: int
    deadline: float
    reply: Any = None

    @property
    def seconds_left(self) -> float:
        return max(1.0, self.deadline - time.monotonic())


class Connection:
    """One site's attendance at its server.

    Args:
        place: names and files of the site.
        worker: answers the orders.
    """

    def __init__(self, place: Place, worker: Answering) -> None:
        self._place, self._worker = place, worker
        self._attended: Attended | None = None
        self._connected = asyncio.Event()
        self._waiting: deque[_Task] = deque()
        self._current: _Task | None = None
        self._sent: dict[bytes, _Task] = {}  # small replies on their way: sent again if the connection breaks
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._turns: asyncio.Queue[Any] = asyncio.Queue()
        self._writing = asyncio.Lock()
        self._pause = 0.0
        self._last_problem = ""

    @property
    def is_connected(self) -> bool:
        """Whether the server has welcomed this site and the stream is open."""
        return self._connected.is_set()

    async def run(self) -> None:
        """Attend until cancelled.

        Raises:
            ConnectionRefused: the coordinator has revoked this site's key, which no waiting mends.
        """
        answering = asyncio.get_running_loop().create_task(self._answer_all())
        try:
            while True:
                try:
                    await self._attend_once()
                except (ConnectionRefused, NotWelcome, ConfigError) as error:
                    if getattr(error, "reason", "") == REVOKED:
                        raise ConnectionRefused(str(error)) from error
                    await self._wait(error)
                except asyncio.CancelledError as error:
                    _pass_on_own(error)
                    taken = f"the server at {self._place.server} did not take a reply in time, so the stream was ended"
                    await self._wait(ConnectionRefused(taken))
                except Exception as error:  # a site never gives up
                    await self._wait(self._unexpected(error))
        finally:
            answering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await answering
            await self._close()

    async def leave(self) -> None:
        """Tell the server that this site is being stopped, so that nobody waits for its replies."""
        attended = self._attended
        if attended is not None and self.is_connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self._send(pb.FromSite(goodbye=pb.Goodbye()))
                    await attended.call.done_writing()

    def _unexpected(self, error: Exception) -> ConnectionRefused:
        text = f"{type(error).__name__}: {clean(str(error))}"
        return ConnectionRefused(f"the connection to the server at {self._place.server} ended with {text}")

    async def _wait(self, error: Exception) -> None:
        """Say why there is no connection, once while it stays the same, and wait: longer each time, never the same."""
        if str(error) != self._last_problem:
            log.warning("%s; trying again until it works", error)
        self._last_problem = str(error)
        reason = getattr(error, "reason", "")
        self._pause = min(max(1.0, 2 * self._pause), MAX_WAIT_SECONDS)
        pause = REPLACED_SECONDS if reason == REPLACED else self._pause
        if reason == EXPIRED and self._pause <= 1.0 and is_valid(self._place):
            pause = 0.0
        await asyncio.sleep(random.uniform(pause / 3, pause))

    async def _attend_once(self) -> None:
        """Attend until the stream ends.

        Raises:
            ConnectionRefused, NotWelcome: why it did.
        """
        held = [task.id for task in (*self._waiting, self._current) if task is not None]
        self._attended = await attend(self._place, tasks=[*held, *self._sent])
        if self._attended.welcome.site != self._place.name:
            told = clean(self._attended.welcome.site, 80)
            await self._close()
            raise ConnectionRefused(f"the server knows this key as site '{told}', this is site '{self._place.name}'")
        log.info("site joined name=%s server=%s; it waits for studies", self._place.name, self._place.server)
        self._pause, self._last_problem = 0.0, ""
        self._connected.set()
        renewing = asyncio.get_running_loop().create_task(self._renew())
        try:
            for task in (*self._sent.values(), self._current):
                if task is not None and task.reply is not None:
                    await self._send(pb.FromSite(reply=task.reply))
            await self._listen(self._attended)
        except grpc.aio.AioRpcError as error:
            raise await explained(self._place, error) from error
        finally:
            renewing.cancel()
            self._connected.clear()
            await self._close()

    async def _listen(self, attended: Attended) -> None:
        while (content := await attended.call.read()) is not grpc.aio.EOF:
            try:
                self._take(pb.FromServer.FromString(content))
            except DecodeError as error:
                raise ConnectionRefused(f"the server at {self._place.server} sends what is no message") from error
        raise ConnectionRefused(f"the server at {self._place.server} has closed the connection")

    def _take(self, message: Any) -> None:
        match message.WhichOneof("message"):
            case "task":
                self._received(message.task)
            case "turn":
                self._granted(message.turn)
            case "taken":
                self._forget(message.taken.task)
            case "withdrawn":
                self._forget(message.withdrawn.task)
            case "renewed":
                keep_renewed(self._place, message.renewed.certificate, message.renewed.authorities)
            case "farewell":
                reason, text = message.farewell.reason, clean(message.farewell.text)
                sentence = f"the server at {self._place.server} says farewell: {text or clean(reason, 40)}"
                raise NotWelcome(reason, refusal_sentence(self._place, reason) if reason == REVOKED else sentence)

    def _received(self, task: Any) -> None:
        known = [held.id for held in (*self._waiting, self._current) if held is not None]
        if task.id in known or task.id in self._sent:
            return
        if len(known) >= MAX_TASKS or task.payload_size > MAX_PAYLOAD_BYTES:
            log.error("order refused: the server sends too many, or too much")
            return
        deadline = time.monotonic() + task.seconds
        self._waiting.append(_Task(task.id, task.order, task.payload, task.payload_size, deadline))
        self._arrived.set()

    def _granted(self, turn: Any) -> None:
        """Keep the newest turn for the reply in hand, and no other: a server that sends many fills no memory."""
        if self._current is not None and self._current.id == turn.task:
            while not self._turns.empty():
                self._turns.get_nowait()
            self._turns.put_nowait(turn)

    def _forget(self, identifier: bytes) -> None:
        if self._current is not None and self._current.id == identifier:
            self._taken.set()
        self._sent.pop(identifier, None)
        self._waiting = deque(task for task in self._waiting if task.id != identifier)

    # --- orders ---------------------------------------------------------------------------------

    async def _answer_all(self) -> None:
        """Answer orders one after the other; whatever goes wrong with one, the next is answered."""
        while True:
            while not self._waiting:
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), REST_SECONDS)
                except TimeoutError:
                    self._worker.rest()
            task = self._current = self._waiting.popleft()
            self._taken.clear()
            try:
                async with asyncio.timeout(task.seconds_left + 1):
                    await self._answer(task)
            except TimeoutError:
                log.warning("order given up: nobody waits for its reply any more")
            except asyncio.CancelledError as error:
                _pass_on_own(error)
            except Exception:
                log.exception("order not answered")
            finally:
                self._current = None
                while not self._turns.empty():
                    self._turns.get_nowait()

    async def _answer(self, task: _Task) -> None:
        try:
            if task.size:
                self._check(task)
            await self._fetch(task)
            answer = await self._worked(task)
            if answer is None:
                return
            reply = pb.Reply(task=task.id, text=answer.content, payload=answer.payload, payload_size=answer.boxed)
        except (WorkerFailed, ConsiliumError, OSError) as error:
            reply = pb.Reply(task=task.id, problem=clean(str(error)))
        task.reply = reply
        if not reply.payload_size:
            self._keep(task)
        await self._send(pb.FromSite(reply=reply))
        while reply.payload_size and not self._taken.is_set():
            await self._deliver(task, reply.payload_size)

    def _keep(self, task: _Task) -> None:
        """Keep a small reply for the case that the connection breaks under it; old ones nobody waits for."""
        now = time.monotonic()
        self._sent = {held.id: held for held in self._sent.values() if held.deadline > now}
        while len(self._sent) >= MAX_TASKS:
            del self._sent[next(iter(self._sent))]
        task.order = task.payload = b""  # only the reply is sent again
        self._sent[task.id] = task

    def _check(self, task: _Task) -> None:
        """Refuse a large payload that the study has not signed: whoever merely runs the server cannot fill this memory.

        The worker checks every order again, and all of it.

        Raises:
            ProtocolError: the order is not signed, or for another site, or of another size.
            ConfigError: the study's key cannot be read.
        """
        order = open_order(task.order, read_study_public(self._place.study_key))
        if (order.site, order.payload_size) != (self._place.name, task.size):
            raise ProtocolError(
                f"a payload of {task.size} bytes was announced, and the order is for site "
                f"'{clean(order.site, 80)}' and {order.payload_size} bytes"
            )

    async def _worked(self, task: _Task) -> Parcel | None:
        """Return the worker's answer; None for an order that was withdrawn, which is worked on a little longer.

        Raises:
            WorkerFailed: it could not answer.
        """
        if self._taken.is_set():
            return None
        order = Parcel(task.order, task.payload, task.size)
        working = asyncio.ensure_future(self._worker.answer(order, seconds=task.seconds_left))
        withdrawn = asyncio.ensure_future(self._taken.wait())
        try:
            await asyncio.wait({working, withdrawn}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await asyncio.wait({working}, timeout=WITHDRAWN_SECONDS)
            return working.result() if working.done() and not self._taken.is_set() else None
        finally:
            withdrawn.cancel()
            working.cancel()
            await asyncio.wait({working})

    async def _send(self, message: Any) -> None:
        """Send a message if there is a connection; a reply is sent again on the next one."""
        attended = self._attended
        if attended is None:
            return
        try:
            async with self._writing:
                await attended.call.write(message.SerializeToString())
        except _BROKEN as error:
            _pass_on_own(error)

    async def _fetch(self, task: _Task) -> None:
        """Fetch the payload of an order into the shared memory, going on where it broke off."""
        offset = 0
        while offset < task.size and not self._taken.is_set():
            await self._connected.wait()
            attended = self._attended
            if attended is None:
                continue
            request, before = pb.FetchRequest(task=task.id, offset=offset).SerializeToString(), offset
            try:
                call = attended.channel.unary_stream(f"/{SERVICE}/Fetch")(request)
                while (content := await call.read()) is not grpc.aio.EOF:
                    data = _piece(content)
                    if offset + len(data) > task.size:
                        raise ProtocolError("the server sends more than it announced")
                    self._worker.inbox.write(data, offset)
                    offset += len(data)
            except _BROKEN as error:
                _pass_on_own(error)
                if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.NOT_FOUND:
                    self._taken.set()
            if offset == before:
                await asyncio.sleep(random.uniform(0.2, 1.0))

    async def _deliver(self, task: _Task, size: int) -> None:
        """Wait for this reply's turn, or for the server to have it, and send its payload from where the turn says."""
        taken = asyncio.ensure_future(self._taken.wait())
        turn = asyncio.ensure_future(self._turns.get())
        try:
            await asyncio.wait({taken, turn}, return_when=asyncio.FIRST_COMPLETED)
            granted = turn.result() if turn.done() else None
        finally:
            taken.cancel()
            turn.cancel()
        attended = self._attended
        if granted is None or granted.task != task.id or attended is None:
            return
        offset, identifier = granted.offset, task.id
        try:
            call = attended.channel.stream_unary(f"/{SERVICE}/Deliver")()
            while offset < size or identifier:
                data = self._worker.outbox.read(offset, min(PIECE_BYTES, size - offset))
                piece = pb.Piece(task=identifier, offset=granted.offset if identifier else 0, data=data)
                await call.write(piece.SerializeToString())
                offset, identifier = offset + len(data), b""
            await call.done_writing()
            await call
        except _BROKEN as error:
            _pass_on_own(error)
            code = error.code() if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
            log.info("reply not delivered yet error=%s", code)

    # --- the connection -------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Ask for a new certificate when it is time."""
        while True:
            try:
                if (request := request_if_due(self._place)) is not None:
                    await self._send(pb.FromSite(renew=pb.Renew(request=request)))
            except (ConsiliumError, OSError) as error:
                log.error("certificate cannot be renewed error=%s", error)
            await asyncio.sleep(RENEWAL_CHECK_SECONDS)

    async def _close(self) -> None:
        attended, self._attended = self._attended, None
        if attended is not None:
            await attended.channel.close()


def _pass_on_own(error: BaseException) -> None:
    """Raise a cancellation again that is meant for this task: gRPC raises the same for a call whose channel closes.

    Raises:
        asyncio.CancelledError: this task is to end.
    """
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


def _piece(content: bytes) -> bytes:
    try:
        return bytes(pb.Piece.FromString(content).data)
    except DecodeError:
        raise ProtocolError("the server sends a payload that is no message") from None
