"""Replies, by which a site answers plans, each plan by one: JSON and at most one payload."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from consilium.common.errors import clean
from consilium.common.protocol.cards import Count, DataCard, Digest, Versions
from consilium.common.protocol.counts import TestCounts
from consilium.common.protocol.plans import RunName
from consilium.common.study.names import SiteName
from consilium.common.study.record import Record

Text = Annotated[str, AfterValidator(clean)]
"""A sentence from the other side, in which every control character is written out."""

MetricName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,100}$")]

ArrayName = Annotated[str, Field(pattern=r"^[!-~]{1,300}$")]

MAX_METRICS, MAX_BUFFERS = 100, 100_000
"""Most metrics and most names of buffers in one reply."""

MAX_SECONDS = 1e7
"""Longest time that a site can report for its work on a plan: 115 days."""


class _Reply(Record):
    protocol: Literal[6] = 6
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
