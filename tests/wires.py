"""A real wire on loopback inside a test's own loop: certificates of a real authority, sites that may misbehave."""

import asyncio
import atexit
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from consilium.client.process.channels import Parcel
from consilium.client.process.shared_memory import Box
from consilium.client.wire.channel import OPTIONS, Attended, attend, credentials_of
from consilium.client.wire.connection import Connection
from consilium.client.wire.place import Place
from consilium.common.events.log import EventLog
from consilium.common.host.keys import make_site_key
from consilium.common.host.ports import free_port
from consilium.common.host.signing_requests import make_signing_request, read_signing_request
from consilium.common.host.study_key import read_study_key
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.envelope import Order, payload_digest, sign_order
from consilium.common.wire.limits import SERVICE
from consilium.server.operations.home import ServerHome
from consilium.server.operations.start import _GRPC
from consilium.server.wire.enrolment import Enrolment
from consilium.server.wire.groups import Groups
from consilium.server.wire.registry import Registry
from consilium.server.wire.service import Wire
from consilium.server.wire.tasks import Task

T = TypeVar("T")
_RUNNER = asyncio.Runner()
atexit.register(_RUNNER.close)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a test as `asyncio.run` does, but all of a process in one loop: gRPC is not made for one after another."""

    async def whole() -> T:
        try:
            return await main
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    return _RUNNER.run(whole())


HOSTS = ("localhost", "127.0.0.1")


def make_home(folder: Path) -> ServerHome:
    """Return a server's home with an authority, a certificate and a study's key."""
    home = ServerHome(folder)
    home.prepare(HOSTS)
    return home


def make_place(folder: Path, name: str, home: ServerHome, *, port: int = 1, approve: Registry | None = None) -> Place:
    """Return a site with a key and a request; approved, and with its certificate, where a registry is given."""
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {
        "authorities": folder / "ca.pem",
        "certificate": folder / "site.pem",
        "key": folder / "site.key",
    }
    files["study_key"] = home.study_public
    make_site_key(files["key"], comment=name)
    make_signing_request(files["key"], name=name)
    files["authorities"].write_bytes(home.ca.read_bytes())
    if approve is not None:
        files["certificate"].write_bytes(approve.approve(read_signing_request(folder / "site.csr"), name=name))
    (folder / "policy.toml").write_text("accepted_study = false\n")
    settings, log = folder / "site.toml", folder / "events.jsonl"
    return Place(name=name, server=f"localhost:{port}", settings=settings, log=log, **files)


def text_of(order: bytes) -> bytes:
    """Return the text of a signed order, or what else was sent as one."""
    try:
        return pb.Order.FromString(pb.SignedOrder.FromString(order).order).text or order
    except DecodeError:
        return order


def open_channel(place: Place) -> Any:
    """Return a channel of a site on which it has not said anything."""
    return grpc.aio.secure_channel(place.server, credentials_of(place), options=OPTIONS)


@dataclass(eq=False)
class Asked:
    """A run that remembers what it was answered."""

    answers: "asyncio.Queue[dict[str, Any]]" = field(default_factory=asyncio.Queue)

    def answer(self, task: Task, **content: Any) -> None:
        """Take an answer."""
        self.answers.put_nowait({"site": task.site, "id": task.id, "problem": "", "detail": "", **content})

    async def one(self, seconds: float = 10) -> dict[str, Any]:
        """Wait for an answer."""
        return await asyncio.wait_for(self.answers.get(), seconds)


@dataclass(eq=False)
class Bench:
    """A server that listens, and what it is made of."""

    home: ServerHome
    folder: Path
    registry: Registry
    wire: Wire
    port: int
    run: Asked = field(default_factory=Asked)

    def place(self, name: str, *, approved: bool = True, port: int | None = None) -> Place:
        """Return a site of this server."""
        registry = self.registry if approved else None
        return make_place(self.folder / "sites", name, self.home, port=port or self.port, approve=registry)

    def task(
        self, site: str, *, order: bytes = b"order", payload: bytes = b"", seconds: float = 60, **more: Any
    ) -> Task:
        """Return a task for a site, not sent yet."""
        identifier, outgoing = secrets.token_bytes(16), None
        if len(payload) > 2**18:  # a site fetches no large payload that the study has not signed
            signed = Order(1, "run", site, "plan", order.decode(), payload_digest(payload), len(payload))
            order = sign_order(signed, read_study_key(self.home.study_key))
            outgoing, size, payload = (
                self.folder / f"sent-{identifier.hex()}",
                len(payload),
                self._keep(identifier, payload),
            )
            more["size"] = size
        values: dict[str, Any] = {"size": len(payload), "most_bytes": 10**9, "run": self.run} | more
        return Task(
            id=identifier,
            site=site,
            order=order,
            payload=payload,
            outgoing=outgoing,
            deadline=time.monotonic() + seconds,
            incoming=self.folder / identifier.hex(),
            **values,
        )

    def _keep(self, identifier: bytes, payload: bytes) -> bytes:
        (self.folder / f"sent-{identifier.hex()}").write_bytes(payload)
        return b""

    def ask(self, site: str, **values: Any) -> Task:
        """Send a task to a site."""
        task = self.task(site, **values)
        self.wire.ask([task])
        return task


@asynccontextmanager
async def serving(folder: Path, *, port: int | None = None) -> AsyncIterator[Bench]:
    """Serve a wire below `folder` until the block ends."""
    home = make_home(folder / "home")
    registry = Registry(home.path)
    enrolment = Enrolment(Groups(home.path, registry), EventLog(home.path / "enrolments.jsonl"), home.ca.read_bytes)
    wire = Wire(registry, enrolment, authorities=home.ca.read_bytes)
    server = grpc.aio.server(options=list(_GRPC.items()))
    server.add_generic_rpc_handlers((wire.handlers(),))
    chain = (home.key.read_bytes(), home.certificate.read_bytes())
    credentials = grpc.ssl_server_credentials([chain], home.ca.read_bytes(), require_client_auth=True)
    bench = Bench(home, folder, registry, wire, port or free_port())
    server.add_secure_port(f"127.0.0.1:{bench.port}", credentials)
    await server.start()
    sweeping = asyncio.ensure_future(wire.sweep())
    try:
        yield bench
    finally:
        sweeping.cancel()
        await wire.stop()
        await server.stop(grace=0.2)
        registry.close()


class Raw:
    """A site that does what a test tells it."""

    def __init__(self, place: Place, attended: Attended) -> None:
        self.place, self.channel, self.call, self.welcome = place, attended.channel, attended.call, attended.welcome

    async def send(self, **message: Any) -> None:
        """Send a message."""
        await self.call.write(pb.FromSite(**message).SerializeToString())

    async def read(self, seconds: float = 5) -> Any:
        """Return the next message; None at the end of the stream."""
        content = await asyncio.wait_for(self.call.read(), seconds)
        return None if content is grpc.aio.EOF else pb.FromServer.FromString(content)

    async def read_until(self, kind: str, seconds: float = 10) -> Any:
        """Return the next message of a kind."""
        async with asyncio.timeout(seconds):
            while True:
                message = await self.read(seconds)
                assert message is not None, f"the stream ended before a {kind}"
                if message.WhichOneof("message") == kind:
                    return getattr(message, kind)

    async def end(self, seconds: float = 10) -> Any:
        """Return the farewell, or None where the stream ended without one."""
        farewell = None
        async with asyncio.timeout(seconds):
            with suppress(grpc.aio.AioRpcError):
                while (message := await self.read(seconds)) is not None:
                    if message.HasField("farewell"):
                        farewell = message.farewell
        return farewell

    async def offer(self, task: bytes, size: int, text: bytes = b"{}") -> Any:
        """Announce a large payload and return the turn for it."""
        await self.send(reply=pb.Reply(task=task, text=text, payload_size=size))
        return await self.read_until("turn")

    def deliver(self) -> Any:
        """Open a delivery."""
        return self.channel.stream_unary(f"/{SERVICE}/Deliver")()

    async def delivered(self, task: bytes, content: bytes, *, offset: int = 0, piece: int = 2**20) -> int:
        """Deliver a payload from an offset on; return how much the server says that it has."""
        call, identifier = self.deliver(), task
        for start in range(offset, len(content), piece):
            data = content[start : start + piece]
            await call.write(
                pb.Piece(task=identifier, offset=offset if identifier else 0, data=data).SerializeToString()
            )
            identifier = b""
        await call.done_writing()
        return int(pb.Delivered.FromString(await call).size)

    def fetch(self, task: bytes, offset: int = 0) -> Any:
        """Open a download."""
        return self.channel.unary_stream(f"/{SERVICE}/Fetch")(
            pb.FetchRequest(task=task, offset=offset).SerializeToString()
        )

    async def fetched(self, task: bytes, offset: int = 0) -> bytes:
        """Return a payload from an offset on."""
        call, parts = self.fetch(task, offset), []
        while (content := await call.read()) is not grpc.aio.EOF:
            parts.append(pb.Piece.FromString(content).data)
        return b"".join(parts)


@asynccontextmanager
async def attending(place: Place, *, tasks: list[bytes] | None = None) -> AsyncIterator[Raw]:
    """Attend as a site of a test until the block ends."""
    raw = Raw(place, await attend(place, tasks=tasks or []))
    try:
        yield raw
    finally:
        await raw.channel.close()


class Echo:
    """Answers an order at once with what came, turned around; a test may hold it up, or have it fail."""

    def __init__(self) -> None:
        self.inbox, self.outbox = Box(), Box()
        self.orders: list[bytes] = []
        self.go = asyncio.Event()
        self.go.set()
        self.rested = 0

    async def answer(self, order: Parcel, *, seconds: float) -> Parcel:
        """Answer an order."""
        self.orders.append(text_of(order.content))
        await asyncio.wait_for(self.go.wait(), seconds)
        if order.boxed:
            self.outbox.write(self.inbox.read(0, order.boxed)[::-1])
        return Parcel(order.content, order.payload, order.boxed)

    def rest(self) -> None:
        """Count."""
        self.rested += 1


@asynccontextmanager
async def connected(place: Place, worker: Any = None) -> AsyncIterator[Connection]:
    """Have a site attend as it really does until the block ends."""
    connection = Connection(place, worker or Echo())
    running = asyncio.ensure_future(connection.run())
    try:
        yield connection
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await running


async def until(holds: Callable[[], Any], seconds: float = 10) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


class Proxy:
    """Forwards TCP connections, and can cut them, or swallow everything."""

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self.cut_after: int | None = None
        """Cut all connections once so many bytes have gone to the server."""
        self.up, self._writers = 0, set[asyncio.StreamWriter]()
        self._tasks = set["asyncio.Task[None]"]()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Refuse connections, and cut those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut all connections at once, without a word."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]  # it runs in one
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        await asyncio.gather(self._pump(reader, back, counts=True), self._pump(there, writer, counts=False))
        self._writers -= {writer, back}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool) -> None:
        with suppress(OSError):
            while content := await reader.read(65_536):
                writer.write(content)
                await writer.drain()
                if counts:
                    self.up += len(content)
                    if self.cut_after is not None and self.up >= self.cut_after:
                        self.cut_after = None
                        self.cut()
        writer.transport.abort()


async def soon(awaitable: Awaitable[Any], seconds: float = 10) -> Any:
    """Wait for something, but not for ever."""
    return await asyncio.wait_for(awaitable, seconds)
