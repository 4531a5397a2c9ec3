"""Flower's Grid for third-party apps: their messages become signed orders, replies become messages again.

Nothing here polls: a call that waits for replies waits at the socket to the server's process. Strategies of older
releases of Flower call from several threads; one of them reads for all, the others wait for it.
"""

import io
import math
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from consilium.common.errors import ConfigError, ProtocolError, clean
from consilium.common.events.run import MessagesAsked
from consilium.common.flower.config import Config
from consilium.common.protocol.flower_orders import CodeOrder, MessageOrder, node_number, parse_flower_reply, run_number
from consilium.common.protocol.replies import FailureReply
from consilium.common.wire import wire_pb2 as pb
from consilium.server.wire.outbox import Outbox, Parcel
from consilium.server.wire.run_link import RunLink

LEAST_MOST_BYTES, REPLY_PER_SENT = 16_000_000, 4
"""Limits of a reply, the larger of which holds: bytes, and a multiple of the size of what was sent."""
GONE_SECONDS = 60.0
"""A site that is away for so long while a reply is awaited counts as gone; a live one reconnects within 30 s."""
LOOK_SECONDS = 5.0
"""Interval of the checks for sites that are gone, while no reply comes."""
CODE_SECONDS = 24 * 3600.0

Note = Callable[[MessagesAsked], None]


@dataclass(frozen=True)
class Mission:
    """The values that all orders of a run have in common.

    Args:
        digest: of the app; `content` is all of it.
        sites: names of those that take part; None for all that are connected.
        most_bytes: the largest reply; None: by `LEAST_MOST_BYTES` and `REPLY_PER_SENT`.
    """

    run: str
    digest: str
    content: bytes
    config: Config
    sites: frozenset[str] | None = None
    most_bytes: int | None = None


@dataclass
class _Asked:
    """A message, without its content, that has no reply yet."""

    message: Message
    site: str
    missing_since: float | None = field(default=None)


class FlowerGrid(Grid):
    """The Grid of one run of an app.

    Args:
        note: called with the events of messages and replies.
    """

    def __init__(self, link: RunLink, outbox: Outbox, mission: Mission, note: Note) -> None:
        self._link, self._outbox, self._mission, self._note = link, outbox, mission, note
        self._run = Run.create_empty(run_number(mission.run))
        self._names: dict[int, str] = {}
        self._code: Parcel | None = None
        self._has_code: set[str] = set()
        self._code_tasks: dict[bytes, str] = {}
        self._waiting: dict[str, _Asked] = {}
        self._replies: dict[str, Message] = {}
        self._changed = threading.Condition()
        self._is_read = False

    def set_run(self, run: Run) -> None:
        """Remember the run (Flower's interface)."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return the run (Flower's interface)."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message for a node (Flower deprecates it)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of the sites that take part and are connected."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the sites that take part and are connected; a site's number is the same in every run."""
        with self._changed:
            sites = self._online()
            self._names.update({node_number(site): site for site in sites})
        return [NodeInfo(node_id=node_number(site), name=site) for site in sorted(sites)]

    def _online(self) -> frozenset[str]:
        online = self._link.attending() if self._is_read else self._link.online()
        return online if self._mission.sites is None else online & self._mission.sites

    # --- out ------------------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sign and send messages; return their ids.

        Raises:
            ConfigError: a message for a node that is not there, or one that cannot be sent.
            StateError: a large content cannot be written.
        """
        return self._push(list(messages), None)

    def _push(self, messages: list[Message], timeout: float | None) -> list[str]:
        parcels: dict[int, Parcel] = {}
        with self._changed:
            sites = [self._site_of(message) for message in messages]
            outgoing = self._code_for(dict.fromkeys(sites))
            for message, site in zip(messages, sites, strict=True):
                if id(message.content) not in parcels:
                    parcels[id(message.content)] = self._outbox.prepare(_to_bytes(message.content))
                outgoing.append(self._order(message, site, parcels[id(message.content)], timeout))
            self._link.ask(outgoing)
        return [message.metadata.message_id for message in messages]

    def _site_of(self, message: Message) -> str:
        if message.metadata.dst_node_id not in self._names:
            raise ConfigError(f"the app sends a message to node {message.metadata.dst_node_id}, which is not a site's")
        return self._names[message.metadata.dst_node_id]

    def _order(self, message: Message, site: str, parcel: Parcel, timeout: float | None) -> pb.Outgoing:
        identifier, about = secrets.token_bytes(16), message.metadata
        text = MessageOrder(
            run=self._mission.run,
            site=site,
            app=self._mission.digest,
            message_id=identifier.hex(),
            message_type=about.message_type,
            group_id=about.group_id,
            ttl=about.ttl,
            run_config=dict(self._mission.config),
        ).model_dump_json()
        about.__dict__["_message_id"] = identifier.hex()
        stub = Message(RecordDict(), metadata=about)  # type: ignore[call-overload]  # Flower's own way
        self._waiting[identifier.hex()] = _Asked(stub, site)
        return self._outbox.task(
            parcel,
            site=site,
            kind="flower",
            text=text,
            seconds=about.ttl if timeout is None else min(about.ttl, timeout),
            most_bytes=self._mission.most_bytes or max(LEAST_MOST_BYTES, REPLY_PER_SENT * parcel.size),
            id=identifier,
        )

    def _code_for(self, sites: Iterable[str]) -> list[pb.Outgoing]:
        """Return orders with the code for those sites that may not have it, to be sent before their messages."""
        tasks = []
        for site in sites:
            if site in self._has_code or site in self._code_tasks.values():
                continue
            if self._code is None:
                self._code = self._outbox.prepare(self._mission.content)
                self._code.users += 1  # it stays as long as the run
            text = CodeOrder(run=self._mission.run, site=site, app=self._mission.digest).model_dump_json()
            task = self._outbox.task(
                self._code, site=site, kind="flower", text=text, seconds=CODE_SECONDS, most_bytes=LEAST_MOST_BYTES
            )
            self._code_tasks[task.id] = site
            tasks.append(task)
        return tasks

    # --- in -------------------------------------------------------------------------------------

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come to some messages."""
        return self._collect(set(message_ids), 0.0)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return their replies: as many as came within `timeout` seconds.

        Raises:
            ConfigError: a message for a node that is not there, or one that cannot be sent.
            StateError: a large content cannot be written, or a reply not be read.
        """
        asked, began = list(messages), time.monotonic()
        kinds = sorted({(message.metadata.message_type, message.metadata.group_id) for message in asked})
        wanted, replies = set(self._push(asked, timeout)), list[Message]()
        count = len(asked)
        asked.clear()
        while wanted:
            left = LOOK_SECONDS if timeout is None else began + timeout - time.monotonic()
            found = self._collect(wanted, max(0.0, left))
            replies += found
            wanted -= {message.metadata.reply_to_message_id for message in found}
            if not found and timeout is not None and left <= 0:
                break
        late = self._forget(wanted)
        self._tell(kinds, count, replies, late, time.monotonic() - began)
        return replies

    def _tell(
        self, kinds: list[tuple[str, str]], count: int, replies: list[Message], late: list[str], seconds: float
    ) -> None:
        """Note the messages and their replies; nothing if there was no message."""
        if not count:
            return
        problems = [clean(reply.error.reason or "") for reply in replies if reply.has_error()]
        problems += [f"site '{site}' did not answer in time" for site in late]
        message_type, group = kinds[0]
        self._note(
            MessagesAsked(
                type=message_type,
                group=clean(group, 80),
                messages=count,
                answered=sum(reply.has_content() for reply in replies),
                seconds=round(seconds, 4),
                problems=tuple(problems[:20]),
            )
        )

    def _forget(self, message_ids: Collection[str]) -> list[str]:
        """Stop waiting for some replies; return the names of the sites that owe them."""
        with self._changed:
            late = {name: self._waiting.pop(name).site for name in message_ids if name in self._waiting}
            for name in late:
                self._outbox.done(bytes.fromhex(name))
            if late:
                self._link.forget([bytes.fromhex(name) for name in late])
        return sorted(set(late.values()))

    def _collect(self, wanted: Collection[str], seconds: float) -> list[Message]:
        """Return the replies to some messages, waiting up to `seconds` for the first of them."""
        deadline = time.monotonic() + seconds
        with self._changed:
            first = True
            while True:
                found = [self._replies.pop(name) for name in wanted if name in self._replies]
                left = deadline - time.monotonic()
                if found or (left <= 0 and not first):
                    return found
                first = False
                if self._is_read:
                    self._changed.wait(max(0.0, min(left, LOOK_SECONDS)))
                else:
                    self._read(max(0.0, min(left, LOOK_SECONDS)))

    def _read(self, seconds: float) -> None:
        """Read all answers that have arrived, waiting up to `seconds` for the first, for all threads."""
        self._is_read = True
        self._changed.release()
        answers: list[pb.Answer] = []
        try:
            answers = self._link.answers(seconds)
        finally:
            self._changed.acquire()
            self._is_read = False
            for answer in answers:
                self._take(answer)
            self._look_who_is_gone()
            self._changed.notify_all()

    def _take(self, answer: pb.Answer) -> None:
        self._outbox.done(answer.task)
        code_for = self._code_tasks.pop(answer.task, None)
        asked = self._waiting.pop(answer.task.hex(), None)
        if code_for is not None and not answer.problem:
            self._take_code(code_for, answer)
        if asked is None:  # an answer to the code's order, or to one given up before
            if answer.payload_size:
                self._outbox.drop_reply(answer.task)
            return
        self._replies[answer.task.hex()] = self._reply(asked, answer)

    def _take_code(self, site: str, answer: pb.Answer) -> None:
        try:
            reply = parse_flower_reply(answer.text.decode(errors="replace"), site=site)
        except ProtocolError:
            return  # the reply to the message that follows says it again
        if not isinstance(reply, FailureReply):
            self._has_code.add(site)

    def _reply(self, asked: _Asked, answer: pb.Answer) -> Message:
        who = f"site '{asked.site}'"
        if answer.problem:
            code = ErrorCode.CLIENT_APP_CRASHED if answer.problem == "crash" else ErrorCode.REPLY_MESSAGE_UNAVAILABLE
            detail = clean(answer.detail)
            return _error(asked, code, detail if who in detail else f"{who}: {detail}")
        content = self._payload(answer)
        try:
            reply = parse_flower_reply(answer.text.decode(errors="replace"), site=asked.site)
            if isinstance(reply, FailureReply):
                detail = clean(reply.message)
                reason = detail if who in detail else f"{who}: {detail}"
                return _error(asked, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
            message = Message(_from_bytes(content, who), reply_to=asked.message)
        except ProtocolError as error:
            return _error(asked, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, clean(str(error)))
        message.metadata.__dict__["_message_id"] = secrets.token_hex(16)
        return message

    def _payload(self, answer: pb.Answer) -> bytes:
        if not answer.payload_size:
            return answer.payload
        with self._outbox.open_reply(answer.task) as file:
            return file.read()

    def _look_who_is_gone(self) -> None:
        """Answer for the sites that are gone, so that nobody waits for them until their messages expire."""
        now, online = time.monotonic(), self._link.attending()
        for name, asked in list(self._waiting.items()):
            if asked.site in online:
                asked.missing_since = None
            elif asked.missing_since is None:
                asked.missing_since = now
            elif now - asked.missing_since > GONE_SECONDS:
                del self._waiting[name]
                self._outbox.done(bytes.fromhex(name))
                self._link.forget([bytes.fromhex(name)])
                reason = f"site '{asked.site}' has not been connected for {GONE_SECONDS:g} s"
                self._replies[name] = _error(asked, ErrorCode.NODE_UNAVAILABLE, reason)


def _error(asked: _Asked, code: int, reason: str) -> Message:
    message = Message(Error(code=code, reason=reason), reply_to=asked.message)
    message.metadata.__dict__["_message_id"] = secrets.token_hex(16)
    return message


def _to_bytes(records: RecordDict) -> bytes:
    try:
        return recorddict_to_proto(records).SerializeToString()
    except ValueError as error:
        raise ConfigError(f"the app's message cannot be sent, it may be larger than 2 GB: {error}") from error


def _from_bytes(content: bytes, who: str) -> RecordDict:
    """Return the records in a reply.

    Raises:
        ProtocolError: it holds none, or an array in them is not what its header says.
    """
    try:
        records = recorddict_from_proto(RecordDictProto.FromString(content))
        arrays = [(name, array) for record in records.array_records.values() for name, array in record.items()]
    except Exception as error:  # Flower's classes raise whatever they meet
        raise ProtocolError(f"{who} sent something that is not Flower records ({type(error).__name__})") from error
    for name, array in arrays:
        if array.stype == "numpy.ndarray":
            _check_array(array, f"{who}: array '{clean(name, 80)}'")
    return records


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _check_array(array: Any, who: str) -> None:
    """Check that an array has as many bytes as its header says: NumPy allocates by the header.

    Raises:
        ProtocolError: it does not.
    """
    file = io.BytesIO(array.data)
    try:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    except Exception as error:  # a header is read as Python text, which can be wrong in any way
        raise ProtocolError(f"{who} has no header of an array ({type(error).__name__})") from error
    size, expected = len(array.data) - file.tell(), math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or size != expected:
        raise ProtocolError(f"{who} has {size} bytes, expected {expected} for shape {shape}"[:300])
