"""Replies, by which a site answers plans, each plan by one: JSON and at most one payload."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from consilium.common.errors import clean
from consilium.common.protocol.audit import AuditHead
from consilium.common.protocol.cards import Count, DataCard, Digest, Versions
from consilium.common.protocol.counts import TestCounts
from consilium.common.protocol.plans import RunName, SignedKey
from consilium.common.study.names import SiteName
from consilium.common.study.record import Record
from consilium.common.study.relays import MOST_LEAVES

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
    audit: AuditHead | None = Field(default=None, exclude_if=lambda audit: audit is None)
    """Of the site's audit log, with the line of this reply; None where the order was not signed."""


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


class KeysReply(_Reply):
    """The answer to a KeysPlan."""

    kind: Literal["keys"] = "keys"
    signed: SignedKey


class PeersReply(_Reply):
    """The answer to a PeersPlan: every signature is that of the site which people have checked."""

    kind: Literal["peers"] = "peers"


StateOf = Annotated[int | None, Field(ge=0, exclude_if=lambda of_round: of_round is None)]
"""The round of an earlier state that a site went on from, as that after its last accepted update is damaged; 0: it
began anew, as all of them are gone and its settings say so; None: it went on from what it kept.
"""


class PrivacySpent(Record):
    """How much a site's answers to a private study can tell of one patient, so far: what its ledger says.

    Args:
        epsilon: of all that left the site for this study, in all its runs, at `delta`.
        budget: the most that the study may spend; None where it gives the noise, and the cost follows.
        noise: standard deviation of a step's noise, in units of the clip; None where nothing was trained yet.
    """

    epsilon: float = Field(ge=0)
    budget: float | None = Field(default=None, gt=0, exclude_if=lambda budget: budget is None)
    delta: float = Field(gt=0, lt=1)
    noise: float | None = Field(default=None, ge=0, exclude_if=lambda noise: noise is None)

    @property
    def left(self) -> float | None:
        """Return what remains of the budget; None where there is none."""
        return None if self.budget is None else max(0.0, self.budget - self.epsilon)


class RoundReply(_Reply):
    """The answer to a RoundPlan; its payload holds the delta of the shared weights, masked where the plan says so.

    `metrics` maps `global.loss`, `personal.accuracy`, `local.loss`, `train.loss`, ... to numbers, all
    on the site's validation split (`train.*`: on the batches trained).
    """

    kind: Literal["round"] = "round"
    round: int = Field(ge=1)
    num_examples: Count
    metrics: dict[MetricName, float] = Field(max_length=MAX_METRICS)
    privacy: PrivacySpent | None = Field(default=None, exclude_if=lambda privacy: privacy is None)
    state_of: StateOf = None


class UnmaskReply(_Reply):
    """The answer to an UnmaskPlan; its payload holds the shares that were asked for."""

    kind: Literal["unmask"] = "unmask"
    round: int = Field(ge=1)
    attempt: int = Field(ge=1)


class FinishReply(_Reply):
    """The answer to a FinishPlan: the test split, read once.

    Its payload, if there is one, holds test pictures with outlines (`common.segmentation.shown`).
    """

    kind: Literal["finish"] = "finish"
    round: int = Field(ge=0)
    test: TestCounts
    privacy: PrivacySpent | None = Field(default=None, exclude_if=lambda privacy: privacy is None)
    state_of: StateOf = None


class RelayReply(_Reply):
    """A relay's answer to a RelayPlan.

    Its payload holds the mean of the leaves' updates, or the one payload of a leaf that is passed on, in its first
    `update_bytes`, and after that what each leaf answered (`common.protocol.relays`).
    `online`: the leaves that are connected to the relay now.
    """

    kind: Literal["relay"] = "relay"
    online: tuple[SiteName, ...] = Field(max_length=MOST_LEAVES)
    update_bytes: int = Field(default=0, ge=0)


class FailureReply(_Reply):
    """A site could not do what the plan asked; `error` is the class name of a ConsiliumError."""

    kind: Literal["failure"] = "failure"
    error: str = Field(pattern=r"^[A-Za-z]{1,60}$")
    message: Text


Reply = Annotated[
    HandshakeReply
    | ScaleReply
    | InitialWeightsReply
    | KeysReply
    | PeersReply
    | RoundReply
    | UnmaskReply
    | FinishReply
    | RelayReply
    | FailureReply,
    Field(discriminator="kind"),
]
