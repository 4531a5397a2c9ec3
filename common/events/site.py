"""What a site does, as records: its audit trail, and the source of its metrics.

They are dataclasses, since the process that talks to the server reads them: it has no room for pydantic.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from common.events.log import Vocabulary
from common.events.plain import checked

OF_THE_PLAN = frozenset(("protocol", "codecs", "kind", "site", "versions", "run", "seconds"))
"""Fields of a reply that a site's log has from the plan, rounded, or not at all."""


@dataclass(frozen=True, kw_only=True)
class SiteEvent:
    """Something that a site did; its name is a label of its log."""

    name: ClassVar[str]
    for_the_record: ClassVar[bool] = False
    """Whether no program reads it: it is there for people."""
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    site: str | None = None

    def values(self) -> dict[str, Any]:
        """Return its own fields as JSON has them, without the time, and without those that are absent by default."""
        own = [each for each in fields(self) if each.name != "time"]
        absent = {each.name for each in own if each.default is None and getattr(self, each.name) is None}
        return {each.name: getattr(self, each.name) for each in own if each.name not in absent}

    @classmethod
    def read(cls, content: Mapping[str, Any], *, where: str) -> Self:
        """Return the event in a line of a log; fields that are not known here are passed over.

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


SITE_EVENTS = Vocabulary[SiteEvent](PlanAnswered, PlanFailed, MessageAnswered)
"""Of a site's log."""
