"""Messages between the round loop and the SuperLink: small ones in one request, large payloads as files.

flwr's HttpGrid pushes and pulls every message as three objects and more, through HTTP and TLS on the same machine,
and holds all the replies that have arrived. Here a small message carries its content; a large payload is a file in a
folder that the two processes share, from which the SuperLink serves its chunks to the sites, and into which it writes
what they send. Replies come one at a time. The requests are flwr's own Runtime API.
"""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.proto.runtime_pb2 import GetNodesRequest, PullAppMessagesRequest, PushAppMessagesRequest
from flwr.superlink.grid import HttpGrid

from common.errors import StateError
from common.protocol import PLAN_RECORD, SMALL_PAYLOAD_BYTES, chunk_names


class RuntimeGrid:
    """The part of a Grid that a run needs, over the connection of a deployed run's `HttpGrid`."""

    def __init__(self, grid: HttpGrid, folder: Path) -> None:
        self._client, self._folder = grid._runtime_client, folder
        self._run_id = grid.run.run_id
        self._files: dict[str, IO[bytes]] = {}
        self._node = Node(node_id=SUPERLINK_NODE_ID)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the sites that are connected."""
        return list(self._client.GetNodes(GetNodesRequest()).nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; their ids, empty for one that was not taken.

        Raises:
            StateError: a large payload cannot be written to disk.
        """
        protos, trees = [], []
        written: dict[int, Path] = {}  # a payload that goes to many is on disk once
        for message in messages:
            message.metadata.__dict__["_message_id"] = identifier = secrets.token_hex(32)
            config = message.content.config_records[PLAN_RECORD]
            payload = config.get("payload")
            tree = ObjectTree(object_id=identifier)
            if isinstance(payload, bytes) and len(payload) > SMALL_PAYLOAD_BYTES:
                name = self._written(payload, written)
                del config["payload"]  # as large as the model, and messages live until they are collected as garbage
                chunks = [ObjectTree(object_id=chunk) for chunk in chunk_names(name, len(payload))]
                tree.children.append(ObjectTree(object_id=name, children=chunks))
            protos.append(message_to_proto(message))
            trees.append(tree)
        request = PushAppMessagesRequest(messages_list=protos, message_object_trees=trees)
        return list(self._client.PushMessages(request).message_ids)

    def _written(self, payload: bytes, before: dict[int, Path]) -> str:
        path = self._folder / secrets.token_hex(32)
        try:
            if (same := before.get(id(payload))) is None:
                path.write_bytes(payload)
            else:
                try:
                    os.link(same, path)
                except OSError:  # not every file system can
                    shutil.copyfile(same, path)
        except OSError as error:
            raise StateError(f"cannot write the weights to '{self._folder}': {error.strerror or error}") from error
        before.setdefault(id(payload), path)
        return path.name

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Wait a few seconds for replies; those that have come are read as they are taken.

        Raises:
            StateError: on taking one: its payload cannot be read.
        """
        answer = self._client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        replies = zip(answer.messages_list, answer.message_object_trees, strict=True)
        return (self._opened(message_from_proto(proto), tree) for proto, tree in replies)

    def _opened(self, message: Message, tree: ObjectTree) -> Message:
        """Return a reply; the file of a large payload is kept open, and deleted."""
        if tree.children:
            path = self._folder / tree.children[0].object_id
            try:
                if path.stat().st_size:
                    self._files[message.metadata.message_id] = path.open("rb")
            except FileNotFoundError:  # a site announced what it never sent
                pass
            except OSError as error:
                raise StateError(f"cannot read a reply in '{self._folder}': {error.strerror or error}") from error
            self.forget([tree.object_id])
        return message

    def payload_file(self, message_id: str) -> IO[bytes] | None:
        """Return the file with a reply's payload if that is large; it belongs to the caller."""
        return self._files.pop(message_id, None)

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop the payloads of messages that nobody waits for any more."""
        for name in message_ids:
            request = ConfirmMessageReceivedRequest(node=self._node, run_id=self._run_id, message_object_id=name)
            self._client.ConfirmMessageReceived(request)
