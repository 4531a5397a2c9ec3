"""Calls that outlive a revocation, turns that are never given back, streams that end unseen."""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import MakeSites, MakeStudy
from wires import Bench, Echo, Raw, attending, connected, open_channel, run, serving, until

from consilium.client.site.readings import READINGS
from consilium.client.wire.connection import Connection
from consilium.common.errors import CohortTooSmall, ConfigError, UpdateRejected
from consilium.common.host.certificates import read_certificate
from consilium.common.host.logs import bounded
from consilium.common.study.load import load_site
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.envelope import MAX_ORDER_BYTES
from consilium.common.wire.limits import REVOKED, SERVICE
from consilium.running.in_process import run_in_process
from consilium.server.wire import service
from consilium.server.wire.outbox import Numbers, Outbox, Signer
from consilium.server.wire.run_link import RunLink
from consilium.server.wire.tasks import Task

PIECE = 500_000


def test_call_that_waits_with_its_hello_does_not_outlive_a_revocation(tmp_path: Path) -> None:
    """Whoever was let in, said nothing yet, and is revoked meanwhile does not attend afterwards."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            place = bench.place("mallory")
            channel = open_channel(place)
            call = channel.stream_stream(f"/{SERVICE}/Attend")()
            await until(lambda: bench.wire.callers.open_calls["mallory"] == 1)
            bench.wire.dismiss(bench.registry.revoke("mallory"), reason=REVOKED, text="revoked")
            await call.write(pb.FromSite(hello=pb.Hello(protocol=1)).SerializeToString())
            with pytest.raises(grpc.aio.AioRpcError, match=REVOKED):
                await asyncio.wait_for(call.read(), 5)
            assert [] == bench.wire.streams.names()
            await channel.close()

    run(check())


def test_delivery_that_waits_with_its_first_piece_does_not_outlive_a_revocation(tmp_path: Path) -> None:
    """The turn was granted before; nothing is written after the revocation."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("mallory")) as mallory:
            task = bench.ask("mallory")
            await mallory.read_until("task")
            await mallory.offer(task.id, PIECE)
            call = mallory.deliver()
            await until(lambda: bench.wire.callers.open_calls["mallory"] == 2)
            bench.wire.dismiss(bench.registry.revoke("mallory"), reason=REVOKED, text="revoked")
            await call.write(pb.Piece(task=task.id, data=b"x" * PIECE).SerializeToString())
            with pytest.raises(grpc.aio.AioRpcError, match=REVOKED):
                await call
            assert 0 == task.received

    run(check())


async def begun(bench: Bench, mallory: Raw) -> tuple[Task, Any]:
    """Have a site announce four pieces and deliver the first; return the task and the delivery."""
    task = bench.ask("mallory")
    await mallory.read_until("task")
    await mallory.offer(task.id, 4 * PIECE)
    call = mallory.deliver()
    await call.write(pb.Piece(task=task.id, data=b"x" * PIECE).SerializeToString())
    await until(lambda: task.received == PIECE)
    return task, call


def test_reply_that_is_announced_anew_gives_its_turn_back_and_leaves_no_bytes(tmp_path: Path) -> None:
    """A site that changes what it announced in the middle of a delivery keeps no turn, and no piece of the first."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("mallory")) as mallory:
            task, call = await begun(bench, mallory)
            await mallory.offer(task.id, PIECE // 2)
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(pb.Piece(data=b"x").SerializeToString())
                await call
            content = os.urandom(PIECE // 2)
            assert len(content) == await mallory.delivered(task.id, content)
            await bench.run.one()
            assert content == task.incoming.read_bytes()
            assert (0, 0) == (bench.wire.turns.active, bench.wire.turns.waiting)

    run(check())


def test_small_reply_after_an_announced_one_leaves_no_file(tmp_path: Path) -> None:
    """Pieces of a reply that another has replaced do not stay on the server's disk, nor count as its payload."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("mallory")) as mallory:
            task, _ = await begun(bench, mallory)
            await mallory.send(reply=pb.Reply(task=task.id, text=b"small"))
            assert (b"small", "") == ((answer := await bench.run.one())["text"], answer["problem"])
            assert task.offer is None
            assert not task.incoming.exists()

    run(check())


def test_site_that_does_not_read_finds_its_stream_ended_when_it_reads_on(tmp_path: Path) -> None:
    """It would wait for ever on a stream that the server has forgotten."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("berlin")) as berlin:
            stream = bench.wire.streams.get("berlin")
            assert stream is not None
            for _ in range(200):  # more than gRPC takes in for a site that does not read
                stream.send(pb.FromServer(task=pb.Task(payload=b"x" * 250_000)))
            await until(lambda: len(stream._outgoing) < 199)
            await asyncio.sleep(0.2)
            stream._stuck_at = 0
            stream.end_if_stuck()
            await until(lambda: not bench.wire.streams.names())
            await asyncio.sleep(2.5)  # the farewell is not waited for any longer
            await berlin.end(5)
            assert berlin.call.done()

    run(check())


def test_site_goes_on_when_a_reply_is_given_up_in_the_middle(tmp_path: Path) -> None:
    """A server that takes nothing costs a site the stream, and never its program."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            place, listen = bench.place("berlin"), bench.wire._listen

            async def deaf(_: object) -> None:
                await asyncio.sleep(60)

            bench.wire._listen = deaf  # type: ignore[method-assign, assignment]  # a server that takes nothing
            connection = Connection(place, Echo())
            running = asyncio.ensure_future(connection.run())
            await until(lambda: connection.is_connected and bench.wire.streams.names())
            tasks = [bench.ask("berlin", payload=b"x" * 250_000, seconds=1) for _ in range(20)]
            await until(lambda: not connection.is_connected or running.done(), 8)
            bench.wire.forget(tasks)
            bench.wire._listen = listen  # type: ignore[method-assign]  # as it was
            bench.ask("berlin", order=b"after")
            assert b"after" == (await bench.run.one(8))["text"]
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    run(check())


def test_turns_that_nobody_asked_for_fill_no_memory(tmp_path: Path) -> None:
    """A site keeps one turn at most, for the reply in its hand."""

    async def check() -> None:
        async with serving(tmp_path) as bench, connected(bench.place("berlin")) as connection:
            await until(lambda: connection.is_connected)
            stream = bench.wire.streams.get("berlin")
            assert stream is not None
            for _ in range(500):
                stream.send(pb.FromServer(turn=pb.Turn(task=b"x" * 16)))
            await until(lambda: stream._writer is None)
            await asyncio.sleep(0.2)
            assert 0 == connection._tasks.turns.qsize()

    run(check())


def test_site_that_was_away_gets_a_certificate_of_the_new_authority(tmp_path: Path) -> None:
    """Else the old authority could not be retired before the site's certificate is renewed, weeks later."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            place = bench.place("berlin")
            before = read_certificate(place.certificate.read_bytes()).x509.issuer
            bench.registry.add_authority()
            async with connected(place):
                await until(lambda: read_certificate(place.certificate.read_bytes()).x509.issuer != before)
            assert bench.home.ca.read_bytes() == place.authorities.read_bytes()
            assert [] == bench.registry.retire_authorities()

    run(check())


def test_nobody_waits_for_a_site_that_is_given_up(tmp_path: Path) -> None:
    """A round does not last until its timeout because one of its sites was revoked."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("mallory")) as mallory:
            task = bench.ask("mallory", seconds=1800)
            await mallory.read_until("task")
            await mallory.offer(task.id, PIECE)
            bench.wire.dismiss(bench.registry.revoke("mallory"), reason=REVOKED, text="revoked")
            bench.wire.give_up("mallory", why="was revoked")
            assert ("gone", "mallory") == ((answer := await bench.run.one(1))["problem"], answer["site"])
            assert (0, []) == (bench.wire.turns.active, bench.wire.tasks.at("mallory"))

    run(check())


def test_sweep_survives_whatever_goes_wrong_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late tasks are dropped by the next one."""
    monkeypatch.setattr(service, "SWEEP_SECONDS", 0.05)

    async def check() -> None:
        async with serving(tmp_path) as bench:
            save, calls = bench.registry.save, list[int]()

            def fail() -> None:
                calls.append(1)
                if len(calls) == 1:
                    raise OSError("read-only file system")
                save()

            monkeypatch.setattr(bench.registry, "save", fail)
            await until(lambda: len(calls) >= 2)
            task = bench.ask("berlin", seconds=0)
            await until(lambda: task not in bench.wire.tasks.at("berlin"))

    run(check())


def test_log_takes_so_many_lines_of_a_kind_and_says_how_many_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is at the other end of the wire cannot fill a disk with lines; other lines are not affected."""
    now = [100.0]
    monkeypatch.setattr("consilium.common.host.logs.time.monotonic", lambda: now[0])
    passes = bounded(most=3, seconds=60)

    def line(number: int) -> logging.LogRecord:
        return logging.LogRecord("x", logging.WARNING, "x.py", number, "site misbehaves n=%d", (number,), None)

    assert [True, True, True, False, False] == [passes(line(1)) for _ in range(5)]
    assert passes(line(2))
    now[0] += 61
    later = line(1)
    assert passes(later)
    assert "site misbehaves n=1 (2 lines like this left out)" == later.getMessage()


def test_diverged_loss_on_the_test_split_counts_as_a_reading(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a loss is not finite tells of the split too: a coordinator could ask so again and again, one bit each."""

    def diverged(_: Mapping[str, float]) -> None:
        raise UpdateRejected("not_finite", "personal.loss: not a finite number")

    monkeypatch.setattr("consilium.client.site.finish.check_metrics", diverged)
    sites, study = make_sites(), make_study(rounds=1)
    with pytest.raises(CohortTooSmall, match="not a finite number"):
        run_in_process(study, sites, tmp_path / "run")
    kept = json.loads((load_site(sites["berlin"]).state_dir / READINGS).read_text())
    assert [1] == [len(made) for made in kept["readings"].values()]


def test_order_that_no_site_reads_is_not_sent(tmp_path: Path) -> None:
    """It would break the site's connection, and be sent again on the next."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    outbox = Outbox(tmp_path, Signer("run", Ed25519PrivateKey.generate(), Numbers(tmp_path / "orders")))
    with pytest.raises(ConfigError, match=f"expected at most {MAX_ORDER_BYTES}"):
        outbox.task(outbox.prepare(None), site="berlin", kind="flower", text="x" * 2_000_000, seconds=1, most_bytes=1)


def test_many_small_payloads_go_in_frames_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand sites and 250 kB for each are more than one frame may hold."""
    ours, theirs = socket.socketpair()
    sent = list[pb.FromRun]()
    with ours, theirs:
        link = RunLink(ours)
        monkeypatch.setattr(link, "_send", sent.append)
        payload = b"x" * 250_000
        link.ask(pb.Outgoing(id=b"%016d" % number, payload=payload) for number in range(300))
    assert 300 == sum(len(message.ask.tasks) for message in sent)
    assert max(message.ByteSize() for message in sent) < 40_000_000
