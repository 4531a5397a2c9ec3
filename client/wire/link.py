"""The stream to the server, while there is one."""

import asyncio
from typing import Any

import grpc

from consilium.client.wire.channel import Attended

BROKEN = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError)
"""Errors that a call raises when its connection was ended, by either side."""


class Link:
    """Shared by the parts of a site's attendance: the open stream, with one writer at a time."""

    def __init__(self) -> None:
        self.attended: Attended | None = None
        self.connected = asyncio.Event()
        self._writing = asyncio.Lock()

    async def send(self, message: Any) -> None:
        """Send a message if there is a connection; a reply is sent again on the next one."""
        attended = self.attended
        if attended is None:
            return
        try:
            async with self._writing:
                await attended.call.write(message.SerializeToString())
        except BROKEN as error:
            pass_on_own(error)

    async def close(self) -> None:
        """Close the stream and its channel."""
        attended, self.attended = self.attended, None
        if attended is not None:
            await attended.channel.close()


def pass_on_own(error: BaseException) -> None:
    """Raise a cancellation again if it is meant for this task: gRPC raises the same one when a channel closes.

    Raises:
        asyncio.CancelledError: this task is to end.
    """
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
