"""The worker process and whoever looks after it: plans in, answers out, ends that are noticed."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import supervisor
from client.supervisor import Parcel, Worker, WorkerFailed
from common.config import SiteConfig, load_site

ECHO = """
import os, signal, sys, time
from multiprocessing.connection import Connection
from client.box import Box
from client.supervisor import Parcel, receive, send
connection, inbox, outbox = Connection(int(sys.argv[2])), *map(Box, map(int, sys.argv[3:5]))
while True:
    plan = receive(connection)
    if plan.text == "die": os.kill(os.getpid(), signal.SIGKILL)
    if plan.text == "leave": sys.exit(3)
    if plan.text == "hang": time.sleep(600)
    if plan.boxed: outbox.write(bytes(inbox.view(plan.boxed))[::-1])
    connection.send_bytes(b"error" if plan.text == "fail" else b"answer")
    send(connection, Parcel(str(os.getpid()) if plan.text == "who" else plan.text, plan.payload, plan.boxed))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text(
        "name = 'berlin'\nserver = 'localhost:1'\nca_certificate = 'ca.pem'\nprivate_key = 'key'\nstate_dir = 'state'\n"
        "[data]\nkind = 'images'\npath = 'data'\n"
    )
    return tmp_path / "site.toml"


@pytest.fixture
def config(settings: Path) -> SiteConfig:
    return load_site(settings)


@pytest.fixture
def worker(settings: Path, config: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker whose process is a few lines that need no torch."""
    script = settings.parent / "echo.py"
    script.write_text(ECHO)
    monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(supervisor, "WATCH_SECONDS", 0.05)
    found = Worker(config, settings)
    found.start()
    yield found
    found.stop()
    assert not found.is_alive()


def asked(worker: Worker, text: str, payload: bytes | None = None, *, seconds: float = 20) -> Parcel:
    return worker.answer(Parcel(text, payload), seconds=seconds)


def process_id(worker: Worker) -> int:
    return int(asked(worker, "who").text)


def wait(until: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.02)


def test_one_process_answers_plan_after_plan(worker: Worker) -> None:
    """Text and payload come back; no payload is None, also on the way back."""
    assert Parcel("a", b"x") == asked(worker, "a", b"x")
    assert Parcel("b") == asked(worker, "b")
    assert process_id(worker) == process_id(worker)


def test_large_payload_goes_through_shared_memory(worker: Worker) -> None:
    """Written in pieces, in any order, and read back in pieces; a smaller one after it is not mixed up with it."""
    for size in (3_000_001, 2_000_000):
        content = os.urandom(size)
        worker.inbox.write(content[1_000_000:], 1_000_000)
        worker.inbox.write(content[:1_000_000])
        assert Parcel("c", None, size) == worker.answer(Parcel("c", boxed=size), seconds=20)
        assert content[::-1] == worker.outbox.read(0, 1_500_000) + worker.outbox.read(1_500_000, size - 1_500_000)
    worker.rest()
    assert b"" == worker.outbox.read(0, 10)
    before = process_id(worker)
    os.kill(before, signal.SIGKILL)  # the next process has the same boxes
    worker.inbox.write(b"abc")
    wait(lambda: worker.is_alive() and worker._process is not None and worker._process.pid != before)
    worker.answer(Parcel("d", boxed=3), seconds=20)
    assert b"cba" == worker.outbox.read(0, 3)


def test_error_of_the_worker_is_an_error_here(worker: Worker) -> None:
    """The process goes on."""
    before = process_id(worker)
    with pytest.raises(WorkerFailed, match=r"^fail$"):
        asked(worker, "fail", seconds=20)
    assert before == process_id(worker)


@pytest.mark.parametrize(
    ("plan", "cause"), [("die", r"killed by SIGKILL \(often the kernel's"), ("leave", "left with exit code 3")]
)
def test_worker_that_ends_with_a_plan_is_told_at_once_and_replaced(worker: Worker, plan: str, cause: str) -> None:
    """The cause is in the sentence that goes to the server."""
    before = process_id(worker)
    began = time.monotonic()
    with pytest.raises(WorkerFailed, match=f"worker process ended while it answered: it (was )?{cause}"):
        asked(worker, plan, seconds=60)
    assert time.monotonic() - began < 5
    assert before != process_id(worker)


def test_worker_that_hangs_is_stopped_at_its_time(worker: Worker) -> None:
    """And the next plan is answered."""
    process_id(worker)
    with pytest.raises(WorkerFailed, match="took longer than the study's round_timeout_seconds"):
        asked(worker, "hang", seconds=0.3)
    assert asked(worker, "again", seconds=20)


def test_worker_that_ends_while_idle_is_started_again(worker: Worker) -> None:
    """Before the next plan comes: torch takes seconds to import."""
    before = process_id(worker)
    os.kill(before, signal.SIGKILL)
    wait(lambda: worker._process is not None and worker._process.pid != before and worker.is_alive())
    assert before != process_id(worker)
    assert not worker.gave_up


def test_site_stops_when_its_worker_dies_at_every_start(
    settings: Path, config: SiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times in a row; the process is ended as by a service manager, and knows why."""
    monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, "-c", "raise SystemExit(4)"))
    monkeypatch.setattr(supervisor, "WATCH_SECONDS", 0.02)
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr(supervisor.os, "kill", lambda *arguments: ended.append(arguments))
    worker = Worker(config, settings)
    worker.start()
    wait(lambda: worker.gave_up)
    assert worker.gave_up
    assert [(os.getpid(), signal.SIGTERM)] == ended
    worker.stop()


def test_deaths_with_a_plan_do_not_stop_a_site(worker: Worker) -> None:
    """A study that needs too much memory is the study's fault."""
    for _ in range(5):
        with pytest.raises(WorkerFailed):
            asked(worker, "die", seconds=20)
    time.sleep(0.3)
    assert not worker.gave_up
    assert worker.is_alive()


def test_process_that_cannot_be_started_is_a_sentence(
    settings: Path, config: SiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more processes, say."""
    monkeypatch.setattr(supervisor, "COMMAND", ("/nothing/here",))
    with pytest.raises(WorkerFailed, match="cannot be started: No such file"):
        asked(Worker(config, settings), "a")
