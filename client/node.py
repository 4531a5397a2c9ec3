"""A site's long-lived process: one connection to the server, and one warm worker beside it.

flwr's SuperNode polls every 3 seconds, starts a Python process per message, imports torch again and runs the code
that the server sends: 12 s for a round in which nobody computes. Here this process waits for the next plan in a call
that the server answers when there is one, hands it to a worker that stays (`client/supervisor.py`), and sends the
reply. It speaks flwr's Fleet API with flwr's own connection, so that keys, signatures and heartbeats are flwr's; the
app that runs is the one installed here, and the bundle that belongs to a run is compared, not fetched.
"""

import functools
import hashlib
import logging
import secrets
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.cli.build import build_fab_from_files
from flwr.client.grpc_rere_client import connection as fleet
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.date import now
from flwr.supercore.run import Run, RunNotRunningException

from client.box import Box
from client.connect import CHUNK_THREADS, Refusals, check_connection
from client.exporter import exporting
from client.flower import pack, unpack
from client.seams import replace, tame_logs
from client.supervisor import Parcel, Worker, WorkerFailed
from common import __version__ as version
from common.config import SiteConfig, load_site
from common.errors import ConfigError, ConnectionRefused, ConsiliumError, ProtocolError, RunFailed
from common.identity import read_private_key
from common.program import BUNDLE_FILES
from common.protocol import CHUNK_BYTES, REPLY_GRACE_SECONDS, chunk_names

log = logging.getLogger(__name__)

CONNECTED_SECONDS = 60.0
"""A site that has not heard from its server for so long has lost it (or fetches a very large plan)."""
CHUNKS_AT_A_TIME = 2
PASSING = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
"""What a call may fail with while a server is restarted or overloaded, beside what flwr tries again by itself."""
UNASKED_SECONDS = 1.0
"""The pause after a request for plans that came back empty at once: the server has no seat left to wait on."""


def start_site(path: Path, *, verbose: bool = False, metrics: str | None = None) -> None:
    """Run the site described by a `site.toml` until it is stopped (SIGINT or SIGTERM).

    Args:
        metrics: `host:port` of the pages for monitoring in place of the settings' `metrics_address`; empty for none.

    Raises:
        PortInUse: the port for monitoring is taken.
        ConfigError: the settings, the certificate or the key are wrong.
        ConnectionRefused: the server cannot be reached or trusted, or does not know this site's key (any more).
        RunFailed: the worker died again and again.
    """
    config = load_site(path)
    for what, file in (("ca_certificate", config.ca_certificate), ("private_key", config.private_key)):
        if not file.is_file():
            raise ConfigError(f"{what}: no such file '{file}' ({path})")
    worker = Worker(config, path)
    life = _Life(worker, Refusals(config))
    address = config.metrics_address if metrics is None else metrics
    # The pages come first: to connect can take a minute, in which a container must not look dead.
    with exporting(config, address, is_ready=life.is_ready) if address else nullcontext():
        check_connection(config)
        log.info(
            "site joined name=%s server=%s; it now waits for studies, stop it with Ctrl-C", config.name, config.server
        )
        tame_logs(logging.INFO if verbose else logging.WARNING)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, life.leave)
        worker.start()
        try:
            _serve(config, path, life)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            worker.stop()
            if worker.gave_up:  # it ended this process with a signal, which means success otherwise
                raise RunFailed(
                    "the site's worker process ends again and again right after its start; its log says why"
                )


@dataclass
class _Life:
    """What tells whether this site can answer plans."""

    worker: Worker
    refusals: Refusals
    busy: bool = False
    heard: float | None = None

    def leave(self, *_: int | FrameType | None) -> None:
        """End this process from a signal, with calls that fail instead of being tried again."""
        self.refusals.leaving = True
        raise SystemExit(0)

    def is_ready(self) -> bool:
        connected = self.heard is not None and time.monotonic() - self.heard < CONNECTED_SECONDS
        return self.worker.is_alive() and (self.busy or connected)


@dataclass(frozen=True)
class _Server:
    """flwr's functions of one connection, in the order in which its context manager yields them."""

    node_id: int
    receive: Callable[[], tuple[Message, ObjectTree] | None]
    send: Callable[[Message, ObjectTree, float], tuple[set[str], str]]
    get_run: Callable[[int], Run]
    get_bundle: Callable[[str, int], Any]
    pull_object: Callable[[int, str], bytes]
    push_object: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]


def _serve(config: SiteConfig, settings: Path, life: _Life) -> None:
    """Answer plans until the server refuses this site; a signal ends it with SystemExit."""
    refusals = life.refusals
    replace(fleet, "remove_content_from_message", lambda message: message)  # ours carry it where it is small
    replace(fleet, "flwr_exit", _cannot_connect)
    key = read_private_key(config.private_key)
    allowed: dict[int, str | None] = {}
    problem: Exception | None = None
    with fleet.grpc_request_response(
        config.server,
        insecure=False,
        retry_invoker=refusals.make_retry_invoker(),
        root_certificates=config.ca_certificate.read_bytes(),
        authentication_keys=(key, key.public_key()),
    ) as connection:
        server = _Server(*connection)
        life.heard = time.monotonic()
        while refusals.reason is None:
            try:
                _answer_next(server, settings, life, allowed)
            except Exception as error:
                problem = error
                break
    if refusals.reason is not None:
        raise ConnectionRefused(refusals.reason)
    if problem is not None:
        raise RunFailed(f"site '{config.name}' lost its server: {type(problem).__name__}: {problem}") from problem


def _cannot_connect(_code: int, message: str | None = None, **_: Any) -> None:
    raise ConnectionRefused(message or "the connection to the server failed")


def _answer_next(server: _Server, settings: Path, life: _Life, allowed: dict[int, str | None]) -> None:
    """Wait for a plan, have the worker answer it, send the reply."""
    began = time.monotonic()
    try:
        received = server.receive()
    except grpc.RpcError as error:
        if life.refusals.reason is not None or error.code() not in PASSING:
            raise
        log.warning("the server does not answer as it should code=%s; asking again", error.code().name)
        time.sleep(UNASKED_SECONDS)
        return
    life.heard = time.monotonic()
    if received is None:
        life.worker.rest()
        time.sleep(UNASKED_SECONDS if life.heard - began < UNASKED_SECONDS else 0)
        return
    life.busy = True
    try:
        _answer(server, settings, life, allowed, *received)
    except RunNotRunningException:
        log.info("the run ended while this site was busy with it")
    except Exception as error:  # the server, or the way there; what is next may be well
        log.error("plan not answered error=%s message=%.500s", type(error).__name__, error)
    finally:
        life.busy, life.heard = False, time.monotonic()


def _answer(
    server: _Server, settings: Path, life: _Life, allowed: dict[int, str | None], message: Message, tree: ObjectTree
) -> None:
    began, run_id = time.monotonic(), message.metadata.run_id
    if run_id not in allowed:
        allowed[run_id] = refusal_of(server.get_run(run_id).fab_hash, settings)
    content: RecordDict | Error
    try:
        if (refusal := allowed[run_id]) is not None:
            raise ProtocolError(refusal)
        plan = _plan(server, message, tree, life.worker.inbox)
        # Not by the time at which it was sent: clocks may be minutes apart.
        answer = life.worker.answer(plan, seconds=max(1.0, message.metadata.ttl - REPLY_GRACE_SECONDS))
        content, boxed = pack(answer.text, answer.payload), answer.boxed
    except (ConsiliumError, WorkerFailed) as error:
        content, boxed = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=str(error)), 0
    reply = _reply(message.metadata, content, server.node_id)
    _send(server, reply, life.worker.outbox, boxed, seconds=time.monotonic() - began)


def refusal_of(bundle: str, settings: Path) -> str | None:
    """Return why a run is refused whose bundle is neither this release's nor one that the site allows; None if not.

    Args:
        bundle: the sha256 (hex) that the server names for the run.
    """
    try:
        if bundle == own_bundle() or bundle in load_site(settings).allowed_bundles:
            return None
    except ConsiliumError as error:  # its text can hold a path
        log.error("settings cannot be used message=%s", error)
        return "this site's settings cannot be used; its log says why"
    log.error("bundle refused sha256=%s; site.toml can list it in allowed_bundles", bundle)
    return f"this site does not run bundle {bundle[:12]}: it is not that of consilium {version}"


@functools.cache
def own_bundle() -> str:
    """Return the sha256 (hex) of this release's bundle."""
    content, _ = build_fab_from_files(dict(BUNDLE_FILES))
    return hashlib.sha256(content).hexdigest()


def _plan(server: _Server, message: Message, tree: ObjectTree, inbox: Box) -> Parcel:
    """Return a plan; the chunks of a large payload are fetched into `inbox`."""
    text, payload = unpack(message.content)
    if not tree.children:
        return Parcel(text, payload)
    run_id = message.metadata.run_id
    names = [chunk.object_id for chunk in tree.children[0].children]

    def pull(number: int) -> int:
        content = server.pull_object(run_id, names[number])
        inbox.write(content, number * CHUNK_BYTES)
        return len(content)

    size = sum(_few_at_a_time(pull, len(names)))
    server.confirm(run_id, message.metadata.message_id)
    return Parcel(text, boxed=size)


def _reply(asked: Metadata, content: RecordDict | Error, node_id: int) -> Message:
    created = now().timestamp()
    metadata = Metadata(
        run_id=asked.run_id,
        message_id=secrets.token_hex(32),
        src_node_id=node_id,
        dst_node_id=asked.src_node_id,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        created_at=created,
        ttl=asked.created_at + asked.ttl - created,
        message_type=asked.message_type,
    )
    if isinstance(content, Error):
        return make_message(metadata=metadata, error=content)
    return make_message(metadata=metadata, content=content)


def _send(server: _Server, reply: Message, outbox: Box, boxed: int, *, seconds: float) -> None:
    """Send a reply, and after it the chunks of a large payload: the first `boxed` bytes of `outbox`."""
    tree = ObjectTree(object_id=reply.metadata.message_id)
    if not boxed:
        server.send(reply, tree, seconds)
        return
    name, run_id = secrets.token_hex(32), reply.metadata.run_id
    names = chunk_names(name, boxed)
    tree.children.append(ObjectTree(object_id=name, children=[ObjectTree(object_id=chunk) for chunk in names]))
    missing, session = server.send(reply, tree, seconds)
    if not missing:
        log.warning("the server does not take the reply: it came too late, or the run has ended")
        return

    def push(number: int) -> int:
        start = number * CHUNK_BYTES
        server.push_object(run_id, session, names[number], outbox.read(start, min(CHUNK_BYTES, boxed - start)))
        return number

    _few_at_a_time(push, len(names))


def _few_at_a_time(work: Callable[[int], int], count: int) -> list[int]:
    """Return what `work` gives for 0 to `count` - 1; whoever is to leave does not wait for the rest."""
    pool = ThreadPoolExecutor(CHUNKS_AT_A_TIME, thread_name_prefix=CHUNK_THREADS)
    try:
        return list(pool.map(work, range(count)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
