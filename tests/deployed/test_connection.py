"""The site's end of the wire: whatever happens to the connection, it waits, says why once, and is back."""

import asyncio
import itertools
import logging
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from wires import Echo, Proxy, attending, connected, make_home, make_place, run, serving, text_of, until

from consilium.client.process.channels import Parcel
from consilium.client.process.supervisor import WorkerFailed
from consilium.client.wire import channel, desk
from consilium.client.wire import connection as site_side
from consilium.client.wire.channel import NotWelcome, attend
from consilium.client.wire.connection import Connection
from consilium.client.wire.place import Place
from consilium.client.wire.tasks import MAX_TASKS
from consilium.common.errors import ConfigError, ConnectionRefused
from consilium.common.host.ports import free_port
from consilium.common.host.study_key import read_study_key
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.envelope import Order, sign_order
from consilium.common.wire.limits import SERVICE
from consilium.server.operations.home import ServerHome
from consilium.server.wire.registry import Registry
from consilium.server.wire.service import TASKS_AT_A_SITE

CONTENT = os.urandom(6_000_000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a few tenths of a second, so that tests take seconds; the law of the pauses has a test of its own."""
    monkeypatch.setattr(site_side, "MAX_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(channel, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(channel, "HELLO_SECONDS", 2.0)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a site's log says, which holds no traceback."""
    assert [] == [record.getMessage() for record in caplog.records if record.exc_info and "grpc" not in record.name]
    return [
        r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("consilium.client")
    ]


async def said(place: Place, caplog: pytest.LogCaptureFixture, seconds: float = 6) -> str:
    """Return what a site says that gets no connection, and see that it goes on trying."""
    async with connected(place) as connection:
        await until(lambda: warnings_of(caplog), seconds)
        await asyncio.sleep(0.5)
        assert not connection.is_connected
    sentences = warnings_of(caplog)
    assert all(one != other for one, other in itertools.pairwise(sentences)), "the same sentence is said once"
    return sentences[-1]


def test_order_is_answered_by_the_worker(tmp_path: Path) -> None:
    """A small payload and a large one; one order after the other, and none is asked twice."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            worker = Echo()
            async with connected(bench.place("berlin"), worker):
                bench.ask("berlin", order=b"one", payload=b"x")
                answer = await bench.run.one()
                assert (b"one", b"x") == (answer["text"], answer["payload"])
                task = bench.ask("berlin", order=b"two", payload=CONTENT)
                assert b"two" == text_of((await bench.run.one())["text"])
                assert task.incoming.read_bytes() == CONTENT[::-1]
                assert [b"one", b"two"] == worker.orders

    run(check())


def test_worker_that_fails_is_told_and_the_next_order_is_answered(tmp_path: Path) -> None:
    """Its sentence reaches the run, cleaned."""

    class Failing(Echo):
        async def answer(self, order: Parcel, *, seconds: float) -> Parcel:
            raise WorkerFailed("out of \x1b[31mmemory")

    async def check() -> None:
        async with serving(tmp_path) as bench, connected(bench.place("berlin"), Failing()):
            for _ in range(2):
                bench.ask("berlin")
                answer = await bench.run.one()
                assert ("crash", r"site 'berlin' failed: out of \x1b[31mmemory") == (
                    answer["problem"],
                    answer["detail"],
                )

    run(check())


@pytest.mark.parametrize("moment", ["fetch", "work", "deliver"])
@pytest.mark.parametrize("how", ["cut", "stopping"])
def test_connection_that_ends_in_the_middle_of_an_order(
    tmp_path: Path, moment: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While the payload comes, is worked on, or the reply goes up: answered once, on the next connection."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            proxy, worker = Proxy(bench.port), Echo()
            await proxy.start()
            async with connected(bench.place("berlin", port=proxy.port), worker) as connection:
                await until(lambda: connection.is_connected)
                worker.go.clear()
                first = bench.wire.streams.get("berlin")
                task = bench.ask("berlin", payload=os.urandom(40_000_000) if moment == "fetch" else CONTENT)
                if moment == "fetch":
                    await until(lambda: bench.wire.transfers.fetching)
                else:
                    await until(lambda: worker.orders)
                if moment == "deliver":
                    worker.go.set()
                    await until(lambda: task.received)
                if how == "cut":
                    proxy.cut()
                elif first is not None:
                    first.close("stopping", "the server stops")
                await until(lambda: bench.wire.streams.get("berlin") not in (None, first))
                worker.go.set()
                assert "" == (await bench.run.one(10))["problem"]
                assert bench.run.answers.empty()
                assert 1 == len(worker.orders)
                bench.ask("berlin", order=b"next")
                assert b"next" == (await bench.run.one())["text"]
            await proxy.stop()
        warnings_of(caplog)

    run(check())


def test_server_that_was_away_finds_the_site_back_and_its_order_answered_once(tmp_path: Path) -> None:
    """The run asks again what a server that was killed had asked; what the site worked on meanwhile is withdrawn."""

    async def check() -> None:
        worker, port = Echo(), free_port()
        worker.go.clear()
        async with serving(tmp_path, port=port) as bench:
            place = bench.place("berlin")
            site = Connection(place, worker)
            running = asyncio.ensure_future(site.run())
            bench.ask("berlin", order=b"before")
            await until(lambda: worker.orders)
        await asyncio.sleep(1)
        assert not site.is_connected
        async with serving(tmp_path, port=port) as bench:
            began = time.monotonic()
            await until(lambda: site.is_connected, 30)
            assert time.monotonic() - began < 30
            bench.ask("berlin", order=b"after")
            worker.go.set()
            answer = await bench.run.one()
            assert (b"after", [b"before", b"after"]) == (answer["text"], worker.orders)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    run(check())


def test_pauses_grow_vary_and_stay_below_half_a_minute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a day without a server a site still tries again within 15 s; one that was replaced waits longer."""
    monkeypatch.undo()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("consilium.client.wire.connection.asyncio.sleep", sleep)
    files: Any = (tmp_path / name for name in ("ca", "pem", "key", "pub", "toml", "log"))
    place = Place("berlin", "localhost:1", *files)
    random.seed(0)

    async def check() -> None:
        site = Connection(place, Echo())
        for _ in range(2000):
            await site._wait(ConnectionRefused("no"))
        first, late = slept[0], slept[10:]
        assert first <= 1
        assert (True, True) == (max(late) <= 15, min(late) >= 15 / 3 - 0.01)
        assert len(set(late)) > 1900
        slept.clear()
        for _ in range(100):
            await site._wait(NotWelcome("replaced", "another"))
        assert 20 <= min(slept) and max(slept) <= 60

    run(check())


def test_unreachable_servers_are_sentences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A closed port, and a name that does not resolve: who, where, what the system says, and what to look at."""
    home = make_home(tmp_path / "home")
    place = make_place(tmp_path, "berlin", home, port=free_port(), approve=Registry(home.path))
    text = run(said(place, caplog))
    assert f"site 'berlin' cannot reach the server at {place.server}: " in text
    assert "does the firewall allow this outbound connection?" in text
    caplog.clear()
    place = replace(place, server="no-such-host.invalid:9092")
    text = run(said(place, caplog, 20))
    assert "site 'berlin' cannot reach the server at no-such-host.invalid:9092" in text


@pytest.mark.parametrize("kind", ["http", "silent", "closing", "garbage"])
def test_other_programs_at_the_port_are_sentences(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A web server, one that never says a word, one that hangs up, one that talks nonsense."""
    writers: list[asyncio.StreamWriter] = []

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError):
            if kind != "closing":
                await reader.read(100)
            if kind == "http":
                writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            if kind == "garbage":
                writer.write(os.urandom(1000))
            if kind == "silent":
                await reader.read()
        writer.close()

    async def check() -> str:
        home, port = make_home(tmp_path / "home"), free_port()
        place = make_place(tmp_path, "berlin", home, port=port, approve=Registry(home.path))
        server = await asyncio.start_server(other, "127.0.0.1", port)
        try:
            return await said(place, caplog, 30)
        finally:
            server.close()
            for writer in writers:
                writer.transport.abort()
            await asyncio.sleep(0.05)

    assert "does not speak TLS as the study's server does" in run(check())


def test_server_of_another_authority_is_not_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The sentence names the file that holds whom the site trusts."""

    async def check() -> str:
        async with serving(tmp_path) as bench:
            place = bench.place("berlin")
            place.authorities.write_bytes(make_home(tmp_path / "other").ca.read_bytes())
            return await said(place, caplog)

    assert "does not trust the server" in run(check())


def test_site_that_nobody_approved_goes_on_asking(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A certificate of the right authority for a key that is not in the register (any more): unknown, said so."""

    async def check() -> str:
        async with serving(tmp_path) as bench:
            place = bench.place("berlin")
            bench.registry._take({})
            return await said(place, caplog)

    assert "does not know the key of site 'berlin'" in run(check())


def test_revoked_key_ends_the_site_and_nothing_else_does(tmp_path: Path) -> None:
    """No waiting mends it: `ConnectionRefused`, with what to do."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            site = Connection(bench.place("berlin"), Echo())
            running = asyncio.ensure_future(site.run())
            await until(lambda: site.is_connected)
            bench.wire.dismiss(bench.registry.revoke("berlin"), reason="revoked", text="revoked")
            with pytest.raises(ConnectionRefused, match="has revoked the key of site 'berlin'; ask the study's coord"):
                await asyncio.wait_for(running, 2)

    run(check())


def test_two_programs_with_one_key_do_not_take_turns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first says that another one has its key, and leaves it the place for a while."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            place = bench.place("berlin")
            async with connected(place) as first, connected(place) as second:
                await until(lambda: len([text for text in warnings_of(caplog) if "another" in text]) == 1)
                winner = bench.wire.streams.get("berlin")
                await asyncio.sleep(1)
                assert 1 == first.is_connected + second.is_connected
                assert bench.wire.streams.get("berlin") is winner

    run(check())


class Liar:
    """A server with the right certificate that says what a test wants."""

    def __init__(self, answers: list[bytes], pieces: list[bytes] | None = None) -> None:
        self.answers, self.pieces, self.calls = answers, pieces or [], 0
        self.got: list[pb.FromSite] = []

    async def attend(self, _: object, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """Send the answers, then listen."""
        self.calls += 1
        await context.read()
        for answer in self.answers:
            await context.write(answer)
        while (content := await context.read()) is not grpc.aio.EOF:
            self.got.append(pb.FromSite.FromString(content))

    async def fetch(self, _: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """Send the pieces."""
        for piece in self.pieces:
            await context.write(piece)

    @asynccontextmanager
    async def serve(self, home: ServerHome, port: int) -> AsyncIterator[None]:
        """Listen with the study's certificate until the block ends."""
        server = grpc.aio.server()
        calls: dict[str, Any] = {
            "Attend": grpc.stream_stream_rpc_method_handler(self.attend),
            "Fetch": grpc.unary_stream_rpc_method_handler(self.fetch),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, calls),))
        chain = (home.key.read_bytes(), home.certificate.read_bytes())
        server.add_secure_port(
            f"127.0.0.1:{port}", grpc.ssl_server_credentials([chain], home.ca.read_bytes(), require_client_auth=True)
        )
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)


def from_server(**message: Any) -> bytes:
    """Return a message of the server as bytes."""
    return pb.FromServer(**message).SerializeToString()


WELCOME = from_server(welcome=pb.Welcome(site="berlin"))


@pytest.mark.parametrize(
    "answers",
    [
        [b"\xff\xff\xff no message"],
        [WELCOME, b"\xff\xff\xff no message"],
        [from_server(task=pb.Task(id=b"x"))],
        [from_server(welcome=pb.Welcome(site="lyon"))],
        [b""],
        [WELCOME, b"", from_server(renewed=pb.Renewed(certificate=b"x", authorities=b"y")), b"\xff"],
        [WELCOME, from_server(farewell=pb.Farewell(reason="\x1b[2J", text="\x1b[2J")), b"\xff"],
        [WELCOME, from_server(turn=pb.Turn(task=b"x", offset=2**63)), b"\xff"],
        [from_server(task=pb.Task(id=b"x", order=b"y" * 3_000_000))],
    ],
)
def test_server_that_talks_nonsense_does_not_end_a_site(
    tmp_path: Path, answers: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Every message is one sentence and another try; its certificates are unchanged; no control character is logged."""

    async def check() -> None:
        home, port = make_home(tmp_path / "home"), free_port()
        place = make_place(tmp_path, "berlin", home, port=port, approve=Registry(home.path))
        before = place.certificate.read_bytes(), place.authorities.read_bytes()
        liar = Liar(answers)
        async with liar.serve(home, port), connected(place):
            await until(lambda: liar.calls >= 3)
        assert before == (place.certificate.read_bytes(), place.authorities.read_bytes())
        assert warnings_of(caplog)
        assert "\x1b" not in caplog.text

    run(check())


@pytest.mark.parametrize(
    ("size", "pieces", "sentence"),
    [
        (3_000_000, [pb.Piece(data=b"x" * 1_000_000).SerializeToString()] * 4, "more than it announced"),
        (3_000_000, [b"\xff\xff no piece"], "no message"),
    ],
)
def test_payload_of_a_server_that_lies_is_answered_with_a_sentence(
    tmp_path: Path, size: int, pieces: list[bytes], sentence: str
) -> None:
    """The order fails at once and by name, not at its deadline; the next one is answered."""

    async def check() -> None:
        home, port = make_home(tmp_path / "home"), free_port()
        place = make_place(tmp_path, "berlin", home, port=port, approve=Registry(home.path))
        signed = sign_order(Order(1, "run", "berlin", "plan", "{}", b"x", size), read_study_key(home.study_key))
        orders = [
            pb.Task(id=b"1", order=signed, payload_size=size, seconds=60),
            pb.Task(id=b"2", order=b"next", seconds=60),
        ]
        liar = Liar(
            [WELCOME, *(from_server(task=order) for order in orders), from_server(taken=pb.Taken(task=b"0"))], pieces
        )
        async with liar.serve(home, port), connected(place, Echo()):
            await until(lambda: liar.got)
            assert (b"1", True) == (liar.got[0].reply.task, sentence in liar.got[0].reply.problem)

    run(check())


def test_large_payload_that_the_study_has_not_signed_is_not_fetched(tmp_path: Path) -> None:
    """80 GB announced without an order of that size: nothing is fetched, and the answer says why."""

    async def check() -> None:
        home, port = make_home(tmp_path / "home"), free_port()
        place = make_place(tmp_path, "berlin", home, port=port, approve=Registry(home.path))
        key = read_study_key(home.study_key)
        for order, sentence in (
            (sign_order(Order(1, "run", "berlin", "plan", "{}"), Ed25519PrivateKey.generate()), "not signed with"),
            (sign_order(Order(1, "run", "lyon", "plan", "{}", b"x", 80 * 10**9), key), "for site 'lyon'"),
            (sign_order(Order(1, "run", "berlin", "plan", "{}", b"x", 1), key), "and 1 bytes"),
        ):
            task = pb.Task(id=b"1", order=order, payload_size=80 * 10**9, seconds=60)
            liar = Liar([WELCOME, from_server(task=task)], [b"never asked for"])
            async with liar.serve(home, port), connected(place, Echo()):
                await until(liar.got.__len__)
                assert sentence in liar.got[0].reply.problem

    run(check())


def test_many_orders_are_all_answered_and_few_at_a_time(tmp_path: Path) -> None:
    """A run asks a site 200 things at once: it is given 32, and the next whenever it has answered one."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            worker = Echo()
            worker.go.clear()
            async with connected(bench.place("berlin"), worker) as connection:
                await until(lambda: connection.is_connected)
                for number in range(200):
                    bench.ask("berlin", order=b"%d" % number)
                await until(lambda: worker.orders)
                await asyncio.sleep(0.2)
                assert TASKS_AT_A_SITE == 1 + len(connection._tasks.waiting)
                worker.go.set()
                answers = [await bench.run.one() for _ in range(200)]
                assert [b"%d" % number for number in range(200)] == [answer["text"] for answer in answers]

    run(check())


def test_run_that_ends_sends_nothing_more_of_what_is_in_line(tmp_path: Path) -> None:
    """200 orders are withdrawn: the site hears of the 32 that it was given, and of no other."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("berlin")) as site:
            tasks = [bench.ask("berlin") for _ in range(200)]
            bench.wire.forget(tasks)
            bench.ask("berlin", order=b"the next run's")
            kinds = [(await site.read()).WhichOneof("message") for _ in range(2 * TASKS_AT_A_SITE + 1)]
            assert ["task"] * TASKS_AT_A_SITE + ["withdrawn"] * TASKS_AT_A_SITE + ["task"] == kinds

    run(check())


def test_site_keeps_no_more_orders_than_it_should(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server that sends a thousand at once nevertheless: 64 are kept."""

    async def check() -> None:
        home, port = make_home(tmp_path / "home"), free_port()
        place = make_place(tmp_path, "berlin", home, port=port, approve=Registry(home.path))
        tasks = [from_server(task=pb.Task(id=b"%d" % number, order=b"x", seconds=60)) for number in range(1000)]
        worker = Echo()
        worker.go.clear()
        async with Liar([WELCOME, *tasks]).serve(home, port), connected(place, worker) as connection:
            await until(lambda: "order refused" in caplog.text)
            assert MAX_TASKS >= len(connection._tasks.waiting)

    run(check())


def test_missing_files_are_sentences(tmp_path: Path) -> None:
    """A certificate that was never accepted."""
    home = make_home(tmp_path / "home")
    with pytest.raises(ConfigError, match=r"site\.pem.*accept the coordinator's bundle"):
        run(attend(make_place(tmp_path, "berlin", home), tasks=[]))


def test_withdrawn_order_frees_the_site_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped does not keep a site at work for the rest of its time."""
    monkeypatch.setattr(desk, "WITHDRAWN_SECONDS", 0.2, raising=True)

    async def check() -> None:
        async with serving(tmp_path) as bench:
            worker = Echo()
            worker.go.clear()
            async with connected(bench.place("berlin"), worker):
                task = bench.ask("berlin", order=b"endless", seconds=3600)
                await until(lambda: worker.orders)
                bench.wire.forget([task])
                await asyncio.sleep(0.05)
                bench.ask("berlin", order=b"next")
                await until(lambda: len(worker.orders) == 2, 3)
                worker.go.set()
                assert b"next" == (await bench.run.one())["text"]

    run(check())


def test_stale_delivery_of_a_site_that_began_anew_harms_nothing(tmp_path: Path) -> None:
    """A site whose process was started again has lost the order: it is asked anew, and the old upload is of no use."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            place = bench.place("berlin")
            async with attending(place) as old:
                task = bench.ask("berlin")
                await old.offer(task.id, len(CONTENT))
                upload = old.deliver()
                await upload.write(pb.Piece(task=task.id, data=CONTENT[: 2**20]).SerializeToString())
                await until(lambda: task.received == 2**20)
                async with attending(place) as new:
                    assert task.id == (await new.read_until("task")).id
                    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                        await upload.write(pb.Piece(data=CONTENT[2**20 : 2**21]).SerializeToString())
                        await upload
                    assert (0, 0, 0) == (task.received, bench.wire.turns.active, bench.wire.turns.waiting)
                    await new.offer(task.id, 1_000_000)
                    await new.delivered(task.id, CONTENT[:1_000_000])
                    assert "" == (await bench.run.one())["problem"]
                    assert task.incoming.read_bytes()[:1_000_000] == CONTENT[:1_000_000]

    run(check())


def test_clock_that_is_a_day_off_does_not_matter(tmp_path: Path) -> None:
    """All certificates begin a week before they are signed, so a clock a day behind finds them valid."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            place = bench.place("berlin")
            for pem in (place.certificate, place.authorities, bench.home.certificate):
                begins = x509.load_pem_x509_certificate(pem.read_bytes()).not_valid_before_utc.timestamp()
                assert begins < time.time() - 6 * 86_400

    run(check())
