"""A site's attendance at its server: it connects, waits for orders, and never gives up.

A broken connection is made again after a pause that grows and varies; an order whose reply has not reached the server
as a whole is not forgotten meanwhile.
"""

import asyncio
import contextlib
import logging
import random
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from consilium.client.privacy.policy.gate import Gate
from consilium.client.wire.certificate import is_valid, keep_renewed, request_if_due
from consilium.client.wire.channel import Attended, NotWelcome, attend, explained, refusal_sentence
from consilium.client.wire.desk import Answering, Desk
from consilium.client.wire.link import Link, pass_on_own
from consilium.client.wire.place import Place
from consilium.client.wire.tasks import Tasks
from consilium.common.errors import ConfigError, ConnectionRefused, ConsiliumError, clean
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import EXPIRED, MAX_WAIT_SECONDS, REPLACED, REVOKED

log = logging.getLogger(__name__)

REPLACED_SECONDS = 60.0
"""Wait of a site whose connection another program has taken over, so that the two do not take turns."""
RENEWAL_CHECK_SECONDS = 3600.0
GOODBYE_SECONDS = 1.0


class Connection:
    """One site's attendance at its server.

    Args:
        place: names and files of the site.
        worker: answers the orders.
    """

    def __init__(self, place: Place, worker: Answering) -> None:
        self._place = place
        self._link, self._tasks = Link(), Tasks()
        gate = Gate(place.settings, place.log.parent, place.key)
        self._desk = Desk(place, worker, self._link, self._tasks, gate)
        self._pause = 0.0
        self._last_problem = ""

    @property
    def is_connected(self) -> bool:
        """Whether the server has welcomed this site and the stream is open."""
        return self._link.connected.is_set()

    async def run(self) -> None:
        """Attend until cancelled.

        Raises:
            ConnectionRefused: the coordinator has revoked this site's key, which no waiting mends.
        """
        answering = asyncio.get_running_loop().create_task(self._desk.answer_all())
        try:
            while True:
                try:
                    await self._attend_once()
                except (ConnectionRefused, NotWelcome, ConfigError) as error:
                    if getattr(error, "reason", "") == REVOKED:
                        raise ConnectionRefused(str(error)) from error
                    await self._wait(error)
                except asyncio.CancelledError as error:
                    pass_on_own(error)
                    taken = f"the server at {self._place.server} did not take a reply in time, so the stream was ended"
                    await self._wait(ConnectionRefused(taken))
                except Exception as error:  # a site never gives up
                    await self._wait(self._unexpected(error))
        finally:
            answering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await answering
            await self._link.close()

    async def leave(self) -> None:
        """Tell the server that this site is being stopped, so that nobody waits for its replies."""
        attended = self._link.attended
        if attended is not None and self.is_connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self._link.send(pb.FromSite(goodbye=pb.Goodbye()))
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
        attended = self._link.attended = await attend(self._place, tasks=self._tasks.ids)
        if attended.welcome.site != self._place.name:
            name = clean(attended.welcome.site, 80)
            await self._link.close()
            raise ConnectionRefused(f"the server knows this key as site '{name}', this is site '{self._place.name}'")
        log.info("site joined name=%s server=%s; it waits for studies", self._place.name, self._place.server)
        self._pause, self._last_problem = 0.0, ""
        self._link.connected.set()
        renewing = asyncio.get_running_loop().create_task(self._renew())
        try:
            for reply in self._tasks.replies:
                await self._link.send(pb.FromSite(reply=reply))
            await self._listen(attended)
        except grpc.aio.AioRpcError as error:
            raise await explained(self._place, error) from error
        finally:
            renewing.cancel()
            self._link.connected.clear()
            await self._link.close()

    async def _listen(self, attended: Attended) -> None:
        while (content := await attended.call.read()) is not grpc.aio.EOF:
            try:
                self._take(pb.FromServer.FromString(content))
            except DecodeError as error:
                raise ConnectionRefused(
                    f"the server at {self._place.server} sends something that is not a message"
                ) from error
        raise ConnectionRefused(f"the server at {self._place.server} has closed the connection")

    def _take(self, message: Any) -> None:
        match message.WhichOneof("message"):
            case "task":
                self._tasks.receive(message.task)
            case "turn":
                self._tasks.grant(message.turn)
            case "taken":
                self._tasks.forget(message.taken.task)
            case "withdrawn":
                self._tasks.forget(message.withdrawn.task)
            case "renewed":
                keep_renewed(self._place, message.renewed.certificate, message.renewed.authorities)
            case "farewell":
                reason, text = message.farewell.reason, clean(message.farewell.text)
                sentence = f"the server at {self._place.server} says farewell: {text or clean(reason, 40)}"
                raise NotWelcome(reason, refusal_sentence(self._place, reason) if reason == REVOKED else sentence)

    async def _renew(self) -> None:
        """Ask for a new certificate when it is time."""
        while True:
            try:
                if (request := request_if_due(self._place)) is not None:
                    await self._link.send(pb.FromSite(renew=pb.Renew(request=request)))
            except (ConsiliumError, OSError) as error:
                log.error("certificate cannot be renewed error=%s", error)
            await asyncio.sleep(RENEWAL_CHECK_SECONDS)
