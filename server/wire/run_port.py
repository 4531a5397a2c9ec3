"""The server's end of the private socket between it and one run: tasks in, answers and the connected sites out."""

import asyncio
import logging
import time
from pathlib import Path

from google.protobuf.message import DecodeError

from consilium.common.errors import ProtocolError
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.frames import Frames, framed
from consilium.server.wire.service import Wire
from consilium.server.wire.tasks import Task

log = logging.getLogger(__name__)

_CHUNK_BYTES = 2**20


class RunPort:
    """Carries one run's tasks to the wire and the answers back.

    Args:
        folder: where the run's payloads lie.
    """

    def __init__(self, wire: Wire, folder: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._wire, self._folder = wire, folder
        self._reader, self._writer = reader, writer
        self._outgoing: list[bytes] = []

    def start(self, job: str) -> None:
        """Send the run its job, and the connected sites."""
        self._send(pb.ToRun(job=job))
        self._send(pb.ToRun(came=pb.Sites(names=self._wire.streams.names())))

    async def serve(self) -> None:
        """Pass on the run's tasks until its process ends."""
        frames = Frames()
        self._wire.streams.watch(self._site)
        try:
            while content := await self._reader.read(_CHUNK_BYTES):
                for frame in frames.feed(content):
                    self._take(pb.FromRun.FromString(frame))
        except (DecodeError, ProtocolError, OSError) as error:
            log.error("run's socket ended error=%s", error)
        finally:
            self._wire.streams.unwatch(self._site)
            self._wire.forget(self._wire.tasks.of_run(self))
            self._writer.close()

    def answer(
        self, task: Task, *, problem: str = "", detail: str = "", text: bytes = b"", payload: bytes = b""
    ) -> None:
        """Hand an answer to the run."""
        size = task.offer.size if task.offer is not None and not problem else 0
        answer = pb.Answer(
            task=task.id,
            problem=problem,
            detail=detail,
            text=text,
            payload=payload,
            payload_size=size,
            seconds=task.busy,
        )
        self._send(pb.ToRun(answer=answer))

    def _site(self, site: str, is_here: bool) -> None:
        names = pb.Sites(names=[site])
        self._send(pb.ToRun(came=names) if is_here else pb.ToRun(left=names))

    def _send(self, message: pb.ToRun) -> None:
        """Send a message with all others of this turn of the loop: a system call for each would be slow."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(framed(message.SerializeToString()))

    def _flush(self) -> None:
        if not self._writer.is_closing():
            self._writer.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _take(self, message: pb.FromRun) -> None:
        if message.WhichOneof("message") == "ask":
            self._wire.ask([self._task(outgoing) for outgoing in message.ask.tasks])
        else:
            wanted = set(message.forget.tasks)
            self._wire.forget([task for task in self._wire.tasks.of_run(self) if task.id in wanted])

    def _task(self, outgoing: pb.Outgoing) -> Task:
        return Task(
            id=outgoing.id,
            site=outgoing.site,
            run=self,
            order=outgoing.order,
            payload=outgoing.payload,
            outgoing=self._folder / outgoing.file if outgoing.file else None,
            size=outgoing.payload_size,
            deadline=time.monotonic() + outgoing.seconds,
            most_bytes=outgoing.most_bytes,
            incoming=self._folder / outgoing.id.hex(),
        )
