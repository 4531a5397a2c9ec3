"""Adapter: Flower's public `Grid` <-> our Exchange. The only module of the server that knows records."""

import mmap
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from logging import getLogger
from typing import IO, Protocol, runtime_checkable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from common.codecs import Payload
from common.errors import ProtocolError
from common.protocol import PLAN_RECORD, REPLY_GRACE_SECONDS, Plan, parse_reply
from common.text import clean
from common.wire.limits import SMALL_PAYLOAD_BYTES
from server.exchange import NOTHING, Answer

log = getLogger(__name__)

PAUSE_SECONDS = 0.02
"""The least time between two requests for replies that bring none; a deployed run's own request waits for one."""
PROBLEMS = ("crash", "protocol", "gone")
"""What a message that tells an error says by its code: the site failed, sent what cannot be used, or has left."""
_MOST_BYTES = "most_bytes"


def pack(text: str, payload: bytes | None, *, most_bytes: int | None = None) -> RecordDict:
    """Return the content of a message: the JSON text, and the payload beside it.

    Args:
        most_bytes: the largest payload of a reply that can be of use; it stays at the server.
    """
    config = ConfigRecord({"json": text})
    if payload is not None:
        config["payload"] = payload
    if most_bytes is not None:
        config[_MOST_BYTES] = most_bytes
    return RecordDict({PLAN_RECORD: config})


def take_plan(records: RecordDict) -> tuple[str, bytes | None, int]:
    """Return the JSON text, the payload and the largest useful reply of a message that `pack` made.

    The payload is taken out: it is as large as the model, and a message lives until it is collected as garbage.
    """
    text, payload = unpack(records)
    config = records.config_records[PLAN_RECORD]
    most = config.get(_MOST_BYTES, SMALL_PAYLOAD_BYTES)
    config.pop("payload", None)
    assert isinstance(most, int)
    return text, payload, most


def unpack(records: RecordDict) -> tuple[str, bytes | None]:
    """Return the JSON text and the payload of a message.

    Raises:
        ProtocolError: records other than `pack` makes.
    """
    config = records.config_records.get(PLAN_RECORD)
    text = config.get("json") if config is not None else None
    if config is None or not isinstance(text, str):
        raise ProtocolError(f"message has records {sorted(records)}, expected '{PLAN_RECORD}' with a JSON text")
    payload = config.get("payload")
    if payload is not None and not isinstance(payload, bytes):
        raise ProtocolError(f"payload is {type(payload).__name__}, expected bytes")
    return text, payload


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
        """Return the replies there are to some messages; it may wait for the first."""
        ...

    def payload_file(self, message_id: str) -> IO[bytes] | None:
        """Return the file with a reply's payload if that is large; it belongs to the caller."""
        ...

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop what is kept for messages that nobody waits for any more."""
        ...

    @property
    def seconds(self) -> Mapping[str, float]:
        """How long the payloads of a message and its reply were on their way, by the message's id."""
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
                pack(text, content, most_bytes=max(most_bytes, SMALL_PAYLOAD_BYTES)),
                dst_node_id=nodes[site],
                message_type="train",
                ttl=timeout_seconds + REPLY_GRACE_SECONDS,
            )
        if not messages:
            return
        began = time.monotonic()
        sent = self._grid.push_messages(list(messages.values()))
        pushing = (time.monotonic() - began) / len(messages)
        waiting = dict(zip(sent, messages, strict=True))
        payload, instead, content = None, NOTHING, None  # they are on their way, and as large as the model
        messages.clear()
        for site, message, pulling in self._pull(waiting, timeout_seconds):
            asked = message.metadata.reply_to_message_id
            moving = pushing + pulling + self._grid.seconds.get(asked, 0.0)
            answer = _answer(site, message, self._grid.payload_file(asked), bytes_down[site])
            yield replace(answer, transfer_seconds=moving)
        self._grid.forget(waiting)
        for site in waiting.values():
            detail = f"site '{site}' did not answer within {timeout_seconds:g} s"
            yield Answer(site, problem="timeout", detail=detail, bytes_down=bytes_down[site], transfer_seconds=pushing)

    def _pull(self, waiting: dict[str, str], timeout_seconds: float) -> Iterator[tuple[str, Message, float]]:
        """Yield site, reply and the seconds it took to fetch, as replies arrive; what stays in `waiting` is too late.

        One reply is fetched at a time, so that no more of them than one are in memory.
        """
        deadline = time.monotonic() + timeout_seconds
        last = False
        while waiting and not last:
            last = time.monotonic() >= deadline
            asked, came = time.monotonic(), False
            replies = self._grid.pull_messages(list(waiting))  # it is here that a deployed run waits
            for message, seconds in _timed(replies):
                came = True
                site = waiting.pop(message.metadata.reply_to_message_id, None)
                if site is not None:
                    yield site, message, seconds
            if waiting and not last and not came:
                time.sleep(max(0.0, PAUSE_SECONDS - (time.monotonic() - asked)))


def _timed(messages: Iterable[Message]) -> Iterator[tuple[Message, float]]:
    """Yield messages with the seconds it took to fetch each."""
    began = time.monotonic()
    for message in messages:
        yield message, time.monotonic() - began
        began = time.monotonic()


def _answer(site: str, message: Message, file: IO[bytes] | None, bytes_down: int) -> Answer:
    if message.has_error():
        reason = clean(message.error.reason or f"Flower error {message.error.code}")
        detail = reason if f"site '{site}'" in reason else f"site '{site}' failed: {reason}"
        problem = PROBLEMS[message.error.code] if 0 <= message.error.code < len(PROBLEMS) else "crash"
        return Answer(site, problem=problem, detail=detail, bytes_down=bytes_down)
    try:
        text, payload = unpack(message.content)
        reply = parse_reply(text, site=site)
        if reply.site != site:
            raise ProtocolError(f"the node registered as '{site}' answered as '{reply.site}'")
    except ProtocolError as error:
        return Answer(site, problem="protocol", detail=str(error), bytes_down=bytes_down)
    try:
        mapped = None if file is None else memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    except (OSError, ValueError) as error:  # an empty file, say
        return Answer(site, problem="protocol", detail=f"site '{site}': {error}", bytes_down=bytes_down)
    content: Payload | None = payload if mapped is None else mapped
    bytes_up = len(text) + len(content or b"")
    return Answer(site, reply=reply, payload=content, file=file, bytes_up=bytes_up, bytes_down=bytes_down)
