"""Payloads between a run and its SuperLink: small ones in the message, large ones as files that both can reach."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesRequest, PushAppMessagesResponse
from flwr.supercore.task_identity import TaskIdentity

from common.errors import StateError
from common.protocol import SMALL_PAYLOAD_BYTES, chunk_names
from server.flower import pack, unpack
from server.runtime import RuntimeGrid

LARGE = SMALL_PAYLOAD_BYTES + 1


class SuperLink:
    """Stands for the requests of the Runtime API: notes what is pushed, and gives what it is told to."""

    def __init__(self) -> None:
        self.pushed: list[PushAppMessagesRequest] = []
        self.replies = PullAppMessagesResponse()
        self.confirmed: list[str] = []

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:
        self.pushed.append(request)
        names = [message.metadata.message_id for message in request.messages_list]
        return PushAppMessagesResponse(message_ids=names)

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        return self.replies

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link() -> SuperLink:
    return SuperLink()


@pytest.fixture
def grid(link: SuperLink, tmp_path: Path) -> RuntimeGrid:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    found: Any = SimpleNamespace(_runtime_client=link, run=SimpleNamespace(run_id=1))
    return RuntimeGrid(found, tmp_path)


def message(text: str, payload: bytes | None, node: int = 5) -> Message:
    return Message(pack(text, payload), dst_node_id=node, message_type="train")


def test_small_payload_is_in_the_message(grid: RuntimeGrid, link: SuperLink, tmp_path: Path) -> None:
    """Nothing is written, there is nothing to fetch."""
    (name,) = grid.push_messages([message("plan", b"weights")])
    ((proto,), (tree,)) = link.pushed[0].messages_list, link.pushed[0].message_object_trees
    assert ("plan", b"weights") == unpack(message_from_proto(proto).content)
    assert ObjectTree(object_id=name) == tree
    assert [] == list(tmp_path.iterdir())


def test_large_payload_is_a_file_and_on_disk_once(grid: RuntimeGrid, link: SuperLink, tmp_path: Path) -> None:
    """Each message has a name of its own for it, so that no site's end takes it away from another."""
    payload, other = os.urandom(LARGE), os.urandom(LARGE)
    grid.push_messages([message("a", payload), message("b", payload, 6), message("c", other, 7)])
    request = link.pushed[0]
    assert [("a", None), ("b", None), ("c", None)] == [
        unpack(message_from_proto(m).content) for m in request.messages_list
    ]
    names = [tree.children[0].object_id for tree in request.message_object_trees]
    assert [payload, payload, other] == [(tmp_path / name).read_bytes() for name in names]
    assert 3 == len(set(names))
    assert (tmp_path / names[0]).samefile(tmp_path / names[1])
    for name, tree in zip(names, request.message_object_trees, strict=True):
        assert chunk_names(name, LARGE) == [chunk.object_id for chunk in tree.children[0].children]


def test_file_system_without_links_gets_a_copy(
    grid: RuntimeGrid, link: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network shares have none."""

    def no_link(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr("server.runtime.os.link", no_link)
    payload = os.urandom(LARGE)
    grid.push_messages([message("a", payload), message("b", payload, 6)])
    assert [payload, payload] == [path.read_bytes() for path in tmp_path.iterdir()]


def test_folder_that_is_gone_is_a_sentence(grid: RuntimeGrid, tmp_path: Path) -> None:
    """The disk is full, or somebody cleaned up."""
    tmp_path.rmdir()
    with pytest.raises(StateError, match="cannot write the weights to"):
        grid.push_messages([message("a", os.urandom(LARGE))])


def reply(link: SuperLink, payload: bytes | None, *, objects: str = "") -> Message:
    """A reply of a site, as the SuperLink would give it."""
    asked = message("plan", None)
    asked.metadata.__dict__["_message_id"] = "a" * 64
    answered = Message(pack("reply", payload), reply_to=asked)
    answered.metadata.__dict__["_message_id"] = "b" * 64
    children = [ObjectTree(object_id=objects)] if objects else []
    link.replies.messages_list.append(message_to_proto(answered))
    link.replies.message_object_trees.append(ObjectTree(object_id="b" * 64, children=children))
    return answered


def test_reply_with_a_large_payload_is_a_file_that_is_gone_when_closed(
    grid: RuntimeGrid, link: SuperLink, tmp_path: Path
) -> None:
    """It is opened before the SuperLink is told that it may be deleted."""
    content = os.urandom(LARGE)
    (tmp_path / ("c" * 64)).write_bytes(content)
    reply(link, None, objects="c" * 64)
    (found,) = grid.pull_messages(["a" * 64])
    assert ["b" * 64] == link.confirmed
    (tmp_path / ("c" * 64)).unlink()
    file = grid.payload_file(found.metadata.message_id)
    assert file is not None
    with file:
        assert content == file.read()
    assert grid.payload_file(found.metadata.message_id) is None


def test_reply_with_a_small_payload_has_no_file(grid: RuntimeGrid, link: SuperLink) -> None:
    """It carries it."""
    reply(link, b"delta")
    (found,) = grid.pull_messages(["a" * 64])
    assert ("reply", b"delta") == unpack(found.content)
    assert grid.payload_file(found.metadata.message_id) is None
    assert [] == link.confirmed


@pytest.mark.parametrize("content", [None, b""])
def test_reply_that_announced_what_was_never_sent_has_no_payload(
    grid: RuntimeGrid, link: SuperLink, tmp_path: Path, content: bytes | None
) -> None:
    """The round loop rejects that one site; the run goes on."""
    if content is not None:
        (tmp_path / ("c" * 64)).write_bytes(content)
    reply(link, None, objects="c" * 64)
    (found,) = grid.pull_messages(["a" * 64])
    assert grid.payload_file(found.metadata.message_id) is None
    assert ("reply", None) == unpack(found.content)
    assert ["b" * 64] == link.confirmed


def test_what_nobody_waits_for_is_dropped(grid: RuntimeGrid, link: SuperLink) -> None:
    """The payload of a plan whose site never answered."""
    grid.forget(["x", "y"])
    assert ["x", "y"] == link.confirmed
