"""The server's end of the wire: the sites' streams, orders down, replies up.

Everything here runs in one asyncio loop. A site is identified by its certificate; no message names its sender. A reply
is read only if it answers one of the site's own tasks, and never unpacked here: that is the run's work.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from consilium.common import __version__
from consilium.common.errors import ConsiliumError, StateError, clean
from consilium.common.host.certificates import read_authorities
from consilium.common.study.limits import MAX_TEXT_BYTES
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import (
    EXPIRED,
    HELLO_SECONDS,
    SERVICE,
    SMALL_PAYLOAD_BYTES,
    STOPPING,
    VERSION,
    WIRE_VERSION,
)
from consilium.server.wire.callers import Callers, parsed, within
from consilium.server.wire.enrolment import Enrolment
from consilium.server.wire.registry import Registry
from consilium.server.wire.streams import Peer, Stream, Streams
from consilium.server.wire.tasks import Offer, Task, Tasks, drop_incoming, prepare_incoming
from consilium.server.wire.transfers import Transfers

log = logging.getLogger(__name__)

TASKS_AT_A_SITE = 32
"""How many unanswered tasks a site is given; it can keep twice as many."""
MAX_HELLO_TASKS = 1024
RENEWAL_SECONDS = 60.0
"""A site that asks for certificates more often than that misbehaves: each is signed in this loop."""
RESERVE_BYTES = 200 * 10**6
"""Disk space that no payload may take."""
SWEEP_SECONDS = 5.0


class Wire:
    """The service `consilium.wire.v1.Wire`.

    Args:
        enrolment: answers devices that enrol by their group's token.
        authorities: returns the certificates (PEM) that sites are to trust.
    """

    def __init__(self, registry: Registry, enrolment: Enrolment, *, authorities: Callable[[], bytes]) -> None:
        self._registry, self._enrolment, self._authorities = registry, enrolment, authorities
        self.streams, self.tasks = Streams(), Tasks()
        self.callers = Callers(registry)
        self.transfers = Transfers(self.callers, self.tasks, self._answered, self._grant)
        self.turns = self.transfers.turns

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers for a `grpc.aio` server; messages stay bytes, so that malformed ones are handled here."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Attend": grpc.stream_stream_rpc_method_handler(self.attend),
                "Fetch": grpc.unary_stream_rpc_method_handler(self.transfers.fetch),
                "Deliver": grpc.stream_unary_rpc_method_handler(self.transfers.deliver),
                "Enrol": grpc.unary_unary_rpc_method_handler(self._enrolment.enrol),
            },
        )

    # --- what runs ask --------------------------------------------------------------------------

    def ask(self, tasks: Iterable[Task]) -> None:
        """Send tasks to their sites, or keep them until their sites are connected."""
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
        """Withdraw tasks whose replies nobody waits for any more."""
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
        """End all calls of some keys at once, also transfers that are half done."""
        keys = set(fingerprints)
        self.callers.end_transfers(keys, reason=reason)
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
        """Send all connected sites the authorities to trust from now on, and a certificate of the newest."""
        for stream in self.streams:
            self._certify(stream)

    async def sweep(self) -> None:
        """Close streams whose certificate has ended, and drop late tasks, again and again until cancelled."""
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
        async with self.callers.admitted(context) as peer:
            hello = parsed(pb.FromSite, await within(HELLO_SECONDS, context.read())).hello
            if hello.protocol != WIRE_VERSION:
                text = (
                    f"the server speaks version {WIRE_VERSION} of the wire (consilium {__version__}), this site "
                    f"{hello.protocol}: install the same release of consilium on both sides"
                )
                await context.write(pb.FromServer(farewell=pb.Farewell(reason=VERSION, text=text)).SerializeToString())
                return
            welcome = pb.FromServer(welcome=self._welcome(peer))
            if hello.probe:
                await context.write(welcome.SerializeToString())
                return
            handler = asyncio.current_task()
            assert handler is not None
            await self.callers.check_still_known(peer, context)
            stream = Stream(peer, context, handler)
            stream.send(welcome)
            self.streams.open(stream)  # before the welcome goes out: a site that has read it counts as connected
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
        """Send the tasks that the site does not have, and withdraw those that nobody waits for any more."""
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
        # A site with a large reply waits for this message, even if the reply was refused; a small reply it sends again
        # if the connection breaks.
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

    def _grant(self, task: Task) -> bool:
        stream = self.streams.get(task.site)
        if stream is not None:
            stream.send(pb.FromServer(turn=pb.Turn(task=task.id, offset=task.received)))
        return stream is not None


@lru_cache(maxsize=1)
def _newest(authorities: bytes) -> str:
    """Return the name of the first authority, the one that signs."""
    return read_authorities(authorities)[0].subject.rfc4514_string()


def _send_task(stream: Stream, task: Task) -> None:
    size = task.size if task.outgoing is not None else 0
    content = pb.Task(id=task.id, order=task.order, payload=task.payload, payload_size=size, seconds=task.seconds_left)
    stream.send(pb.FromServer(task=content))
