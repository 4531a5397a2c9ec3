"""A deployed study's connection to its sites: plans become signed orders, answers come as they arrive."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from consilium.common.errors import clean
from consilium.common.protocol.plans import REPLY_GRACE_SECONDS, Plan
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import SMALL_PAYLOAD_BYTES
from consilium.server.study.exchange import NOTHING, Answer, answer_of
from consilium.server.wire.outbox import Outbox, Parcel
from consilium.server.wire.run_link import RunLink


class WireExchange:
    """One run's `Exchange` over the wire.

    Args:
        outbox: signs orders, and keeps large payloads in files that are shared with the server's process.
    """

    def __init__(self, link: RunLink, outbox: Outbox) -> None:
        self._link, self._outbox = link, outbox

    def connected(self) -> frozenset[str]:
        """Return the names of the sites that are connected now."""
        return self._link.online()

    def ask(
        self,
        plans: Mapping[str, Plan],
        *,
        payload: bytes | None,
        timeout_seconds: float,
        instead: Mapping[str, bytes] = NOTHING,
        most_bytes: int = 0,
    ) -> Iterator[Answer]:
        """Send every site its plan and yield one answer per site, as they arrive.

        Raises:
            StateError: a large payload cannot be written or read.
        """
        online, began = self.connected(), time.monotonic()
        parcels: dict[int, Parcel] = {}
        waiting: dict[bytes, tuple[str, int]] = {}
        outgoing = []
        for site, plan in plans.items():
            if site not in online:
                yield Answer(site, problem="gone", detail=f"site '{site}' is not connected")
                continue
            text, content = plan.model_dump_json(), instead.get(site, payload)
            if id(content) not in parcels:
                parcels[id(content)] = self._outbox.prepare(content)
            task = self._outbox.task(
                parcels[id(content)],
                site=site,
                kind="plan",
                text=text,
                seconds=timeout_seconds + REPLY_GRACE_SECONDS,
                most_bytes=max(most_bytes, SMALL_PAYLOAD_BYTES),
            )
            outgoing.append(task)
            waiting[task.id] = site, len(text) + len(content or b"")
        self._link.ask(outgoing)
        sending = (time.monotonic() - began) / max(1, len(waiting))
        payload, instead, content = None, NOTHING, None  # frees memory: they are sent, and as large as the model
        outgoing.clear()
        yield from self._answers(waiting, timeout_seconds, sending)

    def _answers(self, waiting: dict[bytes, tuple[str, int]], timeout: float, sending: float) -> Iterator[Answer]:
        try:
            yield from self._arriving(waiting, timeout, sending)
        finally:  # where enough have answered, and nobody waits for the others
            self._give_up(waiting)

    def _give_up(self, waiting: dict[bytes, tuple[str, int]]) -> None:
        if waiting:
            self._link.forget(waiting)
        for identifier in waiting:
            self._outbox.done(identifier)
        waiting.clear()

    def _arriving(self, waiting: dict[bytes, tuple[str, int]], timeout: float, sending: float) -> Iterator[Answer]:
        deadline = time.monotonic() + timeout
        while waiting and (left := deadline - time.monotonic()) > 0:
            for received in self._link.answers(left):
                self._outbox.done(received.task)
                site, bytes_down = waiting.pop(received.task, ("", 0))
                if site:
                    answer = self._answer(site, received, bytes_down)
                    yield replace(answer, transfer_seconds=sending + received.seconds)
                else:  # it was given up before
                    self._outbox.drop_reply(received.task)
        late = list(waiting.values())
        self._give_up(waiting)
        for site, bytes_down in late:
            detail = f"site '{site}' did not answer within {timeout:g} s"
            yield Answer(site, problem="timeout", detail=detail, bytes_down=bytes_down, transfer_seconds=sending)

    def _answer(self, site: str, received: pb.Answer, bytes_down: int) -> Answer:
        if received.problem:
            return Answer(site, problem=received.problem, detail=clean(received.detail), bytes_down=bytes_down)
        file = self._outbox.open_reply(received.task) if received.payload_size else None
        return answer_of(site, received.text, received.payload or None, file, bytes_down=bytes_down)
