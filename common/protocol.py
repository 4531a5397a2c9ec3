"""The one description of a message between server and site, and its protocol version.

A request is a plan (JSON) and, where it carries weights, one payload (bytes of a codec). A site answers
every plan once, with a reply (JSON) and at most one payload. Both sides validate what they receive:
it crosses a trust boundary. Arrays are packed into one payload because Flower pays per array.
"""

import hashlib
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError, model_validator

from common.data.patients import Patients
from common.data.scale import Moments, Scale
from common.errors import ProtocolError
from common.host.text import clean
from common.study.load import describe
from common.study.names import ClassName, SiteName
from common.study.record import Record
from common.study.study import StudyConfig
from common.wire.limits import MAX_TEXT_BYTES

PROTOCOL_VERSION = 4
"""Of plans and replies; every change that another release could misread raises it."""
CODEC_VERSION = 1
"""Of the bytes of payloads, of every codec and of the container."""
PLAN_RECORD = "consilium"
REPLY_GRACE_SECONDS = 60.0
"""How much longer than a site may work on it a plan is kept for its reply to arrive."""

CONTROL = "control/"
"""Prefix of control variates in a payload (SCAFFOLD), both ways; names of a model hold no `/`."""

T = TypeVar("T")


RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A run's name is a folder's name at server and sites, so it cannot hold a path."""


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""In hexadecimal digits."""


def study_digest(study: StudyConfig) -> str:
    """Return what names a study in a checkpoint and, as one site sees it, in a plan: the SHA-256 of its JSON."""
    return hashlib.sha256(study.model_dump_json().encode()).hexdigest()


class _Plan(Record):
    protocol: Literal[4] = 4
    codecs: Literal[1] = 1
    run: RunName
    site: SiteName


class HandshakePlan(_Plan):
    """Before round 1: who are you, what do you hold, which initial weights would you build?

    `study`: the study as this site sees it; every later plan of the run names it by its digest.
    """

    kind: Literal["handshake"] = "handshake"
    study: StudyConfig

    @model_validator(mode="after")
    def _check(self) -> "HandshakePlan":
        if self.study.sites != (self.site,):
            raise ValueError(f"study.sites names {len(self.study.sites)} sites, expected '{self.site}' alone")
        return self


class _LaterPlan(_Plan):
    study: Sha256


class ScalePlan(_LaterPlan):
    """Scale the inputs of this run by these numbers, or where there are none by this site's own training rows.

    Sent to every site before round 1 where the study leaves the scale to the handshake, and to whoever comes later.
    """

    kind: Literal["scale"] = "scale"
    scale: Scale | None


class InitialWeightsPlan(_LaterPlan):
    """Send the initial weights whose digest all sites agreed on (asked of one site)."""

    kind: Literal["initial_weights"] = "initial_weights"


class RoundPlan(_LaterPlan):
    """Evaluate the weights received, train, evaluate the served model, answer once.

    `accepted`: the round of this site's last update that counted; None if none has. What the site kept after that
    round is what it goes on from: a later round whose reply was lost or rejected leaves no trace.
    `asked`: in how many rounds of the run this site was asked, this one included; so many rounds' training is what
    its local-only model gets.
    `share`: the part that this site's last update has in the weights sent; 0 if it is not in them.
    `base`: the round whose weights the payload is a difference from; None for weights in full.
    """

    kind: Literal["round"] = "round"
    round: int = Field(ge=1)
    accepted: int | None = Field(default=None, ge=1)
    asked: int = Field(ge=1)
    share: float = Field(default=0.0, ge=0, le=1)
    base: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "RoundPlan":
        _check_past(self.accepted, self.asked, before=self.round, rounds=self.round)
        if self.base is not None and self.base != self.accepted:
            raise ValueError(f"base is round {self.base}, but the last accepted round is {self.accepted}")
        return self


class FinishPlan(_LaterPlan):
    """Personalise the final weights and read the test split, once; `accepted` and `asked` as in a RoundPlan."""

    kind: Literal["finish"] = "finish"
    round: int = Field(ge=0)
    accepted: int | None = Field(default=None, ge=1)
    asked: int = Field(ge=0)

    @model_validator(mode="after")
    def _check(self) -> "FinishPlan":
        _check_past(self.accepted, self.asked, before=self.round + 1, rounds=self.round)
        return self


def _check_past(accepted: int | None, asked: int, *, before: int, rounds: int) -> None:
    """Refuse what cannot have been: a site asked more often than there were rounds would train without end."""
    if accepted is not None and accepted >= before:
        raise ValueError(f"accepted is round {accepted}, expected one before round {before}")
    if asked > rounds:
        raise ValueError(f"asked {asked} times in {rounds} rounds")


Plan = Annotated[HandshakePlan | ScalePlan | InitialWeightsPlan | RoundPlan | FinishPlan, Field(discriminator="kind")]


Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9.+_!-]{1,64}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
Text = Annotated[str, AfterValidator(clean)]
"""A sentence from the other side, in which every control character is written out."""
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,100}$")]
ArrayName = Annotated[str, Field(pattern=r"^[!-~]{1,300}$")]
MAX_CLASSES, MAX_METRICS, MAX_BUFFERS = 10_000, 100, 100_000
"""How many names of each there can be in one reply."""
MAX_SECONDS = 1e7
"""How long a site can say that it worked on a plan: 115 days."""


class Versions(Record):
    """What must be equal at every site for equal results."""

    consilium: Version
    flwr: Version
    torch: Version
    torchvision: Version
    python: Version


Count = Annotated[int, Field(ge=0, le=2**53)]
"""How many of something: a number that floating point holds exactly."""
NOISE_PER_CLASS = 10_000
"""How far noise may take a class's count from the truth; with `class_counts_epsilon = 0.01` it is 140 typically."""


class DataCard(Record):
    """What a site tells about its data: totals, class names, never an example.

    `num_groups`: how many patients the site's own examples are of; None where every example is a patient's only one.
    `num_copies`: how many of its own examples are exact copies of another one that they are kept together with.
    `num_alike`: how many are equal to another one, but may be of two patients, since equal rows are likely here.
    `test_digest`: the SHA-256 of the study's common test set, empty without one; its rows are `num_test`.
    `moments`: of each number column or channel, for one scale over all sites; None where the site keeps them to itself
    or the study has no use for them.
    `test_readings`: how often its test split was read for this study, of `test_readings_allowed`.
    """

    num_examples: Count
    num_train: Count
    num_validation: Count
    num_test: Count
    num_skipped: Count
    classes: tuple[ClassName, ...] = Field(max_length=MAX_CLASSES)
    class_counts: dict[ClassName, Count] | None = Field(default=None, max_length=MAX_CLASSES)
    num_groups: Count | None = None
    num_copies: Count = 0
    num_alike: Count = 0
    schema_digest: Digest
    test_digest: Digest = ""
    moments: Moments | None = None
    test_readings: Count = 0
    test_readings_allowed: Annotated[Count, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _check(self) -> "DataCard":
        parts = self.num_train + self.num_validation + self.num_test
        if parts != self.num_examples:
            raise ValueError(f"training, validation and test examples are {parts}, expected {self.num_examples} in all")
        own = self.num_examples - (self.num_test if self.test_digest else 0)
        if max(self.num_copies, self.num_alike, self.num_groups or 0) > own:
            raise ValueError(f"more copies or patients than the {own} examples of the site's own")
        told = self.class_counts or {}
        if sum(told.values()) > self.num_examples + NOISE_PER_CLASS * len(told):
            raise ValueError(f"class counts are {sum(told.values())} in all, of {self.num_examples} examples")
        if self.moments is not None and max(self.moments.counts, default=0) > self.num_train:
            raise ValueError(f"moments are of {max(self.moments.counts)} values, of {self.num_train} training examples")
        return self


class _Reply(Record):
    protocol: Literal[4] = 4
    codecs: Literal[1] = 1
    run: RunName
    site: SiteName
    pid: int = Field(ge=1, le=2**32)
    seconds: float = Field(ge=0, le=MAX_SECONDS)


class HandshakeReply(_Reply):
    """The answer to a HandshakePlan: digests of all initial weights, and of the part that is shared.

    `shared_buffers`: names of the shared arrays that gradients do not move (BatchNorm's running statistics).
    """

    kind: Literal["handshake"] = "handshake"
    versions: Versions
    card: DataCard
    initial_digest: Digest
    shared_digest: Digest
    shared_buffers: tuple[ArrayName, ...] = Field(max_length=MAX_BUFFERS)


class ScaleReply(_Reply):
    """The answer to a ScalePlan: the inputs are scaled so, and will be until the run ends."""

    kind: Literal["scale"] = "scale"


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
    num_examples: Count
    metrics: dict[MetricName, float] = Field(max_length=MAX_METRICS)


class PatientCounts(Record):
    """Sums over the patients of the test split: of right answers per model, and of personal minus local."""

    majority: Patients
    local: Patients | None = None
    global_: Patients | None = None
    personal: Patients
    difference: Patients | None = None


class TestCounts(Record):
    """How many test examples each model got right; enough to recompute every interval.

    `pairs` counts the examples by (local right, personal right): both, only local, only personal,
    neither. Both it and `local` are None in a study without the local-only baseline. `patients` are
    sums over patients, None where every example is a patient's only one. Counts and sums only: no
    example, no score.
    """

    num_test: Count = Field(ge=1)
    majority: Count
    local: Count | None = None
    global_: Count | None = None
    personal: Count
    pairs: tuple[Count, Count, Count, Count] | None = None
    patients: PatientCounts | None = None

    @model_validator(mode="after")
    def _check(self) -> "TestCounts":
        if (self.pairs is None) != (self.local is None):
            raise ValueError("pairs and local are told together, or neither of them")
        if self.pairs is not None:
            both, only_local, only_personal, _ = self.pairs
            seen = (sum(self.pairs), both + only_local, both + only_personal)
            expected = (self.num_test, self.local, self.personal)
            if seen != expected:
                raise ValueError(
                    f"pairs {self.pairs} give {seen} (tested, local right, personal right), expected {expected}"
                )
        if max(self.majority, self.global_ or 0, self.personal) > self.num_test:
            raise ValueError(f"more right than the {self.num_test} tested: {self.majority}, {self.global_}")
        if self.patients is not None:
            self._check_patients(self.patients)
        return self

    def _check_patients(self, of: PatientCounts) -> None:
        """Refuse sums over patients that are not of these counts."""
        gained = None if self.pairs is None else self.pairs[2] - self.pairs[1]
        expected = {"majority": self.majority, "local": self.local, "global_": self.global_, "personal": self.personal}
        first = of.majority
        for name, total in (expected | {"difference": gained}).items():
            sums: Patients | None = getattr(of, name)
            if (sums is None) != (total is None):
                raise ValueError(f"sums over patients of '{name}' without its counts, or counts without sums")
            if sums is None:
                continue
            sizes = (sums.num, sums.rows, sums.sizes, sums.fourths)
            known = (first.num, self.num_test, first.sizes, first.fourths)
            if sizes != known or sums.total != total or (name != "difference" and (sums.worse or sums.moved != total)):
                raise ValueError(f"sums over patients of '{name}' are not of these counts: {sums}, expected {total}")
        if self.pairs is not None and of.difference is not None:
            _, only_local, only_personal, _ = self.pairs
            of_patients = of.difference.better, of.difference.worse, of.difference.moved
            of_rows = only_personal, only_local, only_local + only_personal
            if any(one > most for one, most in zip(of_patients, of_rows, strict=True)):
                raise ValueError(f"patients better, worse and moved {of_patients}, expected at most {of_rows}")


class FinishReply(_Reply):
    """The answer to a FinishPlan: the test split, read once."""

    kind: Literal["finish"] = "finish"
    round: int = Field(ge=0)
    test: TestCounts


class FailureReply(_Reply):
    """A site could not do what the plan asked; `error` is the class name of a ConsiliumError."""

    kind: Literal["failure"] = "failure"
    error: str = Field(pattern=r"^[A-Za-z]{1,60}$")
    message: Text


Reply = Annotated[
    HandshakeReply | ScaleReply | InitialWeightsReply | RoundReply | FinishReply | FailureReply,
    Field(discriminator="kind"),
]

_PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)
_REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)


def parse_plan(text: str) -> Plan:
    """Check a plan's JSON as the site receives it.

    Raises:
        ProtocolError: too long, not JSON, an unknown kind, or a field that is wrong.
    """
    return parse_json(_PLAN, text, who="plan from the server")


def parse_reply(text: str, *, site: str) -> Reply:
    """Check a reply's JSON as the server receives it from `site`.

    Raises:
        ProtocolError: too long, not JSON, an unknown kind, or a field that is wrong.
    """
    return parse_json(_REPLY, text, who=f"reply from site '{site}'")


def parse_json(adapter: TypeAdapter[T], text: str, *, who: str) -> T:
    """Check JSON that came over the wire.

    Raises:
        ProtocolError: too long, not JSON, of another version, or a field that is wrong; in one line.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ProtocolError(f"{who} has {len(text)} characters, expected at most {MAX_TEXT_BYTES}")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        # On one line: what stands on a line of its own in a log must be of this side.
        raise ProtocolError(_other_version(text, who) or describe(error, who).replace("\n", "; ")) from error


class _Spoken(BaseModel):
    protocol: int = Field(ge=0, lt=10**6)
    codecs: int = Field(default=0, ge=0, lt=10**6)


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
