"""Composition root of the Flower ClientApp: find this site's settings and policy, answer the plan, say what failed."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from consilium.client.flower.app import admit_flower, answer_flower
from consilium.client.flower.message import content_of, plan_of
from consilium.client.privacy.entries import Answered, answer_in, entry_of, entry_of_crash
from consilium.client.privacy.policy.case import Case, Stage, with_data
from consilium.client.privacy.policy.leaving import as_it_leaves
from consilium.client.privacy.policy.order_rules import forget_sizes
from consilium.client.privacy.policy.reading import forget_policies, policy_of
from consilium.client.privacy.policy.rules import check
from consilium.client.site.accepted import check_accepted
from consilium.client.site.handshake import Facts
from consilium.client.site.journal import note_answer, note_failure, note_study
from consilium.client.site.memory import has_room
from consilium.client.site.site import Site
from consilium.client.site.start import study_of
from consilium.client.wire.books import Books, books_of, close_books, settings_of
from consilium.common.codecs import Payload
from consilium.common.errors import ConsiliumError, DataError, ProtocolError, StateError
from consilium.common.protocol.audit import AuditHead
from consilium.common.protocol.parse import parse_plan
from consilium.common.protocol.plans import HandshakePlan, Plan, study_digest
from consilium.common.protocol.replies import FailureReply, Reply
from consilium.common.study.parts import only
from consilium.common.study.policy import UNBOUND, PolicyConfig
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.wire.envelope import Order

log = logging.getLogger(__name__)

app = ClientApp()

LEAST_WARM_BYTES = 2**28
"""How much of sites, their data and models, one process keeps in memory in any case; more only while the machine has
room.
"""
NO_RUN = "unknown"
"""The run's name in the reply to an order that names none."""
DEFAULTS = PolicyConfig()
"""The policy of a site without a `policy.toml`, for orders of a server."""


@dataclass(frozen=True)
class _Warm:
    config: SiteConfig
    policy: PolicyConfig
    run: str
    study: StudyConfig
    digest: str
    site: Site
    allowed: Facts | None = None
    """The facts of the site with which this study was held against the policy, which need not be done again."""


_warm: dict[Path, _Warm] = {}
"""The last run's study and Site per settings file: data and model stay in memory from message to message."""


@app.train()
def answer(message: Message, context: Context) -> Message:
    """Answer the plan in a message: Flower's way in, for a federation in one process."""
    path = Path(str(context.node_config["site"]))
    reply, content = answer_read(path, lambda: plan_of(message))
    return Message(content_of(reply.model_dump_json(), content), reply_to=message)


def answer_read(path: Path, read: Callable[[], tuple[Plan, bytes | None]]) -> tuple[Reply, bytes | None]:
    """Answer a plan that is yet to be read; a study in it may use no other packages than the site's settings name.

    Args:
        path: the site's `site.toml`.
        read: returns the checked plan and its payload, or raises a ProtocolError.

    Raises:
        RuntimeError: as `answer_plan`.
    """
    config, began = settings_of(path), time.monotonic()
    try:
        with only(config.parts):
            plan, payload = read()
    except ProtocolError as error:
        log.error("plan refused message=%s", error)
        return _failure(config, NO_RUN, error, began), None
    return answer_plan(path, plan, payload)


def answer_order(path: Path, signed: bytes, payload: Payload | None) -> tuple[str, bytes | None]:
    """Answer an order as it came from the server: the reply's JSON and its payload.

    Every order that the study's key signed for this site has a line in its audit log before its answer leaves. Another
    is answered with the reason, and goes to the program's log alone: a sender without the key must not be able to fill
    this site's disk.

    Args:
        path: the site's `site.toml`.

    Raises:
        RuntimeError: any error but a ConsiliumError; its text may go to the server.
    """
    config, began = settings_of(path), time.monotonic()
    try:
        books = books_of(path)
        order = books.orders.open(signed, payload)
    except ConsiliumError as error:
        log.error("order refused error=%s message=%s", type(error).__name__, error)
        return _failure(config, NO_RUN, error, began).model_dump_json(), None
    try:
        answered = _obey(path, books, order, payload)
    except RuntimeError:
        _note_crash(books, order)
        raise
    try:
        head = _noted(books, order, answered)
    except StateError as error:  # what is not written down does not leave
        log.error("order answered in vain run=%s message=%s", order.run, error)
        return _failure(config, order.run, error, began).model_dump_json(), None
    return answered.reply.model_copy(update={"audit": head}).model_dump_json(), answered.content


def _note_crash(books: Books, order: Order) -> None:
    """Write down an order whose answer crashed; that this cannot be written is for this site's log alone."""
    try:
        books.audit.note("RuntimeError", entry_of_crash(order))
        books.orders.answered(order)
    except StateError as error:
        log.error("crash not written down run=%s message=%s", order.run, error)


def _noted(books: Books, order: Order, answered: Answered) -> AuditHead | None:
    """Write an order into the audit log, and as answered into the ledger; return the log's new head."""
    signed = books.audit.note(answer_in(answered), entry_of(order, answered))
    head = AuditHead(**asdict(signed)) if signed is not None else None
    if answered.is_used:
        books.orders.answered(order, answered.plan if answered.is_obeyed else None, audit=head)
    return head


def _obey(path: Path, books: Books, order: Order, payload: Payload | None) -> Answered:
    """Do what an order asks; one that is refused before anything was done is not used up."""
    config, began = settings_of(path), time.monotonic()
    plan: Plan | None = None
    try:
        policy = policy_of(path, otherwise=DEFAULTS)
        case = _case(path, config, policy, order.run, recent=books.audit.obeyed())
        check("order", case)
        if order.kind == "flower":
            check("app", case)
            folder = path.resolve().parent
            asked = admit_flower(config, folder, order, books.orders)
        else:
            with only(config.parts):
                plan = parse_plan(order.text)
            books.orders.admit(order, plan)
            reply, content = answer_plan(path, plan, payload, otherwise=DEFAULTS)
            return Answered(reply, content, plan, _shared(path, plan))
    except ConsiliumError as error:
        log.error("order refused run=%s number=%d message=%s", order.run, order.number, error)
        return Answered(_failure(config, order.run, error, began), plan=plan, is_used=False)
    try:
        return Answered(*answer_flower(config, folder, asked, payload))
    except ConsiliumError as error:
        log.error("app failed run=%s number=%d message=%s", order.run, order.number, error)
        return Answered(_failure(config, order.run, error, began))


def answer_plan(
    path: Path, plan: Plan, payload: Payload | None, *, otherwise: PolicyConfig = UNBOUND
) -> tuple[Reply, bytes | None]:
    """Answer one plan; a ConsiliumError becomes a FailureReply, never a stack trace on the wire.

    Args:
        path: the site's `site.toml`.
        otherwise: the policy of a site that has no `policy.toml`.

    Raises:
        RuntimeError: any other error; its text may go to the server.
    """
    config, began = settings_of(path), time.monotonic()
    try:
        if plan.site != config.name:
            raise ProtocolError(f"the plan is for site '{plan.site}', this is site '{config.name}'")
        with only(config.parts):
            policy = policy_of(path, otherwise=otherwise)
            warm = _warmed(path, config, policy, plan)
            facts = warm.site.facts
            if warm.allowed is not facts:
                case = _case(path, config, policy, plan.run, study=warm.study, digest=warm.digest)
                check("data", with_data(case, facts.card, facts.shared))
                _warm[path] = warm = replace(warm, allowed=facts)
            answered, content = warm.site.answer(plan, payload)
            reply = as_it_leaves(answered, policy, noised=warm.study.privacy.examples is not None)
            if isinstance(plan, HandshakePlan):
                note_study(config, warm.study, run=plan.run, changes=check_accepted(path, config, warm.study))
        note_answer(config, warm.study, plan, reply, bytes_up=len(content or b""), bytes_down=len(payload or b""))
        log.info("plan answered kind=%s run=%s seconds=%.2f", plan.kind, plan.run, reply.seconds)
        return reply, content
    except ConsiliumError as error:
        log.error("plan failed kind=%s error=%s message=%s", plan.kind, type(error).__name__, error)
        note_failure(config, study := _study_of(path, plan), plan, error)
        private = study is None or study.privacy.examples is not None
        return _failure(config, plan.run, error, began, private=private), None
    except Exception as error:
        # The text of this error can hold a path or a value, and would go to the server.
        log.exception("plan failed unexpectedly kind=%s", plan.kind)
        note_failure(config, _study_of(path, plan), plan, error)
        raise RuntimeError(f"unexpected {type(error).__name__}; the log of site '{config.name}' says more") from None


def _failure(
    config: SiteConfig, run: str, error: ConsiliumError, began: float, *, private: bool = False
) -> FailureReply:
    return FailureReply(
        run=run,
        site=config.name,
        pid=os.getpid(),
        seconds=time.monotonic() - began,
        error=type(error).__name__,
        message=_disclosed(error, config, private=private),
    )


def _warmed(path: Path, config: SiteConfig, policy: PolicyConfig, plan: Plan) -> _Warm:
    """Return the plan's study with its Site, from memory if they are there.

    Raises:
        ConsiliumError: another study than this site accepted, than its policy allows, or than the run began with; data
            or model do not fit.
    """
    warm = _warm.get(path)
    is_same = warm is not None and (warm.config, warm.policy) == (config, policy)
    if isinstance(plan, HandshakePlan):
        study, digest, site = plan.study, study_digest(plan.study), None
    elif warm is not None and is_same and (warm.run, warm.digest) == (plan.run, plan.study):
        study, digest, site = warm.study, warm.digest, warm.site
    else:
        digest = plan.study
        study = study_of(config.state_dir, run=plan.run, digest=digest, site=config.name)
        site = warm.site if warm is not None and is_same and warm.digest == digest else None
    known = warm if warm is not None and site is warm.site and warm.run == plan.run else None
    stage: Stage = "study" if known is None or known.allowed is None else "again"
    check(stage, _case(path, config, policy, plan.run, study=study, digest=digest))
    check_accepted(path, config, study)
    if known is not None:
        return known
    _warm.pop(path, None)
    del warm  # frees its data and model before those that replace them are read
    if sum(other.site.size for other in _warm.values()) > LEAST_WARM_BYTES and not has_room():
        _warm.popitem()  # the newest: sites are asked in turn, so the oldest is needed next
    _warm[path] = _Warm(config, policy, plan.run, study, digest, site or Site(config, study, policy=policy))
    return _warm[path]


def _case(
    path: Path,
    config: SiteConfig,
    policy: PolicyConfig,
    run: str,
    *,
    recent: int = 0,
    study: StudyConfig | None = None,
    digest: str = "",
) -> Case:
    return Case(config.name, run, policy, path.parent, config.state_dir, recent=recent, study=study, digest=digest)


def _shared(path: Path, plan: Plan) -> frozenset[str]:
    """Return the names of the arrays that may leave in a run, as far as they are known."""
    warm = _warm.get(path)
    return frozenset(warm.site.facts.shared) if warm is not None and warm.run == plan.run else frozenset()


def forget_sites() -> None:
    """Let go of every site's data and model, and of its books and its policy."""
    _warm.clear()
    close_books()
    forget_policies()
    forget_sizes()


def _disclosed(error: ConsiliumError, config: SiteConfig, *, private: bool) -> str:
    """Return what the server may know of an error: paths and file names can hold patients' names.

    Args:
        private: the study is private, or unknown: what is wrong with data is not told, whatever the settings say.
    """
    if config.share_error_details and not private:
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
