"""Composition root of the Flower ClientApp: find this site's settings, answer the plan, say what failed."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from consilium.client.flower.app import answer_flower
from consilium.client.flower.message import content_of, plan_of
from consilium.client.site.accepted import check_accepted
from consilium.client.site.journal import note_answer, note_failure, note_study
from consilium.client.site.memory import has_room
from consilium.client.site.site import Site
from consilium.client.site.state_folder import study_of
from consilium.client.wire.orders import Orders
from consilium.common.codecs import Payload
from consilium.common.errors import ConfigError, ConsiliumError, DataError, ProtocolError, StateError
from consilium.common.host.study_key import read_study_public
from consilium.common.protocol.parse import parse_plan
from consilium.common.protocol.plans import HandshakePlan, Plan, study_digest
from consilium.common.protocol.replies import FailureReply, Reply
from consilium.common.study.load import load_site
from consilium.common.study.parts import only
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.wire.envelope import Order

log = logging.getLogger(__name__)

app = ClientApp()

LEAST_WARM = 64
"""How many sites one process keeps in memory in any case; more of them only while the machine has room."""
NO_RUN = "unknown"
"""The run's name in the reply to an order that names none."""


@dataclass(frozen=True)
class _Warm:
    config: SiteConfig
    run: str
    study: StudyConfig
    digest: str
    site: Site


_warm: dict[Path, _Warm] = {}
"""The last run's study and Site per settings file: data and model stay in memory from message to message."""
_read_settings: dict[Path, tuple[tuple[int, int, int] | None, SiteConfig]] = {}
"""Settings per file, with inode, time and size of the file when it was read, by which a change is noticed."""
_ledgers: dict[Path, tuple[SiteConfig, Orders]] = {}
"""The ledger of orders per settings file."""


@app.train()
def answer(message: Message, context: Context) -> Message:
    """Answer the plan in a message: Flower's way in, for a federation in one process."""
    path, began = Path(str(context.node_config["site"])), time.monotonic()
    config = _settings(path)
    try:
        with only(config.parts):
            plan, payload = plan_of(message)
    except ProtocolError as error:
        log.error("plan refused message=%s", error)
        return Message(content_of(_failure(config, NO_RUN, error, began).model_dump_json(), None), reply_to=message)
    reply, content = answer_plan(path, plan, payload)
    return Message(content_of(reply.model_dump_json(), content), reply_to=message)


def answer_order(path: Path, signed: bytes, payload: Payload | None) -> tuple[str, bytes | None]:
    """Answer an order as it came from the server: the reply's JSON and its payload.

    An order that this site does not obey is answered with the reason, and goes to the program's log alone: a sender
    without the study's key must not be able to fill this site's disk.

    Args:
        path: the site's `site.toml`.

    Raises:
        RuntimeError: any error but a ConsiliumError; its text may go to the server.
    """
    config, began = _settings(path), time.monotonic()
    try:
        orders = orders_of(path)
        order = orders.open(signed, payload)
    except ConsiliumError as error:
        log.error("order refused error=%s message=%s", type(error).__name__, error)
        return _failure(config, NO_RUN, error, began).model_dump_json(), None
    if order.kind == "flower":
        return _obey_flower(path, config, orders, order, payload)
    reply, content = _obey(path, config, orders, order, payload)
    return reply.model_dump_json(), content


def orders_of(path: Path) -> Orders:
    """Return the ledger of a site, kept open from order to order as long as its settings are the same.

    Raises:
        ConfigError: the study's public key cannot be read.
        StateError: the ledger is damaged.
    """
    config = _settings(path)
    if path not in _ledgers or _ledgers[path][0] != config:
        key = read_study_public(config.study_key)
        _ledgers[path] = config, Orders(config.state_dir, site=config.name, key=key, max_runs=config.max_runs)
    return _ledgers[path][1]


def _obey(
    path: Path, config: SiteConfig, orders: Orders, order: Order, payload: Payload | None
) -> tuple[Reply, bytes | None]:
    began = time.monotonic()
    try:
        with only(config.parts):
            plan, done = parse_plan(order.text), False
        orders.admit(order, plan)
        try:
            reply, content = answer_plan(path, plan, payload)
            done = not isinstance(reply, FailureReply)
        finally:
            orders.answered(order, plan if done else None)
        return reply, content
    except ConsiliumError as error:
        log.error("order refused run=%s number=%d message=%s", order.run, order.number, error)
        return _failure(config, order.run, error, began), None


def _obey_flower(
    path: Path, config: SiteConfig, orders: Orders, order: Order, payload: Payload | None
) -> tuple[str, bytes | None]:
    began = time.monotonic()
    try:
        return answer_flower(config, path.resolve().parent, order, payload, orders)
    except ConsiliumError as error:
        log.error("order refused run=%s number=%d message=%s", order.run, order.number, error)
        return _failure(config, order.run, error, began).model_dump_json(), None


def answer_plan(path: Path, plan: Plan, payload: Payload | None) -> tuple[Reply, bytes | None]:
    """Answer one plan; a ConsiliumError becomes a FailureReply, never a stack trace on the wire.

    Args:
        path: the site's `site.toml`.

    Raises:
        RuntimeError: any other error; its text may go to the server.
    """
    config, began = _settings(path), time.monotonic()
    try:
        if plan.site != config.name:
            raise ProtocolError(f"the plan is for site '{plan.site}', this is site '{config.name}'")
        with only(config.parts):
            warm = _warmed(path, config, plan)
            reply, content = warm.site.answer(plan, payload)
            if isinstance(plan, HandshakePlan):
                note_study(config, warm.study, run=plan.run, changes=check_accepted(path, config, warm.study))
        note_answer(config, warm.study, plan, reply, bytes_up=len(content or b""), bytes_down=len(payload or b""))
        log.info("plan answered kind=%s run=%s seconds=%.2f", plan.kind, plan.run, reply.seconds)
        return reply, content
    except ConsiliumError as error:
        log.error("plan failed kind=%s error=%s message=%s", plan.kind, type(error).__name__, error)
        note_failure(config, _study_of(path, plan), plan, error)
        return _failure(config, plan.run, error, began), None
    except Exception as error:
        # The text of this error can hold a path or a value, and would go to the server.
        log.exception("plan failed unexpectedly kind=%s", plan.kind)
        note_failure(config, _study_of(path, plan), plan, error)
        raise RuntimeError(f"unexpected {type(error).__name__}; the log of site '{config.name}' says more") from None


def _settings(path: Path) -> SiteConfig:
    """Return a site's settings, read again when the file has changed."""
    now, known = _facts_of(path), _read_settings.get(path)
    if known is not None and known[0] == now:
        return known[1]
    try:
        config = load_site(path)
        _read_settings[path] = now, config
        return config
    except ConfigError as error:
        log.error("settings cannot be used message=%s", error)
        raise RuntimeError("this site's settings cannot be used; its log says why") from None


def _facts_of(path: Path) -> tuple[int, int, int] | None:
    """Return inode, time and size, which change with a file; None for a missing one, which `load_site` reports."""
    try:
        at = path.stat()
    except OSError:
        return None
    return at.st_ino, at.st_mtime_ns, at.st_size


def _failure(config: SiteConfig, run: str, error: ConsiliumError, began: float) -> FailureReply:
    return FailureReply(
        run=run,
        site=config.name,
        pid=os.getpid(),
        seconds=time.monotonic() - began,
        error=type(error).__name__,
        message=_disclosed(error, config),
    )


def _warmed(path: Path, config: SiteConfig, plan: Plan) -> _Warm:
    """Return the plan's study with its Site, from memory if they are there.

    Raises:
        ConsiliumError: another study than this site accepted or than the run began with; data or model do not fit.
    """
    warm = _warm.get(path)
    if isinstance(plan, HandshakePlan):
        study, digest, site = plan.study, study_digest(plan.study), None
    elif warm is not None and (warm.config, warm.run, warm.digest) == (config, plan.run, plan.study):
        check_accepted(path, config, warm.study)
        return warm
    else:
        digest = plan.study
        study = study_of(config.state_dir, run=plan.run, digest=digest, site=config.name)
        site = warm.site if warm is not None and (warm.config, warm.digest) == (config, digest) else None
    check_accepted(path, config, study)
    _warm.pop(path, None)
    del warm  # frees its data and model before those that replace them are read
    if len(_warm) >= LEAST_WARM and not has_room():
        _warm.popitem()  # the newest: sites are asked in turn, so the oldest is needed next
    _warm[path] = _Warm(config, plan.run, study, digest, site or Site(config, study))
    return _warm[path]


def forget_sites() -> None:
    """Let go of every site's data and model, and of its ledger."""
    _warm.clear()
    _read_settings.clear()
    _ledgers.clear()


def _disclosed(error: ConsiliumError, config: SiteConfig) -> str:
    """Return what the server may know of an error: paths and file names can hold patients' names."""
    if config.share_error_details:
        return str(error)
    if isinstance(error, DataError | StateError):
        return f"{type(error).__name__}; the sentence that says why is in the log of site '{config.name}'"
    text = str(error)
    for folder in (config.weights_dir, config.state_dir, config.data.path):
        text = text.replace(str(folder), f"<{folder.name}>") if folder is not None else text
    return text


def _study_of(path: Path, plan: Plan) -> StudyConfig | None:
    """Return the study that a plan belongs to; None if this process does not know it."""
    if isinstance(plan, HandshakePlan):
        return plan.study
    warm = _warm.get(path)
    return warm.study if warm is not None and warm.run == plan.run else None
