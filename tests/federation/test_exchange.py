"""A study's exchange over the real wire: many sites are asked, each answers once, and what is lost is named."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest
from wires import Echo, connected, run, serving, until

from consilium.client.process.channels import Parcel
from consilium.client.wire.place import Place
from consilium.common.host.study_key import read_study_key
from consilium.common.protocol.plans import CODEC_VERSION, PROTOCOL_VERSION, InitialWeightsPlan
from consilium.common.protocol.replies import FailureReply
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.envelope import open_order
from consilium.server.study.exchange import Answer, Mailing
from consilium.server.study.exchange import ask as asked_of
from consilium.server.wire.conversation import MOST_RENEWALS
from consilium.server.wire.exchange import WireExchange
from consilium.server.wire.outbox import Numbers, Outbox, Signer
from consilium.server.wire.run_link import RunLink
from consilium.server.wire.run_port import RunPort

SITES = [f"site{number:02d}" for number in range(12)]
"""More than there are places for uploads and downloads, and than one connection may have streams."""
LARGE = bytes(range(256)) * 2_000


class Site(Echo):
    """Answers plans as a site does, with the payload that came, turned around."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    async def answer(self, order: Parcel, *, seconds: float) -> Parcel:
        """Answer an order."""
        signed = pb.Order.FromString(pb.SignedOrder.FromString(order.content).order)
        answered = await super().answer(order, seconds=seconds)
        reply = {"protocol": PROTOCOL_VERSION, "codecs": CODEC_VERSION, "kind": "initial_weights", "pid": 1}
        reply |= {"run": signed.run, "site": self.name, "seconds": 0.0}
        return Parcel(json.dumps(reply).encode(), answered.payload, answered.boxed)


class Bench:
    """Sites that attend, and the exchange of a run; `ask` runs in a thread, as a run is another process."""

    def __init__(
        self, exchange: WireExchange, sites: dict[str, Site], payloads: Path, place: Callable[[str], Place]
    ) -> None:
        self.exchange, self.sites, self.payloads, self.place = exchange, sites, payloads, place

    async def ask(
        self, names: Sequence[str], *, payload: bytes | None, seconds: float = 20, absent: float | None = None
    ) -> dict[str, Answer]:
        """Ask sites for something and return their answers by name."""
        plans = {name: InitialWeightsPlan(study="0" * 64, run="run", site=name) for name in names}

        def asked() -> list[Answer]:
            return list(
                asked_of(
                    self.exchange,
                    plans,
                    payload=payload,
                    timeout_seconds=seconds,
                    most_bytes=len(payload or b""),
                    absent_seconds=absent,
                )
            )

        answers = await asyncio.to_thread(asked)
        assert sorted(names) == sorted(answer.site for answer in answers)  # each once
        return {answer.site: answer for answer in answers}


@asynccontextmanager
async def asking(folder: Path, names: Sequence[str] = SITES) -> AsyncIterator[Bench]:
    """Have sites attend, and a run that asks them."""
    payloads = folder / "payloads"
    payloads.mkdir()
    async with serving(folder) as bench, AsyncExitStack() as stack:
        ours, theirs = socket.socketpair()
        port = RunPort(bench.wire, payloads, *await asyncio.open_unix_connection(sock=ours))
        served = asyncio.ensure_future(port.serve())
        port.start("{}")
        sites = {name: Site(name) for name in names}
        for name, site in sites.items():
            await stack.enter_async_context(connected(bench.place(name), site))
        await until(lambda: len(bench.wire.streams) == len(sites))
        signer = Signer("run", read_study_key(bench.home.study_key), Numbers(folder / "orders"))
        exchange = WireExchange(RunLink(theirs), Outbox(payloads, signer))
        await asyncio.to_thread(until_online, exchange, len(sites))
        try:
            yield Bench(exchange, sites, payloads, bench.place)
        finally:
            theirs.close()
            await served


def until_online(exchange: WireExchange, count: int) -> None:
    """Wait until the run has heard of all sites."""
    while len(exchange.connected()) < count:
        pass


@pytest.mark.parametrize("payload", [None, b"small", LARGE], ids=["nothing", "small", "large"])
def test_every_one_of_many_sites_is_asked_once_and_answers_once(tmp_path: Path, payload: bytes | None) -> None:
    """Twelve sites: twelve orders, each for its own site alone; twelve answers with the payload that each sent."""

    async def check() -> None:
        async with asking(tmp_path) as bench:
            assert frozenset(SITES) == bench.exchange.connected()
            answers = await bench.ask(SITES, payload=payload)
            assert {None} == {answer.problem for answer in answers.values()}
            sent = payload if payload != LARGE else LARGE[::-1]
            assert {sent} == {None if answer.payload is None else bytes(answer.payload) for answer in answers.values()}
            assert [1] * len(SITES) == [len(site.orders) for site in bench.sites.values()]
            for answer in answers.values():
                if answer.file is not None:
                    answer.file.close()
            assert [] == list(bench.payloads.iterdir())

    run(check())


def test_reply_that_is_lost_is_named_when_time_is_up(tmp_path: Path) -> None:
    """Eleven answers, and the twelfth site by name; what it says later is of no use, and disturbs no later question."""

    async def check() -> None:
        async with asking(tmp_path) as bench:
            bench.sites["site07"].go.clear()
            answers = await bench.ask(SITES, payload=b"x", seconds=1)
            assert ["site07"] == [name for name, answer in answers.items() if answer.problem]
            assert "timeout" == answers["site07"].problem
            assert "site 'site07' did not answer within 1 s" == answers["site07"].detail
            bench.sites["site07"].go.set()
            again = await bench.ask(SITES, payload=b"y")
            assert {b"y"} == {bytes(answer.payload or b"") for answer in again.values()}

    run(check())


def test_site_that_is_away_is_waited_for_once(tmp_path: Path) -> None:
    """As long as its connection may be lost, counted from when it was: in the next question it is named at once."""

    async def check() -> None:
        async with asking(tmp_path, ["berlin"]) as bench:
            took = []
            for _ in range(2):
                began = time.monotonic()
                answers = await bench.ask(["berlin", "lyon"], payload=None, absent=1.5)
                took.append(time.monotonic() - began)
                assert (None, "gone") == (answers["berlin"].problem, answers["lyon"].problem)
                assert "site 'lyon' is not connected" == answers["lyon"].detail
            assert 1.5 <= took[0] < 5 and took[1] < 1.0

    run(check())


def test_site_that_comes_while_it_is_waited_for_gets_its_plan(tmp_path: Path) -> None:
    """A link that was down when the question went out costs no answer."""

    async def check() -> None:
        async with asking(tmp_path, ["berlin"]) as bench:
            asked = asyncio.ensure_future(bench.ask(["berlin", "lyon"], payload=b"x", absent=15))
            await until(lambda: bench.sites["berlin"].orders != [])
            async with connected(bench.place("lyon"), Site("lyon")):
                answers = await asked
            assert {None} == {answer.problem for answer in answers.values()}

    run(check())


class Forgetful(Site):
    """Says `times` times that it has answered an order before: its process ended before the reply was sent."""

    def __init__(self, name: str, times: int) -> None:
        super().__init__(name)
        self.times, self.signed = times, list[bytes]()

    async def answer(self, order: Parcel, *, seconds: float) -> Parcel:
        """Answer an order."""
        self.signed.append(pb.SignedOrder.FromString(order.content).order)
        answered = await super().answer(order, seconds=seconds)
        if len(self.signed) > self.times:
            return answered
        reply = json.loads(answered.content) | {"kind": "failure", "error": "AnsweredAlready", "message": "again"}
        return Parcel(json.dumps(reply).encode(), b"", 0)


@pytest.mark.parametrize("payload", [b"small", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("times", [1, 9])
def test_plan_whose_reply_was_lost_comes_again_in_a_new_order(tmp_path: Path, payload: bytes, times: int) -> None:
    """The same plan and payload under a new number; a site that says so again and again is believed after a few."""

    async def check() -> None:
        async with asking(tmp_path, []) as bench, connected(bench.place("berlin"), site := Forgetful("berlin", times)):
            await asyncio.to_thread(until_online, bench.exchange, 1)
            answers = await bench.ask(["berlin"], payload=payload)
            orders = [pb.Order.FromString(signed) for signed in site.signed]
            assert min(times, MOST_RENEWALS) + 1 == len(orders) == len({order.number for order in orders})
            assert 1 == len({(order.text, order.payload_digest) for order in orders})
            assert (times > MOST_RENEWALS) == isinstance(answers["berlin"].reply, FailureReply)
            assert [] == list(bench.payloads.iterdir())
            if (file := answers["berlin"].file) is not None:
                file.close()

    run(check())


def test_plan_stays_open_over_other_questions_until_it_is_answered(tmp_path: Path) -> None:
    """Lyon's answer comes while Berlin alone is asked something else, and is there when it is looked for."""

    async def check() -> None:
        async with asking(tmp_path, ["berlin", "lyon"]) as bench:
            bench.sites["lyon"].go.clear()
            talk = bench.exchange.converse()

            def first(*names: str) -> Answer:
                plans = {name: InitialWeightsPlan(study="0" * 64, run="run", site=name) for name in names}
                talk.send(Mailing(plans, 20, LARGE, most_bytes=len(LARGE)))
                return received()

            def received() -> Answer:
                with closing(talk.answers(absent_seconds=8)) as answers:
                    answer = next(answers)
                assert answer.file is not None
                answer.file.close()
                return answer

            answer = await asyncio.to_thread(first, "berlin", "lyon")
            assert ("berlin", None, frozenset({"lyon"})) == (answer.site, answer.problem, talk.open())
            bench.sites["lyon"].go.set()
            await asyncio.sleep(0.3)
            other = await bench.ask(["berlin"], payload=b"x")
            assert [None] == [each.problem for each in other.values()]
            answer = await asyncio.to_thread(received)
            assert ("lyon", LARGE[::-1], frozenset()) == (answer.site, bytes(answer.payload or b""), talk.open())
            bench.sites["lyon"].go.clear()
            assert "berlin" == (await asyncio.to_thread(first, "lyon", "berlin")).site
            await asyncio.to_thread(talk.close)
            bench.sites["lyon"].go.set()
            assert frozenset() == talk.open()
            again = await bench.ask(["lyon"], payload=b"y")
            assert b"y" == bytes(again["lyon"].payload or b"")
            assert [] == list(bench.payloads.iterdir())

    run(check())


def test_plan_of_an_open_question_ends_with_its_own_time(tmp_path: Path) -> None:
    """Lyon has one second: it is named after that, while Berlin, asked later, still has its own."""

    async def check() -> None:
        async with asking(tmp_path, ["berlin", "lyon"]) as bench:
            for site in bench.sites.values():
                site.go.clear()

            def late() -> tuple[str | None, frozenset[str]]:
                with closing(bench.exchange.converse()) as talk:
                    for name, seconds in (("lyon", 1.0), ("berlin", 60.0)):
                        plan = InitialWeightsPlan(study="0" * 64, run="run", site=name)
                        talk.send(Mailing({name: plan}, seconds))
                    with closing(talk.answers(absent_seconds=8)) as answers:
                        return next(answers).problem, talk.open()

            assert ("timeout", frozenset({"berlin"})) == await asyncio.to_thread(late)

    run(check())


def test_orders_are_signed_for_one_site_each_with_numbers_that_grow(tmp_path: Path) -> None:
    """Two questions: the second's numbers are above all of the first."""

    async def check() -> None:
        async with asking(tmp_path, SITES[:3]) as bench:
            key = bench.exchange._outbox._signer.key.public_key()
            seen: list[tuple[int, str]] = []
            ask = bench.exchange._link.ask

            def noted(tasks: Sequence[pb.Outgoing]) -> None:
                for task in tasks:
                    order = open_order(task.order, key)
                    assert task.site == order.site
                    seen.append((order.number, order.site))
                ask(tasks)

            bench.exchange._link.ask = noted  # type: ignore[method-assign,assignment]  # to see what is asked
            for _ in range(2):
                await bench.ask(SITES[:3], payload=None)
            assert sorted(seen) == seen and 6 == len({number for number, _ in seen})
            assert SITES[:3] * 2 == [site for _, site in seen]

    run(check())
