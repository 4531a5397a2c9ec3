"""A run's event log as an auditor reads it: the study, the sites, and every round as often as it was run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from consilium.common.errors import ConfigError, StateError
from consilium.common.events.run import (
    STUDY_EVENTS,
    AnswerRejected,
    RoundAsked,
    RoundFinished,
    RoundUndone,
    RunEvent,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteJoined,
    SitesAgreed,
    UpdateAccepted,
)
from consilium.common.protocol.plans import study_digest
from consilium.common.results import SiteFacts
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig


@dataclass(frozen=True)
class Attempt:
    """A round that was applied; one that a crash undid is there too, and once more where it was run again.

    Args:
        place: where its line lies, for sentences.
        accepted: the event of each accepted update.
        class_counts: training examples per class, of the sites that shared them by then.
        buffers: names of the shared arrays that gradients do not move.
        after: the round that it went on from.
    """

    place: str
    event: RoundFinished
    accepted: Mapping[str, UpdateAccepted]
    class_counts: Mapping[str, Mapping[str, int]]
    buffers: frozenset[str]
    after: int

    @property
    def number(self) -> int:
        """The round."""
        return self.event.round


@dataclass(frozen=True)
class RunLog:
    """What a run's log says.

    Args:
        attempts: all rounds that were applied, in their order.
        starts: digests of the global weights that the run began or went on with, and the rounds before these.
        events: all, in their order.
    """

    study: StudyConfig
    digest: str
    attempts: tuple[Attempt, ...]
    starts: tuple[tuple[int, str], ...]
    agreed: SitesAgreed
    sites: Mapping[str, SiteFacts]
    finished: RunFinished | None
    events: tuple[RunEvent, ...] = field(repr=False)

    @property
    def final(self) -> tuple[Attempt, ...]:
        """The rounds that the final weights are made of: of each, the last time that it was run."""
        last = {one.number: one for one in self.attempts}
        return tuple(last[number] for number in sorted(last))


@dataclass
class _Reading:
    """How far a log was read."""

    attempts: list[Attempt] = field(default_factory=list)
    starts: list[tuple[int, str]] = field(default_factory=list)
    accepted: dict[str, UpdateAccepted] = field(default_factory=dict)
    sites: dict[str, SiteFacts] = field(default_factory=dict)
    agreed: SitesAgreed | None = None
    started: RunStarted | None = None
    finished: RunFinished | None = None
    resumed: int = 0
    after: int = 0

    def take(self, event: RunEvent, place: str) -> None:
        """Take in one event.

        Raises:
            StateError: it cannot follow on those before it.
        """
        match event:
            case RunStarted():
                self.started, self.resumed = _one_study(self.started, event, place), 0
            case RoundUndone():
                self.after, self.accepted = event.round - 1, {}
            case RunResumed():
                self.resumed = event.round
            case SitesAgreed():
                self.agreed, self.after = event, self.resumed
                self.sites |= event.sites
                self.starts.append((self.after, event.weights))
            case SiteJoined():
                self.sites[event.site] = event
            case RoundAsked():
                self.accepted = {}
            case UpdateAccepted():
                self.accepted[event.site] = event
            case AnswerRejected():  # also an update that all others of the round showed to be too long
                self.accepted.pop(event.site, None)
            case RoundFinished():
                self._finish(event, place)
            case RunFinished():
                self.finished = event

    def _finish(self, event: RoundFinished, place: str) -> None:
        if event.round != self.after + 1:
            raise StateError(f"{place}: round {event.round} follows round {self.after}, expected {self.after + 1}")
        counts = {site: facts.class_counts for site, facts in self.sites.items() if facts.class_counts is not None}
        buffers = frozenset(self.agreed.buffers if self.agreed is not None else ())
        self.attempts.append(Attempt(place, event, self.accepted, counts, buffers, self.after))
        self.after, self.accepted = event.round, {}


def read_run_log(path: Path) -> RunLog:
    """Return what a run's log says.

    Raises:
        ConfigError: it is the log of no study's run, or of a release that wrote down less than an audit needs.
        StateError: an event is wrong, or cannot follow on those before it; names its line.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise ConfigError(f"there is no run to audit: cannot read '{path}': {error.strerror or error}") from error
    reading, events = _Reading(), list[RunEvent]()
    for number, line in enumerate(lines, start=1):
        place = f"event log '{path}', line {number}"
        if (event := STUDY_EVENTS.read(line, where=place)) is not None:
            events.append(event)
            reading.take(event, place)
    if reading.started is None or not reading.started.settings or reading.agreed is None:
        raise ConfigError(
            f"'{path}' does not hold the study's settings and the sites that agreed on them: it is the log of a "
            "Flower app, of a run that ended before its sites had agreed, or of an earlier release"
        )
    return RunLog(
        study=_study_of(reading.started, path),
        digest=reading.started.digest,
        attempts=tuple(reading.attempts),
        starts=tuple(reading.starts),
        agreed=reading.agreed,
        sites=reading.sites,
        finished=reading.finished,
        events=tuple(events),
    )


def _one_study(before: RunStarted | None, event: RunStarted, place: str) -> RunStarted:
    if before is not None and before.digest != event.digest:
        raise StateError(f"{place}: the run went on with other settings of the study than it began with")
    return event


def _study_of(started: RunStarted, path: Path) -> StudyConfig:
    study = parse_study(started.settings, source=str(path))
    if study_digest(study) != started.digest:
        raise StateError(
            f"event log '{path}': the settings in 'started' are not those of the study whose SHA-256 it names, "
            f"{started.digest}"
        )
    return study
