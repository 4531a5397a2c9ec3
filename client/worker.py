"""A site's warm worker: one process that answers order after order; data, model and CUDA context stay in memory.

It is started by process/supervisor.py, gets orders on a socket that only the two of them have, and answers
`answer` or `error` and a reply; large payloads lie in memory that the two share. It ends when the other end is closed.
It alone decides whether an order is obeyed; the process that talks to the server only checks large payloads' orders.
What a command starts elsewhere is remote_worker.py.
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
from consilium.client.process.worker_ends import End, SharedEnd
from consilium.common.errors import clean
from consilium.common.host.logs import start_log
from consilium.common.host.memory import reuse_memory, trim_memory
from consilium.common.host.parents import follow_parent

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0


def run_worker(settings: Path, end: End) -> None:
    """Answer the orders that come until there are no more."""
    while True:
        if not end.poll(IDLE_SECONDS):
            trim_memory()
        try:
            order, received = end.receive()
        except EOFError:
            return
        try:
            text, content = answer_order(settings, order, received)
            kind, reply = ANSWER, text.encode()
        except Exception as error:  # whatever it was, the next order is answered
            log.error("order not answered error=%s message=%s", type(error).__name__, clean(str(error)))
            kind, reply, content = ERROR, clean(str(error)).encode(), None
        received = None
        end.send(kind, reply, content)
        content = None


def prepare(*, threads: int, memory_mb: int | None) -> None:
    """Prepare a worker's process: its log, its threads, its limit of memory, and how it is asked to end."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reuse_memory()
    start_log()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if memory_mb is not None:
        limit_memory(memory_mb)


def main() -> None:
    """Entry point of `python -m consilium.client.worker SETTINGS SOCKET INBOX OUTBOX`; ends with its parent."""
    parser = argparse.ArgumentParser(prog="python -m consilium.client.worker")
    parser.add_argument("settings", type=Path)
    parser.add_argument("socket", type=int, help="the number of an open socket")
    parser.add_argument("boxes", type=int, nargs=2, help="the numbers of two open files")
    parser.add_argument("--memory-mb", type=int, help="how much memory this process may allocate")
    arguments = parser.parse_args()
    follow_parent()
    prepare(threads=int(os.environ.get("OMP_NUM_THREADS", "1")), memory_mb=arguments.memory_mb)
    os.write(arguments.socket, READY)
    run_worker(arguments.settings, SharedEnd(Connection(arguments.socket), *map(Box, arguments.boxes)))


def limit_memory(megabytes: int) -> None:
    """Limit this process's data to `megabytes`: an allocation beyond fails, before the whole machine does."""
    limit = megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main()
