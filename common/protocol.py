"""The one description of a message between server and site, and its protocol version.

A request is a plan (JSON) and, where it carries weights, one payload (bytes of a codec). A site answers
every plan once, with a reply (JSON) and at most one payload. Both sides validate what they receive:
it crosses a trust boundary. Arrays are packed into one payload because Flower pays per array.
"""

import hashlib
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from common.config import SiteName, StudyConfig, describe
from common.errors import ProtocolError
from common.records import Record

PROTOCOL_VERSION = 2
"""Of plans and replies; every change that another release could misread raises it."""
CODEC_VERSION = 1
"""Of the bytes of payloads, of every codec and of the container."""
PLAN_RECORD = "consilium"
MAX_TEXT_BYTES = 1_000_000

SMALL_PAYLOAD_BYTES = 1_000_000
"""Up to here a payload travels in the message itself; above, beside it in chunks."""
CHUNK_BYTES = 2**22
"""The size of all chunks of a payload but the last: what one request holds of it in the server's memory."""
MAX_CHUNKS = 20_000
"""Of one payload: 40 GB."""
MAX_MESSAGE_BYTES = 16_000_000
"""The largest request that a server reads from a site."""
REPLY_GRACE_SECONDS = 60.0
"""How much longer than a site may work on it a plan is kept for its reply to arrive."""

CONTROL = "control/"
"""Prefix of control variates in a payload (SCAFFOLD), both ways; names of a model hold no `/`."""

T = TypeVar("T")


RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A run's name is a folder's name at server and sites, so it cannot hold a path."""


class _Plan(Record):
    protocol: Literal[2] = 2
    codecs: Literal[1] = 1
    study: StudyConfig
    run: RunName
    site: SiteName


class HandshakePlan(_Plan):
    """Before round 1: who are you, what do you hold, which initial weights would you build?"""

    kind: Literal["handshake"] = "handshake"


class InitialWeightsPlan(_Plan):
    """Send the initial weights whose digest all sites agreed on (asked of one site)."""

    kind: Literal["initial_weights"] = "initial_weights"


class RoundPlan(_Plan):
    """Evaluate the weights received, train, evaluate the served model, answer once.

    `share`: the part that this site's last update has in the weights sent; 0 if it is not in them.
    `base`: the round whose weights the payload is a difference from; None for weights in full.
    """

    kind: Literal["round"] = "round"
    round: int = Field(ge=1)
    share: float = Field(default=0.0, ge=0, le=1)
    base: int | None = Field(default=None, ge=1)


class FinishPlan(_Plan):
    """Personalise the final weights and read the test split, once."""

    kind: Literal["finish"] = "finish"
    round: int = Field(ge=0)


Plan = Annotated[HandshakePlan | InitialWeightsPlan | RoundPlan | FinishPlan, Field(discriminator="kind")]


class Versions(Record):
    """What must be equal at every site for equal results."""

    consilium: str
    flwr: str
    torch: str
    torchvision: str
    python: str


Count = Annotated[int, Field(ge=0, le=2**53)]
"""How many of something: a number that floating point holds exactly."""


class DataCard(Record):
    """What a site tells about its data: totals, class names, never an example."""

    num_examples: Count
    num_train: Count
    num_validation: Count
    num_test: Count
    num_skipped: Count
    classes: tuple[str, ...]
    class_counts: dict[str, Count] | None = None
    schema_digest: str


class _Reply(Record):
    protocol: Literal[2] = 2
    codecs: Literal[1] = 1
    run: str
    site: SiteName
    pid: int = Field(ge=1)
    seconds: float = Field(ge=0)


class HandshakeReply(_Reply):
    """The answer to a HandshakePlan: digests of all initial weights, and of the part that is shared.

    `shared_buffers`: names of the shared arrays that gradients do not move (BatchNorm's running statistics).
    """

    kind: Literal["handshake"] = "handshake"
    versions: Versions
    card: DataCard
    initial_digest: str
    shared_digest: str
    shared_buffers: tuple[str, ...]


class InitialWeightsReply(_Reply):
    """The answer to an InitialWeightsPlan; its payload holds the shared initial weights."""

    kind: Literal["initial_weights"] = "initial_weights"


class RoundReply(_Reply):
    """The answer to a RoundPlan; its payload holds the delta of the shared weights.

    `metrics` maps `global.loss`, `personal.accuracy`, `local.loss`, `train.loss`, ... to numbers, all
    on the site's validation split (`train.*`: on the batches trained).
    """

    kind: Literal["round"] = "round"
    round: int = Field(ge=1)
    num_examples: int
    metrics: dict[str, float]


class TestCounts(Record):
    """How many test examples each model got right; enough to recompute every interval.

    `pairs` counts the examples by (local right, personal right): both, only local, only personal,
    neither. Both it and `local` are None in a study without the local-only baseline. Counts only: no
    example, no score.
    """

    num_test: int = Field(ge=1)
    majority: int = Field(ge=0)
    local: int | None = Field(default=None, ge=0)
    global_: int | None = Field(default=None, ge=0)
    personal: int = Field(ge=0)
    pairs: tuple[int, int, int, int] | None = None

    @model_validator(mode="after")
    def _check(self) -> "TestCounts":
        if (self.pairs is None) != (self.local is None):
            raise ValueError("pairs and local are told together, or neither of them")
        if self.pairs is not None:
            both, only_local, only_personal, _ = self.pairs
            seen = (sum(self.pairs), both + only_local, both + only_personal)
            expected = (self.num_test, self.local, self.personal)
            if min(self.pairs) < 0 or seen != expected:
                raise ValueError(
                    f"pairs {self.pairs} give {seen} (tested, local right, personal right), expected {expected}"
                )
        if max(self.majority, self.global_ or 0, self.personal) > self.num_test:
            raise ValueError(f"more right than the {self.num_test} tested: {self.majority}, {self.global_}")
        return self


class FinishReply(_Reply):
    """The answer to a FinishPlan: the test split, read once."""

    kind: Literal["finish"] = "finish"
    round: int = Field(ge=0)
    test: TestCounts


class FailureReply(_Reply):
    """A site could not do what the plan asked; `error` is the class name of a ConsiliumError."""

    kind: Literal["failure"] = "failure"
    error: str
    message: str


Reply = Annotated[
    HandshakeReply | InitialWeightsReply | RoundReply | FinishReply | FailureReply,
    Field(discriminator="kind"),
]

_PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)
_REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)


def parse_plan(text: str) -> Plan:
    """Check a plan's JSON as the site receives it.

    Raises:
        ProtocolError: too long, not JSON, an unknown kind, or a field that is wrong.
    """
    return _parse(_PLAN, text, who="plan from the server")


def parse_reply(text: str, *, site: str) -> Reply:
    """Check a reply's JSON as the server receives it from `site`.

    Raises:
        ProtocolError: too long, not JSON, an unknown kind, or a field that is wrong.
    """
    return _parse(_REPLY, text, who=f"reply from site '{site}'")


def _parse(adapter: TypeAdapter[T], text: str, *, who: str) -> T:
    if len(text) > MAX_TEXT_BYTES:
        raise ProtocolError(f"{who} has {len(text)} characters, expected at most {MAX_TEXT_BYTES}")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise ProtocolError(_other_version(text, who) or describe(error, who)) from error


class _Spoken(BaseModel):
    protocol: int
    codecs: int = 0


def _other_version(text: str, who: str) -> str | None:
    """Return the sentence for a message of another version: what else is wrong with it follows from that."""
    try:
        spoken = _Spoken.model_validate_json(text)
    except ValidationError:
        return None
    if (spoken.protocol, spoken.codecs) == (PROTOCOL_VERSION, CODEC_VERSION):
        return None
    return (
        f"it is of protocol version {spoken.protocol} and codec version {spoken.codecs}, here they are "
        f"{PROTOCOL_VERSION} and {CODEC_VERSION}: install the same release of consilium at the server and at all "
        f"sites ({who})"
    )


def chunk_names(payload: str, size: int) -> list[str]:
    """Return the names of a payload's chunks, in order; both sides derive them from the payload's own.

    Args:
        payload: 64 hexadecimal digits.
        size: of the payload, in bytes.
    """
    return [hashlib.sha256(f"{payload}/{number}".encode()).hexdigest() for number in range(-(-size // CHUNK_BYTES))]
