"""Adapter: Flower's public `Grid` <-> our Exchange. The only module of the server that knows records."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from logging import getLogger

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable import inflatable_utils

from common.errors import ProtocolError
from common.protocol import PAYLOAD_RECORD, PLAN_RECORD, SMALL_PAYLOAD_BYTES, Plan, parse_reply
from server.exchange import NOTHING, Answer

log = getLogger(__name__)

LARGE_BYTES = 64_000_000
"""How many bytes of replies are fetched together."""
POLL_SECONDS = (0.01, 0.1)
"""The pause between pulls: it starts at the first and doubles up to the second while nothing arrives."""


def quicken_object_pulls() -> None:
    """Shorten flwr's wait for an object that is not there yet from 1 s to 20 ms.

    A quick poller nearly always meets a message before its objects; the contract test names what moved.
    """
    defaults = inflatable_utils.pull_objects.__kwdefaults__ or {}
    defaults.update(initial_backoff=0.02, backoff_cap=0.05, max_tries_per_object=None)


def pack(text: str, payload: bytes | None) -> RecordDict:
    """Return the records of one message: the JSON text, and the payload beside it or, if large, as one array."""
    if payload is not None and len(payload) <= SMALL_PAYLOAD_BYTES:
        return RecordDict({PLAN_RECORD: ConfigRecord({"json": text, "payload": payload})})
    records = RecordDict({PLAN_RECORD: ConfigRecord({"json": text})})
    if payload is not None:
        array = Array(dtype="uint8", shape=(len(payload),), stype="consilium.bytes", data=payload)
        records[PAYLOAD_RECORD] = ArrayRecord({"bytes": array})
    return records


def unpack(records: RecordDict) -> tuple[str, bytes | None]:
    """Return the JSON text and payload of a message.

    Raises:
        ProtocolError: records other than `pack` makes.
    """
    config = records.config_records.get(PLAN_RECORD)
    text = config.get("json") if config is not None else None
    if not isinstance(text, str):
        raise ProtocolError(f"message has records {sorted(records)}, expected '{PLAN_RECORD}' with a JSON text")
    arrays = records.array_records.get(PAYLOAD_RECORD)
    if arrays is None:
        small = config.get("payload") if config is not None else None
        if small is not None and not isinstance(small, bytes):
            raise ProtocolError(f"payload is {type(small).__name__}, expected bytes")
        return text, small
    if list(arrays) != ["bytes"]:
        raise ProtocolError(f"payload has arrays {sorted(arrays)}, expected one named 'bytes'")
    return text, arrays["bytes"].data


class GridExchange:
    """One run's connection to its sites through a Flower Grid; sites are known by their registered name."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        quicken_object_pulls()

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
                pack(text, content), dst_node_id=nodes[site], message_type="train", ttl=timeout_seconds + 60
            )
        if not messages:
            return
        began = time.monotonic()
        sent = self._grid.push_messages(list(messages.values()))
        pushing = (time.monotonic() - began) / len(messages)
        waiting = dict(zip(sent, messages, strict=True))
        at_once = max(1, LARGE_BYTES // max(1, *(len(content) for content in (payload or b"", *instead.values()))))
        for site, message, pulling in self._pull(waiting, timeout_seconds, at_once=at_once):
            yield replace(_answer(site, message, bytes_down[site]), transfer_seconds=pushing + pulling)
        for site in waiting.values():
            detail = f"site '{site}' did not answer within {timeout_seconds:g} s"
            yield Answer(site, problem="timeout", detail=detail, bytes_down=bytes_down[site], transfer_seconds=pushing)

    def _pull(
        self, waiting: dict[str, str], timeout_seconds: float, *, at_once: int
    ) -> Iterator[tuple[str, Message, float]]:
        """Yield (site, reply, seconds of fetching it) and take them out of `waiting` (message id -> site).

        `at_once` replies are fetched together and handed on before the next are, so that large ones do not pile up;
        what has arrived by the deadline is fetched after it.
        """
        deadline = time.monotonic() + timeout_seconds
        pause, last = POLL_SECONDS[0], False
        while waiting and not last:
            last = time.monotonic() >= deadline
            found = False
            for identifiers in _in_groups(list(waiting), at_once):
                began = time.monotonic()
                replies = list(self._grid.pull_messages(list(identifiers)))
                seconds = (time.monotonic() - began) / max(len(replies), 1)
                for message in replies:
                    site = waiting.pop(message.metadata.reply_to_message_id, None)
                    if site is not None:
                        found = True
                        yield site, message, seconds
            pause = POLL_SECONDS[0] if found else min(pause * 1.5, POLL_SECONDS[1])
            time.sleep(pause if waiting and not last else 0)


def _in_groups(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _answer(site: str, message: Message, bytes_down: int) -> Answer:
    if message.has_error():
        detail = f"site '{site}' failed: {message.error.reason or f'Flower error {message.error.code}'}"
        return Answer(site, problem="crash", detail=detail, bytes_down=bytes_down)
    try:
        text, payload = unpack(message.content)
        reply = parse_reply(text, site=site)
        if reply.site != site:
            raise ProtocolError(f"the node registered as '{site}' answered as '{reply.site}'")
    except ProtocolError as error:
        return Answer(site, problem="protocol", detail=str(error), bytes_down=bytes_down)
    bytes_up = len(text) + len(payload or b"")
    return Answer(site, reply=reply, payload=payload, bytes_up=bytes_up, bytes_down=bytes_down)
