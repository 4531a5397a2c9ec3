"""A worker behind a command such as `srun`: orders in, answers out, a queue, jobs that are cancelled."""

import asyncio
import errno
import fcntl
import os
import pty
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slurm import Slurm, make_slurm
from wires import until

from consilium.client.process import supervisor
from consilium.client.process.channels import Parcel
from consilium.client.process.supervisor import Worker, WorkerFailed
from consilium.client.process.worker_ends import check_alone
from consilium.client.remote_worker import check_shared
from consilium.common.errors import ConfigError, ProtocolError, StateError
from consilium.common.host.files import only_one
from consilium.common.study.load import load_site
from consilium.common.wire.lines import MARK, MAX_LINE_BYTES, LineReader, Text, as_lines

ECHO = """
import json, os, signal, sys, time
from pathlib import Path
from consilium.client.process.worker_ends import LineEnd
end = LineEnd(0, 1)
end.when_closed(lambda: os.kill(os.getpid(), signal.SIGKILL))
end.begin(b"+")
while True:
    order, payload = end.receive()
    if order == b"hang": time.sleep(600)
    if order == b"print": os.write(1, b"a module prints this\\n")
    facts = {"threads": os.environ.get("OMP_NUM_THREADS"), "parent": os.environ.get("CONSILIUM_PARENT_PID")}
    facts |= {"token": os.environ.get("CONSILIUM_GROUP_TOKEN")}
    facts |= {"folder": os.getcwd(), "arguments": sys.argv[1:]}
    text = json.dumps(facts).encode() if order == b"facts" else order
    end.send(b"error" if order == b"fail" else b"answer", text, bytes(payload)[::-1] if payload else None)
"""
PREFIX = ("srun", "--gres=gpu:1", "--time=12:00:00")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A machine with `srun`, and a worker of a few lines that need no torch."""
    slurm = make_slurm(tmp_path / "slurm")
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    monkeypatch.setattr(supervisor, "REMOTE_COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(supervisor, "RETRY_SECONDS", 0.05)
    monkeypatch.setenv("PATH", slurm.path)
    return slurm


@asynccontextmanager
async def started(command: tuple[str, ...] = PREFIX) -> AsyncIterator[Worker]:
    """Keep a worker going."""
    worker = Worker("site.toml", threads=3, behind=command, lock=Path("/state/.lock"))
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
        assert not worker.is_alive()


async def asked(worker: Worker, order: bytes, *, seconds: float = 20) -> Parcel:
    """Return a worker's answer."""
    return await worker.answer(Parcel(order), seconds=seconds)


def test_orders_and_large_payloads_pass_through_srun(slurm: Slurm) -> None:
    """One job answers order after order, whatever else is printed before them and between them."""
    (slurm.folder / "greeting").write_bytes(
        b"Welcome to the cluster\n\xff\x1b[31m\n" + b"long" * MAX_LINE_BYTES + b"\n"
    )

    async def check() -> None:
        async with started() as worker:
            assert Parcel(b"a") == await asked(worker, b"a")
            assert Parcel(b"small", b"cba") == await worker.answer(Parcel(b"small", b"abc"), seconds=20)
            for size in (3_000_001, 300_000):
                content = os.urandom(size)
                worker.inbox.write(content)
                assert Parcel(b"large", b"", size) == await worker.answer(Parcel(b"large", boxed=size), seconds=20)
                assert content[::-1] == worker.outbox.read(0, size)
            with pytest.raises(WorkerFailed, match=r"^fail$"):
                await asked(worker, b"fail")
            assert Parcel(b"print") == await asked(worker, b"print")
            assert 1 == slurm.starts

    asyncio.run(check())
    assert not slurm.runs()


def test_job_needs_no_environment_of_the_site(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, files and limits are in its command; it does not take the supervisor's parent for its own."""
    monkeypatch.setenv("CONSILIUM_PARENT_PID", "1")
    monkeypatch.setenv("CONSILIUM_GROUP_TOKEN", "steps/phones/secret")

    async def check() -> None:
        async with started() as worker:
            facts = (await asked(worker, b"facts")).content.decode()
            assert '"threads": "3", "parent": null, "token": null, "folder": "/"' in facts
            assert '"arguments": ["site.toml", "--threads", "3", "--lock", "/state/.lock"]' in facts

    asyncio.run(check())


def test_order_waits_while_the_job_is_queued_and_its_sentence_says_so(
    slurm: Slurm, caplog: pytest.LogCaptureFixture
) -> None:
    """The job stays in the queue; once it runs the next order is answered."""
    slurm.hold(True)
    caplog.set_level("INFO")

    async def check() -> None:
        async with started() as worker:
            with pytest.raises(WorkerFailed, match=r"^this site is still waiting for Slurm to start the worker"):
                await asked(worker, b"a", seconds=0.4)
            waiting = asyncio.ensure_future(asked(worker, b"b"))
            await asyncio.sleep(0.1)
            slurm.hold(False)
            assert Parcel(b"b") == await waiting
            assert 1 == slurm.starts

    asyncio.run(check())
    assert "waiting for Slurm to start the worker" in caplog.messages


def test_site_waits_for_its_job_as_long_as_it_is_queued(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And says so again and again; it connects once the worker can take orders."""
    monkeypatch.setattr(supervisor, "QUEUE_SECONDS", 0.2)
    slurm.hold(True)
    caplog.set_level("INFO")

    async def check() -> None:
        async with started() as worker:
            waiting = asyncio.ensure_future(worker.until_ready(seconds=0.1))
            await asyncio.sleep(0.6)
            assert not waiting.done()
            slurm.hold(False)
            await asyncio.wait_for(waiting, 20)

    asyncio.run(check())
    assert any(line.startswith("still waiting for Slurm to start the worker seconds=") for line in caplog.messages)


def test_cancelled_job_is_a_sentence_and_the_next_one_answers(slurm: Slurm) -> None:
    """In the middle of an order, and while there is none."""

    async def check() -> None:
        async with started() as worker:
            await asked(worker, b"a")
            hanging = asyncio.ensure_future(asked(worker, b"hang"))
            await asyncio.sleep(0.2)
            slurm.cancel()
            with pytest.raises(
                WorkerFailed, match=r"'srun' ended \(it left with exit code 143\): its job was cancelled"
            ):
                await hanging
            assert Parcel(b"b") == await asked(worker, b"b")
            assert 2 == slurm.starts
            slurm.cancel()
            await until(lambda: slurm.starts == 3)
            assert Parcel(b"c") == await asked(worker, b"c")

    asyncio.run(check())


def test_order_that_takes_too_long_ends_the_job(slurm: Slurm) -> None:
    """On the other machine too."""

    async def check() -> None:
        async with started() as worker:
            await asked(worker, b"a")
            before = slurm.job
            with pytest.raises(WorkerFailed, match="took longer than the study's round_timeout_seconds"):
                await asked(worker, b"hang", seconds=0.3)
            assert not Path(f"/proc/{before}").exists()
            assert Parcel(b"b") == await asked(worker, b"b")

    asyncio.run(check())


def test_job_ends_when_its_srun_is_killed_outright(slurm: Slurm) -> None:
    """It sees that its input is closed, also in the middle of an order."""

    async def check() -> None:
        async with started() as worker:
            await asked(worker, b"a")
            hanging = asyncio.ensure_future(asked(worker, b"hang"))
            await asyncio.sleep(0.2)
            before = slurm.job
            assert worker._running is not None
            worker._running.process.kill()
            with pytest.raises(WorkerFailed, match="killed by SIGKILL"):
                await hanging
            await until(lambda: not Path(f"/proc/{before}").exists())

    asyncio.run(check())


def test_queued_job_is_given_up_with_the_site(slurm: Slurm) -> None:
    """A site that stops leaves nothing in the queue."""
    slurm.hold(True)

    async def check() -> None:
        async with started():
            await until(lambda: slurm.starts == 1)

    began = time.monotonic()
    asyncio.run(check())
    assert time.monotonic() - began < 5


def test_site_stops_where_srun_refuses_its_options(slurm: Slurm) -> None:
    """Three times in a row; the log has Slurm's own sentence."""

    async def check() -> None:
        async with started(("srun", "--gress=gpu:1")) as worker:
            await asyncio.wait_for(worker.gave_up.wait(), 20)

    asyncio.run(check())


@pytest.mark.parametrize("asks", [False, True])
def test_job_that_fails_at_once_stops_the_site_however_long_it_was_queued(
    asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three jobs, with a pause between them, whether an order waits for one or none does."""
    monkeypatch.setattr(supervisor, "EARLY_SECONDS", 0.05)
    monkeypatch.setattr(supervisor, "RETRY_SECONDS", 0.2)
    starts = tmp_path / "starts"

    async def check() -> None:
        async with started(("sh", "-c", f"echo x >> '{starts}'; sleep 0.2; exit 1")) as worker:
            began = time.monotonic()
            for _ in range(3 if asks else 0):
                with pytest.raises(WorkerFailed, match="'sh' ended"):
                    await asked(worker, b"a")
            await asyncio.wait_for(worker.gave_up.wait(), 10)
            assert asks or time.monotonic() - began > 0.9
            await asyncio.sleep(0.5)
            assert "x\nx\nx\n" == starts.read_text()

    asyncio.run(check())


def _has_started(slurm: Slurm, jobs: int) -> bool:
    return slurm.starts == jobs


def test_job_that_has_worked_for_a_while_is_followed_by_the_next(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at its limit of time, four times in a row."""
    monkeypatch.setattr(supervisor, "EARLY_SECONDS", 0.05)

    async def check() -> None:
        async with started() as worker:
            for number in range(1, 5):
                await until(lambda: worker._running is not None and worker._running.ready)
                await asyncio.sleep(0.1)
                slurm.cancel()
                await until(partial(_has_started, slurm, number + 1))
            assert not worker.gave_up.is_set()

    asyncio.run(check())


def test_command_that_is_not_there_is_a_sentence() -> None:
    """As for every worker that cannot be started."""
    with pytest.raises(WorkerFailed, match="cannot be started: No such file"):
        asyncio.run(asked(Worker("site.toml", behind=("/nothing/srun",)), b"a"))


# --- the worker's own checks -------------------------------------------------------------------------


def test_worker_starts_only_next_to_the_lock_that_its_supervisor_holds(tmp_path: Path) -> None:
    """A folder of the same name on another machine has no lock, or a free one."""
    settings, lock = tmp_path / "site.toml", tmp_path / "state" / ".lock"
    with pytest.raises(StateError, match=r"has no '.*site.toml': the site's folder must be on a file system"):
        check_shared(settings, lock)
    settings.touch()
    with pytest.raises(StateError, match=r"cannot open '.*\.lock' \(No such file or directory\): state_dir must be"):
        check_shared(settings, lock)
    with only_one(lock, otherwise=""):
        check_shared(settings, lock)
    with pytest.raises(StateError, match=r"does not see that '.*\.lock' is locked: state_dir must be the same folder"):
        check_shared(settings, lock)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and leaves it free


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_file_system_without_locks_is_not_taken_for_one_whose_lock_is_held(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of Lustre mounted without `flock`: whether another worker is in this folder cannot be known there."""
    settings, lock = tmp_path / "site.toml", tmp_path / ".lock"
    settings.touch()
    lock.touch()

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(
        StateError, match=r"cannot see whether '.*\.lock' is locked \(.+\): state_dir must be on a file"
    ):
        check_shared(settings, lock)


def test_one_task_without_a_terminal_is_a_worker() -> None:
    """Two would answer every order twice, and a terminal changes what passes through it."""
    check_alone({"SLURM_STEP_NUM_TASKS": "1"}, 2**30)
    with pytest.raises(ProtocolError, match="srun starts 2 tasks, expected one worker: set --ntasks=1"):
        check_alone({"SLURM_STEP_NUM_TASKS": "2"}, 2**30)
    ours, theirs = pty.openpty()
    try:
        with pytest.raises(ProtocolError, match="a terminal: leave --pty and --unbuffered out"):
            check_alone({}, theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def test_remote_worker_says_what_is_wrong_before_it_imports_torch(tmp_path: Path) -> None:
    """In one sentence, for the site's log."""
    command = [sys.executable, "-P", "-m", "consilium.client.remote_worker", str(tmp_path / "site.toml")]
    done = subprocess.run([*command, "--lock", str(tmp_path)], capture_output=True, text=True, timeout=30, check=False)
    assert 1 == done.returncode
    assert done.stderr.startswith("StateError: '")
    assert 1 == done.stderr.count("\n")


# --- lines -------------------------------------------------------------------------------------------


@given(
    pieces=st.lists(st.binary(max_size=300), max_size=8),
    noise=st.binary(max_size=50).filter(lambda text: MARK not in text),
    size=st.integers(1, 200),
)
def test_lines_carry_bytes_through_what_others_print(pieces: list[bytes], noise: bytes, size: int) -> None:
    """`read(as_lines(x)) == x`, cut anywhere, other lines before ours, and ends of lines as a terminal's."""
    sent = b"".join(noise + b"\n" + as_lines(piece).replace(b"\n", b"\r\n") for piece in pieces)
    reader = LineReader()
    read = [one for start in range(0, len(sent), size) for one in reader.feed(sent[start : start + size])]
    assert b"".join(pieces) == b"".join(one for one in read if isinstance(one, bytes))


@given(st.binary(max_size=50).filter(lambda text: MARK not in text), st.binary(min_size=1, max_size=50))
def test_what_ends_without_a_lines_end_swallows_nothing(greeting: bytes, sent: bytes) -> None:
    """A greeting such as `Password OK ` stands before our line, and is a line of its own."""
    read = list(LineReader().feed(greeting + as_lines(sent)))
    assert sent == read[-1]
    assert all(isinstance(one, Text) for one in read[:-1])


def test_endless_line_is_left_out_and_a_damaged_one_refused() -> None:
    """Memory stays bounded, and bytes are never guessed."""
    reader = LineReader()
    for _ in range(20):
        assert [] == list(reader.feed(b"x" * MAX_LINE_BYTES))
        assert len(reader._buffer) <= MAX_LINE_BYTES
    assert [Text("next"), b"ours"] == list(reader.feed(b"end of it\nnext\n" + as_lines(b"ours")))
    with pytest.raises(ProtocolError, match="damaged"):
        list(reader.feed(MARK + b"###\n"))


# --- the setting -------------------------------------------------------------------------------------

SITE = """
name = "berlin"
server = "localhost:9092"
ca_certificate = "ca.pem"
private_key = "site.key"
state_dir = "state"
data = {{ kind = "table", path = "data" }}
worker = {worker}
"""


@pytest.mark.parametrize(
    ("worker", "sentence"),
    [
        ('""', "worker: must name a command such as 'srun --gres=gpu:1'"),
        ('"  "', "worker: must name a command"),
        ("\"'' --gres=gpu:1\"", "worker: must name a command"),
        ('"srun --gres=\'gpu:1"', "worker: must have balanced quotes"),
        ('["srun", "--gres=gpu:1"]', r"worker: must be one text such as 'srun --gres=gpu:1', got \['srun'"),
        ("1", "worker: must be one text"),
        ("true", "worker: must be one text"),
        ('"srun\\nrm"', "worker: must be one line"),
        ('"srun \\u202e"', "worker: must be one line"),
        (f'"srun {"x" * 5000}"', "worker: must be one line of at most 4000 characters"),
    ],
)
def test_wrong_command_is_a_sentence(tmp_path: Path, worker: str, sentence: str) -> None:
    """When the settings are read, long before it would be started."""
    file = tmp_path / "site.toml"
    file.write_text(SITE.format(worker=worker))
    with pytest.raises(ConfigError, match=sentence):
        load_site(file)
