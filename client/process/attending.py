"""A connection to the server and the process that computes, together: orders are answered until one of them ends."""

import asyncio
import contextlib

from consilium.client.process.supervisor import Worker, WorkerFailed
from consilium.client.wire.connection import Connection
from consilium.common.errors import ConsiliumError, RunFailed


async def answer_orders(connection: Connection, worker: Worker, *, gone: str) -> None:
    """Start the worker, attend at the server and answer its orders until cancelled; both have ended then.

    Args:
        gone: what is said of a worker that ends again and again.

    Raises:
        ConnectionRefused: the key was revoked.
        RunFailed: the worker cannot be started, or ends again and again.
    """
    try:
        await worker.start()
    except WorkerFailed as error:
        raise RunFailed(str(error)) from error
    attending = asyncio.ensure_future(_attend(connection, worker))
    giving_up = asyncio.ensure_future(worker.gave_up.wait())
    try:
        await asyncio.wait({attending, giving_up}, return_when=asyncio.FIRST_COMPLETED)
        if attending.done():
            attending.result()
        raise RunFailed(gone)
    finally:
        await connection.leave()
        for task in (attending, giving_up):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConsiliumError):
                await task
        await worker.stop()


async def _attend(connection: Connection, worker: Worker) -> None:
    """Attend once the worker can take orders: the others would wait for it while it imports torch."""
    await worker.until_ready()
    await connection.run()
