"""Where a site's orders are answered, one after the other, connected or not."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from consilium.client.privacy.policy.gate import Gate
from consilium.client.process.channels import Parcel
from consilium.client.process.shared_memory import Box
from consilium.client.process.supervisor import WorkerFailed
from consilium.client.wire.link import Link, pass_on_own
from consilium.client.wire.place import Place
from consilium.client.wire.tasks import Task, Tasks
from consilium.client.wire.transfer import deliver, fetch
from consilium.common.errors import ConsiliumError, ProtocolError, clean
from consilium.common.host.study_key import read_study_public
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.envelope import open_order

log = logging.getLogger(__name__)

REST_SECONDS = 60.0
"""After this time without an order the worker gives memory back."""
WITHDRAWN_SECONDS = 10.0
"""How much longer the worker may work on a withdrawn order before it is stopped."""


class Answering(Protocol):
    """The part that answers orders: the supervisor of the worker."""

    inbox: Box
    outbox: Box

    async def answer(self, order: Parcel, *, seconds: float) -> Parcel:
        """Have an order answered."""
        ...

    def rest(self) -> None:
        """Give memory back."""
        ...


@dataclass(frozen=True, eq=False)
class Desk:
    """Takes orders from the line, has the worker answer them, and sends the replies."""

    place: Place
    worker: Answering
    link: Link
    tasks: Tasks
    gate: Gate

    async def answer_all(self) -> None:
        """Answer orders until cancelled; whatever goes wrong with one, the next is answered."""
        while True:
            await self._wait_for_one()
            task = self.tasks.begin()
            try:
                async with asyncio.timeout(task.seconds_left + 1):
                    await self._answer(task)
            except TimeoutError:
                log.warning("order given up: nobody waits for its reply any more")
            except asyncio.CancelledError as error:
                pass_on_own(error)
            except Exception:
                log.exception("order not answered")
            finally:
                self.tasks.end()

    async def _wait_for_one(self) -> None:
        while not self.tasks.waiting:
            self.tasks.arrived.clear()
            try:
                await asyncio.wait_for(self.tasks.arrived.wait(), REST_SECONDS)
            except TimeoutError:
                self.worker.rest()

    async def _answer(self, task: Task) -> None:
        try:
            if task.size:
                self._check(task)
            await fetch(self.link, self.tasks, task, self.worker.inbox)
            answer = await self._worked(task)
            if answer is None:
                return
            reply = pb.Reply(task=task.id, text=answer.content, payload=answer.payload, payload_size=answer.boxed)
        except (WorkerFailed, ConsiliumError, OSError) as error:
            reply = pb.Reply(task=task.id, problem=clean(str(error)))
        task.reply = reply
        if not reply.payload_size:
            self.tasks.keep(task)
        await self.link.send(pb.FromSite(reply=reply))
        while reply.payload_size and not self.tasks.taken.is_set():
            await deliver(self.link, self.tasks, task, self.worker.outbox, size=reply.payload_size)

    def _check(self, task: Task) -> None:
        """Refuse a large payload that the study's key has not signed: else an intruder at the server fills this memory.

        And one that this site's policy refuses whatever its plan says. The worker checks every order again, all of it.

        Raises:
            ProtocolError: the order is not signed, or for another site, or of another size.
            PolicyRefused: the site's policy refuses it.
            ConfigError: the study's key cannot be read.
        """
        order = open_order(task.order, read_study_public(self.place.study_key))
        if (order.site, order.payload_size) != (self.place.name, task.size):
            raise ProtocolError(
                f"a payload of {task.size} bytes was announced, and the order is for site "
                f"'{clean(order.site, 80)}' and {order.payload_size} bytes"
            )
        self.gate.check(order)

    async def _worked(self, task: Task) -> Parcel | None:
        """Return the worker's answer; None for an order that was withdrawn, which is worked on a little longer.

        Raises:
            WorkerFailed: it could not answer.
        """
        taken = self.tasks.taken
        if taken.is_set():
            return None
        order = Parcel(task.order, task.payload, task.size)
        working = asyncio.ensure_future(self.worker.answer(order, seconds=task.seconds_left))
        withdrawn = asyncio.ensure_future(taken.wait())
        try:
            await asyncio.wait({working, withdrawn}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await asyncio.wait({working}, timeout=WITHDRAWN_SECONDS)
            return working.result() if working.done() and not taken.is_set() else None
        finally:
            withdrawn.cancel()
            working.cancel()
            await asyncio.wait({working})
