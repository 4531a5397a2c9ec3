"""The message a worker is busy with, noted on disk, so that its sudden end is answered at once.

A worker that is killed (out of memory, SIGKILL) cannot say so, and flwr gives a silent task up only after a
minute. So the worker notes what it works on before it begins, and the site's supervisor, which sees it die,
starts this module as a process of its own: it answers the noted message with an error that names the cause.
"""

import argparse
import base64
import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from flwr.app import Context, Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output


@dataclass(frozen=True)
class InFlight:
    """One message that a worker has taken: what an answer to it needs.

    Args:
        token: the worker's right to answer this task.
        message: the message without its content, serialised by flwr.
        deadline: on the machine's monotonic clock, after which nobody waits for the answer.
    """

    token: str
    message: str
    run_id: int
    node_id: int
    task_id: int
    deadline: float


def note(path: Path, token: str, message: Message, context: Context, *, timeout_seconds: float) -> None:
    """Write what is being worked on; `forget` removes it."""
    content = message_to_proto(remove_content_from_message(message)).SerializeToString()
    entry = InFlight(
        token,
        base64.b64encode(content).decode(),
        context.run_id,
        context.node_id,
        TaskIdentity.task_id or 0,
        time.monotonic() + timeout_seconds,
    )
    partial = path.with_suffix(".partial")  # renamed, not synced: it need not outlive this machine's power
    partial.write_text(json.dumps(vars(entry)), encoding="utf-8")
    partial.replace(path)


def forget(path: Path) -> None:
    """Note that nothing is being worked on."""
    path.unlink(missing_ok=True)


def noted(path: Path) -> InFlight | None:
    """Return what is being worked on, None for nothing."""
    with contextlib.suppress(FileNotFoundError):
        return InFlight(**json.loads(path.read_text(encoding="utf-8")))
    return None


def answer_with_error(address: str, entry: InFlight, reason: str) -> None:
    """Answer a noted message with an error, through the SuperNode's Runtime API at `address`."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = entry.task_id, entry.run_id, entry.node_id
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(entry.token),
        ],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    proto = ProtoMessage()
    proto.ParseFromString(base64.b64decode(entry.message))
    error = Error(code=ErrorCode.CLIENT_APP_CRASHED, reason=reason)
    reply = Message(error, reply_to=message_from_proto(proto))
    try:
        push_message(client, reply, SimpleNamespace(run_id=entry.run_id, node_id=entry.node_id))  # type: ignore[arg-type]
    finally:
        push_task_output(client=client, context=None, sub_status=SubStatus.FAILED, details=reason)
        client.close()


def main() -> None:
    """Entry point of `python -m client.inflight ADDRESS FILE REASON`."""
    parser = argparse.ArgumentParser(prog="python -m client.inflight")
    parser.add_argument("address")
    parser.add_argument("file", type=Path)
    parser.add_argument("reason")
    arguments = parser.parse_args()
    entry = noted(arguments.file)
    if entry is not None:
        answer_with_error(arguments.address, entry, arguments.reason)
        forget(arguments.file)


if __name__ == "__main__":
    main()
