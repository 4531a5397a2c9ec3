"""A site's warm worker: one process that takes task after task; data, model and CUDA context stay in memory.

flwr's `run_clientapp` is made for a process of its own. Four of its names are replaced: the bundle that
the server sends is not unpacked, the app is the one installed here, no signal handlers are set, and the
exit at its end runs the exit handlers and returns (flwr's own would start a thread that kills this
process seconds later).
"""

import argparse
import contextlib
import functools
import hashlib
import logging
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.cli.build import build_fab_from_files
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.exit import add_exit_handler
from flwr.supercore.exit.exit_handler import trigger_exit_handlers
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec.run_superexec import _SUPEREXEC_AUTH_METHODS
from flwr.supernode.runtime import run_clientapp as clientapp

from client.app import app
from client.flower import plan_of
from client.inflight import forget, note
from client.seams import quicken_object_pulls, replace, tame_logs
from common import __version__ as version
from common.config import load_site
from common.errors import ConsiliumError, ProtocolError
from common.processes import follow_parent
from common.program import BUNDLE_FILES

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_SECONDS = 600.0
UNASKED_SECONDS = 2.0
"""How long to wait for the doorbell before asking for a task all the same."""


def run_worker(address: str, secret: bytes, in_flight: Path, doorbell: int) -> None:
    """Take tasks from the SuperNode's Runtime API at `address` and run them here, one by one, for ever.

    Args:
        in_flight: the file that says what is being worked on, for whoever sees this process die.
        doorbell: a file number that can be read when there may be a task.
    """
    run_task = warm_clientapp(address, in_flight)
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_SUPEREXEC_AUTH_METHODS),
        ],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    while True:
        response = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        if response.HasField("task") and response.token:
            run_task(response.token)
        elif select.select([doorbell], [], [], UNASKED_SECONDS)[0]:
            os.read(doorbell, 4096)


def warm_clientapp(address: str, in_flight: Path) -> Callable[[str], None]:
    """Return a function that runs the task of a token in this process with the installed ClientApp."""
    token = bundle = ""

    def see_bundle(content: bytes, **_: Any) -> None:
        nonlocal bundle
        bundle = hashlib.sha256(content).hexdigest()

    def noted_app(message: Message, context: Context) -> Message:
        path = Path(str(context.node_config["site"]))
        try:
            _check_bundle(bundle, path)
        except ConsiliumError as error:  # its text can hold a path, and flwr sends it to the server
            log.error("settings cannot be used message=%s", error)
            raise RuntimeError("this site's settings cannot be used; its log says why") from None
        try:
            note(in_flight, token, message, context, timeout_seconds=_timeout_of(message))
        except OSError as error:
            log.error("cannot note the task error=%s", error)
            raise RuntimeError("this site cannot write to its disk; its log says why") from None
        return app(message, context)

    replace(clientapp, "install_from_fab", see_bundle)
    replace(clientapp, "get_load_client_app_fn", lambda **_: lambda *_: noted_app)
    replace(clientapp, "register_signal_handlers", _register_exit_handlers_only)
    replace(clientapp, "flwr_exit", _leave)
    quicken_object_pulls()

    def run_task(task_token: str) -> None:
        nonlocal token
        token = task_token
        clientapp.run_clientapp(
            runtime_api_address=address, token=token, insecure=True, runtime_dependency_install=False
        )
        forget(in_flight)

    return run_task


def _check_bundle(seen: str, settings: Path) -> None:
    """Refuse a run whose bundle is neither that of the release installed here nor one the site allows.

    Raises:
        RuntimeError: what was seen; flwr sends the sentence to the server.
    """
    if seen != _own_bundle() and seen not in load_site(settings).allowed_bundles:
        log.error("bundle refused sha256=%s; site.toml can list it in allowed_bundles", seen)
        raise RuntimeError(f"this site does not run bundle {seen[:12]}: it is not that of consilium {version}")


@functools.cache
def _own_bundle() -> str:
    content, _ = build_fab_from_files(dict(BUNDLE_FILES))
    return hashlib.sha256(content).hexdigest()


def _timeout_of(message: Message) -> float:
    """Return how long the server waits for the answer; what is no plan of ours is answered at once anyway."""
    with contextlib.suppress(ProtocolError):
        return plan_of(message)[0].study.round_timeout_seconds
    return DEFAULT_TIMEOUT_SECONDS


def _register_exit_handlers_only(*, exit_handlers: list[Callable[[], None]], **_: Any) -> None:
    for handler in exit_handlers:
        add_exit_handler(handler)


def _leave(**_: Any) -> None:
    trigger_exit_handlers(run_before_force_exit=True)
    trigger_exit_handlers(run_before_force_exit=False)


def main() -> None:
    """Entry point of `python -m client.worker ADDRESS SECRET_FILE`; ends with the process that started it."""
    parser = argparse.ArgumentParser(prog="python -m client.worker")
    parser.add_argument("address")
    parser.add_argument("secret", type=Path)
    parser.add_argument("in_flight", type=Path)
    parser.add_argument("doorbell", type=int)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    tame_logs(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.use_deterministic_algorithms(True, warn_only=True)
    run_worker(arguments.address, arguments.secret.read_bytes(), arguments.in_flight, arguments.doorbell)


if __name__ == "__main__":
    main()
