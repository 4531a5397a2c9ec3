"""The events of a run, as records: of a study (the server's journal holds those of all runs), and of a Flower app."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from consilium.common.errors import StateError
from consilium.common.events.log import Vocabulary
from consilium.common.protocol.audit import AuditHead
from consilium.common.protocol.cards import Versions
from consilium.common.protocol.replies import PrivacySpent
from consilium.common.results import RoundRecord, SiteFacts, Stopped
from consilium.common.study.sentences import describe


class RunEvent(BaseModel):
    """Something that happened in a run: immutable, no NaN; study and run are labels of the server's journal."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
    name: ClassVar[str]
    for_the_record: ClassVar[bool] = False
    """Whether it is written for people only, and read by no program."""
    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    study: str | None = Field(default=None, exclude_if=lambda study: study is None)
    run: str | None = Field(default=None, exclude_if=lambda run: run is None)

    def values(self) -> dict[str, Any]:
        """Return its own fields as JSON has them, without the time."""
        return self.model_dump(mode="json", exclude={"time"})

    @classmethod
    def read(cls, content: Mapping[str, Any], *, where: str) -> Self:
        """Return the event in a line of a log; unknown fields are ignored.

        Raises:
            StateError: a field is missing or wrong; names `where`.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise StateError(describe(error, where)) from error


class ServerStarted(RunEvent):
    """The server started; no earlier run is still running."""

    name = "server_started"


class RunSubmitted(RunEvent):
    """A person asked for the run, or for its continuation; of a `study` or an `app`."""

    name = "submitted"
    app: str | None = Field(default=None, exclude_if=lambda app: app is None)


class RunStarted(RunEvent):
    """The run's process read the study."""

    name = "started"
    rounds: int
    sites: tuple[str, ...]
    quorum: int
    method: str
    strategy: str
    codec: str
    metrics: tuple[str, ...] = Field(default=(), exclude_if=lambda metrics: not metrics)
    """What sites measure in addition to loss and accuracy."""
    digest: str = ""
    """SHA-256 of the study's settings, which names them in plans and checkpoints."""
    settings: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda settings: not settings)
    """The study itself: with it an audit needs no other file to recompute shares."""


class SitesOnline(RunEvent):
    """Other sites than before are connected, before the first round."""

    name = "waiting"
    online: tuple[str, ...]


class RunWarning(RunEvent):
    """Something that a person should know, and that does not end the run."""

    name = "warning"
    message: str


class SitesAgreed(RunEvent):
    """The sites have the same versions, data schema and initial weights."""

    name = "agreed"
    parts: dict[str, str] = Field(default_factory=dict, exclude_if=lambda parts: not parts)
    """Packages of one's own that the study uses: name and version with the digest of its files."""
    versions: Versions | None = None
    """Of the code, equal at all sites."""
    weights: str = ""
    """Digest (SHA-256) of the global weights that the next round begins with."""
    buffers: tuple[str, ...] = Field(default=(), exclude_if=lambda buffers: not buffers)
    """Names of the shared arrays that gradients do not move."""
    sites: dict[str, SiteFacts]


class RunResumed(RunEvent):
    """The run goes on from its checkpoint, after this round."""

    name = "resumed"
    round: int


class SiteJoined(SiteFacts, RunEvent):
    """A site that came late takes part from this round on."""

    model_config = ConfigDict(extra="ignore")
    name = "joined"
    round: int
    site: str


class RoundAsked(RunEvent):
    """The cohort of a round was asked."""

    name = "asked"
    round: int
    sites: tuple[str, ...]
    quorum: int


class UpdateAccepted(RunEvent):
    """A site's update was decoded, checked and accepted."""

    name = "answered"
    round: int
    site: str
    metrics: dict[str, float]
    num_examples: int | None = None
    """Training examples behind the update, as the site announced them."""
    update: str = ""
    """Digest (SHA-256) of the update as it was decoded; empty where the server sees sums over sites only."""
    stale: int = Field(default=0, ge=0, exclude_if=lambda stale: stale == 0)
    """How many rounds before this one the site's weights were sent, in a study whose rounds are buffered."""


class AnswerRejected(RunEvent):
    """A site's answer cannot be used: in the handshake of a newcomer, in a round, or at the finish."""

    name = "rejected"
    round: int
    site: str
    reason: str
    """Short and bounded, e.g. `timeout`."""
    message: str


class SiteSetAside(RunEvent):
    """A site's answers were rejected again and again for what they held; no further round asks it."""

    name = "set_aside"
    round: int
    site: str
    strikes: int
    """How many in a row were."""
    reason: str
    """Of the last one; short and bounded, e.g. `norm`."""
    message: str


class RoundUndone(RunEvent):
    """After a round the loss of most sites jumped: it is run again without the sites that made its step."""

    name = "undone"
    round: int
    sites: tuple[str, ...]
    weights: str
    """Digest (SHA-256) of the weights from before the round, with which the run goes on."""
    message: str


class HeadsNoted(RunEvent):
    """Sites answered a plan; each reply had the head of the site's audit log, signed by the site."""

    name = "audit"
    heads: dict[str, AuditHead]


class WeightingFallback(RunEvent):
    """The round was not weighted as the study says."""

    name = "weighting"
    round: int
    message: str


class RoundFinished(RoundRecord, RunEvent):
    """A round's updates were applied."""

    model_config = ConfigDict(extra="ignore")
    name = "round"
    weights_before: str = ""
    """Digest (SHA-256) of the global weights before the round."""
    weights: str = ""
    """Digest of the global weights after it."""


class RoundFailed(RoundRecord, RunEvent):
    """A round had too few usable updates."""

    model_config = ConfigDict(extra="ignore")
    name = "round_failed"


class RunPaused(RunEvent):
    """Too few sites answer, or the server's disk is full; the run waits until that is over and goes on by itself."""

    name = "paused"
    round: int
    """Of the round that cannot be ended; 0 before the first."""
    usable: int
    quorum: int
    missing: tuple[str, ...]
    why: str = Field(default="", exclude_if=lambda why: not why)
    """A sentence, where it does not wait for sites."""


class RunWentOn(RunEvent):
    """What a run waited for in a pause is there again."""

    name = "went_on"
    round: int
    seconds: float


class CheckpointSaved(RunEvent):
    """The state after a round is on the disk."""

    name = "checkpoint"
    round: int


class StoppedEarly(Stopped, RunEvent):
    """The study ends with this round, as its stopping says: what sites measure no longer improves."""

    model_config = ConfigDict(extra="ignore")
    name = "stopped_early"


class FinishAsked(RunEvent):
    """All sites were asked to read their test split."""

    name = "finishing"
    round: int
    sites: tuple[str, ...]


class RunFinished(RunEvent):
    """The run ended with its result."""

    name = "finished"
    seconds: float
    result: str = ""
    """SHA-256 of the file `result.json`."""
    model: str = ""
    """SHA-256 of the file `model/model.json`, which names the SHA-256 of the final weights' file."""
    privacy: dict[str, PrivacySpent] = Field(default_factory=dict, exclude_if=lambda privacy: not privacy)
    """What a private study has spent at each site in all."""


class RunFailure(RunEvent):
    """The run ended without a result."""

    name = "failed"
    error: str
    """A class of `common/errors.py`."""
    message: str


class RunStopped(RunEvent):
    """A person ended the run."""

    name = "stopped"


class AppStarted(RunEvent):
    """The ServerApp of a Flower app was called."""

    name = "started"
    app: str
    digest: str
    sites: tuple[str, ...] | None
    """None: every approved site."""
    config: dict[str, Any]


class MessagesAsked(RunEvent):
    """A ServerApp sent messages and received the replies that came in time."""

    name = "asked"
    type: str
    group: str
    messages: int
    answered: int
    seconds: float
    problems: tuple[str, ...]


STUDY_EVENTS = Vocabulary[RunEvent](
    *(ServerStarted, RunSubmitted, RunStarted, SitesOnline, RunWarning, SitesAgreed, RunResumed, SiteJoined),
    *(RoundAsked, UpdateAccepted, AnswerRejected, HeadsNoted, WeightingFallback, RoundFinished, RoundFailed),
    *(SiteSetAside, RoundUndone),
    *(RunPaused, RunWentOn, CheckpointSaved, StoppedEarly, FinishAsked, RunFinished, RunFailure, RunStopped),
)
"""The events in the log of a study's run, and in the server's journal."""

APP_EVENTS = Vocabulary[RunEvent](RunSubmitted, AppStarted, MessagesAsked, RunFinished, RunFailure, RunStopped)
"""The events in the log of a Flower app's run."""
