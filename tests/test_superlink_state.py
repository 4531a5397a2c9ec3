"""What the SuperLink keeps: approved sites across restarts, messages that wait for, objects on disk."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now
from flwr.supercore.object_store import NoObjectInStoreError

from common.errors import StateError
from common.protocol import CHUNK_BYTES, chunk_names
from server.superlink_state import LinkState, PayloadFiles, SiteRegistry

RUN, SERVER = 7, 1


class Federation:
    """Stands for flwr's federation manager: everybody is in it."""

    def has_node(self, node_id: int, federation_id: str) -> bool:
        return True

    def filter_nodes(self, node_ids: set[int], federation_id: str) -> set[int]:
        return node_ids


class QuickState(LinkState):
    """A state in which one run is always going on."""

    def _is_finished_run(self, run_id: int) -> bool:
        return False


def a_state(folder: Path) -> QuickState:
    state = QuickState(Federation(), PayloadFiles(folder / "objects"), registry=SiteRegistry(folder / "sites.json"))
    run = type("Run", (), {"federation_id": "one"})()
    state.run_ids[RUN] = type("Record", (), {"run": run})()  # type: ignore[assignment]
    return state


def a_site(state: LinkState, name: str) -> int:
    node = state.create_node("aid", "owner", f"key of {name}".encode(), 30, name=name)
    assert state.activate_node(node, 30)
    return node


def a_plan(node: int, text: str, *, ttl: float = 60) -> Message:
    return a_message(text, node, source=SERVER, ttl=ttl)


def a_reply(plan: Message, text: str) -> Message:
    return a_message(text, SERVER, source=plan.metadata.dst_node_id, to=plan.metadata.message_id, ttl=30)


def a_message(text: str, node: int, *, source: int, to: str = "", ttl: float) -> Message:
    metadata = Metadata(
        run_id=RUN,
        message_id=hashlib.sha256(f"{text} {source} {node}".encode()).hexdigest(),
        src_node_id=source,
        dst_node_id=node,
        reply_to_message_id=to,
        group_id="",
        created_at=now().timestamp(),
        ttl=ttl,
        message_type="train",
    )
    return make_message(metadata=metadata, content=RecordDict({"plan": ConfigRecord({"json": text})}))


def store(state: LinkState, message: Message) -> list[str]:
    tree = ObjectTree(object_id=message.metadata.message_id)
    stored, missing = state.store_message_and_object_tree(message, tree, state.start_session(RUN))
    assert stored
    return missing


def text_of(message: Message) -> str:
    return str(message.content.config_records["plan"]["json"])


def soon(work: Callable[[], object], seconds: float = 0.2) -> threading.Timer:
    timer = threading.Timer(seconds, work)
    timer.start()
    return timer


def test_approved_sites_outlive_the_server(tmp_path: Path) -> None:
    """Name, key, number and dates are read again; who was connected is offline; who was revoked stays so."""
    before = a_state(tmp_path)
    berlin, lyon = a_site(before, "berlin"), a_site(before, "lyon")
    before.delete_node("aid", lyon)
    after = a_state(tmp_path)
    sites = {node.name: node for node in after.get_node_info()}
    assert {"berlin": NodeStatus.OFFLINE, "lyon": NodeStatus.UNREGISTERED} == {n: s.status for n, s in sites.items()}
    assert before.nodes[berlin].registered_at == sites["berlin"].registered_at
    assert sites["lyon"].unregistered_at
    assert berlin == after.get_node_id_by_public_key(b"key of berlin")
    assert after.get_node_id_by_public_key(b"key of lyon") is None
    with pytest.raises(ValueError, match="already in use"):
        after.create_node("aid", "owner", b"key of lyon", 30, name="lyon")
    assert after.activate_node(berlin, 30)


def test_file_of_sites_is_the_owners_alone(tmp_path: Path) -> None:
    """It says who takes part."""
    a_site(a_state(tmp_path), "berlin")
    assert 0o600 == (tmp_path / "sites.json").stat().st_mode & 0o777


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"name": 3}]', '[{"nome": "x"}]'])
def test_broken_file_of_sites_is_told(tmp_path: Path, content: str) -> None:
    """A server that forgot its sites would refuse them all without a word."""
    (tmp_path / "sites.json").write_text(content)
    with pytest.raises(StateError, match=r"cannot read the approved sites in '.*sites\.json'"):
        a_state(tmp_path)


def test_small_message_goes_whole_and_once(tmp_path: Path) -> None:
    """No objects to push; each site gets its own, in order, one at a time; the reply comes back with content."""
    state = a_state(tmp_path)
    berlin, lyon = a_site(state, "berlin"), a_site(state, "lyon")
    plans = [a_plan(berlin, "first"), a_plan(lyon, "other"), a_plan(berlin, "second")]
    assert [[], [], []] == [store(state, plan) for plan in plans]
    given = [state.get_message_ins(node, 1) for node in (berlin, berlin, berlin, lyon, lyon)]
    assert [["first"], ["second"], [], ["other"], []] == [[text_of(message) for message in each] for each in given]
    assert not state.object_store.get_object_tree(plans[0].metadata.message_id).children
    assert [] == store(state, a_reply(plans[0], "done"))
    (reply,) = state.get_message_res({plan.metadata.message_id for plan in plans}, RUN)
    assert ("done", plans[0].metadata.message_id) == (text_of(reply), reply.metadata.reply_to_message_id)


def test_error_reply_goes_whole(tmp_path: Path) -> None:
    """A site whose worker died has nothing else to say."""
    state = a_state(tmp_path)
    plan = a_plan(a_site(state, "berlin"), "work")
    store(state, plan)
    reply = make_message(metadata=a_reply(plan, "x").metadata, error=Error(code=1, reason="it was killed"))
    assert [] == store(state, reply)
    (found,) = state.get_message_res({plan.metadata.message_id}, RUN)
    assert "it was killed" == found.error.reason


def test_plan_that_is_too_old_is_not_given(tmp_path: Path) -> None:
    """Nobody waits for its answer."""
    state = a_state(tmp_path)
    berlin = a_site(state, "berlin")
    store(state, a_plan(berlin, "late", ttl=0.05))
    time.sleep(0.1)
    assert [] == state.get_message_ins(berlin, 1)


def test_site_that_waits_is_woken_by_its_plan(tmp_path: Path) -> None:
    """Another site's plan does not end its wait; its own does, long before the time is up."""
    state = a_state(tmp_path)
    berlin, lyon = a_site(state, "berlin"), a_site(state, "lyon")
    timers = [
        soon(lambda: store(state, a_plan(lyon, "no")), 0.1),
        soon(lambda: store(state, a_plan(berlin, "yes")), 0.3),
    ]
    began = time.monotonic()
    assert state.wait_for_plan(berlin, seconds=20, is_wanted=lambda: True)
    assert 0.25 < time.monotonic() - began < 5
    assert ["yes"] == [text_of(message) for message in state.get_message_ins(berlin, 1)]
    for timer in timers:
        timer.join()


@pytest.mark.parametrize("end", ["time", "gone", "revoked"])
def test_wait_for_a_plan_ends_without_one(tmp_path: Path, end: str) -> None:
    """Time is up, the site has hung up, or its key was revoked meanwhile."""
    state = a_state(tmp_path)
    berlin = a_site(state, "berlin")
    wanted = [True]
    if end == "gone":
        soon(wanted.clear)
    if end == "revoked":
        soon(lambda: state.delete_node("aid", berlin))
    began = time.monotonic()
    state.wait_for_plan(berlin, seconds=0.3 if end == "time" else 20, is_wanted=lambda: bool(wanted))
    assert time.monotonic() - began < 5


def test_site_is_there_once_it_asks_for_plans(tmp_path: Path) -> None:
    """One that tries its key before it joins, or has just come back, cannot be asked yet."""
    state = a_state(tmp_path)
    berlin = a_site(state, "berlin")
    assert set() == state.get_nodes(RUN)
    state.wait_for_plan(berlin, seconds=0, is_wanted=lambda: True)
    assert {berlin} == state.get_nodes(RUN)
    state.deactivate_node(berlin)
    state.activate_node(berlin, 30)
    assert set() == state.get_nodes(RUN)


def test_newest_connection_of_a_site_gets_its_plan(tmp_path: Path) -> None:
    """One that a firewall dropped without a word still seems to wait; a plan given to it would be lost."""
    state = a_state(tmp_path)
    berlin = a_site(state, "berlin")
    old: list[bool] = []
    thread = threading.Thread(
        target=lambda: old.append(state.wait_for_plan(berlin, seconds=20, is_wanted=lambda: True))
    )
    thread.start()
    time.sleep(0.1)
    timer = soon(lambda: store(state, a_plan(berlin, "work")))
    assert state.wait_for_plan(berlin, seconds=20, is_wanted=lambda: True)
    thread.join(timeout=5)
    assert [False] == old
    timer.join()


def test_late_reply_does_not_stay_on_disk(tmp_path: Path) -> None:
    """The run has gone on; when the plan is too old, it and what came for it are removed."""
    state = a_state(tmp_path)
    plan = a_plan(a_site(state, "berlin"), "work", ttl=0.3)
    store(state, plan)
    reply = a_message("done", SERVER, source=plan.metadata.dst_node_id, to=plan.metadata.message_id, ttl=0.2)
    tree, session = with_payload(reply, 10), state.start_session(RUN)
    state.store_message_and_object_tree(reply, tree, session)
    state.store_object(RUN, session, tree.children[0].children[0].object_id, bytes(10))
    assert 1 == len(list((tmp_path / "objects").iterdir()))
    time.sleep(0.4)
    state.start_session(RUN)
    assert [] == list((tmp_path / "objects").iterdir())
    assert not state.message_ins_store
    assert not state.message_res_store


def test_round_loop_that_waits_is_woken_by_a_reply(tmp_path: Path) -> None:
    """It waits in the request, not between requests."""
    state = a_state(tmp_path)
    plan = a_plan(a_site(state, "berlin"), "work")
    store(state, plan)
    timer = soon(lambda: store(state, a_reply(plan, "done")), 0.3)
    began = time.monotonic()
    (reply,) = state.get_message_res({plan.metadata.message_id}, RUN)
    assert 0.25 < time.monotonic() - began < 4
    assert "done" == text_of(reply)
    timer.join()


def with_payload(message: Message, size: int) -> ObjectTree:
    """The objects of a message with a payload of so many bytes beside it."""
    name = hashlib.sha256(message.metadata.message_id.encode()).hexdigest()
    chunks = [ObjectTree(object_id=chunk) for chunk in chunk_names(name, size)]
    return ObjectTree(object_id=message.metadata.message_id, children=[ObjectTree(object_id=name, children=chunks)])


def test_large_reply_is_given_when_all_of_it_has_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the last chunk is there, the round loop is not told; a site that dies on the way holds nobody up."""
    monkeypatch.setattr("server.superlink_state.REPLY_SECONDS", 0.2)
    state = a_state(tmp_path)
    plan = a_plan(a_site(state, "berlin"), "work")
    store(state, plan)
    reply, content = a_reply(plan, "done"), os.urandom(2 * CHUNK_BYTES + 7)
    tree, session = with_payload(reply, len(content)), state.start_session(RUN)
    stored, missing = state.store_message_and_object_tree(reply, tree, session)
    assert (stored, set(missing)) == (True, {chunk.object_id for chunk in tree.children[0].children})
    for number in (2, 0, 1):  # in any order
        assert [] == state.get_message_res({plan.metadata.message_id}, RUN)
        name = tree.children[0].children[number].object_id
        assert b"" == state.get_object(RUN, name)
        part = content[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        assert state.store_object(RUN, session, name, part)
        assert part == state.get_object(RUN, name)
    (found,) = state.get_message_res({plan.metadata.message_id}, RUN)
    assert reply.metadata.message_id == found.metadata.message_id
    assert tree == state.object_store.get_object_tree(reply.metadata.message_id)
    (path,) = (tmp_path / "objects").iterdir()
    assert (tree.children[0].object_id, content) == (path.name, path.read_bytes())
    state.object_store.delete(reply.metadata.message_id)
    assert [] == list((tmp_path / "objects").iterdir())
    assert 0 == len(state.object_store)
    assert not state.object_store._places  # type: ignore[attr-defined]


def test_payload_of_a_run_on_this_machine_is_there_without_being_pushed(tmp_path: Path) -> None:
    """The run has written the file; the site gets it in chunks; none is left when the site has it."""
    state = a_state(tmp_path)
    plan, content = a_plan(a_site(state, "berlin"), "work"), os.urandom(CHUNK_BYTES + 1)
    tree = with_payload(plan, len(content))
    (tmp_path / "objects" / tree.children[0].object_id).write_bytes(content)
    assert (True, []) == state.store_message_and_object_tree(plan, tree, state.start_session(RUN))
    chunks = [state.get_object(RUN, chunk.object_id) for chunk in tree.children[0].children]
    assert content == b"".join(chunk or b"" for chunk in chunks)
    state.object_store.delete(plan.metadata.message_id)
    assert [] == list((tmp_path / "objects").iterdir())


def test_objects_that_are_no_message_with_a_payload_are_refused(tmp_path: Path) -> None:
    """Two payloads, chunks of chunks, names that others have."""
    state = a_state(tmp_path)
    plan = a_plan(a_site(state, "berlin"), "work")
    good = with_payload(plan, 10)
    two = ObjectTree(object_id="a" * 64, children=[*good.children, ObjectTree(object_id="b" * 64)])
    deep = ObjectTree(object_id="c" * 64, children=[good])
    state.store_message_and_object_tree(plan, good, state.start_session(RUN))
    for bad in (two, deep, ObjectTree(object_id="d" * 64, children=good.children)):
        with pytest.raises(ValueError, match=r"one payload|chunks|names of their own"):
            state.store_message_and_object_tree(a_reply(plan, "x"), bad, state.start_session(RUN))


def test_site_that_leaves_in_the_middle_is_told_as_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run asks for its reply and gets a message that says why there is none; nothing is kept of it."""
    monkeypatch.setattr("server.superlink_state.REPLY_SECONDS", 0.1)
    state = a_state(tmp_path)
    berlin = a_site(state, "berlin")
    plan = a_plan(berlin, "work")
    store(state, plan)
    state.get_message_ins(berlin, 1)
    state.deactivate_node(berlin)
    (found,) = state.get_message_res({plan.metadata.message_id}, RUN)
    assert found.has_error()
    assert plan.metadata.message_id == found.metadata.reply_to_message_id
    assert not state.message_res_store


@pytest.mark.parametrize("bad", ["none", "twice", "root", "many"])
def test_payload_without_or_with_odd_chunks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    """A site cannot announce what the run could not read, nor fill the disk."""
    monkeypatch.setattr("server.superlink_state.MAX_CHUNKS", 3)
    state = a_state(tmp_path)
    plan = a_plan(a_site(state, "berlin"), "work")
    store(state, plan)
    reply = a_reply(plan, "done")
    tree = with_payload(reply, CHUNK_BYTES * {"none": 0, "many": 4}.get(bad, 2))
    if bad == "twice":
        tree.children[0].children[1].object_id = tree.children[0].children[0].object_id
    if bad == "root":
        tree.children[0].object_id = tree.object_id
    with pytest.raises(ValueError, match=r"a payload has 1 to 3 chunks|names of their own"):
        state.store_message_and_object_tree(reply, tree, state.start_session(RUN))


def test_reply_that_comes_too_late_leaves_nothing(tmp_path: Path) -> None:
    """The server waits for it no more; the site is told to push nothing."""
    state = a_state(tmp_path)
    plan = a_plan(a_site(state, "berlin"), "work")
    store(state, plan)
    reply = a_reply(plan, "done")
    state.delete_messages({plan.metadata.message_id})
    tree, session = with_payload(reply, 10), state.start_session(RUN)
    assert (False, []) == state.store_message_and_object_tree(reply, tree, session)
    assert 0 == len(state.object_store)
    assert not state._object_push_sessions[session].pending_object_ids


def test_plan_that_is_forgotten_takes_its_payload_along(tmp_path: Path) -> None:
    """A site that never fetched it must not cost the disk a model per round."""
    state = a_state(tmp_path)
    plan = a_plan(a_site(state, "berlin"), "work")
    tree = with_payload(plan, 10)
    (tmp_path / "objects" / tree.children[0].object_id).write_bytes(bytes(10))
    state.store_message_and_object_tree(plan, tree, state.start_session(RUN))
    state.delete_messages({plan.metadata.message_id})
    assert [] == list((tmp_path / "objects").iterdir())


def test_chunk_that_is_sent_again_is_taken(tmp_path: Path) -> None:
    """The answer to the first time was lost on the way."""
    state = a_state(tmp_path)
    plan = a_plan(a_site(state, "berlin"), "work")
    store(state, plan)
    reply = a_reply(plan, "done")
    tree, session = with_payload(reply, 10), state.start_session(RUN)
    state.store_message_and_object_tree(reply, tree, session)
    name = tree.children[0].children[0].object_id
    assert [True, True] == [state.store_object(RUN, session, name, bytes(10)) for _ in range(2)]


def test_sessions_of_small_messages_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """flwr opens one per push; a study of 10,000 rounds would keep them all."""
    monkeypatch.setattr("server.superlink_state.SESSION_SECONDS", -1.0)
    state = a_state(tmp_path)
    for number in range(5):
        store(state, a_plan(a_site(state, f"site{number}"), "work"))
    assert 1 == len(state._object_push_sessions)


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    """Objects of runs that are no more."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "left").write_bytes(b"x")
    PayloadFiles(tmp_path / "objects")
    assert [] == list((tmp_path / "objects").iterdir())


def test_chunk_is_taken_only_if_announced_and_small(tmp_path: Path) -> None:
    """A site cannot put what it has not said, nor more at once than the server expects."""
    files = PayloadFiles(tmp_path / "objects")
    with pytest.raises(NoObjectInStoreError, match="was not announced"):
        files.put("a" * 64, b"x")
    with pytest.raises(ValueError, match="expected 1 to"):
        files.put("a" * 64, bytes(CHUNK_BYTES + 1))
    with pytest.raises(ValueError, match="expected 1 to"):
        files.put("a" * 64, b"")
    assert files.get("a" * 64) is None


def test_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "objects").write_text("")
    with pytest.raises(StateError, match="cannot write in"):
        PayloadFiles(tmp_path / "objects")
