"""A site's warm worker: one process that answers order after order; data, model and CUDA context stay in memory.

It is started by process/supervisor.py, gets orders on a socket that only the two of them have, and answers
`answer` or `error` and a reply; large payloads lie in memory that the two share. It ends when the other end is closed.
It alone decides whether an order is obeyed; the process that talks to the server only checks large payloads' orders.
"""

import argparse
import logging
import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from consilium.client.app import answer_order
from consilium.client.process.shared_memory import Box
from consilium.client.process.supervisor import ANSWER, ERROR, READY
from consilium.common.errors import clean
from consilium.common.host.logs import start_log
from consilium.common.host.memory import reuse_memory, trim_memory
from consilium.common.host.parents import follow_parent
from consilium.common.wire.limits import SMALL_PAYLOAD_BYTES

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0


def run_worker(settings: Path, connection: Connection, inbox: Box, outbox: Box) -> None:
    """Answer the orders that come over `connection` until it is closed."""
    while True:
        if not connection.poll(IDLE_SECONDS):
            trim_memory()
        try:
            order, payload, boxed = (connection.recv_bytes() for _ in range(3))
        except EOFError:
            return
        size = int(boxed)
        try:
            received = inbox.view(size) if size else payload or None
            text, content = answer_order(settings, order, received)
            kind, reply = ANSWER, text.encode()
        except Exception as error:  # whatever it was, the next order is answered
            log.error("order not answered error=%s message=%s", type(error).__name__, clean(str(error)))
            kind, reply, content = ERROR, clean(str(error)).encode(), None
        size = len(content) if content is not None and len(content) > SMALL_PAYLOAD_BYTES else 0
        if content is not None and size:
            outbox.write(content)
        small = content if content is not None and not size else b""
        received = content = None
        for frame in (kind, reply, small, b"%d" % size):
            connection.send_bytes(frame)


def main() -> None:
    """Entry point of `python -m consilium.client.worker SETTINGS SOCKET INBOX OUTBOX`; ends with its parent."""
    parser = argparse.ArgumentParser(prog="python -m consilium.client.worker")
    parser.add_argument("settings", type=Path)
    parser.add_argument("socket", type=int, help="the number of an open socket")
    parser.add_argument("boxes", type=int, nargs=2, help="the numbers of two open files")
    parser.add_argument("--memory-mb", type=int, help="how much memory this process may allocate")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()
    reuse_memory()
    start_log()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.use_deterministic_algorithms(True, warn_only=True)
    if arguments.memory_mb is not None:
        limit_memory(arguments.memory_mb)
    os.write(arguments.socket, READY)
    run_worker(arguments.settings, Connection(arguments.socket), *map(Box, arguments.boxes))


def limit_memory(megabytes: int) -> None:
    """Limit this process's data to `megabytes`: an allocation beyond fails, before the whole machine does."""
    limit = megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main()
