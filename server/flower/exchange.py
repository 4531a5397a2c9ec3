"""Adapter: a Flower `Grid` <-> our Exchange, for a federation whose Grid carries messages."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from consilium.common.errors import ProtocolError, clean
from consilium.common.flower.message import PLAN_RECORD, pack, unpack
from consilium.common.protocol.plans import REPLY_GRACE_SECONDS, Plan
from consilium.server.study.exchange import NOTHING, Answer, answer_of

PAUSE_SECONDS = 0.02
"""Pause between two requests for replies, if the first brought none."""


@runtime_checkable
class Messenger(Protocol):
    """The part of Flower's `Grid` that a run needs."""

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the sites that are connected."""
        ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; their ids, in order."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to some messages that have come; may wait for the first."""
        ...

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop the state of messages that nobody waits for any more."""
        ...


class GridExchange:
    """One run's connection to its sites through a Flower Grid; sites are known by their registered name."""

    def __init__(self, grid: Messenger) -> None:
        self._grid = grid

    def connected(self) -> frozenset[str]:
        """Return the names of the sites that are online now."""
        return frozenset(self._nodes())

    def _nodes(self) -> dict[str, int]:
        return {node.name: node.node_id for node in self._grid.get_nodes() if node.name}

    def ask(
        self,
        plans: Mapping[str, Plan],
        *,
        payload: bytes | None,
        timeout_seconds: float,
        instead: Mapping[str, bytes] = NOTHING,
        most_bytes: int = 0,
    ) -> Iterator[Answer]:
        """Send every site its plan and yield one answer per site, as they arrive."""
        nodes = self._nodes()
        messages, bytes_down = {}, {}
        for site, plan in plans.items():
            if site not in nodes:
                yield Answer(site, problem="gone", detail=f"site '{site}' is not connected")
                continue
            text, content = plan.model_dump_json(), instead.get(site, payload)
            bytes_down[site] = len(text) + len(content or b"")
            messages[site] = Message(
                RecordDict({PLAN_RECORD: ConfigRecord(dict(pack(text, content)))}),
                dst_node_id=nodes[site],
                message_type="train",
                ttl=timeout_seconds + REPLY_GRACE_SECONDS,
            )
        if not messages:
            return
        sent = self._grid.push_messages(list(messages.values()))
        waiting = dict(zip(sent, messages, strict=True))
        payload, instead, content = None, NOTHING, None  # frees memory: they are sent, and as large as the model
        messages.clear()
        try:
            for site, message in self._pull(waiting, timeout_seconds):
                yield _answer(site, message, bytes_down[site])
        finally:  # also where enough have answered, and nobody waits for the others
            self._grid.forget(waiting)
        for site in waiting.values():
            detail = f"site '{site}' did not answer within {timeout_seconds:g} s"
            yield Answer(site, problem="timeout", detail=detail, bytes_down=bytes_down[site])

    def _pull(self, waiting: dict[str, str], timeout_seconds: float) -> Iterator[tuple[str, Message]]:
        """Yield site and reply, as replies arrive; the messages left in `waiting` are too late."""
        deadline = time.monotonic() + timeout_seconds
        last = False
        while waiting and not last:
            last = time.monotonic() >= deadline
            asked, came = time.monotonic(), False
            for message in self._grid.pull_messages(list(waiting)):
                came = True
                site = waiting.pop(message.metadata.reply_to_message_id, None)
                if site is not None:
                    yield site, message
            if waiting and not last and not came:
                time.sleep(max(0.0, PAUSE_SECONDS - (time.monotonic() - asked)))


def _answer(site: str, message: Message, bytes_down: int) -> Answer:
    if message.has_error():
        reason = clean(message.error.reason or f"Flower error {message.error.code}")
        detail = reason if f"site '{site}'" in reason else f"site '{site}' failed: {reason}"
        return Answer(site, problem="crash", detail=detail, bytes_down=bytes_down)
    try:
        text, payload = unpack(message.content.config_records)
    except ProtocolError as error:
        return Answer(site, problem="protocol", detail=str(error), bytes_down=bytes_down)
    return answer_of(site, text, payload, bytes_down=bytes_down)
