"""Composition root of the Flower ClientApp: find this site's settings, answer the plan, say what failed."""

import contextlib
import logging
import os
import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.flower import pack, plan_of
from client.site import Site
from client.site_state import event_log
from common.codecs import Payload
from common.config import SiteConfig, StudyConfig, TrainingConfig, load_site, load_study
from common.errors import ConfigError, ConsiliumError, DataError, ProtocolError, StateError
from common.protocol import FailureReply, Plan, Reply, RoundReply

log = logging.getLogger(__name__)

app = ClientApp()

MOST_WARM = 64
"""How many sites one process keeps in memory; a federation of thousands in one process does not grow with them."""
_warm: dict[Path, tuple[SiteConfig, StudyConfig, Site]] = {}
"""The last study's Site per settings file: data and model stay in memory from message to message."""


@app.train()
def answer(message: Message, context: Context) -> Message:
    """Answer the plan in a message: Flower's way in, for a federation in one process."""
    plan, payload = plan_of(message)
    reply, content = answer_plan(Path(str(context.node_config["site"])), plan, payload)
    return Message(pack(reply.model_dump_json(), content), reply_to=message)


def answer_plan(path: Path, plan: Plan, payload: Payload | None) -> tuple[Reply, bytes | None]:
    """Answer one plan; a failure that has a sentence becomes a FailureReply, never a stack trace on the wire.

    Args:
        path: the site's `site.toml`.

    Raises:
        RuntimeError: anything else; its text may go to the server.
    """
    try:
        config = load_site(path)
    except ConfigError as error:
        log.error("settings cannot be used message=%s", error)
        raise RuntimeError("this site's settings cannot be used; its log says why") from None
    began = time.monotonic()
    try:
        if plan.site != config.name:
            raise ProtocolError(f"the plan is for site '{plan.site}', this is site '{config.name}'")
        reply, content = _site(path, config, plan).answer(plan, payload)
        _note(config, plan, reply, bytes_up=len(content or b""), bytes_down=len(payload or b""))
        log.info("plan answered kind=%s run=%s seconds=%.2f", plan.kind, plan.run, reply.seconds)
        return reply, content
    except ConsiliumError as error:
        log.error("plan failed kind=%s error=%s message=%s", plan.kind, type(error).__name__, error)
        _note_failure(config, plan, error)
        failure = FailureReply(
            run=plan.run,
            site=config.name,
            pid=os.getpid(),
            seconds=time.monotonic() - began,
            error=type(error).__name__,
            message=_told(error, config),
        )
        return failure, None
    except Exception as error:
        # Its text would go to the server, and it can hold a path or a value.
        log.exception("plan failed unexpectedly kind=%s", plan.kind)
        _note_failure(config, plan, error)
        raise RuntimeError(f"unexpected {type(error).__name__}; the log of site '{config.name}' says more") from None


def _site(path: Path, config: SiteConfig, plan: Plan) -> Site:
    _check_accepted(path, plan.study)
    warm = _warm.get(path)
    if warm is None or warm[:2] != (config, plan.study) or plan.kind == "handshake":
        _warm.pop(path, None)
        if len(_warm) >= MOST_WARM:
            _warm.popitem()  # the last that came: sites are asked in turn, and the oldest would always be the next
        _warm[path] = (config, plan.study, Site(config, plan.study))
    return _warm[path][2]


def forget_sites() -> None:
    """Let go of every site's data and model."""
    _warm.clear()


def _check_accepted(path: Path, study: StudyConfig) -> None:
    """Refuse a study other than the one this site accepted, if it accepted one (`study.toml` beside `site.toml`).

    Raises:
        ConfigError: names the settings that differ.
    """
    accepted_file = path.parent / "study.toml"
    if not accepted_file.is_file():
        return
    accepted, asked = load_study(accepted_file).model_dump(), study.model_dump()
    if differing := sorted(key for key in asked if asked[key] != accepted[key]):
        raise ConfigError(
            f"the server asks for another study than the one this site accepted; they differ in {', '.join(differing)}"
        )


def _told(error: ConsiliumError, config: SiteConfig) -> str:
    """Return what the server may know of an error: paths and file names can hold patients' names."""
    if config.share_error_details:
        return str(error)
    if isinstance(error, DataError | StateError):
        return f"{type(error).__name__}; the sentence that says why is in the log of site '{config.name}'"
    text = str(error)
    for folder in (config.weights_dir, config.state_dir, config.data.path):
        text = text.replace(str(folder), f"<{folder.name}>") if folder is not None else text
    return text


def _note(config: SiteConfig, plan: Plan, reply: Reply, *, bytes_up: int, bytes_down: int) -> None:
    """Write what was answered to this site's own event log: its audit trail, and the source of its metrics."""
    facts = reply.model_dump(mode="json", exclude={"protocol", "codecs", "kind", "site", "versions", "run", "seconds"})
    event_log(config).log(
        "answered",
        study=plan.study.name,
        run=plan.run,
        kind=plan.kind,
        seconds=round(reply.seconds, 4),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        codec=plan.study.codec,
        epochs=_epochs(plan.study.training, reply.num_examples) if isinstance(reply, RoundReply) else None,
        **facts,
    )


def _epochs(training: TrainingConfig, num_examples: int) -> float:
    """Return how many passes over the training examples a round's work is."""
    if training.epochs is not None:
        return training.epochs
    return round((training.steps or 0) * training.batch_size / max(num_examples, 1), 6)


def _note_failure(config: SiteConfig, plan: Plan, error: Exception) -> None:
    with contextlib.suppress(StateError):  # the disk may be what failed
        event_log(config).log(
            "failed",
            study=plan.study.name,
            run=plan.run,
            kind=plan.kind,
            error=type(error).__name__,
            message=str(error),
        )
