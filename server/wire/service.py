"""The server's end of the wire: who attends, plans down, replies up, large payloads both ways.

Everything here runs in one asyncio loop. A site is who its certificate says; no message names its sender. What a
site sends is looked at only if it answers a task of its own, and never unpacked here: that is the run's work.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from common import __version__
from common.errors import ConsiliumError, StateError
from common.identity import read_authorities, read_certificate
from common.text import clean
from common.wire import wire_pb2 as pb
from common.wire.limits import (
    EXPIRED,
    HELLO_SECONDS,
    MAX_TEXT_BYTES,
    PIECE_BYTES,
    PROGRESS_BYTES,
    PROGRESS_SECONDS,
    REVOKED,
    SERVICE,
    SMALL_PAYLOAD_BYTES,
    STOPPING,
    VERSION,
    WIRE_VERSION,
)
from server.wire.registry import Registry
from server.wire.streams import Peer, Stream, Streams
from server.wire.tasks import Offer, Task, Tasks, drop_incoming, prepare_incoming
from server.wire.turns import Turns

log = logging.getLogger(__name__)

CALLS_PER_SITE = 6
"""How many calls of one site may be open at once: its stream, one that takes its place, transfers."""
TASKS_AT_A_SITE = 32
"""How many tasks a site is given before it has answered one; it keeps twice as many."""
DOWNLOADS = 4
"""How many payloads are sent at a time, beside those that are read too slowly to wait for."""
SLOT_SECONDS = 2.0
"""For how long a site that reads slowly keeps others from being sent a piece."""
TURN_SECONDS = 60.0
"""How long a turn may last while others wait; a longer upload goes on in another."""
MAX_HELLO_TASKS = 1024
RENEWAL_SECONDS = 60.0
"""A site that asks for certificates more often than that misbehaves: each is signed in this loop."""
RESERVE_BYTES = 200 * 10**6
"""Disk space that no payload may take."""
SWEEP_SECONDS = 5.0

T = TypeVar("T")


class Wire:
    """The service `consilium.wire.v1.Wire`.

    Args:
        authorities: returns the certificates (PEM) that sites are to trust.
    """

    def __init__(self, registry: Registry, *, authorities: Callable[[], bytes]) -> None:
        self._registry, self._authorities = registry, authorities
        self.streams, self.tasks = Streams(), Tasks()
        self.turns = Turns(self._grant, self._give_up)
        self._calls: Counter[str] = Counter()
        self._downloads = asyncio.Semaphore(DOWNLOADS)
        self._transfers: dict[asyncio.Task[Any], str] = {}
        self._fetching: dict[str, asyncio.Task[Any]] = {}

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return what a `grpc.aio` server needs; messages are bytes, so that what is malformed is ours to judge."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Attend": grpc.stream_stream_rpc_method_handler(self.attend),
                "Fetch": grpc.unary_stream_rpc_method_handler(self.fetch),
                "Deliver": grpc.stream_unary_rpc_method_handler(self.deliver),
            },
        )

    # --- what runs ask --------------------------------------------------------------------------

    def ask(self, tasks: Iterable[Task]) -> None:
        """Send tasks to their sites, or keep them until their sites attend."""
        for task in tasks:
            self.tasks.add(task)
            self._feed(task.site)

    def _feed(self, site: str) -> None:
        """Send a site its next tasks, but not more than it keeps at a time."""
        if (stream := self.streams.get(site)) is None:
            return
        tasks = self.tasks.at(site)
        room = TASKS_AT_A_SITE - sum(task.sent for task in tasks)
        for task in [task for task in tasks if not task.sent][: max(0, room)]:
            task.sent = True
            _send_task(stream, task)

    def forget(self, tasks: Iterable[Task]) -> None:
        """Withdraw tasks for whose replies nobody waits any more."""
        withdrawn = list(tasks)
        for task in withdrawn:
            self.tasks.remove(task)
            self.turns.forget(task)
            if task.sent and (stream := self.streams.get(task.site)) is not None:
                stream.send(pb.FromServer(withdrawn=pb.Withdrawn(task=task.id)))
        drop_incoming(withdrawn)
        for site in {task.site for task in withdrawn}:  # only now: the next in line may have been among them
            self._feed(site)

    def dismiss(self, fingerprints: Iterable[str], *, reason: str, text: str) -> None:
        """End all calls of some keys at once, also payloads that are half here."""
        keys = set(fingerprints)
        for transfer in [task for task, key in self._transfers.items() if key in keys]:
            transfer.cancel(reason)
        for stream in self.streams:
            if stream.peer.fingerprint in keys:
                stream.close(reason, text)

    def give_up(self, site: str, *, why: str) -> None:
        """Answer all tasks of a site that will not answer them itself, so that nobody waits for its replies.

        Args:
            why: continues the sentence "site 'berlin' ...".
        """
        for task in self.tasks.at(site):
            task.sent = True  # what is still in line is not sent any more
        for task in self.tasks.at(site):
            self._answered(task, problem="gone", detail=f"site '{site}' {why}")

    def spread_authorities(self) -> None:
        """Tell all that attend which authorities to trust from now on, and give each a certificate of the newest."""
        for stream in self.streams:
            self._certify(stream)

    async def sweep(self) -> None:
        """Close streams whose certificate has ended, and drop tasks that are too late, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                self._sweep()
            except StateError as error:
                log.error("the register of sites cannot be written error=%s", error)
            except Exception:  # whatever it was, the next sweep comes
                log.exception("sweep failed")

    def _sweep(self) -> None:
        now = time.time()
        for stream in self.streams:
            stream.end_if_stuck()
            if stream.peer.ends < now:
                stream.close(EXPIRED, "this site's certificate has ended; connect with a newer one")
        self.forget(self.tasks.late())
        self._registry.save()

    async def stop(self) -> None:
        """Say farewell to all."""
        streams = list(self.streams)
        for stream in streams:
            stream.close(STOPPING, "the server stops")
        await asyncio.wait([stream.handler for stream in streams], timeout=3) if streams else None

    # --- Attend ---------------------------------------------------------------------------------

    async def attend(self, _: AsyncIterator[bytes], context: Any) -> None:
        """Serve one site's stream for as long as it lasts."""
        async with self._call(context) as peer:
            hello = _parsed(pb.FromSite, await _within(HELLO_SECONDS, context.read(), context)).hello
            if hello.protocol != WIRE_VERSION:
                text = (
                    f"the server speaks version {WIRE_VERSION} of the wire (consilium {__version__}), this site "
                    f"{hello.protocol}: install the same release of consilium on both sides"
                )
                await context.write(pb.FromServer(farewell=pb.Farewell(reason=VERSION, text=text)).SerializeToString())
                return
            await context.write(pb.FromServer(welcome=self._welcome(peer)).SerializeToString())
            if hello.probe:
                return
            handler = asyncio.current_task()
            assert handler is not None
            await self._check_still_known(peer, context)
            stream = Stream(peer, context, handler)
            self.streams.open(stream)
            try:
                if peer.issuer != _newest(self._authorities()):  # it was away when the authority was replaced
                    self._certify(stream)
                self._take_up(stream, set(hello.tasks[:MAX_HELLO_TASKS]))
                await self._listen(stream)
            except asyncio.CancelledError:
                if stream.farewell is None:  # the connection broke
                    raise
                handler.uncancel()
            finally:
                self.streams.ended(stream)
                self._registry.seen(peer.site, time.time())
            await stream.say_farewell()

    def _welcome(self, peer: Peer) -> pb.Welcome:
        return pb.Welcome(site=peer.site, time=time.time(), consilium=__version__, authorities=self._authorities())

    def _take_up(self, stream: Stream, in_hand: set[bytes]) -> None:
        """Send what the site does not have, and withdraw what nobody waits for any more."""
        for task in self.tasks.at(stream.peer.site):
            task.sent = task.id in in_hand
            if not task.sent:
                task.offer, task.received = None, 0
                self.turns.forget(task)
            in_hand.discard(task.id)
        self._feed(stream.peer.site)
        for identifier in in_hand:
            stream.send(pb.FromServer(withdrawn=pb.Withdrawn(task=identifier)))

    async def _listen(self, stream: Stream) -> None:
        while (content := await stream.context.read()) is not grpc.aio.EOF:
            try:
                message = pb.FromSite.FromString(content)
            except DecodeError:
                stream.strike("a message that cannot be read")
                continue
            match message.WhichOneof("message"):
                case "reply":
                    self._reply(stream, message.reply)
                case "renew":
                    self._renew(stream, message.renew)
                case "goodbye":
                    self.give_up(stream.peer.site, why="was stopped")
                    return
                case _:
                    stream.strike("a message that is of no use here")
            await stream.room()

    def _reply(self, stream: Stream, reply: pb.Reply) -> None:
        task = self.tasks.of(reply.task, site=stream.peer.site)
        if task is None:
            if self.tasks.belongs_to_another(reply.task, site=stream.peer.site):
                stream.strike("a reply for another site")
            stream.send(pb.FromServer(taken=pb.Taken(task=reply.task[:64])))
            return
        size, who = reply.payload_size, f"site '{task.site}'"
        if reply.problem:
            self._answered(task, problem="crash", detail=f"{who} failed: {clean(reply.problem)}")
        elif len(reply.text) > MAX_TEXT_BYTES or len(reply.payload) > SMALL_PAYLOAD_BYTES:
            self._answered(task, problem="protocol", detail=f"{who} sent a reply that is too long")
        elif max(size, len(reply.payload)) > task.most_bytes:
            sizes = f"{max(size, len(reply.payload))} bytes, expected at most {task.most_bytes}"
            self._answered(task, problem="protocol", detail=f"{who} announced a payload of {sizes}")
        elif not size:
            if task.offer is not None:
                task.offer = None
                drop_incoming([task])
            self._answered(task, text=reply.text, payload=reply.payload)
        else:
            self._offered(task, Offer(reply.text, size))

    def _offered(self, task: Task, offer: Offer) -> None:
        """Put a large payload into the queue of those that wait for their turn."""
        if task.offer != offer:
            self.turns.forget(task)
            try:
                prepare_incoming(task, offer.size, reserve_bytes=RESERVE_BYTES + self.tasks.announced_bytes())
            except StateError as error:
                self._answered(task, problem="protocol", detail=f"site '{task.site}': {error}")
                return
            task.offer, task.received = offer, 0
        self.turns.ask(task)

    def _answered(
        self, task: Task, *, problem: str = "", detail: str = "", text: bytes = b"", payload: bytes = b""
    ) -> None:
        self._close(task)
        if problem:
            drop_incoming([task])
        task.run.answer(task, problem=problem, detail=detail, text=text, payload=payload)
        # A site that has a large reply waits for this word, also where that was refused; a small one it sends again if
        # the connection breaks.
        if (problem or task.offer is not None) and (stream := self.streams.get(task.site)) is not None:
            stream.send(pb.FromServer(taken=pb.Taken(task=task.id)))

    def _close(self, task: Task) -> None:
        self.tasks.remove(task)
        self.turns.forget(task)
        self._feed(task.site)

    def _renew(self, stream: Stream, renew: pb.Renew) -> None:
        if time.monotonic() - stream.renewed < RENEWAL_SECONDS:
            stream.strike("a request for a certificate so soon after another")
            return
        try:
            certificate = self._registry.renew(stream.peer.fingerprint, renew.request)
        except ConsiliumError as error:
            stream.strike(f"a request for a certificate that is refused: {clean(str(error))}")
            return
        stream.renewed = time.monotonic()
        log.info("certificate renewed site=%s", stream.peer.site)
        stream.send(pb.FromServer(renewed=pb.Renewed(certificate=certificate, authorities=self._authorities())))

    def _certify(self, stream: Stream) -> None:
        try:
            certificate = self._registry.reissue(stream.peer.fingerprint)
        except ConsiliumError as error:  # the others get theirs
            log.error("certificate not renewed site=%s error=%s", stream.peer.site, error)
            return
        stream.send(pb.FromServer(renewed=pb.Renewed(certificate=certificate, authorities=self._authorities())))

    # --- large payloads -------------------------------------------------------------------------

    def _grant(self, task: Task) -> bool:
        stream = self.streams.get(task.site)
        if stream is not None:
            stream.send(pb.FromServer(turn=pb.Turn(task=task.id, offset=task.received)))
        return stream is not None

    def _give_up(self, task: Task) -> None:
        detail = f"site '{task.site}' had its turn to send {task.lost_turns} times and sent nothing"
        self._answered(task, problem="protocol", detail=detail)

    async def fetch(self, request: bytes, context: Any) -> None:
        """Send the payload of a task, from an offset on."""
        async with self._call(context) as peer:
            wanted = _parsed(pb.FetchRequest, request)
            task = self.tasks.of(wanted.task, site=peer.site)
            if task is None or task.outgoing is None or wanted.offset > task.size:
                await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such payload for this site")
                return
            began, offset, slot = time.monotonic(), wanted.offset, _Slot(self._downloads)
            try:
                with self._transfer(peer), self._only_fetch(peer.site), task.outgoing.open("rb", buffering=0) as file:
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
        """Send a piece; who reads slowly does not keep the slot for as long.

        Raises:
            TimeoutError: it is read too slowly.
        """
        piece, seconds = pb.Piece(data=data).SerializeToString(), PROGRESS_SECONDS * len(data) / PROGRESS_BYTES
        timer = asyncio.get_running_loop().call_later(SLOT_SECONDS, slot.give_back)
        try:
            await _within(seconds, context.write(piece), context)
        finally:
            timer.cancel()

    @contextmanager
    def _only_fetch(self, site: str) -> Iterator[None]:
        """End an earlier download of the same site: the connection that it is for may be long gone."""
        this = asyncio.current_task()
        assert this is not None
        if (before := self._fetching.get(site)) is not None:
            before.cancel("another download has taken its place")
        self._fetching[site] = this
        try:
            yield
        finally:
            if self._fetching.get(site) is this:
                del self._fetching[site]

    async def deliver(self, _: AsyncIterator[bytes], context: Any) -> bytes:
        """Take the payload of a reply in, whose turn it is."""
        async with self._call(context) as peer:
            first = _parsed(pb.Piece, await _within(PROGRESS_SECONDS, context.read(), context))
            await self._check_still_known(peer, context)
            task = self.tasks.of(first.task, site=peer.site)
            if task is None or task.offer is None or first.offset != task.received or not self.turns.begin(task):
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it is not the turn of this payload")
                return b""
            offer, before, began = task.offer, task.received, time.monotonic()
            try:
                with self._transfer(peer):
                    await self._receive(task, offer, first, context)
            finally:
                task.busy += time.monotonic() - began
                if self._is_wanted(task, offer):
                    self.turns.end(task, moved=task.received >= before + min(PROGRESS_BYTES, offer.size))
            return pb.Delivered(size=task.received).SerializeToString()

    def _is_wanted(self, task: Task, offer: Offer) -> bool:
        """Return whether this payload is still waited for: not answered, not withdrawn, not lost and asked anew."""
        return task.offer is offer and self.tasks.of(task.id, site=task.site) is task

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
                content = await _within(max(0.0, deadline - time.monotonic()), context.read(), context)
                piece = _parsed(pb.Piece, content)
                if not self._is_wanted(task, offer):
                    await context.abort(grpc.StatusCode.NOT_FOUND, "nobody waits for this payload any more")

    def _wrote(self, file: int, data: bytes, task: Task) -> bool:
        """Keep a piece; where the disk does not take it, the task is answered so."""
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

    # --- who calls ------------------------------------------------------------------------------

    async def _check_still_known(self, peer: Peer, context: Any) -> None:
        """Refuse who was revoked while it had yet to say something: `dismiss` does not find such a call."""
        if self._registry.name_of(peer.fingerprint) != peer.site:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, REVOKED)

    @contextmanager
    def _transfer(self, peer: Peer) -> Iterator[None]:
        """Keep a transfer where `dismiss` finds it."""
        this = asyncio.current_task()
        assert this is not None
        self._transfers[this] = peer.fingerprint
        try:
            yield
        finally:
            del self._transfers[this]

    @asynccontextmanager
    async def _call(self, context: Any) -> AsyncIterator[Peer]:
        """Identify the caller by its certificate; refuse strangers, revoked keys and too many calls."""
        try:
            pem = context.auth_context()["x509_pem_cert"][0]
            certificate = read_certificate(pem)
            fingerprint, ends = certificate.fingerprint, certificate.ends.timestamp()
            issuer = certificate.x509.issuer.rfc4514_string()
        except (KeyError, IndexError, ValueError, ConsiliumError):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this connection has no usable certificate")
            raise
        site = self._registry.name_of(fingerprint)
        if site is None or ends < time.time():
            reason = EXPIRED if site is not None else REVOKED if self._registry.is_revoked(fingerprint) else "unknown"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)
            raise StateError(reason)
        if self._calls[site] >= CALLS_PER_SITE:
            log.warning("site has too many open calls site=%s", site)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "this site has too many open calls")
        self._calls[site] += 1
        try:
            yield Peer(site, fingerprint, ends, issuer)
        except asyncio.CancelledError as error:
            this = asyncio.current_task()
            if this is None or not this.cancelling() or not error.args:
                raise  # the connection broke
            this.uncancel()
            await context.abort(grpc.StatusCode.ABORTED, str(error.args[0]))
        except (DecodeError, TimeoutError) as error:
            log.warning("call ended site=%s error=%s", site, type(error).__name__)
            code = grpc.StatusCode.DEADLINE_EXCEEDED if isinstance(error, TimeoutError) else None
            await context.abort(code or grpc.StatusCode.INVALID_ARGUMENT, "the call made no progress or no sense")
        finally:
            self._calls[site] -= 1
            if not self._calls[site]:
                del self._calls[site]


@lru_cache(maxsize=1)
def _newest(authorities: bytes) -> str:
    """Return the name of the authority that signs: the first."""
    return read_authorities(authorities)[0].subject.rfc4514_string()


class _Slot:
    """One of the few places for downloads: what gRPC holds of each payload that is on its way is memory."""

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


def _send_task(stream: Stream, task: Task) -> None:
    size = task.size if task.outgoing is not None else 0
    content = pb.Task(id=task.id, order=task.order, payload=task.payload, payload_size=size, seconds=task.seconds_left)
    stream.send(pb.FromServer(task=content))


async def _within(seconds: float, waiting: Awaitable[T], context: Any) -> T:
    """Wait for a read or a write of a call, but no longer than that.

    Raises:
        TimeoutError: it took longer.
        DecodeError: the other end has nothing more to say.
    """
    async with asyncio.timeout(seconds):
        result = await waiting
    if result is grpc.aio.EOF:
        raise DecodeError("the call ended early")
    return result


def _parsed(kind: Any, content: Any) -> Any:
    """Return a message of this kind.

    Raises:
        DecodeError: it is none.
    """
    return kind.FromString(content)
