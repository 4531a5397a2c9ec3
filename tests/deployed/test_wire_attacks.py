"""Attacks on the wire by strangers and by an approved site: each ends, is named, and harms no other."""

import asyncio
import os
import resource
import socket
import ssl
import statistics
import time
import warnings
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from processes import running_server
from wires import HOSTS, Bench, Raw, attending, connected, make_home, make_place, open_channel, run, serving, until

from consilium.client.wire.channel import NotWelcome, attend
from consilium.client.wire.place import Place
from consilium.common.errors import ConnectionRefused
from consilium.common.host.keys import read_private_key
from consilium.common.host.signing_requests import read_signing_request
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import MAX_WIRE_BYTES, SERVICE
from consilium.server.operations import authority
from consilium.server.wire import callers, service, transfers
from consilium.server.wire.registry import Registry
from consilium.server.wire.streams import MAX_BACKLOG, MAX_STRIKES, Peer, Stream
from consilium.server.wire.submission import Control

Attack = Callable[[Bench, Raw], Awaitable[None]]


def attacked(folder: Path, attack: Attack) -> None:
    """Have an approved site `mallory` attack a server on which `berlin` has a task, and see `berlin` answer it."""

    async def check() -> None:
        async with serving(folder) as bench, attending(bench.place("berlin")) as berlin:
            task = bench.ask("berlin", order=b"berlin's")
            assert task.id == (await berlin.read_until("task")).id
            async with attending(bench.place("mallory")) as mallory:
                await attack(bench, mallory)
            assert bench.run.answers.empty()
            assert berlin.place.name in bench.wire.streams.names()
            await berlin.send(reply=pb.Reply(task=task.id, text=b"right"))
            answer = await bench.run.one()
            assert ("berlin", b"right", "") == (answer["site"], answer["text"], answer["problem"])
            assert berlin.call.done() is False

    run(check())


def strikes(bench: Bench, site: str = "mallory") -> int:
    """Return a site's strikes; -1 where it does not attend."""
    stream = bench.wire.streams.get(site)
    return stream.strikes if stream is not None else -1


# --- a site that is approved ------------------------------------------------------------------------


def test_forged_plan_of_a_site_reaches_nobody(tmp_path: Path) -> None:
    """There is no message with which a site could ask another for anything: what only servers send is a strike."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        for content in (
            pb.FromServer(task=pb.Task(id=b"x" * 16, order=b"forged")),
            pb.FromRun(ask=pb.Ask(tasks=[pb.Outgoing(id=b"x" * 16, site="berlin", order=b"forged")])),
        ):
            await mallory.call.write(content.SerializeToString())
        await mallory.call.write(pb.Order(number=1, run="r", site="berlin", kind="plan").SerializeToString())
        await mallory.send(hello=pb.Hello(protocol=1))
        await mallory.send()
        await until(lambda: strikes(bench) >= 3)
        (task,) = bench.wire.tasks.at("berlin")
        assert b"berlin's" == task.order

    attacked(tmp_path, attack)


def test_forged_reply_for_another_site_is_a_strike_and_twenty_end_the_stream(tmp_path: Path) -> None:
    """The task stays the other site's, whether the reply is an answer, a failure or the offer of a payload."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        (task,) = bench.wire.tasks.at("berlin")
        for reply in ({"text": b"forged"}, {"problem": "forged"}, {"payload_size": 10**8}):
            await mallory.send(reply=pb.Reply(task=task.id, **reply))
        await until(lambda: strikes(bench) == 3)
        assert (None, [task]) == (task.offer, bench.wire.tasks.at("berlin"))
        for _ in range(MAX_STRIKES - 3):
            await mallory.send(reply=pb.Reply(task=task.id))
        assert "misbehaved" == (await mallory.end()).reason
        assert "mallory" not in bench.wire.streams.names()

    attacked(tmp_path, attack)


def test_payload_of_another_site_cannot_be_fetched_or_delivered(tmp_path: Path) -> None:
    """Neither its weights down nor its reply up, whatever the offset."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        bench.place("lyon")
        task = bench.ask("lyon", payload=os.urandom(1_000_000))
        for offset in (0, 5, 2**63):
            with pytest.raises(grpc.aio.AioRpcError, match="no such payload for this site"):
                await mallory.fetched(task.id, offset)
        with pytest.raises(grpc.aio.AioRpcError, match="not the turn"):
            await mallory.delivered(task.id, b"x" * 100)
        assert not task.incoming.exists()
        bench.wire.forget([task])

    attacked(tmp_path, attack)


def test_nonsense_ends_a_stream_and_only_that(tmp_path: Path) -> None:
    """What is no protobuf, or has no known content, is counted; 3 MB in one message end the call at once."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        for content in (b"\xff" * 10, b"\x7a\x03abc", b""):
            await mallory.call.write(content)
        await until(lambda: strikes(bench) == 3)
        await mallory.call.write(b"\x00" * (MAX_WIRE_BYTES + 1))
        await mallory.end()
        await until(lambda: "mallory" not in bench.wire.streams.names())

    attacked(tmp_path, attack)


def test_flood_of_replies_for_unknown_tasks_harms_nobody(tmp_path: Path) -> None:
    """Ten thousand of a site that reads nothing."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(8):
                for number in range(10_000):
                    await mallory.send(reply=pb.Reply(task=b"%064d" % number, text=b"x" * 100))

    attacked(tmp_path, attack)


def test_site_that_reads_nothing_is_read_no_more() -> None:
    """What is still to be sent to it is bounded, however much it sends; it is read on as soon as it reads."""

    class Deaf:
        def __init__(self) -> None:
            self.reads = asyncio.Event()

        async def write(self, _: bytes) -> None:
            await self.reads.wait()

    async def check() -> None:
        deaf, handler = Deaf(), asyncio.current_task()
        assert handler is not None
        stream = Stream(Peer("mallory", "key", 0.0), deaf, handler)
        for _ in range(MAX_BACKLOG):
            stream.send(pb.FromServer())
            await asyncio.wait_for(stream.room(), 1)
        stream.send(pb.FromServer())
        stream.send(pb.FromServer())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.room(), 0.2)
        deaf.reads.set()
        await asyncio.wait_for(stream.room(), 1)
        await until(lambda: stream._writer is None)

    run(check())


def test_farewell_is_written_after_what_is_being_written() -> None:
    """gRPC takes one write at a time and drops the second; what else is still to be sent is left out."""

    class OneAtATime:
        def __init__(self) -> None:
            self.go, self.busy, self.written = asyncio.Event(), False, list[str | None]()

        async def write(self, content: bytes) -> None:
            assert not self.busy, "a second write while the first is under way"
            self.busy = True  # and so it stays when the write is cancelled: gRPC has it in hand
            await self.go.wait()
            self.busy = False
            self.written.append(pb.FromServer.FromString(content).WhichOneof("message"))

    async def check() -> None:
        context, handler = OneAtATime(), asyncio.ensure_future(asyncio.sleep(60))
        stream = Stream(Peer("mallory", "key", 0.0), context, handler)
        for _ in range(3):
            stream.send(pb.FromServer(taken=pb.Taken(task=b"1")))
        await until(lambda: context.busy)
        stream.close("misbehaved", "a reason")
        saying = asyncio.ensure_future(stream.say_farewell())
        await asyncio.sleep(0.05)
        context.go.set()
        await asyncio.wait_for(saying, 1)
        assert ["taken", "farewell"] == context.written

    run(check())


def test_replies_that_are_too_long_are_refused_by_name(tmp_path: Path) -> None:
    """A text over 1 MB, a payload larger than can be of use, one that is announced so, one the disk has no room for."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        for reply, most, sentence in (
            ({"text": b"x" * 1_000_001}, 10**9, "too long"),
            ({"text": b"x", "payload": b"y" * 300_000}, 10**9, "too long"),
            ({"payload_size": 10**12}, 10**9, "expected at most 1000000000"),
            ({"payload_size": 2**64 - 1}, 10**9, "expected at most"),
            ({"payload": b"123456"}, 5, "announced a payload of 6 bytes, expected at most 5"),
            ({"payload_size": 10**15}, 10**16, "no room"),
        ):
            task = bench.ask("mallory", most_bytes=most)
            await mallory.send(reply=pb.Reply(task=task.id, **reply))
            answer = await bench.run.one()
            assert ("mallory", "protocol") == (answer["site"], answer["problem"])
            assert sentence in answer["detail"] and "mallory" in answer["detail"]
            assert not task.incoming.exists()
            assert task.id == (await mallory.read_until("taken")).task  # a site that waits for its turn waits no more

    attacked(tmp_path, attack)


def test_error_text_of_a_site_is_cleaned_and_bounded(tmp_path: Path) -> None:
    """No escape codes, no new lines, and no more than a few hundred characters reach the run."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        task = bench.ask("mallory")
        await mallory.send(reply=pb.Reply(task=task.id, problem="\x1b[2J\nfailed\u202e" + "x" * 1_000_000))
        answer = await bench.run.one()
        assert "crash" == answer["problem"]
        assert len(answer["detail"]) < 600 and answer["detail"].isprintable()

    attacked(tmp_path, attack)


def test_deliveries_out_of_turn_or_order_are_refused(tmp_path: Path) -> None:
    """Before anything was announced, before the turn, from a wrong offset, twice at once, longer than announced."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        task = bench.ask("mallory")
        with pytest.raises(grpc.aio.AioRpcError, match="not the turn"):
            await mallory.delivered(task.id, b"x" * 100)
        await mallory.offer(task.id, 2_000_000)
        with pytest.raises(grpc.aio.AioRpcError, match="not the turn"):
            await mallory.delivered(task.id, b"x" * 100, offset=7)
        first = mallory.deliver()
        await first.write(pb.Piece(task=task.id, data=b"x" * 1000).SerializeToString())
        await until(lambda: task.received == 1000)
        with pytest.raises(grpc.aio.AioRpcError, match="not the turn"):
            await mallory.delivered(task.id, b"y" * 2_000_000)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for _ in range(3):
                await first.write(pb.Piece(data=b"z" * 1_000_000).SerializeToString())
        assert grpc.StatusCode.OUT_OF_RANGE is await first.code()
        answer = await bench.run.one()
        assert ("protocol", "site 'mallory' sent more than the 2000000 bytes it announced") == (
            answer["problem"],
            answer["detail"],
        )
        assert (0, False) == (bench.wire.turns.active, task.incoming.exists())

    attacked(tmp_path, attack)


def test_piece_that_is_no_message_loses_the_turn(tmp_path: Path) -> None:
    """The call ends as one that makes no sense."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        task = bench.ask("mallory")
        await mallory.offer(task.id, 2_000_000)
        upload = mallory.deliver()
        await upload.write(pb.Piece(task=task.id, data=b"x").SerializeToString())
        await upload.write(b"\xff\xff")
        assert grpc.StatusCode.INVALID_ARGUMENT is await upload.code()
        bench.wire.forget([task])

    attacked(tmp_path, attack)


def test_announced_and_never_sent_loses_its_turn_four_times_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four turns taken by such a site hold nobody up for longer than that."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        monkeypatch.setattr(bench.wire.turns, "_patience", 0.1)
        for task in [bench.ask("mallory") for _ in range(6)]:
            await mallory.send(reply=pb.Reply(task=task.id, payload_size=10**6))
        bench.place("lyon")
        task = bench.ask("lyon")
        async with attending(Place(**{**vars(mallory.place), **_files(bench, "lyon")})) as lyon:
            await lyon.offer(task.id, 1000)
            await lyon.delivered(task.id, b"x" * 1000)
            answers = [await bench.run.one() for _ in range(7)]
        assert {"lyon": 1, "mallory": 6} == {
            site: sum(answer["site"] == site for answer in answers) for site in ("lyon", "mallory")
        }
        assert {"site 'mallory' had its turn to send 4 times and sent nothing"} == {
            answer["detail"] for answer in answers if answer["site"] == "mallory"
        }
        assert (0, 0) == (bench.wire.turns.active, bench.wire.turns.waiting)

    attacked(tmp_path, attack)


def _files(bench: Bench, site: str) -> dict[str, object]:
    folder = bench.folder / "sites" / site
    return {"name": site, "certificate": folder / "site.pem", "key": folder / "site.key"}


def test_unfinished_bodies_end_when_they_make_no_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that stops, and one that trickles; the turn goes to whoever waits."""
    monkeypatch.setattr(transfers, "PROGRESS_SECONDS", 0.3)

    async def attack(bench: Bench, mallory: Raw) -> None:
        task = bench.ask("mallory")
        await mallory.offer(task.id, 2_000_000)
        silent = mallory.deliver()
        await silent.write(pb.Piece(task=task.id, data=b"x" * 1000).SerializeToString())
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await silent
        assert grpc.StatusCode.DEADLINE_EXCEEDED is refused.value.code()
        offset = (await mallory.read_until("turn")).offset
        assert 1000 == offset
        trickling = mallory.deliver()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await trickling.write(pb.Piece(task=task.id, offset=offset, data=b"x").SerializeToString())
            while True:
                await trickling.write(pb.Piece(data=b"x").SerializeToString())
                await asyncio.sleep(0.02)
        assert grpc.StatusCode.DEADLINE_EXCEEDED is await trickling.code()
        assert time.monotonic() - began < 3
        bench.wire.forget([task])
        assert (0, 0) == (bench.wire.turns.active, bench.wire.turns.waiting)

    attacked(tmp_path, attack)


def test_long_uploads_take_turns_while_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that lasts too long goes to the next, and comes back at its offset: five slow ones all get on."""
    monkeypatch.setattr(transfers, "TURN_SECONDS", 0.1)

    async def attack(bench: Bench, mallory: Raw) -> None:
        tasks = [bench.ask("mallory") for _ in range(5)]
        for task in tasks:
            await mallory.send(reply=pb.Reply(task=task.id, text=b"{}", payload_size=2_000_000))
        sending = set()

        async def slowly(task: bytes, offset: int) -> None:
            call = mallory.deliver()
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(pb.Piece(task=task, offset=offset, data=b"x" * 100_000).SerializeToString())
                for start in range(offset + 100_000, 2_000_000, 100_000):
                    await asyncio.sleep(0.03)
                    await call.write(pb.Piece(data=b"x" * min(100_000, 2_000_000 - start)).SerializeToString())
                await call.done_writing()
                await call

        async def granted() -> None:
            while True:
                turn = await mallory.read_until("turn")
                sending.add(asyncio.ensure_future(slowly(turn.task, turn.offset)))

        granting = asyncio.ensure_future(granted())
        await until(lambda: all(task.received for task in tasks), 3)
        assert min(task.received for task in tasks) < 2_000_000
        assert [""] * 5 == [(await bench.run.one(20))["problem"] for _ in tasks]
        granting.cancel()
        await asyncio.gather(*sending)

    attacked(tmp_path, attack)


def test_few_downloads_are_on_their_way_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight sites ask for 30 MB each: four are sent something; one that is read to its end makes room for the next."""
    monkeypatch.setattr(transfers, "SLOT_SECONDS", 60)

    async def attack(bench: Bench, _: Raw) -> None:
        places = [bench.place(f"site-{number}") for number in range(8)]
        sites = [Raw(place, await attend(place, tasks=[])) for place in places]
        calls = [site.fetch(bench.ask(site.place.name, payload=bytes(30_000_000)).id) for site in sites]
        first = [asyncio.ensure_future(call.read()) for call in calls]
        await until(lambda: sum(piece.done() for piece in first) == transfers.DOWNLOADS)
        await asyncio.sleep(0.3)
        assert transfers.DOWNLOADS == sum(piece.done() for piece in first)
        lucky = next(call for call, piece in zip(calls, first, strict=True) if piece.done())
        while await lucky.read() is not grpc.aio.EOF:
            pass
        await until(lambda: sum(piece.done() for piece in first) == transfers.DOWNLOADS + 1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*first, return_exceptions=True)
        for site in sites:
            await site.channel.close()

    attacked(tmp_path, attack)


def test_downloads_that_are_never_read_keep_nobody_from_his(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten sites that ask for 30 MB and read nothing; the eleventh has its own within seconds; then they are ended."""
    monkeypatch.setattr(transfers, "SLOT_SECONDS", 0.2)
    monkeypatch.setattr(transfers, "PROGRESS_SECONDS", 0.2)

    async def attack(bench: Bench, mallory: Raw) -> None:
        content = os.urandom(30_000_000)
        places = [bench.place(f"deaf-{number}") for number in range(10)]
        deaf = [Raw(place, await attend(place, tasks=[])) for place in places]
        calls = [site.fetch(bench.ask(site.place.name, payload=content).id) for site in deaf]
        await until(lambda: len(bench.wire.transfers.fetching) == 10)
        task = bench.ask("mallory", payload=content)
        began = time.monotonic()
        assert content == await mallory.fetched(task.id)
        assert time.monotonic() - began < 2.5
        await until(lambda: not bench.wire.transfers.fetching, 15)
        for site in deaf:
            await site.channel.close()
        assert 10 == len(calls)

    attacked(tmp_path, attack)


def test_calls_of_one_site_are_bounded(tmp_path: Path) -> None:
    """A seventh open call is refused; another site does not notice."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        calls = []
        for _ in range(8):
            channel = open_channel(mallory.place)
            call = channel.stream_unary(f"/{SERVICE}/Deliver")()
            await call.wait_for_connection()
            calls.append((channel, call))
        done = [asyncio.ensure_future(call.code()) for _, call in calls]
        await asyncio.wait(done, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        await until(lambda: sum(code.done() for code in done) >= 3)
        assert {grpc.StatusCode.RESOURCE_EXHAUSTED} == {code.result() for code in done if code.done()}
        assert callers.CALLS_PER_SITE >= bench.wire.callers.open_calls["mallory"]
        for channel, _ in calls:
            await channel.close()
        await asyncio.gather(*done)
        await until(lambda: bench.wire.callers.open_calls["mallory"] == 1)

    attacked(tmp_path, attack)


def test_hello_that_never_comes_or_makes_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence ends the call; another version of the wire is told which one is spoken here; tasks of a hello are few."""
    monkeypatch.setattr(service, "HELLO_SECONDS", 0.3)

    async def attack(bench: Bench, mallory: Raw) -> None:
        async def said(content: bytes | None) -> tuple[grpc.StatusCode, list[pb.FromServer]]:
            call, messages = mallory.channel.stream_stream(f"/{SERVICE}/Attend")(), []
            if content is not None:
                await call.write(content)
            with suppress(grpc.aio.AioRpcError):
                while (answer := await call.read()) is not grpc.aio.EOF:
                    messages.append(pb.FromServer.FromString(answer))
            return await call.code(), messages

        assert (grpc.StatusCode.DEADLINE_EXCEEDED, []) == await said(None)
        assert (grpc.StatusCode.INVALID_ARGUMENT, []) == await said(b"\xff")
        for hello in (pb.FromSite(hello=pb.Hello(protocol=999)), pb.FromSite(reply=pb.Reply())):
            _, (message,) = await said(hello.SerializeToString())
            assert "version" == message.farewell.reason
            assert "install the same release of consilium on both sides" in message.farewell.text
        many = [b"%04d" % number for number in range(100_000)]
        async with attending(mallory.place, tasks=many) as again:
            stream = bench.wire.streams.get("mallory")
            assert stream is not None and len(stream._outgoing) <= service.MAX_HELLO_TASKS
            assert b"0" < (await again.read()).withdrawn.task

    attacked(tmp_path, attack)


def test_requests_for_certificates_are_not_answered_for_ever(tmp_path: Path) -> None:
    """One a minute; each costs a signature in the loop that serves all."""

    async def attack(bench: Bench, mallory: Raw) -> None:
        request = (mallory.place.key.parent / "site.csr").read_bytes()
        for _ in range(MAX_STRIKES + 1):
            await mallory.send(renew=pb.Renew(request=request))
        assert "misbehaved" == (await mallory.end()).reason

    attacked(tmp_path, attack)


# --- who is not approved ----------------------------------------------------------------------------


def _self_signed(place: Place, folder: Path) -> None:
    other = folder / "own-authority"
    other.mkdir()
    authority.make_server_identity(other, hosts=HOSTS)
    certificate = authority.sign_site_certificate(other, read_private_key(place.key).public_key(), name=place.name)
    place.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def test_strangers_end_in_the_handshake_and_the_named_hospital_stays(tmp_path: Path) -> None:
    """A certificate of another study's authority under a hospital's name; none at all; a request nobody approved."""

    async def check() -> None:
        async with serving(tmp_path) as bench, connected(bench.place("berlin")) as berlin:
            await until(lambda: berlin.is_connected)
            stream = bench.wire.streams.get("berlin")
            elsewhere = make_home(tmp_path / "elsewhere")
            study = make_place(tmp_path / "x", "berlin", elsewhere, port=bench.port, approve=Registry(elsewhere.path))
            study.authorities.write_bytes(bench.home.ca.read_bytes())
            own = make_place(tmp_path / "y", "berlin", bench.home, port=bench.port)
            _self_signed(own, tmp_path)
            for place in (study, own):
                with pytest.raises(ConnectionRefused, match="it does not accept the certificate"):
                    await attend(place, tasks=[])
            channel = grpc.aio.secure_channel(
                f"localhost:{bench.port}", grpc.ssl_channel_credentials(bench.home.ca.read_bytes())
            )
            plain = grpc.aio.insecure_channel(f"localhost:{bench.port}")
            for nameless in (channel, plain):
                call: Any = nameless.stream_stream(f"/{SERVICE}/Attend")(timeout=3)
                assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                await nameless.close()
            assert bench.wire.streams.get("berlin") is stream
            assert 1 == sum(bench.wire.callers.open_calls.values())

    run(check())


def test_key_that_was_signed_but_is_in_no_register_is_refused(tmp_path: Path) -> None:
    """Also with a certificate of the right authority in the name of a hospital that is online: the key counts."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("berlin")) as berlin:
            thief = make_place(tmp_path / "thief", "berlin", bench.home, port=bench.port)
            key = read_signing_request(thief.key.parent / "site.csr").key
            certificate = authority.sign_site_certificate(bench.home.path, key, name="berlin")
            thief.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            with pytest.raises(NotWelcome) as refused:
                await attend(thief, tasks=[])
            assert "unknown" == refused.value.reason
            bench.ask("berlin")
            await berlin.read_until("task")

    run(check())


def test_expired_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ended an hour ago."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            monkeypatch.setattr(authority, "DAYS_SITE", -1 / 24)
            with pytest.raises((ConnectionRefused, NotWelcome), match="ended"):
                await attend(bench.place("berlin"), tasks=[])

    run(check())


def test_old_tls_is_refused(tmp_path: Path) -> None:
    """TLS 1.1, with ciphers that would allow it; TLS 1.2 with a certificate gets in."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            place = bench.place("berlin")
            key = tmp_path / "plain.key"
            key.write_bytes(
                read_private_key(place.key).private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )

            def shake(version: ssl.TLSVersion) -> str | None:
                context = ssl.create_default_context(cafile=str(place.authorities))
                context.set_alpn_protocols(["h2"])
                context.load_cert_chain(place.certificate, key)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that it is old is the point
                    context.minimum_version = min(version, ssl.TLSVersion.TLSv1_1)
                    context.maximum_version = version
                context.set_ciphers("ALL:@SECLEVEL=0")
                with (
                    socket.create_connection(("localhost", bench.port), timeout=3) as plain,
                    context.wrap_socket(plain, server_hostname="localhost") as secured,
                ):
                    return secured.version()

            assert "TLSv1.2" == await asyncio.to_thread(shake, ssl.TLSVersion.TLSv1_2)
            with pytest.raises((ssl.SSLError, OSError)):
                await asyncio.to_thread(shake, ssl.TLSVersion.TLSv1_1)

    run(check())


# --- half-open: a real server process -----------------------------------------------------------------


def _memory(process: int) -> float:
    """Return what a process holds, in MB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _threads(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/task"))  # noqa: PTH208  # counted, not used as paths


@pytest.mark.e2e
def test_two_thousand_half_open_connections_do_not_slow_the_sites(tmp_path: Path) -> None:
    """1,000 that say nothing and 1,000 that begin TLS and stop: questions of two sites take no longer than before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.skip(f"at most {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8192), hard))
    with running_server(tmp_path) as server:
        port, process = int(server.address.rpartition(":")[2]), server.home.address().pid
        places = [make_place(tmp_path / "sites", name, server.home, port=port) for name in ("berlin", "lyon")]
        with Control(server.home) as control:
            for place in places:
                request = place.key.parent / "site.csr"
                place.certificate.write_bytes(control.approve(request, name=place.name))

        async def measure() -> tuple[list[float], list[float], float, float, int]:
            """Time what a site can have the server do: a reply for an unknown task, taken at once."""
            async with attending(places[0]) as berlin, attending(places[1]) as lyon:

                async def rounds(count: int) -> list[float]:
                    seconds = []
                    for number in range(count):
                        began = time.perf_counter()
                        for site in (berlin, lyon):
                            await site.send(reply=pb.Reply(task=b"%d" % number, text=b"{}"))
                        for site in (berlin, lyon):
                            await site.read_until("taken")
                        seconds.append(time.perf_counter() - began)
                    return seconds

                await rounds(100)
                before, memory = await rounds(400), _memory(process)
                with ExitStack() as open_ones:
                    for number in range(2000):
                        half = open_ones.enter_context(socket.create_connection(("127.0.0.1", port)))
                        if number % 2:
                            half.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # the first bytes of a ClientHello
                    await asyncio.sleep(1)
                    peak = _memory(process)
                    during = await rounds(400)
                    threads = _threads(process)
                return before, during, memory, peak, threads

        before, during, memory, peak, threads = run(measure())
        print(
            f"half-open: {1000 * statistics.median(before):.2f} -> {1000 * statistics.median(during):.2f} ms "
            f"per round, {memory:.0f} -> {peak:.0f} MB, {threads} threads"
        )
        assert statistics.median(during) <= 1.2 * statistics.median(before) + 0.002
        assert peak - memory <= 50
        assert threads < 40
        with Control(server.home) as control:
            assert {"berlin", "lyon"} == set(control.sites())


@pytest.mark.e2e
def test_strangers_floods_leave_no_site_offline(tmp_path: Path) -> None:
    """Connections that finish TCP, send rubbish and stay: the site is connected afterwards, without another hello."""

    async def check() -> None:
        async with serving(tmp_path) as bench, connected(bench.place("berlin")) as berlin:
            await until(lambda: berlin.is_connected)
            stream = bench.wire.streams.get("berlin")
            writers = []
            for _ in range(200):
                _, writer = await asyncio.open_connection("127.0.0.1", bench.port)
                writer.write(os.urandom(300))
                writers.append(writer)
            await asyncio.sleep(0.5)
            assert bench.wire.streams.get("berlin") is stream
            for writer in writers:
                writer.transport.abort()

    run(check())
