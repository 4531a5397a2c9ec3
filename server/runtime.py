"""Messages between the round loop and the SuperLink: what is small in one request, what is large piece by piece.

flwr's HttpGrid pushes and pulls every message as three objects, and holds all the replies that have arrived. Here a
small message carries its content, and replies come one at a time. The requests are flwr's own Runtime API.
"""

import secrets
from collections.abc import Iterable, Iterator
from typing import cast

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.proto.runtime_pb2 import GetNodesRequest, PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.superlink.grid import HttpGrid


class RuntimeGrid:
    """The part of a Grid that a run needs, over the connection of a deployed run's `HttpGrid`."""

    def __init__(self, grid: HttpGrid) -> None:
        self._client = grid._runtime_client
        self._run_id = grid.run.run_id
        self._node = Node(node_id=SUPERLINK_NODE_ID)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the sites that are connected."""
        return list(self._client.GetNodes(GetNodesRequest()).nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; their ids, empty for one that was not taken."""
        protos, trees = [], []
        objects: dict[str, InflatableObject] = {}
        with no_object_id_recompute():
            for message in messages:
                if message.content.array_records:
                    message.metadata.__dict__["_message_id"] = message.object_id
                    protos.append(message_to_proto(remove_content_from_message(message)))
                    trees.append(get_object_tree(message))
                    objects.update(get_all_nested_objects(message))
                else:
                    message.metadata.__dict__["_message_id"] = secrets.token_hex(32)
                    protos.append(message_to_proto(message))
                    trees.append(ObjectTree(object_id=message.metadata.message_id))
            pushed = self._client.PushMessages(PushAppMessagesRequest(messages_list=protos, message_object_trees=trees))
            if objects:
                push = make_push_object_fn_protobuf(
                    self._client.PushObject, self._node, run_id=self._run_id, session_id=pushed.session_id
                )
                push_objects(objects, push, object_ids_to_push=set(pushed.objects_to_push))
        return list(pushed.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Wait a few seconds for replies; those that have come are fetched as they are taken, large ones last."""
        answer = self._client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        replies = [
            (message_from_proto(proto), tree)
            for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True)
        ]
        replies.sort(key=lambda reply: not _is_whole(reply[0]))
        return (message if _is_whole(message) else self._fetched(message.metadata, tree) for message, tree in replies)

    def _fetched(self, metadata: Metadata, tree: ObjectTree) -> Message:
        """Return a message with the objects of its content, or with an error if they are gone."""
        try:
            objects = pull_objects(
                [each.object_id for each in iterate_object_tree(tree)],
                make_pull_object_fn_protobuf(self._client.PullObject, self._node, run_id=self._run_id),
                initial_backoff=0.02,
                backoff_cap=0.05,
                max_tries_per_object=None,
            )
        except ObjectPullError as error:
            reason = Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason=f"its reply is not at the server: {error}")
            return make_message(metadata=metadata, error=reason)
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=self._run_id, message_object_id=tree.object_id)
        )
        return cast(Message, inflate_object_from_contents(tree.object_id, objects))


def _is_whole(message: Message) -> bool:
    return message.has_error() or len(message.content) > 0
