"""A site's warm worker: one process that answers plan after plan; data, model and CUDA context stay in memory.

It is started by `client.supervisor`, gets a plan as two frames (JSON text, payload) on a socket that only the two of
them have, and answers with three (`answer` or `error`, text, payload). It ends when the other end is closed.
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
from client.seams import tame_logs
from client.supervisor import ANSWER, ERROR
from common.processes import follow_parent
from common.protocol import parse_plan

log = logging.getLogger(__name__)


def run_worker(settings: Path, connection: Connection) -> None:
    """Answer the plans that come over `connection` until it is closed."""
    while True:
        try:
            text, payload = connection.recv_bytes().decode(), connection.recv_bytes()
        except EOFError:
            return
        try:
            reply, content = answer_plan(settings, parse_plan(text), payload or None)
            frames = (ANSWER, reply.model_dump_json().encode(), content or b"")
        except Exception as error:  # whatever it was, the next plan is answered
            log.error("plan not answered error=%s message=%s", type(error).__name__, error)
            frames = (ERROR, str(error).encode(), b"")
        del text, payload
        for frame in frames:
            connection.send_bytes(frame)


def main() -> None:
    """Entry point of `python -m client.worker SETTINGS SOCKET`; ends with the process that started it."""
    parser = argparse.ArgumentParser(prog="python -m client.worker")
    parser.add_argument("settings", type=Path)
    parser.add_argument("socket", type=int, help="the number of an open socket")
    parser.add_argument("--memory-mb", type=int, help="how much memory this process may allocate")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    tame_logs(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.use_deterministic_algorithms(True, warn_only=True)
    if arguments.memory_mb is not None:
        limit_memory(arguments.memory_mb)
    run_worker(arguments.settings, Connection(arguments.socket))


def limit_memory(megabytes: int) -> None:
    """Let this process's data grow to `megabytes`; an allocation above fails, in place of the whole machine."""
    limit = megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main()
