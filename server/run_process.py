"""The process of one run: waits as a spare, receives its job, runs a ServerApp over the wire, and ends.

It alone holds the study's key, which signs orders; the process that talks to the sites does not.
"""

import importlib
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from consilium.common.errors import ConsiliumError
from consilium.common.host.logs import start_log
from consilium.common.host.parents import end_with_parent
from consilium.common.host.study_key import read_study_key
from consilium.server.app import app
from consilium.server.wire.exchange import WireExchange
from consilium.server.wire.grid import WireGrid
from consilium.server.wire.outbox import Numbers, Outbox, Signer
from consilium.server.wire.run_link import RunLink
from consilium.server.wire.site_keys import HOME_VARIABLE

log = logging.getLogger(__name__)

ORDERS = "orders"
"""File of a run's folder: how far its orders are numbered."""


def run_job(link: RunLink, job: dict[str, Any]) -> None:
    """Run the job from the server's process.

    Raises:
        ConsiliumError: the reason why the run ended; its log says the same.
    """
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    key = read_study_key(Path(os.environ[HOME_VARIABLE]) / "study.key")
    signer = Signer(job["run"], key, Numbers(folder / ORDERS))
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
    if job["kind"] == "flower":
        importlib.import_module("consilium.server.flower.app").run_app(link, Path(job["payloads"]), signer, job)
        return
    grid = WireGrid(WireExchange(link, Outbox(Path(job["payloads"]), signer)))
    settings = {"study": job["study"], "folder": str(folder), "transport": "grpc", "tls": True}
    settings["update"] = bool(job.get("update", False))
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings)
    app(grid, context)


def main() -> None:
    """Entry point of `python -m consilium.server.run_process SOCKET`; the exit code is that of what ended the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    start_log()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    end_with_parent()
    link = RunLink(socket.socket(fileno=int(sys.argv[1])))
    code = 0
    try:
        run_job(link, json.loads(link.job()))
    except ConsiliumError as error:
        code = error.exit_code
    except Exception:
        log.exception("run ended unexpectedly")
        code = ConsiliumError.exit_code
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    main()
