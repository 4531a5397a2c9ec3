"""The events of a site, as records: its audit trail, and the source of its metrics.

They are dataclasses because the process that talks to the server reads them and is to stay small, without pydantic.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from consilium.common.events.log import Vocabulary
from consilium.common.events.plain import checked

OF_THE_PLAN = frozenset(
    (*("protocol", "codecs", "kind", "site", "versions", "run", "seconds"), *("signed", "attempt", "audit"))
)
"""Fields of a reply that its event takes from the plan, rounds, or leaves out."""


@dataclass(frozen=True, kw_only=True)
class SiteEvent:
    """Something that a site did; its name is a label of its log."""

    name: ClassVar[str]
    for_the_record: ClassVar[bool] = False
    """Whether it is written for people only, and read by no program."""
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    site: str | None = None

    def values(self) -> dict[str, Any]:
        """Return its own fields as JSON has them, without the time, and without those that are absent by default."""
        own = [each for each in fields(self) if each.name != "time"]
        absent = {each.name for each in own if each.default is None and getattr(self, each.name) is None}
        return {each.name: getattr(self, each.name) for each in own if each.name not in absent}

    @classmethod
    def read(cls, content: Mapping[str, Any], *, where: str) -> Self:
        """Return the event in a line of a log; unknown fields are ignored.

        Raises:
            StateError: a field is missing or wrong; names `where`.
        """
        return checked(cls, content, where=where)


@dataclass(frozen=True, kw_only=True)
class PlanAnswered(SiteEvent):
    """The site answered a plan; the fields from `pid` on are those of the reply, as JSON has them."""

    name = "answered"
    study: str
    run: str
    kind: str
    seconds: float
    bytes_up: int
    bytes_down: int
    codec: str
    epochs: float | None
    """Passes over the training examples, where it was a round's plan."""
    pid: int
    card: dict[str, Any] | None = None
    initial_digest: str | None = None
    shared_digest: str | None = None
    shared_buffers: tuple[str, ...] | None = None
    round: int | None = None
    num_examples: int | None = None
    metrics: dict[str, float] | None = None
    test: dict[str, Any] | None = None
    privacy: dict[str, Any] | None = None
    """What the study has spent here of its privacy budget, after this answer; see `PrivacySpent`."""
    state_of: int | None = None
    """The round of an earlier state that stood in for a damaged one; 0: the site began anew."""


@dataclass(frozen=True, kw_only=True)
class PlanFailed(SiteEvent):
    """The site could not do what a plan asked; `study` is None where the plan did not say which."""

    name = "failed"
    study: str | None
    run: str
    kind: str
    error: str
    """A class of `common/errors.py`, or of Python."""
    message: str


@dataclass(frozen=True, kw_only=True)
class BundleAccepted(SiteEvent):
    """A coordinator's bundle was accepted at the site."""

    name = "bundle"
    for_the_record = True
    study: str | None
    """Name of the study in it; None where it held none."""
    server: str
    checksum: str
    """SHA-256 over everything in it; the check code is its beginning."""
    ranges: dict[str, str] | None = None
    """In words, settings that the study may later be run with other values of."""


@dataclass(frozen=True, kw_only=True)
class StudyAsked(SiteEvent):
    """A run began here with a study that this site obeys: the accepted one, or one inside its ranges."""

    name = "study"
    for_the_record = True
    study: str
    run: str
    digest: str
    """SHA-256 of the study as this site sees it."""
    changes: dict[str, str] | None = None
    """Settings that differ from the accepted ones: what was asked for, and what was accepted."""


@dataclass(frozen=True, kw_only=True)
class MessageAnswered(SiteEvent):
    """The ClientApp of a Flower app answered a message."""

    name = "flower"
    for_the_record = True
    run: str
    app: str
    """Digest of the app."""
    type: str
    seconds: float
    bytes_down: int
    bytes_up: int


SITE_EVENTS = Vocabulary[SiteEvent](PlanAnswered, PlanFailed, BundleAccepted, StudyAsked, MessageAnswered)
"""The events in a site's log."""
