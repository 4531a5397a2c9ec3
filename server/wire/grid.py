"""Flower's Grid on our wire: messages of a study become signed orders, replies become messages again."""

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from common.errors import StateError
from common.files import write_atomically
from common.wire import wire_pb2 as pb
from common.wire.envelope import Order, payload_digest, sign_order
from common.wire.limits import SMALL_PAYLOAD_BYTES
from server.flower import CRASHED, UNUSABLE, pack, unpack_plan
from server.wire.run_link import RunLink

WAIT_SECONDS = 1.0
"""How long one request for replies waits for the first."""
_NUMBERS_AT_ONCE = 1_000_000


class Numbers:
    """Numbers for orders that grow from one process of a run to the next, whatever the clock says.

    Args:
        file: where the numbers that may have been used are noted.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._next = self._end = _read_number(file)

    def take(self) -> int:
        """Return a number greater than all before it.

        Raises:
            StateError: the note cannot be written.
        """
        if self._next == self._end:
            self._end += _NUMBERS_AT_ONCE
            write_atomically(self._file, str(self._end).encode())
        self._next += 1
        return self._next


def _read_number(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise StateError(f"cannot read '{file}', by which sites tell new orders from old ones: {error}") from error


@dataclass(frozen=True)
class Signer:
    """What makes an order of this run: its name, the study's key, and the numbers used so far."""

    run: str
    key: Ed25519PrivateKey
    numbers: Numbers


@dataclass
class _Sent:
    """A payload on disk and how many tasks it still serves."""

    path: Path
    users: int


class WireGrid(Grid):
    """The Grid of a deployed run.

    Args:
        folder: where large payloads lie, shared with the server's process.
    """

    def __init__(self, link: RunLink, folder: Path, signer: Signer) -> None:
        self._link, self._folder, self._signer = link, folder, signer
        self._numbers: dict[str, int] = {}
        self._waiting: dict[str, tuple[Message, str, _Sent | None]] = {}
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
        names = {number: site for site, number in self._numbers.items()}
        written: dict[int, tuple[bytes, _Sent | None]] = {}
        outgoing, identifiers = [], []
        for message in messages:
            site, identifier = names[message.metadata.dst_node_id], secrets.token_bytes(16)
            text, payload, most_bytes = unpack_plan(message.content)
            if id(payload) not in written:
                written[id(payload)] = payload_digest(payload), self._written(payload)
            digest, file = written[id(payload)]
            order = Order(
                number=self._signer.numbers.take(),
                run=self._signer.run,
                site=site,
                kind="plan",
                text=text,
                payload_digest=digest,
                payload_size=len(payload or b""),
            )
            task = pb.Outgoing(
                id=identifier,
                site=site,
                order=sign_order(order, self._signer.key),
                seconds=message.metadata.ttl,
                most_bytes=most_bytes,
            )
            if file is None:
                task.payload = payload or b""
            else:
                task.file, task.payload_size = file.path.name, len(payload or b"")
                file.users += 1
            outgoing.append(task)
            message.metadata.__dict__["_message_id"] = identifier.hex()
            stub = Message(RecordDict(), metadata=message.metadata)  # type: ignore[call-overload]  # Flower's own way
            self._waiting[identifier.hex()] = stub, site, file
            identifiers.append(identifier.hex())
        self._link.ask(outgoing)
        return identifiers

    def _written(self, payload: bytes | None) -> _Sent | None:
        if payload is None or len(payload) <= SMALL_PAYLOAD_BYTES:
            return None
        path = self._folder / f"sent-{secrets.token_hex(8)}"
        try:
            with path.open("xb") as file:
                file.write(payload)
        except OSError as error:
            raise StateError(f"cannot write the weights to '{self._folder}': {error.strerror or error}") from error
        return _Sent(path, 0)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the replies that have come; wait a little for the first.

        Raises:
            RunFailed: the server's process has ended.
        """
        for answer in self._link.answers(WAIT_SECONDS):
            identifier = answer.task.hex()
            asked, _, file = self._waiting.pop(identifier, (None, "", None))
            _done(file)
            if asked is None:  # it was given up before
                (self._folder / identifier).unlink(missing_ok=True)
                continue
            self.seconds[identifier] = answer.seconds
            yield self._reply(asked, answer)

    def _reply(self, asked: Message, answer: pb.Answer) -> Message:
        if answer.problem:
            code = CRASHED if answer.problem == "crash" else UNUSABLE
            return Message(Error(code=code, reason=answer.detail), reply_to=asked)
        payload = answer.payload or None
        if answer.payload_size:
            path = self._folder / answer.task.hex()
            try:
                self._files[asked.metadata.message_id] = path.open("rb")
                path.unlink()
            except OSError as error:
                raise StateError(f"cannot read a reply in '{self._folder}': {error.strerror or error}") from error
        try:
            text = answer.text.decode()
        except UnicodeDecodeError:
            return Message(Error(code=UNUSABLE, reason="its reply is no UTF-8 text"), reply_to=asked)
        return Message(pack(text, payload), reply_to=asked)

    def payload_file(self, message_id: str) -> IO[bytes] | None:
        """Return the file with the payload of the reply to a message, if that is large; it belongs to the caller."""
        return self._files.pop(message_id, None)

    def forget(self, message_ids: Iterable[str]) -> None:
        """Wait for some replies no longer."""
        late = [name for name in message_ids if name in self._waiting]
        for name in late:
            _done(self._waiting.pop(name)[2])
        if late:
            self._link.forget([bytes.fromhex(name) for name in late])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not offered: a study's rounds push and pull."""
        raise NotImplementedError("push the messages, then pull their replies")


def _done(file: _Sent | None) -> None:
    if file is not None:
        file.users -= 1
        if not file.users:
            file.path.unlink(missing_ok=True)
