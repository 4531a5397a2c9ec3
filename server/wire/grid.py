"""Flower's Grid on our wire: messages of a study become signed orders, replies become messages again."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from common.wire import wire_pb2 as pb
from server.flower import PROBLEMS, pack, take_plan
from server.wire.outbox import Outbox, Parcel, Signer
from server.wire.run_link import RunLink

WAIT_SECONDS = 1.0
"""How long one request for replies waits for the first."""


class WireGrid(Grid):
    """The Grid of a deployed run.

    Args:
        folder: where large payloads lie, shared with the server's process.
    """

    def __init__(self, link: RunLink, folder: Path, signer: Signer) -> None:
        self._link, self._outbox = link, Outbox(folder, signer)
        self._numbers: dict[str, int] = {}
        self._waiting: dict[str, Message] = {}
        self._files: dict[str, IO[bytes]] = {}
        self.seconds: dict[str, float] = {}
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        """Remember the run (Flower's interface)."""
        self._run = run

    @property
    def run(self) -> Any:
        """Return what was set (Flower's interface)."""
        return self._run

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Not offered: Flower deprecates it."""
        raise NotImplementedError("build a Message instead")

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of the sites that attend."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the sites that attend; a site keeps its number for as long as the run lasts."""
        return [NodeInfo(node_id=self._number(site), name=site) for site in sorted(self._link.online())]

    def _number(self, site: str) -> int:
        return self._numbers.setdefault(site, len(self._numbers) + 1)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sign and send messages; return their ids.

        Raises:
            StateError: a large payload cannot be written.
        """
        self.seconds.clear()
        names = {number: site for site, number in self._numbers.items()}
        parcels: dict[int, Parcel] = {}
        outgoing, identifiers = [], []
        for message in messages:
            text, payload, most_bytes = take_plan(message.content)
            if id(payload) not in parcels:
                parcels[id(payload)] = self._outbox.prepare(payload)
            task = self._outbox.task(
                parcels[id(payload)],
                site=names[message.metadata.dst_node_id],
                kind="plan",
                text=text,
                seconds=message.metadata.ttl,
                most_bytes=most_bytes,
            )
            outgoing.append(task)
            identifier = task.id.hex()
            message.metadata.__dict__["_message_id"] = identifier
            stub = Message(RecordDict(), metadata=message.metadata)  # type: ignore[call-overload]  # Flower's own way
            self._waiting[identifier] = stub
            identifiers.append(identifier)
        self._link.ask(outgoing)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the replies that have come; wait a little for the first.

        Raises:
            RunFailed: the server's process has ended.
        """
        for answer in self._link.answers(WAIT_SECONDS):
            identifier = answer.task.hex()
            asked = self._waiting.pop(identifier, None)
            self._outbox.done(answer.task)
            if asked is None:  # it was given up before
                self._outbox.drop_reply(answer.task)
                continue
            self.seconds[identifier] = answer.seconds
            yield self._reply(asked, answer)

    def _reply(self, asked: Message, answer: pb.Answer) -> Message:
        if answer.problem:
            return Message(Error(code=PROBLEMS.index(answer.problem), reason=answer.detail), reply_to=asked)
        payload = answer.payload or None
        if answer.payload_size:
            self._files[asked.metadata.message_id] = self._outbox.open_reply(answer.task)
        try:
            text = answer.text.decode()
        except UnicodeDecodeError:
            return Message(Error(code=PROBLEMS.index("protocol"), reason="its reply is no UTF-8 text"), reply_to=asked)
        return Message(pack(text, payload), reply_to=asked)

    def payload_file(self, message_id: str) -> IO[bytes] | None:
        """Return the file with the payload of the reply to a message, if that is large; it belongs to the caller."""
        return self._files.pop(message_id, None)

    def forget(self, message_ids: Iterable[str]) -> None:
        """Wait for some replies no longer."""
        late = [name for name in message_ids if name in self._waiting]
        for name in late:
            del self._waiting[name]
            self._outbox.done(bytes.fromhex(name))
        if late:
            self._link.forget([bytes.fromhex(name) for name in late])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not offered: a study's rounds push and pull."""
        raise NotImplementedError("push the messages, then pull their replies")
