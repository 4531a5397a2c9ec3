"""Large payloads in pieces: of an order from the server, of a reply to it; each goes on where it broke off."""

import asyncio
import logging
import random

import grpc
from google.protobuf.message import DecodeError

from consilium.client.process.shared_memory import Box
from consilium.client.wire.link import BROKEN, Link, pass_on_own
from consilium.client.wire.tasks import Task, Tasks
from consilium.common.errors import ProtocolError
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import PIECE_BYTES, SERVICE

log = logging.getLogger(__name__)


async def fetch(link: Link, tasks: Tasks, task: Task, inbox: Box) -> None:
    """Fetch the payload of an order into the shared memory.

    Raises:
        ProtocolError: the server sends more than it announced, or something that is not a message.
    """
    offset = 0
    while offset < task.size and not tasks.taken.is_set():
        await link.connected.wait()
        attended = link.attended
        if attended is None:
            continue
        request, before = pb.FetchRequest(task=task.id, offset=offset).SerializeToString(), offset
        try:
            call = attended.channel.unary_stream(f"/{SERVICE}/Fetch")(request)
            while (content := await call.read()) is not grpc.aio.EOF:
                data = _piece(content)
                if offset + len(data) > task.size:
                    raise ProtocolError("the server sends more than it announced")
                inbox.write(data, offset)
                offset += len(data)
        except BROKEN as error:
            pass_on_own(error)
            if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.NOT_FOUND:
                tasks.taken.set()
        if offset == before:
            await asyncio.sleep(random.uniform(0.2, 1.0))


async def deliver(link: Link, tasks: Tasks, task: Task, outbox: Box, *, size: int) -> None:
    """Wait for this reply's turn and send its payload from where the turn says; return if the server has it already."""
    taken = asyncio.ensure_future(tasks.taken.wait())
    turn = asyncio.ensure_future(tasks.turns.get())
    try:
        await asyncio.wait({taken, turn}, return_when=asyncio.FIRST_COMPLETED)
        granted = turn.result() if turn.done() else None
    finally:
        taken.cancel()
        turn.cancel()
    attended = link.attended
    if granted is None or granted.task != task.id or attended is None:
        return
    offset, identifier = granted.offset, task.id
    try:
        call = attended.channel.stream_unary(f"/{SERVICE}/Deliver")()
        while offset < size or identifier:
            data = outbox.read(offset, min(PIECE_BYTES, size - offset))
            piece = pb.Piece(task=identifier, offset=granted.offset if identifier else 0, data=data)
            await call.write(piece.SerializeToString())
            offset, identifier = offset + len(data), b""
        await call.done_writing()
        await call
    except BROKEN as error:
        pass_on_own(error)
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
        log.info("reply not delivered yet error=%s", code)


def _piece(content: bytes) -> bytes:
    try:
        return bytes(pb.Piece.FromString(content).data)
    except DecodeError:
        raise ProtocolError("the server sends a payload that is no message") from None
