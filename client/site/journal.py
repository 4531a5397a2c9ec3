"""A site's own event log: its audit trail, and the source of its metrics."""

import contextlib

from consilium.common.errors import StateError
from consilium.common.events.log import EventLog
from consilium.common.events.site import OF_THE_PLAN, PlanAnswered, PlanFailed
from consilium.common.protocol.plans import Plan
from consilium.common.protocol.replies import Reply, RoundReply
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import TrainingConfig


def event_log(config: SiteConfig) -> EventLog:
    """Return the event log of a site: every plan that was answered, and every one that failed."""
    return EventLog(config.state_dir / "events.jsonl", {"site": config.name})


def note_answer(
    config: SiteConfig, study: StudyConfig, plan: Plan, reply: Reply, *, bytes_up: int, bytes_down: int
) -> None:
    """Write an answer to the event log.

    Args:
        bytes_up, bytes_down: of the payloads.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
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
