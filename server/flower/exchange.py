"""Adapter: a Flower `Grid` <-> our Exchange, for a federation whose Grid carries messages."""

import math
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from consilium.common.errors import ProtocolError
from consilium.common.flower.message import PLAN_RECORD, pack, unpack
from consilium.common.protocol.plans import REPLY_GRACE_SECONDS
from consilium.server.study.exchange import Answer, Mailing, answer_of, crashed, cut_off, gone

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

    patient = False

    def __init__(self, grid: Messenger) -> None:
        self._grid = grid

    def connected(self) -> frozenset[str]:
        """Return the names of the sites that are online now."""
        return frozenset(self._nodes())

    def _nodes(self) -> dict[str, int]:
        return {node.name: node.node_id for node in self._grid.get_nodes() if node.name}

    def converse(self) -> "GridConversation":
        """Return a conversation in which plans stay open over several rounds."""
        return GridConversation(self._grid, self._nodes)


@dataclass(frozen=True)
class _Sent:
    """A plan in a message that has no reply yet.

    Args:
        seconds: that the site has for it, until `deadline` (`time.monotonic`).
    """

    site: str
    bytes_down: int
    seconds: float
    deadline: float


class GridConversation:
    """A `Conversation` in messages of a Grid.

    Args:
        nodes: returns the node of each site that is connected.
    """

    def __init__(self, grid: Messenger, nodes: Callable[[], Mapping[str, int]]) -> None:
        self._grid, self._nodes = grid, nodes
        self._sent: dict[str, _Sent] = {}
        self._gone: list[str] = []
        self._look: Iterator[Message] | None = None
        self._began, self._came = 0.0, False

    def open(self) -> frozenset[str]:
        """Return the sites whose answer to a plan has not been taken yet."""
        return frozenset([sent.site for sent in self._sent.values()] + self._gone)

    def send(self, mailing: Mailing) -> None:
        """Send every site its plan; one that is not connected has answered by that."""
        nodes, messages, sizes = self._nodes(), dict[str, Message](), dict[str, int]()
        for site, plan in mailing.plans.items():
            if site not in nodes:
                self._gone.append(site)
                continue
            text, content = plan.model_dump_json(), mailing.payload_for(site)
            sizes[site] = len(text) + len(content or b"")
            messages[site] = Message(
                RecordDict({PLAN_RECORD: ConfigRecord(dict(pack(text, content)))}),
                dst_node_id=nodes[site],
                message_type="train",
                ttl=mailing.timeout_seconds + REPLY_GRACE_SECONDS,
            )
        if not messages:
            return
        identifiers = self._grid.push_messages(list(messages.values()))
        deadline = time.monotonic() + mailing.timeout_seconds
        for identifier, site in zip(identifiers, messages, strict=True):
            self._sent[identifier] = _Sent(site, sizes[site], mailing.timeout_seconds, deadline)

    def answers(
        self, *, absent_seconds: float | None = None, until: Callable[[], float] = lambda: math.inf
    ) -> Generator[Answer, None, None]:
        """Yield one answer for every open plan, as they arrive."""
        while self._gone:
            yield gone(self._gone.pop(0))
        while self._sent:
            if (message := self._next()) is not None:
                if (sent := self._sent.pop(message.metadata.reply_to_message_id, None)) is not None:
                    yield _answer(sent.site, message, sent.bytes_down)
                    if until() <= time.monotonic():
                        yield from self._late(cut=True)
                continue
            late = self._late(cut=until() <= self._began)
            yield from late
            if self._sent and not late and not self._came:
                time.sleep(max(0.0, PAUSE_SECONDS - (time.monotonic() - self._began)))

    def give_up(self, sites: Collection[str]) -> None:
        """Take back the open plans of some sites."""
        self._gone = [site for site in self._gone if site not in sites]
        self._forget([identifier for identifier, sent in self._sent.items() if sent.site in sites])

    def close(self) -> None:
        """Take back all open plans."""
        self.give_up(self.open())

    def _next(self) -> Message | None:
        """Return the next reply; None at the end of a look at all open messages, which the next call begins anew."""
        if self._look is None:
            self._began, self._came = time.monotonic(), False
            self._look = iter(self._grid.pull_messages(list(self._sent)))
        message = next(self._look, None)
        self._came = self._came or message is not None
        if message is None:
            self._look = None
        return message

    def _late(self, *, cut: bool) -> list[Answer]:
        """Take back what had no reply in a look that began too late, and return what stands for the answers."""
        late = {name: sent for name, sent in self._sent.items() if cut or sent.deadline <= self._began}
        self._forget(late)
        return [cut_off(sent.site) if cut else _too_late(sent) for sent in late.values()]

    def _forget(self, identifiers: Collection[str]) -> None:
        if identifiers:
            self._grid.forget(identifiers)
        for identifier in identifiers:
            del self._sent[identifier]


def _too_late(sent: _Sent) -> Answer:
    detail = f"site '{sent.site}' did not answer within {sent.seconds:g} s"
    return Answer(sent.site, problem="timeout", detail=detail, bytes_down=sent.bytes_down)


def _answer(site: str, message: Message, bytes_down: int) -> Answer:
    if message.has_error():
        reason = message.error.reason or f"Flower error {message.error.code}"
        return crashed(site, reason, bytes_down=bytes_down)
    try:
        text, payload = unpack(message.content.config_records)
    except ProtocolError as error:
        return Answer(site, problem="protocol", detail=str(error), bytes_down=bytes_down)
    return answer_of(site, text, payload, bytes_down=bytes_down)
