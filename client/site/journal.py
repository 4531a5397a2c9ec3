"""A site's own event log: its audit trail, and the source of its metrics."""

import contextlib
from collections.abc import Mapping

from consilium.common.errors import StateError
from consilium.common.events.log import EventLog
from consilium.common.events.site import OF_THE_PLAN, BundleAccepted, PlanAnswered, PlanFailed, StudyAsked
from consilium.common.host.files import scratch_here
from consilium.common.protocol.plans import Plan, study_digest
from consilium.common.protocol.replies import Reply, RoundReply
from consilium.common.study.bundle import Bundle
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import TrainingConfig


def _is_read() -> bool:
    """Say whether anybody will read a log: in `scratch` nobody does, and a line costs more than a small step."""
    return scratch_here() is None


def event_log(config: SiteConfig) -> EventLog:
    """Return the event log of a site: what it accepted, every plan that was answered, and every one that failed."""
    return EventLog(config.state_dir / "events.jsonl", {"site": config.name}, endless=True)


def note_answer(
    config: SiteConfig, study: StudyConfig, plan: Plan, reply: Reply, *, bytes_up: int, bytes_down: int
) -> None:
    """Write an answer to the event log.

    Args:
        bytes_up, bytes_down: of the payloads.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
    if not _is_read():
        return
    event = PlanAnswered(
        study=study.name,
        run=plan.run,
        kind=plan.kind,
        seconds=round(reply.seconds, 4),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        codec=study.codec,
        epochs=epochs_of(study.training, reply.num_examples) if isinstance(reply, RoundReply) else None,
        **reply.model_dump(mode="json", exclude=set(OF_THE_PLAN)),
    )
    event_log(config).log(event)


def note_study(config: SiteConfig, study: StudyConfig, *, run: str, changes: Mapping[str, str]) -> None:
    """Write down which study a run begins with here.

    Args:
        changes: settings that differ from the accepted study's, with what was asked for and accepted.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
    if _is_read():
        event = StudyAsked(study=study.name, run=run, digest=study_digest(study), changes=dict(changes) or None)
        event_log(config).log(event)


def note_bundle(config: SiteConfig, bundle: Bundle, *, study: str | None, ranges: Mapping[str, str]) -> None:
    """Write down that a bundle was accepted.

    Args:
        study: name of the study in it.
        ranges: in words, the settings that may later have other values.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
    event = BundleAccepted(study=study, server=bundle.server, checksum=bundle.checksum(), ranges=dict(ranges) or None)
    event_log(config).log(event)


def note_failure(config: SiteConfig, study: StudyConfig | None, plan: Plan, error: Exception) -> None:
    """Write a failure to the event log if that is possible: the disk may be what failed."""
    with contextlib.suppress(StateError):
        event_log(config).log(
            PlanFailed(
                study=study.name if study is not None else None,
                run=plan.run,
                kind=plan.kind,
                error=type(error).__name__,
                message=str(error),
            )
        )


def epochs_of(training: TrainingConfig, num_examples: int) -> float:
    """Return how many passes over the training examples a round's work is."""
    if training.epochs is not None:
        return training.epochs
    return round((training.steps or 0) * training.batch_size / max(num_examples, 1), 6)
