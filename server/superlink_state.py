"""What the SuperLink keeps while it runs: approved sites in a file, messages in memory, large payloads on disk.

flwr's own in-memory state answers a request in a fraction of a millisecond where its SQLite state takes several, but
it forgets the approved keys at its end and holds every reply of a round in memory. Here the keys are in a file of the
server's home, payloads above a megabyte are files, and whoever asks for a message can wait until there is one.

A message carries its text, and its payload if that is small. flwr keeps all of it apart, as three objects and more
that are announced, pushed and pulled one by one.
"""

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID, Status
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS, NodeStatus
from flwr.supercore.date import now
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStore
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError  # type: ignore[import-untyped]

from common.errors import StateError
from common.files import write_atomically
from common.protocol import CHUNK_BYTES, MAX_CHUNKS

REPLY_SECONDS = 2.0
"""How long a run waits in one request for replies, and whoever starts runs for a run."""
LOOK_AGAIN_SECONDS = 1.0
"""A site that vanished is not announced by a message: so often, what waits looks for itself."""
SESSION_SECONDS = 60.0


class SiteRegistry:
    """The file of the sites that were ever approved, with the public keys that flwr knows them by.

    Raises:
        StateError: the file cannot be read or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> list[NodeInfo]:
        """Return every site ever approved; one that was connected when the server ended is offline."""
        if not self._path.exists():
            return []
        try:
            nodes = [ParseDict(entry, NodeInfo()) for entry in json.loads(self._path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError, ParseError) as error:
            raise StateError(f"cannot read the approved sites in '{self._path}': {error}") from error
        for node in nodes:
            if node.status == NodeStatus.ONLINE:
                node.status = NodeStatus.OFFLINE
        return nodes

    def save(self, nodes: list[NodeInfo]) -> None:
        """Write them, atomically."""
        content = json.dumps([MessageToDict(node, preserving_proto_field_name=True) for node in nodes], indent=1)
        write_atomically(self._path, content.encode(), mode=0o600)


class LinkState(InMemoryLinkState):
    """flwr's in-memory state with lasting sites, and with waiting in place of polling."""

    def __init__(self, federation_manager: Any, object_store: ObjectStore, *, registry: SiteRegistry) -> None:
        super().__init__(federation_manager, object_store)
        self._registry = registry
        self._inbox: dict[int, list[str]] = defaultdict(list)  # of a node: messages it has not been given
        self._turns: dict[int, int] = {}  # of a node: how often it has asked
        self._asking: set[int] = set()
        self._tasks = threading.Condition()
        self._plans = threading.Condition(self.lock)
        self._replies = threading.Condition(self.lock)
        for node in registry.load():
            self.nodes[node.node_id] = node
            self.node_public_key_to_node_id[node.public_key] = node.node_id
            self.owner_to_node_ids.setdefault(node.owner_aid, set()).add(node.node_id)

    def create_node(self, *arguments: Any, **named: Any) -> int:
        """Approve a key, and write it down."""
        with self.lock:
            node_id = super().create_node(*arguments, **named)
            self._save()
            return node_id

    def delete_node(self, owner_aid: str, node_id: int) -> None:
        """Revoke a key, and write it down."""
        with self.lock:
            super().delete_node(owner_aid, node_id)
            self._save()
            self._plans.notify_all()  # it waits with a key that is no longer good

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """Note that a site has connected."""
        with self.lock:
            activated = super().activate_node(node_id, heartbeat_interval)
            if activated:
                self._asking.discard(node_id)
                self._save()
            return activated

    def deactivate_node(self, node_id: int) -> bool:
        """Note that a site has left."""
        with self.lock:
            deactivated = super().deactivate_node(node_id)
            if deactivated:
                self._save()
                self._replies.notify_all()
            return deactivated

    def get_nodes(self, run_id: int) -> set[int]:
        """Return the sites that are connected and ask for plans: one that only tries its key is gone in a moment."""
        with self.lock:
            return super().get_nodes(run_id) & self._asking

    def _save(self) -> None:
        self._registry.save(list(self.nodes.values()))

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """Take a message in, and announce the chunks of its payload where it has some beside it."""
        store = self.store_message_res if message.metadata.reply_to_message_id else self.store_message_ins
        with self._lock_object_push_sessions, self.lock:  # in the order in which flwr takes them
            missing: list[str] = []
            if object_tree.children:  # first: a message that is in can be asked for
                missing = self.preregister_object_tree(object_tree, session_id)
                session = self._object_push_sessions[session_id]
                assert isinstance(self.object_store, PayloadFiles)
                on_disk = not message.metadata.reply_to_message_id  # a run on this machine has written it
                present = self.object_store.take_present(object_tree, on_disk=on_disk)
                session.pending_object_ids -= present
                missing = [name for name in missing if name not in present]
            if store(message) is None:
                self._forget_objects(object_tree.object_id, missing, session_id)
                return False, []
            return True, missing

    def _forget_objects(self, root: str, missing: list[str], session_id: str) -> None:
        """Undo what was announced with a message that was not taken, and nothing else of its session."""
        self.object_store.delete(root)
        self._object_push_session_by_root.pop(root, None)
        session = self._object_push_sessions[session_id]
        session.root_object_ids.discard(root)
        session.pending_object_ids.difference_update(missing)

    def _store_generated_message(self, message: Message) -> None:
        """Keep nothing of a message that tells an error: it is whole, and given to the run at once."""

    def create_run(self, *arguments: Any, **named: Any) -> int:
        """Take a run in and wake whoever starts it."""
        run_id = super().create_run(*arguments, **named)
        with self._tasks:
            self._tasks.notify_all()
        return run_id

    def get_tasks(self, **chosen: Any) -> Sequence[Task]:
        """Return tasks; where only pending ones are asked for, wait up to `REPLY_SECONDS` for the first."""
        found = super().get_tasks(**chosen)
        if chosen == {"statuses": [Status.PENDING], "order_by": "pending_at", "ascending": True}:
            deadline = time.monotonic() + REPLY_SECONDS
            with self._tasks:
                while not (found := super().get_tasks(**chosen)) and (left := deadline - time.monotonic()) > 0:
                    self._tasks.wait(left)
        return found

    def start_session(self, run_id: int) -> str:
        """Begin to push messages; sessions that wait for no object, as those of whole messages, are forgotten."""
        with self._lock_object_push_sessions:
            latest = now() + timedelta(seconds=OBJECT_PUSH_SESSION_TTL_SECONDS - SESSION_SECONDS)
            for name, session in list(self._object_push_sessions.items()):
                if not session.pending_object_ids and session.expires_at < latest:
                    self._cleanup_push_session(name, cleanup_messages=False)
            self._sweep()
            return super().start_session(run_id)

    def _sweep(self) -> None:
        """Remove plans that are too old, and replies to them that nobody waited for."""
        with self.lock:
            current = now().timestamp()
            messages = self.message_ins_store.items()
            late = {name for name, each in messages if each.metadata.created_at + each.metadata.ttl <= current}
            for name in late & self.message_ins_id_to_message_res_id.keys():
                self.object_store.delete(self.message_ins_id_to_message_res_id[name])
            self.delete_messages(late)

    def store_message_ins(self, message: Message) -> str | None:
        """Take a plan in and wake the site that waits for it."""
        with self.lock:
            known = message.metadata.message_id in self.message_ins_store
            identifier = super().store_message_ins(message)
            if identifier is not None and not known:
                self._inbox[message.metadata.dst_node_id].append(identifier)
                self._plans.notify_all()
            return identifier

    def wait_for_plan(self, node_id: int, *, seconds: float, is_wanted: Callable[[], bool]) -> bool:
        """Return when there is a message for a site, it is no longer wanted, or time is up.

        False: the site asks on another connection by now, and this one is to get nothing.
        """
        deadline = time.monotonic() + seconds
        with self._plans:
            self._asking.add(node_id)
            turn = self._turns[node_id] = self._turns.get(node_id, 0) + 1
            self._plans.notify_all()
            while (left := deadline - time.monotonic()) > 0 and is_wanted():
                node = self.nodes.get(node_id)
                if self._turns[node_id] != turn:
                    return False
                if self._inbox.get(node_id) or node is None or node.status == NodeStatus.UNREGISTERED:
                    return True
                self._plans.wait(min(left, LOOK_AGAIN_SECONDS))
            return self._turns[node_id] == turn

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """Return what a site has not been given yet, looking at its own messages only."""
        if node_id == SUPERLINK_NODE_ID:  # tasks of the server itself, which we have none of
            return []
        with self.lock:
            waiting = self._inbox.pop(node_id, [])
            self._check_stored_messages(set(waiting))
            found = [message for name in waiting if (message := self.message_ins_store.get(name)) is not None]
            given = [message for message in found if run_id is None or message.metadata.run_id == run_id][:limit]
            if kept := [message.metadata.message_id for message in found if message not in given]:
                self._inbox[node_id] = kept
            for message in given:
                message.metadata.delivered_at = now().isoformat()
            return given

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """Forget plans and their replies, with the payloads of the plans."""
        with self.lock:
            super().delete_messages(message_ins_ids)
            for name in message_ins_ids:
                self.object_store.delete(name)

    def store_message_res(self, message: Message) -> str | None:
        """Take a reply in and wake the round loop."""
        with self.lock:
            identifier = super().store_message_res(message)
            self._replies.notify_all()
            return identifier

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """Return the replies to some plans; wait up to `REPLY_SECONDS` for the first that has arrived whole."""
        deadline = time.monotonic() + REPLY_SECONDS
        with self._replies:
            while True:
                found = super().get_message_res({name for name in message_ids if not self._arrives(name)}, run_id)
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                self._replies.wait(min(left, LOOK_AGAIN_SECONDS))

    def _arrives(self, plan: str) -> bool:
        """Return whether the objects of a plan's reply are still being pushed."""
        root = self.message_ins_id_to_message_res_id.get(plan, "")
        return root in self._object_push_session_by_root

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """Take an object in; the last one of a reply wakes the round loop."""
        if self.object_store.get(object_id):  # sent again, because the answer was lost on the way
            return True
        stored = super().store_object(run_id, session_id, object_id, object_content)
        if session_id not in self._object_push_sessions:
            with self._replies:
                self._replies.notify_all()
        return stored


class PayloadFiles(InMemoryObjectStore):
    """flwr's store of objects, with the content of every payload in a file of a folder.

    A message is an object, its payload the only object below it, and the chunks below that one are parts of a file
    with the payload's name. A run on this machine writes and reads the whole file, sites put and get chunks.

    Raises:
        StateError: the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(verify=False)
        self._folder = folder
        self._places: dict[str, tuple[str, int]] = {}  # of a chunk: its payload and where it begins there
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.iterdir():  # of a server that was killed
                left.unlink()
        except OSError as error:
            raise StateError(f"cannot write in '{folder}': {error.strerror or error}") from error

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """Announce a message with one payload.

        Raises:
            ValueError: the objects are not those of a message with a payload in chunks.
        """
        if len(object_tree.children) != 1:
            raise ValueError("a message has one payload")
        (payload,) = object_tree.children
        if not 0 < len(payload.children) <= MAX_CHUNKS or any(chunk.children for chunk in payload.children):
            raise ValueError(f"a payload has 1 to {MAX_CHUNKS} chunks")
        names = [each.object_id for each in (object_tree, payload, *payload.children)]
        if len(set(names)) < len(names) or any(name in self.store for name in names):
            raise ValueError("the objects of a message have names of their own")
        with self.lock_store:
            missing = super().preregister(run_id, object_tree)
            for number, chunk in enumerate(payload.children):
                self._places[chunk.object_id] = (payload.object_id, number * CHUNK_BYTES)
            return missing

    def take_present(self, tree: ObjectTree, *, on_disk: bool) -> set[str]:
        """Return the objects of a message that need not be pushed: it, its payload, and chunks that are on disk."""
        (payload,) = tree.children
        present = {tree.object_id, payload.object_id}
        if on_disk and (self._folder / payload.object_id).exists():
            present |= {chunk.object_id for chunk in payload.children}
        with self.lock_store:
            for name in present:
                self.store[name].is_available = True
        return present

    def get_object_tree(self, object_id: str) -> ObjectTree:
        """Return the objects of a message; one without a payload beside it has none."""
        try:
            return super().get_object_tree(object_id)
        except NoObjectInStoreError:
            return ObjectTree(object_id=object_id)

    def put(self, object_id: str, object_content: bytes) -> None:
        """Write a chunk that was announced."""
        if not 0 < len(object_content) <= CHUNK_BYTES:
            raise ValueError(f"chunk of {len(object_content)} bytes, expected 1 to {CHUNK_BYTES}")
        with self.lock_store:
            if object_id not in self._places:
                raise NoObjectInStoreError(f"object {object_id} was not announced")
            payload, start = self._places[object_id]
            descriptor = os.open(self._folder / payload, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, object_content, start)
        finally:
            os.close(descriptor)
        with self.lock_store:
            if object_id in self.store:
                self.store[object_id].is_available = True

    def get(self, object_id: str) -> bytes | None:
        """Return a chunk: None if it was never announced, empty if it has not arrived."""
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None or not entry.is_available or object_id not in self._places:
                return None if entry is None else b""
            payload, start = self._places[object_id]
            descriptor = os.open(self._folder / payload, os.O_RDONLY)
        try:
            return os.pread(descriptor, CHUNK_BYTES, start)
        finally:
            os.close(descriptor)

    def delete(self, object_id: str) -> None:
        """Remove a message with its payload."""
        with self.lock_store:
            super().delete(object_id)
            if object_id not in self.store:
                self._places.pop(object_id, None)
                (self._folder / object_id).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything."""
        with self.lock_store:
            super().clear()
            self._places.clear()
            for path in self._folder.iterdir():
                path.unlink()
