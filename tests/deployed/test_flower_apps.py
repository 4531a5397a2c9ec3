"""Flower apps as they are: read, packed, approved, refused, and run at real sites."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import processes
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from paths import ROOT

from consilium.client.flower.approved import approvals, approve, check_approved, code_of, keep_code, withdraw
from consilium.client.operations.site_folder import SiteFolder, accept_bundle, init_site
from consilium.common.errors import ConfigError, ProtocolError, RunFailed
from consilium.common.events.log import EventLog
from consilium.common.events.run import APP_EVENTS, AppStarted, MessagesAsked
from consilium.common.flower.app import FlowerApp, read_app, unpack_app, write_app
from consilium.common.flower.code import load_component, unload
from consilium.common.flower.config import override
from consilium.common.flower.files import MAX_FILES
from consilium.common.protocol.flower_orders import (
    CodeOrder,
    FlowerReply,
    node_number,
    parse_flower_order,
    parse_flower_reply,
    run_number,
)
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.envelope import open_order
from consilium.common.wire.frames import Frames, framed
from consilium.server.flower import grid as flower_grid
from consilium.server.flower.app import run_app
from consilium.server.flower.grid import FlowerGrid, Mission
from consilium.server.operations.bundles import make_bundle
from consilium.server.study.run_folder import RunFolder
from consilium.server.wire.outbox import Numbers, Outbox, Signer
from consilium.server.wire.run_link import RunLink
from consilium.server.wire.submission import Control

STOCK = ROOT / "benchmarks" / "stock_app"
EXAMPLES = [ROOT / "examples" / name for name in ("flower_torch", "flower_sklearn")]

PROJECT = """\
[project]
name = "counting"
[tool.flwr.app.components]
serverapp = "counting.server_app:app"
clientapp = "counting.client_app:app"
[tool.flwr.app.config]
rounds = 2
[tool.flwr.app.config.deep]
name = "x"
"""
COUNTING_SERVER = """\
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
import time

app = ServerApp()

@app.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < 2:
        time.sleep(0.05)
    for number in range(1, int(context.run_config["rounds"]) + 1):
        content = RecordDict({"config": ConfigRecord({"round": number})})
        messages = [Message(content, node, "query", group_id=str(number)) for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages, timeout=60))
        with Path("counts").open("a") as file:
            file.write(" ".join(str(r.content["m"]["count"]) for r in replies if r.has_content()) + "\\n")
        while number == 1 and not Path("go").exists():
            time.sleep(0.05)
"""
COUNTING_CLIENT = """\
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(message, context):
    count = int(context.state["m"]["count"]) + 1 if "m" in context.state else 1
    context.state["m"] = MetricRecord({"count": count})
    if context.run_config["deep.name"] == "fail":
        raise ValueError("patient 17")
    return Message(RecordDict({"m": MetricRecord({"count": count})}), reply_to=message)
"""


def counting(folder: Path, **files: str) -> Path:
    """Write a small app whose sites count their rounds."""
    contents = {
        "pyproject.toml": PROJECT,
        "counting/__init__.py": "",
        "counting/server_app.py": COUNTING_SERVER,
        "counting/client_app.py": COUNTING_CLIENT,
        **files,
    }
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


# --- reading and packing ------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [STOCK, *EXAMPLES], ids=lambda path: path.name)
def test_app_is_the_same_after_packing(folder: Path, tmp_path: Path) -> None:
    """What is unpacked, and what is written out and read again, has the same files and digest."""
    app = read_app(folder)
    assert app == unpack_app(app.content, who="app")
    write_app(app, tmp_path / "copy")
    assert app == read_app(tmp_path / "copy", strict=True)
    assert app.digest == read_app(tmp_path / "copy").digest


def test_config_is_flat(tmp_path: Path) -> None:
    """Settings in tables have names with dots, as Flower's run_config has them."""
    assert {"rounds": 2, "deep.name": "x"} == read_app(counting(tmp_path)).config


def test_digest_depends_on_every_name_and_byte(tmp_path: Path) -> None:
    """A changed byte, and a changed name, are other apps; what Python and tools write beside it is not in it."""
    app = read_app(counting(tmp_path / "a"))
    assert app.digest != read_app(counting(tmp_path / "b", **{"counting/client_app.py": "# nothing"})).digest
    (tmp_path / "a" / "counting" / "__pycache__").mkdir()
    (tmp_path / "a" / "counting" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (tmp_path / "a" / ".venv").mkdir()
    (tmp_path / "a" / "model.pt").write_bytes(b"x")
    assert app.digest == read_app(tmp_path / "a").digest
    with pytest.raises(ConfigError, match="does not belong to the app that was approved"):
        read_app(tmp_path / "a", strict=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pyproject.toml": "[project]\nname = 'x'"}, r"no \[tool.flwr.app\]"),
        ({"pyproject.toml": "[project"}, "pyproject.toml cannot be read"),
        ({"pyproject.toml": "a = " + "[" * 5_000}, "pyproject.toml cannot be read"),
        ({"pyproject.toml": PROJECT.replace("serverapp", "other")}, "has no serverapp"),
        ({"pyproject.toml": PROJECT.replace("client_app:app", "client_app")}, "must be 'module:attribute'"),
        ({"pyproject.toml": PROJECT.replace("counting.client_app", "missing")}, "no file 'missing.py'"),
        ({"pyproject.toml": PROJECT.replace('"counting"', '"../x"')}, r"\[project\] name must be"),
        ({"pyproject.toml": PROJECT.replace("= 2", "= [2]")}, "rounds is a list"),
        ({"pyproject.toml": PROJECT.replace("= 2", "= nan")}, "rounds is a float"),
        ({"pyproject.toml": PROJECT.replace("config.deep", "config" + ".a" * 3_000)}, "tables in tables"),
        ({"consilium.py": ""}, "'consilium' has the name of the package that runs it"),
        ({"consilium/x.py": ""}, "'consilium' has the name of the package that runs it"),
    ],
)
def test_what_is_no_app_is_refused_with_a_sentence(changes: dict[str, str], sentence: str, tmp_path: Path) -> None:
    """Every fault of a project is named."""
    counting(tmp_path)
    for name, text in changes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_app(tmp_path)


def test_folder_that_is_none_has_links_or_is_too_large_is_refused(tmp_path: Path) -> None:
    """A missing folder, a link out of the app, and a folder full of data."""
    with pytest.raises(ConfigError, match="no such folder"):
        read_app(tmp_path / "missing")
    counting(tmp_path / "linked")
    (tmp_path / "linked" / "x.py").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="symbolic link"):
        read_app(tmp_path / "linked")
    with (counting(tmp_path / "large") / "data.csv").open("wb") as file:
        file.truncate(20_000_000)
    with pytest.raises(ConfigError, match="does it hold data"):
        read_app(tmp_path / "large")


def _archive(entries: object, contents: bytes) -> bytes:
    header = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return b"consilium app 1\0" + struct.pack("<I", len(header)) + header + contents


HOSTILE = {
    "empty": b"",
    "zip": b"PK\x03\x04" + bytes(100),
    "no list": _archive({"a": 1}, b""),
    "deep": _archive(b"[" * 100_000, b""),
    "long header": b"consilium app 1\0" + struct.pack("<I", 2**32 - 1) + b"[]",
    "too many": _archive([["a.py", 0]] * (MAX_FILES + 1), b""),
    "negative": _archive([["a.py", -1]], b""),
    "no number": _archive([["a.py", True]], b"x"),
    "too short": _archive([["a.py", 10]], b"x"),
    "too long": _archive([["a.py", 1]], b"xyz"),
    "twice": _archive([["a.py", 1], ["a.py", 1]], b"xx"),
    "half a character": _archive([["\ud800.py", 1]], b"x"),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_archive_is_refused_with_a_sentence(content: bytes) -> None:
    """Whatever comes in place of an app, the answer is our own error."""
    with pytest.raises(ConfigError, match=r"^app: "):
        unpack_app(content, who="app")


@pytest.mark.parametrize(
    "name",
    [
        "../a.py",
        "/a.py",
        "a/../b.py",
        "a//b.py",
        ".a.py",
        "a/.b/c.py",
        "a\\b.py",
        "a\x1b.py",
        "a.so",
        "c:a.py",
        "a./ .py",
        "a/" * 20 + "a.py",
        "a" * 300 + ".py",
        "__pycache__/a.py",
        "COUNTING/client_app.py",
        "pyproject.toml/a.py",
        "a",
    ],
)
def test_file_with_a_hostile_name_is_refused(name: str, tmp_path: Path) -> None:
    """Neither out of the folder, nor hidden, nor a program that is no source, nor two that may be one."""
    files = {**read_app(counting(tmp_path)).files, name: b""}
    with pytest.raises(ConfigError, match=r"^app: "):
        unpack_app(FlowerApp("x", {}, {}, files).content, who="app")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"rounds": 2, "deep.name": "x"}),
        ("rounds=5 deep.name='a b'", {"rounds": 5, "deep.name": "a b"}),
        ('rounds=1.5  deep.name="\\n"', {"rounds": 1.5, "deep.name": "\n"}),
    ],
)
def test_settings_are_overridden(text: str, expected: dict[str, object], tmp_path: Path) -> None:
    """Values are those of TOML."""
    assert expected == override(read_app(counting(tmp_path)).config, text)


@pytest.mark.parametrize("text", ["rounds", "round=1", "rounds=x", "rounds=[1]", "rounds=nan", "rounds = 2"])
def test_setting_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    """Unknown names, and values that are none."""
    with pytest.raises(ConfigError, match=r"^--run-config"):
        override(read_app(counting(tmp_path)).config, text)


# --- loading ------------------------------------------------------------------------------------------


def test_apps_with_modules_of_the_same_name_do_not_mix(tmp_path: Path) -> None:
    """Once one is unloaded, the other's module is found; the import path is as before, and nothing was written."""
    before = list(sys.path)
    for name in ("a", "b"):
        folder = counting(tmp_path / name, **{"counting/which.py": f"name = '{name}'"})
        assert name == load_component(folder, "counting.which:name")
        unload(folder)
    assert before == sys.path
    assert [] == [*tmp_path.rglob("__pycache__")]


def test_app_takes_no_installed_modules_place(tmp_path: Path) -> None:
    """Its folder is last on the path: a `json.py` or `numpy.py` in it changes nothing, and cannot be the app."""
    (tmp_path / "tomllib.py").write_text("app = 1")
    with pytest.raises(ConfigError, match="hidden by an installed one"):
        load_component(tmp_path, "tomllib:app")
    unload(tmp_path)
    with pytest.raises(ConfigError, match=r"has no 'missing\.app'"):
        load_component(counting(tmp_path / "app"), "counting:missing.app")
    unload(tmp_path / "app")


# --- approvals ----------------------------------------------------------------------------------------


def test_app_is_approved_and_withdrawn(tmp_path: Path) -> None:
    """Before and after, the sentence names the digest and the command; in between its code is there."""
    app = read_app(counting(tmp_path / "app"))
    site, state = tmp_path / "site", tmp_path / "state"
    with pytest.raises(ConfigError, match=f"'berlin' has not approved .*{app.digest}.* 'consilium site approve-app"):
        check_approved(site, app.digest, site="berlin")
    approve(site, app)
    check_approved(site, app.digest, site="berlin")
    assert ["counting"] == [found.name for found in approvals(site)]
    assert app == code_of(site, state, app.digest, site="berlin")[1]
    with pytest.raises(ConfigError, match="0 approved apps"):
        withdraw(site, app.digest[:4], state_dir=state)
    assert app.digest == withdraw(site, app.digest[:8], state_dir=state)
    assert [] == [*(site / "apps").iterdir()]


def test_approved_digest_takes_its_own_code_only(tmp_path: Path) -> None:
    """With the digest alone approved, the coordinator's code is kept if it is that one."""
    app, other = read_app(counting(tmp_path / "app")), read_app(STOCK)
    site, state = tmp_path / "site", tmp_path / "state"
    approve(site, app.digest)
    with pytest.raises(ConfigError, match="has not got its code yet"):
        code_of(site, state, app.digest, site="berlin")
    with pytest.raises(ConfigError, match=f"has the digest {other.digest}, approved is {app.digest}"):
        keep_code(site, state, app.digest, other.content)
    keep_code(site, state, app.digest, app.content)
    assert app == code_of(site, state, app.digest, site="berlin")[1]
    with pytest.raises(ConfigError, match="neither the folder"):
        approve(site, "abc")


def test_code_that_was_changed_after_approval_is_refused(tmp_path: Path) -> None:
    """A changed line, and a file that came along (compiled code would be loaded in place of the source)."""
    app, site = read_app(counting(tmp_path / "app")), tmp_path / "site"
    approve(site, app)
    file = site / "apps" / app.digest / "counting" / "client_app.py"
    file.write_text(COUNTING_CLIENT + "\n")
    with pytest.raises(ConfigError, match="is not what was approved"):
        code_of(site, tmp_path, app.digest, site="berlin")
    approve(site, app)
    (file.parent / "__pycache__").mkdir()
    with pytest.raises(ConfigError, match="does not belong to the app"):
        code_of(site, tmp_path, app.digest, site="berlin")


# --- what is said on the wire -------------------------------------------------------------------------


def test_orders_and_replies_are_checked() -> None:
    """Each side takes only what the other one writes."""
    order = CodeOrder(run="r", site="berlin", app="0" * 64)
    assert order == parse_flower_order(order.model_dump_json())
    for text in ("", "{}", '{"kind": "code"}', "[" * 100_000, order.model_dump_json().replace("00000", "g0000")):
        with pytest.raises(ProtocolError):
            parse_flower_order(text)
    reply = FlowerReply(run="r", site="berlin", seconds=1.0)
    assert reply == parse_flower_reply(reply.model_dump_json(), site="berlin")
    with pytest.raises(ProtocolError, match="says that it is from site 'berlin'"):
        parse_flower_reply(reply.model_dump_json(), site="munich")
    with pytest.raises(ProtocolError):
        parse_flower_reply("{}", site="berlin")


def test_numbers_of_sites_and_runs_are_flowers() -> None:
    """Different, the same in every process, above that of the ServerApp, and within 63 bits."""
    numbers = [node_number("berlin"), node_number("munich"), run_number("berlin")]
    assert 3 == len(set(numbers))
    assert all(1 < number < 2**63 for number in numbers)
    assert numbers[0] == node_number("berlin")


# --- the grid, with a server that is scripted -----------------------------------------------------------


class Wire:
    """The server's end of a run's socket: what was asked is read, answers are written by the test."""

    def __init__(self, folder: Path, *, sites: frozenset[str] | None = None) -> None:
        self.socket, self._theirs = socket.socketpair()
        self.socket.settimeout(10)
        self._frames, self.events = Frames(), list[MessagesAsked]()
        self.signer = Signer("run", Ed25519PrivateKey.generate(), Numbers(folder / "orders"))
        self.key, self.link = self.signer.key.public_key(), RunLink(self._theirs)
        mission = Mission("run", "0" * 64, b"code", {"rounds": 1}, sites)
        self.grid = FlowerGrid(
            self.link,
            Outbox(folder, self.signer),
            mission,
            self.events.append,
        )
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_number("run"), 1

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._theirs.close()

    def attend(self, *sites: str) -> None:
        """Say that sites have come."""
        self.socket.sendall(framed(pb.ToRun(came=pb.Sites(names=sites)).SerializeToString()))

    def asked(self) -> list[pb.Outgoing]:
        """Return the next tasks that the run sends."""
        frames: list[bytes] = []
        while not frames:
            frames = list(self._frames.feed(self.socket.recv(2**20)))
        return [task for frame in frames for task in pb.FromRun.FromString(frame).ask.tasks]

    def answer(self, task: pb.Outgoing, payload: bytes = b"", text: str | None = None, **fields: str) -> None:
        """Answer a task as a site."""
        reply = FlowerReply(run="run", site=task.site, seconds=0.1).model_dump_json() if text is None else text
        answer = pb.Answer(task=task.id, text=reply.encode(), payload=payload, **fields)  # type: ignore[arg-type]  # fields are texts
        self.socket.sendall(framed(pb.ToRun(answer=answer).SerializeToString()))

    def messages(self, content: RecordDict | None = None) -> list[Message]:
        """Return a message to each node."""
        return [Message(content or RecordDict(), node, "train") for node in self.grid.get_node_ids()]


def _bytes(records: RecordDict) -> bytes:
    return bytes(recorddict_to_proto(records).SerializeToString())


def test_grid_sends_the_code_once_and_returns_all_replies(tmp_path: Path) -> None:
    """Before a site's first message comes the app; every order is signed for its site, and names the run's settings."""
    with Wire(tmp_path, sites=frozenset({"berlin", "munich"})) as wire:
        wire.attend("berlin", "munich", "paris")
        for first in (True, False):
            content = RecordDict({"arrays": ArrayRecord([np.ones(100_000)])})
            with ThreadPoolExecutor() as pool:
                running = pool.submit(wire.grid.send_and_receive, wire.messages(content), timeout=10)
                tasks = wire.asked()
                orders = [open_order(task.order, wire.key) for task in tasks]
                kinds = [parse_flower_order(order.text).kind for order in orders]
                assert (["code", "code"] if first else []) + ["message", "message"] == kinds
                assert ["berlin", "munich"] * (2 if first else 1) == [order.site for order in orders]
                assert 1 == len({task.file for task in tasks[-2:]})
                for task in tasks:
                    wire.answer(task, _bytes(RecordDict({"m": MetricRecord({"a": 1})})))
                replies = running.result(timeout=10)
            assert [1, 1] == [reply.content["m"]["a"] for reply in replies]
            assert {node_number("berlin"), node_number("munich")} == {reply.metadata.src_node_id for reply in replies}
            assert [] == [*tmp_path.glob("sent-*")]
            assert (2, 2) == (wire.events[-1].messages, wire.events[-1].answered)


def _npy(shape: str, size: int = 8) -> Array:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return Array(
        "float64",
        (1,),
        "numpy.ndarray",
        b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(size),
    )


@pytest.mark.parametrize(
    ("payload", "text", "problem"),
    [
        (b"\xff" * 100, None, "sent something that is not Flower records"),
        (_npy("(1000000000000,)"), None, "expected 8000000000000"),
        (_npy("(-1,)"), None, "array 'x' has"),
        (Array("f", (1,), "numpy.ndarray", b""), None, "no header"),
        (b"", "{}", "kind"),
        (b"", "[" * 100_000, "kind|JSON"),
        (b"", '{"kind":"flower","run":"run","site":"paris","seconds":1}', "says that it is from site 'paris'"),
    ],
)
def test_hostile_reply_is_an_error_of_that_site(
    payload: bytes | Array, text: str | None, problem: str, tmp_path: Path
) -> None:
    """A strategy of Flower leaves out replies that are errors; the run goes on, and the event names the site."""
    if isinstance(payload, Array):
        payload = _bytes(RecordDict({"a": ArrayRecord({"x": payload})}))
    with Wire(tmp_path) as wire:
        wire.attend("berlin")
        with ThreadPoolExecutor() as pool:
            running = pool.submit(wire.grid.send_and_receive, wire.messages(), timeout=10)
            for task in wire.asked():
                wire.answer(task, payload, text)
            (reply,) = running.result(timeout=10)
        assert reply.has_error()
        assert re.search(problem, reply.error.reason or "")
        assert "'berlin'" in (reply.error.reason or "")


def test_site_that_is_late_or_gone_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the timeout, or until a site has not attended for a minute; the server is told to forget the task."""
    with Wire(tmp_path) as wire:
        wire.attend("berlin")
        assert [] == wire.grid.send_and_receive(wire.messages(), timeout=0.2)
        assert ("site 'berlin' did not answer in time",) == wire.events[-1].problems
        monkeypatch.setattr(flower_grid, "GONE_SECONDS", 0.2)
        monkeypatch.setattr(flower_grid, "LOOK_SECONDS", 0.1)
        messages = wire.messages()
        wire.socket.sendall(framed(pb.ToRun(left=pb.Sites(names=["berlin"])).SerializeToString()))
        (reply,) = wire.grid.send_and_receive(messages)
        assert "has not been connected" in (reply.error.reason or "")
        wire.asked()
        with pytest.raises(ConfigError, match="not a site's"):
            wire.grid.push_messages([Message(RecordDict(), 77, "train")])


def test_several_threads_wait_for_their_own_replies(tmp_path: Path) -> None:
    """As strategies of older releases do: a thread per site, each asks for its reply."""
    with Wire(tmp_path) as wire:
        names = [f"site-{number}" for number in range(8)]
        wire.attend(*names)
        with ThreadPoolExecutor(8) as pool:
            running = {
                message.metadata.dst_node_id: pool.submit(wire.grid.send_and_receive, [message])
                for message in wire.messages()
            }
            tasks: list[pb.Outgoing] = []
            while len(tasks) < 16:
                tasks += wire.asked()
            for number, task in enumerate(reversed(tasks)):
                wire.answer(task, _bytes(RecordDict({"m": MetricRecord({"a": number})})))
            replies = {node: future.result(timeout=10) for node, future in running.items()}
        assert all([node] == [reply.metadata.src_node_id for reply in found] for node, found in replies.items())


def test_run_that_was_cut_off_does_not_begin_again(tmp_path: Path) -> None:
    """What an app had done cannot be known, and its sites' states have gone on: a sentence, and no second beginning."""
    records = EventLog(RunFolder(tmp_path).events)
    records.log(AppStarted(app="app", digest="0" * 64, sites=None, config={}))
    with Wire(tmp_path) as wire, pytest.raises(RunFailed, match="was cut off"):
        run_app(wire.link, tmp_path, wire.signer, {"folder": str(tmp_path), "app": "0" * 64, "config": {}})
    assert ["started", "failed"] == [event.name for event in records.read(APP_EVENTS)]


# --- deployed -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Federation:
    """A running server with two running sites."""

    folder: Path
    server: processes.Server
    sites: dict[str, SiteFolder]

    def run(self, app: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """Run an app to its end."""
        home = ("--home", str(self.server.home.path), "--runs", str(self.folder / "runs"))
        return processes.call("flower", "run", str(app), *home, *options, cwd=self.folder)

    def newest(self, name: str) -> Path:
        """Return the folder of the newest run of an app."""
        return max((self.folder / "runs").glob(f"*-{name}*"), key=lambda path: path.stat().st_ctime_ns)

    def approve(self, app: Path) -> str:
        """Approve an app at both sites by the command line, and return its digest."""
        for site in self.sites.values():
            done = processes.call("site", "approve-app", str(app), "--folder", str(site.path), cwd=self.folder)
            assert 0 == done.returncode, done.stderr
        return read_app(app).digest


def _join(server: processes.Server, path: Path, name: str) -> SiteFolder:
    folder = SiteFolder(path / name)
    init_site(folder, name=name, server=server.address, kind="table")
    with Control(server.home) as control:
        certificate = control.approve(folder.path / "site.csr", name=name)
    bundle = make_bundle(server.home, certificate, name=name, address=server.address)
    (path / f"{name}.json").write_bytes(bundle.to_json())
    accept_bundle(folder, path / f"{name}.json")
    processes.write_patients(folder.path / "data", 0.0)
    return folder


@contextmanager
def _running(sites: dict[str, SiteFolder], server: processes.Server) -> Iterator[None]:
    running = [processes.start_site(site.settings, site.path / "site.log") for site in sites.values()]
    try:
        with Control(server.home) as control:
            processes.until(lambda: set(control.sites().values()) == {"online"})
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=20)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Start a server and two sites for all apps."""
    folder = tmp_path_factory.mktemp("flower")
    with processes.running_server(folder) as server:
        sites = {name: _join(server, folder, name) for name in ("berlin", "munich")}
        settings = sites["berlin"].settings
        settings.write_text(settings.read_text() + "\n[flower]\npartition-id = 0\n")
        with _running(sites, server):
            yield Federation(folder, server, sites)


def _worker_of(site: SiteFolder) -> int:
    """Return the process id of a site's worker; 0 for none."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"consilium.client.worker" in words and str(site.settings).encode() in words:
            return int(place.parent.name)
    return 0


def _wait_for_another(site: SiteFolder, killed: int) -> None:
    processes.until(lambda: _worker_of(site) not in (0, killed))


@pytest.mark.e2e
def test_app_that_nobody_approved_is_refused_by_every_site(federation: Federation, tmp_path: Path) -> None:
    """The coordinator reads which digest the administrators have to approve, and by which command."""
    app = counting(tmp_path / "app", **{"counting/other.py": "# not the app of other tests"})
    (tmp_path / "app" / "counting" / "server_app.py").write_text(
        COUNTING_SERVER.replace("number == 1 and", "False and")
    )
    done = federation.run(app, "--run-config", "rounds=1")
    assert 0 == done.returncode, done.stderr
    assert "query of round 1: 0 of 2 answered" in done.stdout
    assert f"site 'berlin' has not approved the Flower app with the digest {read_app(app).digest}" in done.stdout
    assert not (federation.sites["berlin"].path / "state" / ".flower").exists()


@pytest.mark.e2e
def test_stock_app_runs_unmodified_and_its_rounds_are_short(federation: Federation, tmp_path: Path) -> None:
    """What takes 12 s per empty round on Flower's own runtime; larger messages too. Round 1 meets cold workers."""
    federation.approve(STOCK)
    for megabytes, most in ((0.0, 1.0), (8.0, 5.0)):
        times = tmp_path / f"times-{megabytes}"
        config = f'rounds=3 sites=2 megabytes={megabytes} times="{times}"'
        done = federation.run(STOCK, "--run-config", config)
        assert 0 == done.returncode, done.stderr + done.stdout
        assert "finished after" in done.stdout
        stamps = [float(line.split()[1]) for line in times.read_text().splitlines()]
        assert 4 == len(stamps)
        rounds = [after - before for before, after in pairwise(stamps)]
        assert max(rounds[1:]) < most, rounds
    said = (federation.newest("stock") / "run.log").read_text()
    assert "[ROUND 3/3]" in said
    assert not [*(federation.server.home.path / "payloads").rglob("sent-*")]


@pytest.mark.e2e
@pytest.mark.parametrize("app", EXAMPLES, ids=lambda path: path.name)
def test_example_learns(app: Path, federation: Federation) -> None:
    """Flower's own FedAvg in PyTorch and scikit-learn: the model is better after the rounds than chance."""
    federation.approve(app)
    done = federation.run(app)
    assert 0 == done.returncode, done.stderr + done.stdout
    folder = federation.newest(app.name.replace("_", "-"))
    assert 1 == len([*(folder / "files").glob("final_model.*")])
    said = (folder / "run.log").read_text()
    accuracies = [
        float(line.split("eval_acc': ")[1].split(",")[0].split("}")[0].strip("'"))
        for line in said.splitlines()
        if "└──>" in line and "eval_acc" in line
    ]
    assert 3 == len(accuracies)
    assert accuracies[-1] > 0.7


@pytest.mark.e2e
def test_state_goes_on_where_the_worker_was_killed(federation: Federation, tmp_path: Path) -> None:
    """Context.state of a run is on the site's disk; another run begins with none; no other user may read it."""
    app = counting(tmp_path / "app")
    federation.approve(app)
    done = federation.run(app, "--detach")
    assert 0 == done.returncode, done.stderr
    folder = federation.newest("counting")
    processes.until((folder / "files" / "counts").exists)
    killed = _worker_of(federation.sites["berlin"])
    os.kill(killed, signal.SIGKILL)
    _wait_for_another(federation.sites["berlin"], killed)
    (folder / "files" / "go").touch()
    done = processes.call("follow", str(folder), "--home", str(federation.server.home.path), cwd=federation.folder)
    assert 0 == done.returncode, done.stderr + (folder / "run.log").read_text()
    assert ["1 1", "2 2"] == (folder / "files" / "counts").read_text().splitlines()
    state = federation.sites["berlin"].path / "state" / "flower_apps" / folder.name / "state.bin"
    assert 0o600 == state.stat().st_mode & 0o777


@pytest.mark.e2e
def test_error_of_an_app_stays_at_the_site(federation: Federation, tmp_path: Path) -> None:
    """The coordinator reads its type, not its text; an approval of the digest alone is enough for the code to come."""
    app = counting(
        tmp_path / "app", **{"counting/server_app.py": COUNTING_SERVER.replace("number == 1 and", "False and")}
    )
    digest = read_app(app).digest
    for site in federation.sites.values():
        approve(site.path, digest)
    done = federation.run(app, "--run-config", "rounds=1 deep.name='fail'", "--sites", "berlin,munich")
    assert 0 == done.returncode, done.stderr
    assert "the ClientApp at site 'berlin' failed with ValueError; the log of site 'berlin' says more" in done.stdout
    assert "patient 17" not in done.stdout
    assert "patient 17" in (federation.sites["berlin"].path / "site.log").read_text()
    assert (federation.sites["berlin"].path / "state" / ".flower" / digest).is_dir()


@pytest.mark.e2e
def test_server_app_that_fails_ends_the_run_with_a_sentence(federation: Federation, tmp_path: Path) -> None:
    """As do an app that is none at the place it names, and one that was changed after it was submitted."""
    app = counting(
        tmp_path / "app", **{"counting/server_app.py": COUNTING_SERVER.replace("while len", "1 / 0\n    while len")}
    )
    done = federation.run(app)
    assert 14 == done.returncode
    assert "RunFailed: the ServerApp of 'counting' failed with ZeroDivisionError" in done.stderr
    assert "ZeroDivisionError" in (federation.newest("counting") / "run.log").read_text()
    (app / "counting" / "server_app.py").write_text("app = 1")
    done = federation.run(app)
    assert (3, True) == (done.returncode, "is a int, expected a ServerApp" in done.stderr)
    done = federation.run(app, "--sites", "atlantis")
    assert (3, True) == (done.returncode, "approved no site 'atlantis'" in done.stderr)


OLD_SERVER = """\
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
import numpy as np

def server_fn(context):
    start = ndarrays_to_parameters([np.zeros(3)])
    strategy = FedAvg(min_available_clients=2, initial_parameters=start)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=int(context.run_config["rounds"])))

app = ServerApp(server_fn=server_fn)
"""
OLD_CLIENT = """\
from flwr.client import ClientApp, NumPyClient

class Client(NumPyClient):
    def fit(self, parameters, config):
        return [array + 1 for array in parameters], 10, {}

    def evaluate(self, parameters, config):
        return float(parameters[0].sum()), 10, {}

app = ClientApp(client_fn=lambda context: Client().to_client())
"""


@pytest.mark.e2e
def test_app_of_an_older_style_runs(federation: Federation, tmp_path: Path) -> None:
    """A NumPyClient and a strategy that asks each site in a thread of its own: 3 * 2 after two rounds of adding one."""
    files = {"counting/server_app.py": OLD_SERVER, "counting/client_app.py": OLD_CLIENT}
    app = counting(tmp_path / "app", **files)
    federation.approve(app)
    done = federation.run(app)
    assert 0 == done.returncode, done.stderr + done.stdout
    assert "round 2: 6.0" in (federation.newest("counting") / "run.log").read_text()
