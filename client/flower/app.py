"""Runs the ClientApp of an approved Flower app in the worker, with its `Context.state` kept on this site's disk."""

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.task_identity import TaskIdentity

from consilium.client.flower.approved import check_approved, code_of, keep_code
from consilium.client.site.journal import event_log
from consilium.client.wire.orders import Orders
from consilium.common.codecs import Payload
from consilium.common.errors import ConfigError, ConsiliumError, ProtocolError, RunFailed, StateError
from consilium.common.events.site import MessageAnswered
from consilium.common.flower.code import load_component, unload
from consilium.common.host.files import write_atomically
from consilium.common.protocol.flower_orders import (
    SERVER_NODE,
    CodeOrder,
    FlowerOrder,
    FlowerReply,
    MessageOrder,
    node_number,
    parse_flower_order,
    run_number,
)
from consilium.common.study.site import SiteConfig
from consilium.common.wire.envelope import Order

log = logging.getLogger(__name__)

RUNS, STATE = "flower_apps", "state.bin"
"""Folder in the state folder with one folder per run (no study can have this name), and a run's file in that."""
MAX_STATE_BYTES = 2_000_000_000
"""Size of the largest state of one run; Flower's own encoding allows no more."""


@dataclass(frozen=True)
class _Loaded:
    """The app that is loaded; there is one at a time, so that no two mix their modules."""

    digest: str
    folder: Path
    app: ClientApp


@dataclass
class _State:
    """The state of the run that was asked for last, and the digest of its copy on the disk."""

    file: Path
    records: RecordDict
    on_disk: bytes


_loaded: _Loaded | None = None
_state: _State | None = None


def admit_flower(config: SiteConfig, folder: Path, order: Order, orders: Orders) -> FlowerOrder:
    """Return what an order of kind "flower" asks, if this site may do it; nothing is done yet.

    Args:
        folder: the site's own, in which approvals are kept.

    Raises:
        ConsiliumError: the order is not one for this site, the app is not approved, or there is no room for a run.
    """
    asked = parse_flower_order(order.text)
    if (asked.run, asked.site) != (order.run, order.site):
        raise ProtocolError(f"the order says run '{asked.run}' at site '{asked.site}', signed are others")
    check_approved(folder, asked.app, site=config.name)
    orders.check_room(config.state_dir / RUNS / asked.run)
    return asked


def answer_flower(
    config: SiteConfig, folder: Path, asked: FlowerOrder, payload: Payload | None
) -> tuple[FlowerReply, bytes | None]:
    """Keep an app's code, or hand a message to its ClientApp; return the reply, and the content of the app's answer.

    Raises:
        ConsiliumError: it failed; the text of an app's own error stays here unless `share_error_details` is set.
    """
    began = time.monotonic()
    content: bytes | None = None
    if isinstance(asked, CodeOrder):
        keep_code(folder, config.state_dir, asked.app, bytes(payload or b""))
    else:
        content = _answer(config, folder, asked, bytes(payload or b""), config.state_dir / RUNS / asked.run / STATE)
    seconds = time.monotonic() - began
    if isinstance(asked, MessageOrder):
        event = MessageAnswered(
            run=asked.run,
            app=asked.app,
            type=asked.message_type,
            seconds=round(seconds, 4),
            bytes_down=len(payload or b""),
            bytes_up=len(content or b""),
        )
        event_log(config).log(event)
    return FlowerReply(run=asked.run, site=config.name, seconds=seconds), content


def _answer(config: SiteConfig, folder: Path, asked: MessageOrder, payload: bytes, file: Path) -> bytes:
    global _state
    app = _app(config, folder, asked.app)
    state, _state = _state_of(file), None  # an app that fails in between may have changed it
    context = Context(
        run_id=run_number(asked.run),
        node_id=node_number(config.name),
        node_config=dict(config.flower),
        state=state.records,
        run_config=dict(asked.run_config),
    )
    reply = _called(app, _message(config, asked, payload), context, config)
    _state = _saved(state, context.state)
    return recorddict_to_proto(reply.content).SerializeToString()


def _message(config: SiteConfig, asked: MessageOrder, payload: bytes) -> Message:
    """Return the message as the ServerApp sent it.

    Raises:
        ProtocolError: the payload is not the content of a message.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_number(asked.run), node_number(config.name)
    about = Metadata(
        run_id=run_number(asked.run),
        message_id=asked.message_id,
        src_node_id=SERVER_NODE,
        dst_node_id=node_number(config.name),
        reply_to_message_id="",
        group_id=asked.group_id,
        created_at=time.time(),  # by this site's own clock, which may be off
        ttl=asked.ttl,
        message_type=asked.message_type,
    )
    try:
        content = recorddict_from_proto(RecordDictProto.FromString(payload))
    except Exception as error:  # Flower's classes raise whatever they meet
        raise ProtocolError(f"the order's payload is no content of a message ({type(error).__name__})") from error
    message: Message = Message(content, metadata=about)  # type: ignore[call-overload]  # Flower's own way
    return message


def _called(app: ClientApp, message: Message, context: Context, config: SiteConfig) -> Message:
    """Return the app's answer.

    Raises:
        RunFailed: it raised something, or answered with an error or with no message.
    """
    who = f"the ClientApp at site '{config.name}'"
    try:
        reply = app(message, context)
        content_or_error = reply.has_error() or reply.has_content()
    except (Exception, SystemExit) as error:
        log.exception("the ClientApp failed type=%s", message.metadata.message_type)
        detail = f": {error}" if config.share_error_details else f"; the log of site '{config.name}' says more"
        raise RunFailed(f"{who} failed with {type(error).__name__}{detail}") from error
    if not content_or_error:
        raise RunFailed(f"{who} answered with an empty message")
    if reply.has_error():
        raise RunFailed(f"{who} answered with error {reply.error.code}: {reply.error.reason}")
    return reply


def _app(config: SiteConfig, folder: Path, digest: str) -> ClientApp:
    """Return the ClientApp of an approved app, loaded once as long as no other is asked for.

    Raises:
        ConsiliumError: its code is not here, not what was approved, or cannot be loaded.
    """
    global _loaded
    if _loaded is not None and _loaded.digest == digest:
        return _loaded.app
    if _loaded is not None:
        unload(_loaded.folder)
        _loaded = None
    place, app = code_of(folder, config.state_dir, digest, site=config.name)
    try:
        component = load_component(place, app.components["clientapp"])
        if not isinstance(component, ClientApp):
            raise ConfigError(f"'{app.components['clientapp']}' is a {type(component).__name__}, expected a ClientApp")
    except ConsiliumError:
        unload(place)
        raise
    except (Exception, SystemExit) as error:
        unload(place)
        log.exception("the app cannot be loaded digest=%s", digest)
        detail = f": {error}" if config.share_error_details else f"; the log of site '{config.name}' says more"
        raise RunFailed(f"site '{config.name}' cannot load the app: {type(error).__name__}{detail}") from error
    log.info("app loaded name=%s digest=%s", app.name, digest)
    _loaded = _Loaded(digest, place, component)
    return component


# --- state --------------------------------------------------------------------------------------------


def _state_of(file: Path) -> _State:
    """Return the state of a run: from memory, else from the disk, else an empty one.

    Raises:
        StateError: it is damaged; training on without it would be another study.
    """
    if _state is not None and _state.file == file:
        return _state
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = file.read_bytes() if file.exists() else b""
        records = recorddict_from_proto(RecordDictProto.FromString(content))
    except OSError as error:
        raise StateError(f"cannot read '{file}': {error.strerror or error}") from error
    except Exception as error:  # Flower's classes raise whatever they meet
        raise StateError(f"the state in '{file}' is damaged ({type(error).__name__}); start a new run") from error
    return _State(file, records, hashlib.sha256(content).digest())


def _saved(state: _State, records: RecordDict) -> _State:
    """Write a run's state if it has changed, and return it.

    Raises:
        StateError: it is too large, or the disk is full; the state before is kept.
    """
    try:
        content = recorddict_to_proto(records).SerializeToString(deterministic=True)
    except ValueError as error:
        raise StateError(f"the app's Context.state cannot be written: {error}") from error
    if len(content) > MAX_STATE_BYTES:
        raise StateError(f"the app's Context.state has {len(content)} bytes, expected at most {MAX_STATE_BYTES}")
    digest = hashlib.sha256(content).digest()
    if digest != state.on_disk:
        write_atomically(state.file, content, mode=0o600)
    return _State(state.file, records, digest)
