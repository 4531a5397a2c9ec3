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
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.client.grpc_rere_client import connection as fleet
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects, push_objects
from flwr.supercore.run import Run, RunNotRunningException

from client.connect import Refusals, check_connection
from client.exporter import exporting
from client.flower import pack, unpack
from client.seams import replace, tame_logs
from client.supervisor import Worker
from common import __version__ as version
from common.config import SiteConfig, load_site
from common.errors import ConfigError, ConnectionRefused, ConsiliumError, ProtocolError, RunFailed
from common.identity import read_private_key
from common.program import BUNDLE_FILES
from common.protocol import REPLY_GRACE_SECONDS

log = logging.getLogger(__name__)

CONNECTED_SECONDS = 60.0
"""A site that has not heard from its server for so long has lost it (or fetches a very large plan)."""
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
    life = _Life(worker)
    address = config.metrics_address if metrics is None else metrics
    # The pages come first: to connect can take a minute, in which a container must not look dead.
    with exporting(config, address, is_ready=life.is_ready) if address else nullcontext():
        check_connection(config)
        log.info(
            "site joined name=%s server=%s; it now waits for studies, stop it with Ctrl-C", config.name, config.server
        )
        tame_logs(logging.INFO if verbose else logging.WARNING)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _leave)
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


def _leave(*_: int | FrameType | None) -> None:
    raise SystemExit(0)


@dataclass
class _Life:
    """What tells whether this site can answer plans."""

    worker: Worker
    busy: bool = False
    heard: float | None = None

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
    refusals = Refusals(config)
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
            except RunNotRunningException:  # the run ended while the site was busy with it
                continue
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
    received = server.receive()
    life.heard = time.monotonic()
    if received is None:
        time.sleep(UNASKED_SECONDS if life.heard - began < UNASKED_SECONDS else 0)
        return
    message, tree = received
    run_id = message.metadata.run_id
    if run_id not in allowed:
        allowed[run_id] = refusal_of(server.get_run(run_id).fab_hash, settings)
    life.busy, began = True, time.monotonic()
    try:
        content: RecordDict | Error
        try:
            if (refusal := allowed[run_id]) is not None:
                raise ProtocolError(refusal)
            text, payload = unpack(_content(server, message, tree))
            seconds = max(1.0, message.metadata.created_at + message.metadata.ttl - REPLY_GRACE_SECONDS - time.time())
            content = pack(*life.worker.answer(text, payload, seconds=seconds))
        except ConsiliumError as error:
            content = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=str(error))
        _send(server, _reply(message.metadata, content, server.node_id), seconds=time.monotonic() - began)
    finally:
        life.busy, life.heard = False, time.monotonic()


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


def _content(server: _Server, message: Message, tree: ObjectTree) -> RecordDict:
    """Return a message's content, fetching its objects where it does not carry it."""
    if len(message.content) > 0:
        return message.content
    run_id = message.metadata.run_id
    objects = pull_objects(
        [each.object_id for each in iterate_object_tree(tree)],
        lambda name: server.pull_object(run_id, name),
        initial_backoff=0.02,
        backoff_cap=0.05,
        max_tries_per_object=None,
    )
    server.confirm(run_id, message.metadata.message_id)
    whole = inflate_object_from_contents(tree.object_id, objects)
    assert isinstance(whole, Message)
    return whole.content


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


def _send(server: _Server, reply: Message, *, seconds: float) -> None:
    """Send a reply: whole, or its objects after it where it has a large payload."""
    if reply.has_error() or not reply.content.array_records:
        server.send(reply, ObjectTree(object_id=reply.metadata.message_id), seconds)
        return
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        missing, session = server.send(remove_content_from_message(reply), get_object_tree(reply), seconds)
        run_id = reply.metadata.run_id
        push_objects(
            get_all_nested_objects(reply),
            lambda name, content: server.push_object(run_id, session, name, content),
            object_ids_to_push=missing,
        )
