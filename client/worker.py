"""A site's warm worker: one process that answers plan after plan; data, model and CUDA context stay in memory.

It is started by `client.supervisor`, gets plans on a socket that only the two of them have, and answers `answer` or
`error` and a reply; large payloads lie in memory that the two share. It ends when the other end is closed.
"""

import argparse
import logging
import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from client.app import answer_plan
from client.box import Box
from client.seams import tame_logs
from client.supervisor import ANSWER, ERROR, Parcel, receive, send
from common.processes import follow_parent, reuse_memory, trim_memory
from common.protocol import SMALL_PAYLOAD_BYTES, parse_plan

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0


def run_worker(settings: Path, connection: Connection, inbox: Box, outbox: Box) -> None:
    """Answer the plans that come over `connection` until it is closed."""
    while True:
        if not connection.poll(IDLE_SECONDS):
            trim_memory()
        try:
            plan = receive(connection)
        except EOFError:
            return
        try:
            payload = inbox.view(plan.boxed) if plan.boxed else plan.payload
            reply, content = answer_plan(settings, parse_plan(plan.text), payload)
            kind, parcel = ANSWER, Parcel(reply.model_dump_json(), content)
            if content is not None and len(content) > SMALL_PAYLOAD_BYTES:
                outbox.write(content)
                parcel = Parcel(parcel.text, boxed=len(content))
        except Exception as error:  # whatever it was, the next plan is answered
            log.error("plan not answered error=%s message=%s", type(error).__name__, error)
            kind, parcel = ERROR, Parcel(str(error))
        payload = content = None
        connection.send_bytes(kind)
        send(connection, parcel)


def main() -> None:
    """Entry point of `python -m client.worker SETTINGS SOCKET INBOX OUTBOX`; ends with the process that started it."""
    parser = argparse.ArgumentParser(prog="python -m client.worker")
    parser.add_argument("settings", type=Path)
    parser.add_argument("socket", type=int, help="the number of an open socket")
    parser.add_argument("boxes", type=int, nargs=2, help="the numbers of two open files")
    parser.add_argument("--memory-mb", type=int, help="how much memory this process may allocate")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()
    reuse_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    tame_logs(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.use_deterministic_algorithms(True, warn_only=True)
    if arguments.memory_mb is not None:
        limit_memory(arguments.memory_mb)
    run_worker(arguments.settings, Connection(arguments.socket), *map(Box, arguments.boxes))


def limit_memory(megabytes: int) -> None:
    """Let this process's data grow to `megabytes`; an allocation above fails, in place of the whole machine."""
    limit = megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main()
