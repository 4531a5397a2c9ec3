"""The worker process and whoever looks after it: orders in, answers out, ends that are noticed."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from wires import until

from consilium.client.process import supervisor
from consilium.client.process.channels import Parcel
from consilium.client.process.supervisor import Worker, WorkerFailed

ECHO = """
import os, signal, sys, time
from multiprocessing.connection import Connection
from consilium.client.process.shared_memory import Box
connection, inbox, outbox = Connection(int(sys.argv[2])), *map(Box, map(int, sys.argv[3:5]))
STARTING
os.write(int(sys.argv[2]), b"+")
while True:
    order, payload, boxed = (connection.recv_bytes() for _ in range(3))
    if order == b"die": os.kill(os.getpid(), signal.SIGKILL)
    if order == b"leave": sys.exit(3)
    if order == b"hang": time.sleep(600)
    if order == b"slow": time.sleep(0.4)
    if int(boxed): outbox.write(bytes(inbox.view(int(boxed)))[::-1])
    kind = b"error" if order == b"fail" else b"answer"
    for frame in (kind, str(os.getpid()).encode() if order == b"who" else order, payload, boxed):
        connection.send_bytes(frame)
"""


@asynccontextmanager
async def started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, program: str = ECHO, starting: str = ""
) -> AsyncIterator[Worker]:
    """Keep a worker going whose process is a few lines that need no torch."""
    script = folder / "echo.py"
    script.write_text(program.replace("STARTING", starting))
    monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    worker = Worker("site.toml")
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
        assert not worker.is_alive()


async def asked(worker: Worker, order: bytes, payload: bytes = b"", *, seconds: float = 20) -> Parcel:
    """Return a worker's answer."""
    return await worker.answer(Parcel(order, payload), seconds=seconds)


async def process_id(worker: Worker) -> int:
    """Return the id of a worker's process."""
    return int((await asked(worker, b"who")).content)


def running(worker: Worker) -> int:
    """The process that runs now; 0 where none does."""
    return worker._running.process.pid if worker._running is not None and worker.is_alive() else 0


def test_one_process_answers_order_after_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content and payload come back as they were."""

    async def check() -> None:
        async with started(tmp_path, monkeypatch) as worker:
            assert Parcel(b"a", b"x") == await asked(worker, b"a", b"x")
            assert Parcel(b"b") == await asked(worker, b"b")
            assert await process_id(worker) == await process_id(worker)

    asyncio.run(check())


def test_large_payload_goes_through_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written in pieces and read in pieces; a smaller one after it is not mixed up; the next process has the same."""

    async def check() -> None:
        async with started(tmp_path, monkeypatch) as worker:
            for size in (3_000_001, 2_000_000):
                content = os.urandom(size)
                worker.inbox.write(content[1_000_000:], 1_000_000)
                worker.inbox.write(content[:1_000_000])
                assert Parcel(b"c", b"", size) == await worker.answer(Parcel(b"c", boxed=size), seconds=20)
                assert content[::-1] == worker.outbox.read(0, 1_500_000) + worker.outbox.read(
                    1_500_000, size - 1_500_000
                )
            worker.rest()
            assert b"" == worker.outbox.read(0, 10)
            before = await process_id(worker)
            os.kill(before, signal.SIGKILL)
            worker.inbox.write(b"abc")
            await until(lambda: running(worker) not in (0, before))
            await worker.answer(Parcel(b"d", boxed=3), seconds=20)
            assert b"cba" == worker.outbox.read(0, 3)

    asyncio.run(check())


def test_error_of_the_worker_is_an_error_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process goes on."""

    async def check() -> None:
        async with started(tmp_path, monkeypatch) as worker:
            before = await process_id(worker)
            with pytest.raises(WorkerFailed, match=r"^fail$"):
                await asked(worker, b"fail")
            assert before == await process_id(worker)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("order", "cause"), [(b"die", r"killed by SIGKILL \(often the kernel's"), (b"leave", "left with exit code 3")]
)
def test_worker_that_ends_with_an_order_is_told_at_once_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: bytes, cause: str
) -> None:
    """The cause is in the sentence that goes to the server."""

    async def check() -> None:
        async with started(tmp_path, monkeypatch) as worker:
            before, began = await process_id(worker), time.monotonic()
            with pytest.raises(WorkerFailed, match=f"worker process ended while it answered: it (was )?{cause}"):
                await asked(worker, order, seconds=60)
            assert time.monotonic() - began < 5
            assert before != await process_id(worker)

    asyncio.run(check())


def test_worker_that_hangs_is_stopped_at_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next order is answered."""

    async def check() -> None:
        async with started(tmp_path, monkeypatch) as worker:
            await process_id(worker)
            with pytest.raises(WorkerFailed, match="took longer than the study's round_timeout_seconds"):
                await asked(worker, b"hang", seconds=0.3)
            assert Parcel(b"again") == await asked(worker, b"again")

    asyncio.run(check())


def test_answer_that_is_not_waited_for_any_more_is_not_given_to_the_next_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order that was cancelled ends with its process, often in a row, which says nothing about the worker."""

    async def check() -> None:
        async with started(tmp_path, monkeypatch) as worker:
            await process_id(worker)
            began = time.monotonic()
            for _ in range(4):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asked(worker, b"slow"), 0.1)
                assert Parcel(b"next") == await asked(worker, b"next")
            assert time.monotonic() - began < 5
            assert not worker.gave_up.is_set()

    asyncio.run(check())


def test_time_in_which_a_worker_imports_is_not_an_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that comes before its time begins when the worker can take it; one that is withdrawn kills nothing."""

    async def check() -> None:
        async with started(tmp_path, monkeypatch, starting="time.sleep(0.8)") as worker:
            first = running(worker)
            withdrawn = asyncio.ensure_future(asked(worker, b"never"))
            await asyncio.sleep(0.1)
            withdrawn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await withdrawn
            assert first == running(worker)
            assert b"late" == (await asked(worker, b"late", seconds=0.5)).content
            assert first == running(worker)

    asyncio.run(check())


def test_site_waits_for_its_worker_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is ready, or for as long as is allowed."""

    async def check() -> None:
        async with started(tmp_path, monkeypatch, starting="time.sleep(1.5)") as worker:
            began = time.monotonic()
            await worker.until_ready(seconds=0.2)
            assert 0.2 <= time.monotonic() - began < 1.2
            await worker.until_ready()
            assert worker._running is not None and worker._running.ready

    asyncio.run(check())


def test_worker_that_ends_while_idle_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next order comes: torch takes seconds to import."""

    async def check() -> None:
        async with started(tmp_path, monkeypatch) as worker:
            before = await process_id(worker)
            os.kill(before, signal.SIGKILL)
            await until(lambda: running(worker) not in (0, before))
            assert not worker.gave_up.is_set()

    asyncio.run(check())


def test_site_is_told_when_its_worker_dies_at_every_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times in a row; no fourth is started."""

    async def check() -> None:
        starts = tmp_path / "starts"
        program = f"open({str(starts)!r}, 'a').write('x'); raise SystemExit(4)"
        async with started(tmp_path, monkeypatch, program) as worker:
            await asyncio.wait_for(worker.gave_up.wait(), 10)
            await asyncio.sleep(0.3)
            assert supervisor.MAX_EARLY_DEATHS == len(starts.read_text())

    asyncio.run(check())


def test_deaths_with_an_order_do_not_stop_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that needs too much memory is the study's fault."""

    async def check() -> None:
        async with started(tmp_path, monkeypatch) as worker:
            for _ in range(5):
                with pytest.raises(WorkerFailed):
                    await asked(worker, b"die")
            await until(worker.is_alive)
            assert not worker.gave_up.is_set()

    asyncio.run(check())


def test_process_that_cannot_be_started_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more processes, say."""
    monkeypatch.setattr(supervisor, "COMMAND", ("/nothing/here",))
    with pytest.raises(WorkerFailed, match="cannot be started: No such file"):
        asyncio.run(asked(Worker("site.toml"), b"a"))


def test_process_that_cannot_be_started_again_is_tried_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop that talks to the server goes on meanwhile, and the site does not give up."""
    monkeypatch.setattr(supervisor, "RETRY_SECONDS", 0.1)

    async def check() -> None:
        async with started(tmp_path, monkeypatch) as worker:
            before, command = await process_id(worker), worker._command
            worker._command = ["/nothing/here"]
            os.kill(before, signal.SIGKILL)
            await until(lambda: not worker.is_alive())
            began = time.monotonic()
            await asyncio.sleep(0.5)
            assert time.monotonic() - began < 1
            with pytest.raises(WorkerFailed, match="cannot be started"):
                await asked(worker, b"a")
            worker._command = command
            await until(lambda: worker.is_alive())
            assert Parcel(b"b") == await asked(worker, b"b")
            assert not worker.gave_up.is_set()

    asyncio.run(check())
