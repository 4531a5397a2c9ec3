"""The wire between real ends on loopback: tasks, replies, turns, payloads that resume, certificates, farewells."""

import asyncio
import os
import time
from pathlib import Path

import grpc
import pytest
from wires import Echo, Proxy, attending, connected, run, serving, until

from consilium.client.wire.channel import NotWelcome, attend
from consilium.client.wire.place import Place
from consilium.client.wire.probe import greet
from consilium.common.host.certificates import read_authorities, read_certificate
from consilium.common.study.site import SiteConfig, TableData
from consilium.common.wire import wire_pb2 as pb
from consilium.server.operations import authority
from consilium.server.wire import service
from consilium.server.wire.tasks import Task
from consilium.server.wire.turns import MAX_LOST_TURNS, Turns

LARGE = os.urandom(3_000_001)


def test_task_goes_down_and_its_reply_comes_up(tmp_path: Path) -> None:
    """Order and small payload as they were given; the answer is the site's, and the task is forgotten."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("berlin")) as site:
            assert "berlin" == site.welcome.site
            assert abs(time.time() - site.welcome.time) < 5
            task = bench.ask("berlin", order=b"an order", payload=b"small")
            received = await site.read_until("task")
            assert (task.id, b"an order", b"small", 0) == (
                received.id,
                received.order,
                received.payload,
                received.payload_size,
            )
            assert 50 < received.seconds <= 60
            await site.send(reply=pb.Reply(task=task.id, text=b"{}", payload=b"back"))
            answer = await bench.run.one()
            assert (b"{}", b"back", "") == (answer["text"], answer["payload"], answer["problem"])
            assert [] == bench.wire.tasks.at("berlin")
            await site.send(reply=pb.Reply(task=task.id, text=b"{}"))
            assert task.id == (await site.read_until("taken")).task  # sent again: the site may forget it

    run(check())


def test_small_reply_is_sent_again_when_the_connection_breaks_under_it(tmp_path: Path) -> None:
    """The worker answers once; the server has the reply although the first copy of it was lost on the way."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            proxy, worker = Proxy(bench.port), Echo()
            worker.go.clear()
            await proxy.start()
            async with connected(bench.place("berlin", port=proxy.port), worker) as connection:
                bench.ask("berlin")
                await until(lambda: worker.orders)
                proxy.cut()
                worker.go.set()
                assert "" == (await bench.run.one(30))["problem"]
                assert [b"order"] == worker.orders
                await until(lambda: not connection._tasks.sent or connection.is_connected)
            await proxy.stop()

    run(check())


def test_task_waits_for_a_site_that_is_not_there(tmp_path: Path) -> None:
    """It is sent when the site attends, and once more to a site that has lost it, but not to one that has it."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            place, task = bench.place("berlin"), bench.ask("berlin")
            async with attending(place) as site:
                assert task.id == (await site.read_until("task")).id
            async with attending(place, tasks=[task.id, b"unknown"]) as site:
                assert b"unknown" == (await site.read()).withdrawn.task
                with pytest.raises(TimeoutError):
                    await site.read(0.2)
            async with attending(place) as site:
                assert task.id == (await site.read_until("task")).id

    run(check())


def test_withdrawn_and_late_tasks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that forgets a task, and the sweep for a task whose time is over; replies to them are taken unread."""
    monkeypatch.setattr(service, "SWEEP_SECONDS", 0.05)

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("berlin")) as site:
            task = bench.ask("berlin")
            bench.wire.forget([task])
            assert task.id == (await site.read_until("withdrawn")).task
            late = bench.ask("berlin", seconds=0.1)
            assert late.id == (await site.read_until("withdrawn")).task
            await site.send(reply=pb.Reply(task=late.id, text=b"{}"))
            assert late.id == (await site.read_until("taken")).task
            assert bench.run.answers.empty()

    run(check())


def test_large_payloads_go_both_ways_and_resume_at_an_offset(tmp_path: Path) -> None:
    """A download from any offset; an upload that breaks off gets another turn from where it was."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("berlin")) as site:
            task = bench.ask("berlin", payload=LARGE)
            received = await site.read_until("task")
            assert (b"", len(LARGE)) == (received.payload, received.payload_size)
            assert await site.fetched(task.id) == LARGE
            assert await site.fetched(task.id, 2_000_000) == LARGE[2_000_000:]
            assert b"" == await site.fetched(task.id, len(LARGE))
            assert 0 == (await site.offer(task.id, len(LARGE))).offset
            broken = site.deliver()
            await broken.write(pb.Piece(task=task.id, data=LARGE[: 2**20]).SerializeToString())
            await until(lambda: task.received == 2**20)
            broken.cancel()
            turn = await site.read_until("turn")
            assert (task.id, 2**20) == (turn.task, turn.offset)
            assert len(LARGE) == await site.delivered(task.id, LARGE, offset=2**20)
            answer = await bench.run.one()
            assert ("", b"{}") == (answer["problem"], answer["text"])
            assert task.incoming.read_bytes() == LARGE
            assert 0o600 == task.incoming.stat().st_mode & 0o777

    run(check())


def test_turns_are_bounded_and_each_waits_for_its_own(tmp_path: Path) -> None:
    """Of seven sites that offer a payload four may send; as one is done, the next in the queue may."""

    async def check() -> None:
        async with serving(tmp_path) as bench, asyncio.TaskGroup() as group:
            most = 0

            async def one(name: str) -> None:
                nonlocal most
                async with attending(bench.place(name)) as site:
                    task = bench.ask(name)
                    await site.offer(task.id, 2**20)
                    most = max(most, bench.wire.turns.active)
                    await asyncio.sleep(0.05)
                    await site.delivered(task.id, LARGE[: 2**20])

            for number in range(7):
                group.create_task(one(f"site-{number}"))
            for _ in range(7):
                assert "" == (await bench.run.one())["problem"]
            assert 4 == most
            await until(lambda: (0, 0) == (bench.wire.turns.active, bench.wire.turns.waiting))

    run(check())


class Queue:
    """Turns of tasks that are only names, with notes of what was granted and given up."""

    def __init__(self, *, most: int = 1, patience: float = 0.03) -> None:
        self.granted: list[str] = []
        self.given_up: list[str] = []
        self.absent: set[str] = set()
        self.turns = Turns(
            self._grant, lambda task: self.given_up.append(task.site), most=most, patience_seconds=patience
        )

    def _grant(self, task: Task) -> bool:
        if task.site not in self.absent:
            self.granted.append(task.site)
        return task.site not in self.absent

    @staticmethod
    def task(site: str) -> Task:
        """Return a task for a site."""
        return Task(site.encode(), site, None, b"", b"", None, 0, 0.0, 0, Path("none"))  # type: ignore[arg-type]  # no run asked for it


def test_turn_that_nobody_uses_goes_to_the_next_and_is_given_up_at_the_fourth() -> None:
    """A sleeper goes to the end of the queue; whoever moves something keeps coming back."""

    async def check() -> None:
        queue = Queue()
        sleeper, other = queue.task("sleeper"), queue.task("other")
        queue.turns.ask(sleeper)
        queue.turns.ask(other)
        assert ["sleeper"] == queue.granted
        await until(lambda: queue.granted == ["sleeper", "other"])
        assert queue.turns.begin(other)
        assert not queue.turns.begin(other)
        for _ in range(6):
            queue.turns.end(other, moved=True)
            await until(lambda: queue.turns._active.get(other) is not None or queue.given_up)
            if not queue.turns.begin(other):
                break
        queue.turns.forget(other)
        await until(lambda: queue.given_up == ["sleeper"])
        assert MAX_LOST_TURNS == queue.granted.count("sleeper")

    run(check())


def test_absent_site_keeps_its_place_and_blocks_nobody() -> None:
    """Its turn is passed over until it is there again."""

    async def check() -> None:
        queue = Queue(patience=5)
        absent, here, third = (queue.task(name) for name in ("absent", "here", "third"))
        queue.absent.add("absent")
        for task in (absent, here, third):
            queue.turns.ask(task)
        assert (["here"], 2) == (queue.granted, queue.turns.waiting)
        queue.absent.clear()
        queue.turns.forget(here)
        assert ["here", "absent"] == queue.granted
        queue.turns.forget(absent)
        queue.turns.forget(third)
        assert (0, 0) == (queue.turns.active, queue.turns.waiting)

    run(check())


def test_second_connection_with_a_key_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """The first is told so; runs do not see the site leave."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            seen: list[tuple[str, bool]] = []
            bench.wire.streams.watch(lambda site, is_here: seen.append((site, is_here)))
            place = bench.place("berlin")
            async with attending(place) as first, attending(place) as second:
                assert "replaced" == (await first.end()).reason
                bench.ask("berlin")
                await second.read_until("task")
            await until(lambda: len(seen) == 2)
            assert [("berlin", True), ("berlin", False)] == seen

    run(check())


def settings_of(place: Place) -> SiteConfig:
    """Return a site's settings that lead to the same files."""
    return SiteConfig(
        name=place.name,
        server=place.server,
        ca_certificate=place.authorities,
        private_key=place.key,
        certificate=place.certificate,
        study_key=place.study_key,
        state_dir=place.log.parent,
        data=TableData(path=place.log.parent),
    )


def test_site_that_is_stopped_says_goodbye(tmp_path: Path) -> None:
    """Nobody waits for its replies: its task is answered at once, as gone."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            worker = Echo()
            worker.go.clear()
            async with connected(bench.place("berlin"), worker) as connection:
                bench.ask("berlin")
                await until(lambda: worker.orders)
                await connection.leave()
                answer = await bench.run.one(2)
            assert ("gone", "site 'berlin' was stopped") == (answer["problem"], answer["detail"])

    run(check())


def test_probe_is_not_counted_as_connected(tmp_path: Path) -> None:
    """It is welcomed, and the stream of the site that attends stays."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            place = bench.place("berlin")
            async with attending(place) as site:
                assert "berlin" == (await asyncio.to_thread(greet, settings_of(place))).site
                bench.ask("berlin")
                await site.read_until("task")

    run(check())


def test_server_that_stops_says_so(tmp_path: Path) -> None:
    """Every site hears it before its connection ends."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("berlin")) as site:
            await bench.wire.stop()
            assert "stopping" == (await site.end()).reason

    run(check())


def test_revoked_while_connected_ends_everything_within_a_second(tmp_path: Path) -> None:
    """The stream, an upload that is under way, and every call after it; the run is told, and sees no reply."""

    async def check() -> None:
        async with serving(tmp_path) as bench, attending(bench.place("berlin")) as site:
            task = bench.ask("berlin")
            await site.offer(task.id, len(LARGE))
            upload = site.deliver()
            await upload.write(pb.Piece(task=task.id, data=LARGE[: 2**20]).SerializeToString())
            await until(lambda: task.received == 2**20)
            began = time.monotonic()
            bench.wire.dismiss(bench.registry.revoke("berlin"), reason="revoked", text="revoked by the coordinator")
            bench.wire.give_up("berlin", why="was revoked")
            assert "revoked" == (await site.end()).reason
            with pytest.raises(grpc.aio.AioRpcError, match="revoked"):
                await upload
            assert grpc.StatusCode.ABORTED is await upload.code()
            assert time.monotonic() - began < 1
            answer = await bench.run.one(1)
            assert ("gone", "site 'berlin' was revoked") == (answer["problem"], answer["detail"])
            assert bench.run.answers.empty() and not task.incoming.exists()
            with pytest.raises(NotWelcome) as refused:
                await attend(site.place, tasks=[])
            assert "revoked" == refused.value.reason

    run(check())


def test_certificate_that_ends_while_connected_is_followed_by_the_renewed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site renews over the stream, hears `expired` for the old one, and is back at once with the new one."""
    monkeypatch.setattr(service, "SWEEP_SECONDS", 0.05)

    async def check() -> None:
        async with serving(tmp_path) as bench:
            with monkeypatch.context() as short:
                short.setattr(authority, "DAYS_SITE", 3 / 86_400)
                place = bench.place("berlin")
            async with connected(place) as connection:
                await until(lambda: connection.is_connected)
                first = bench.wire.streams.get("berlin")
                tomorrow = time.time() + 86_400
                await until(lambda: read_certificate(place.certificate.read_bytes()).ends.timestamp() > tomorrow)
                await until(lambda: bench.wire.streams.get("berlin") not in (first, None), 6)
                second = bench.wire.streams.get("berlin")
                assert second is not None and second.peer.ends > time.time() + 86_400

    run(check())


def test_renewal_for_another_key_or_name_is_refused(tmp_path: Path) -> None:
    """Nothing comes back but the count of strikes; its own request is answered."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            lyon, berlin = bench.place("lyon"), bench.place("berlin")
            async with attending(berlin) as site:
                for wrong in ((lyon.key.parent / "site.csr").read_bytes(), b"no request", b"x" * 200_000):
                    await site.send(renew=pb.Renew(request=wrong))
                stream = bench.wire.streams.get("berlin")
                await until(lambda: stream is not None and stream.strikes == 3)
                await site.send(renew=pb.Renew(request=(berlin.key.parent / "site.csr").read_bytes()))
                certificate = read_certificate((await site.read_until("renewed")).certificate)
                assert ("berlin", read_certificate(berlin.certificate.read_bytes()).fingerprint) == (
                    certificate.name,
                    certificate.fingerprint,
                )

    run(check())


def test_new_authority_reaches_those_that_are_connected(tmp_path: Path) -> None:
    """A connected site gets both authorities and a certificate of the new one; one that is away holds up the end."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            here = bench.place("berlin")
            async with connected(here) as connection:
                await until(lambda: connection.is_connected)
                away = bench.place("lyon")
                before = read_certificate(here.certificate.read_bytes()).ends
                bench.registry.add_authority()
                bench.wire.spread_authorities()
                await until(lambda: len(read_authorities(here.authorities.read_bytes())) == 2)
                await until(lambda: read_certificate(here.certificate.read_bytes()).ends >= before)
                newest = bench.registry.approvals()
                assert len({site.authority for site in newest}) == 2
                with pytest.raises(Exception, match="1 sites have no certificate of the new authority yet: lyon"):
                    bench.registry.retire_authorities()
                assert away.certificate.is_file()

    run(check())


def test_reply_resumes_where_the_connection_broke(tmp_path: Path) -> None:
    """The TCP connection is cut in the middle of an upload: the site is back, and sends only what is missing."""

    async def check() -> None:
        async with serving(tmp_path) as bench:
            proxy, worker = Proxy(bench.port), Echo()
            await proxy.start()
            content = os.urandom(20_000_000)
            async with connected(bench.place("berlin", port=proxy.port), worker) as connection:
                await until(lambda: connection.is_connected)
                proxy.cut_after = proxy.up + 8_000_000
                task = bench.ask("berlin", payload=content)
                assert "" == (await bench.run.one(30))["problem"]
                assert task.incoming.read_bytes() == content[::-1]
                assert [b"order"] == worker.orders
                assert proxy.up < 26_000_000
            await proxy.stop()

    run(check())
