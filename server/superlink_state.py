"""What the SuperLink keeps while it runs: approved sites in a file, messages in memory, large objects on disk.

flwr's own in-memory state answers a request in a fraction of a millisecond where its SQLite state takes several, but
it forgets the approved keys at its end and holds every reply of a round in memory. Here the keys are in a file of the
server's home, objects above `LARGE_BYTES` are files, and whoever asks for a message can wait until there is one.

A small message carries its content itself (flwr keeps it apart, as three objects that are pushed and pulled one by
one); such a message is one that has content and no objects.
"""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS, NodeStatus
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStore
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError  # type: ignore[import-untyped]

from common.errors import StateError
from common.files import write_atomically

LARGE_BYTES = 64_000
REPLY_SECONDS = 5.0
"""How long the server's round loop waits in one request for replies."""
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

    def _save(self) -> None:
        self._registry.save(list(self.nodes.values()))

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """Take a message in; one that carries its content has no objects to wait for."""
        if not _is_whole(message):
            return super().store_message_and_object_tree(message, object_tree, session_id)
        store = self.store_message_res if message.metadata.reply_to_message_id else self.store_message_ins
        return store(message) is not None, []

    def start_session(self, run_id: int) -> str:
        """Begin to push messages; sessions that wait for no object, as those of whole messages, are forgotten."""
        with self._lock_object_push_sessions:
            latest = now() + timedelta(seconds=OBJECT_PUSH_SESSION_TTL_SECONDS - SESSION_SECONDS)
            for name, session in list(self._object_push_sessions.items()):
                if not session.pending_object_ids and session.expires_at < latest:
                    self._cleanup_push_session(name, cleanup_messages=False)
            return super().start_session(run_id)

    def store_message_ins(self, message: Message) -> str | None:
        """Take a plan in and wake the site that waits for it."""
        with self.lock:
            known = message.metadata.message_id in self.message_ins_store
            identifier = super().store_message_ins(message)
            if identifier is not None and not known:
                self._inbox[message.metadata.dst_node_id].append(identifier)
                self._plans.notify_all()
            return identifier

    def wait_for_plan(self, node_id: int, *, seconds: float, is_wanted: Callable[[], bool]) -> None:
        """Return when there is a message for a site, it is no longer wanted, or time is up."""
        deadline = time.monotonic() + seconds
        with self._plans:
            while (left := deadline - time.monotonic()) > 0 and is_wanted():
                node = self.nodes.get(node_id)
                if self._inbox.get(node_id) or node is None or node.status == NodeStatus.UNREGISTERED:
                    return
                self._plans.wait(min(left, LOOK_AGAIN_SECONDS))

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
        stored = super().store_object(run_id, session_id, object_id, object_content)
        if session_id not in self._object_push_sessions:
            with self._replies:
                self._replies.notify_all()
        return stored


def _is_whole(message: Message) -> bool:
    return message.has_error() or len(message.content) > 0


class ObjectFiles(InMemoryObjectStore):
    """flwr's in-memory store of objects, with the contents of the large ones in files of a folder.

    Raises:
        StateError: the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.iterdir():  # of a server that was killed
                left.unlink()
        except OSError as error:
            raise StateError(f"cannot write in '{folder}': {error.strerror or error}") from error

    def get_object_tree(self, object_id: str) -> ObjectTree:
        """Return the objects of a message; one that carries its content has none."""
        try:
            return super().get_object_tree(object_id)
        except NoObjectInStoreError:
            return ObjectTree(object_id=object_id)

    def put(self, object_id: str, object_content: bytes) -> None:
        """Keep an object that was announced; a large one as a file, and only its length here."""
        if len(object_content) < LARGE_BYTES:
            super().put(object_id, object_content)
            return
        if get_object_id(object_content) != object_id:
            raise ValueError(f"object {object_id} does not match its content")
        validate_object_content(content=object_content)
        path = self._folder / object_id
        partial = path.with_suffix(f".{threading.get_ident()}")
        partial.write_bytes(object_content)
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None:
                partial.unlink()
                raise NoObjectInStoreError(f"object {object_id} was not announced")
            partial.replace(path)
            entry.is_available = True

    def get(self, object_id: str) -> bytes | None:
        """Return an object's content: None if it was never announced, empty if it has not arrived."""
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None or not entry.is_available or entry.content:
                return entry.content if entry is not None else None
            file = (self._folder / object_id).open("rb")
        with file:
            return file.read()

    def delete(self, object_id: str) -> None:
        """Remove an object and those that only it referred to."""
        with self.lock_store:
            super().delete(object_id)
            if object_id not in self.store:
                (self._folder / object_id).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything."""
        with self.lock_store:
            super().clear()
            for path in self._folder.iterdir():
                path.unlink()
