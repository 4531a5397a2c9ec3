"""Plans, by which the server asks something of a site: JSON and, where weights travel, one payload from a codec."""

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from consilium.common.privacy.secure.sizes import MOST_SITES
from consilium.common.study.names import Sha256, SiteName
from consilium.common.study.record import Record
from consilium.common.study.relays import LEAST_LEAVES, MOST_LEAVES
from consilium.common.study.scale import Scale
from consilium.common.study.study import StudyConfig

PROTOCOL_VERSION = 6
"""Version of plans and replies, raised by every change that another release could misread."""

CODEC_VERSION = 1
"""Version of payloads' bytes: of every codec and of the container."""

REPLY_GRACE_SECONDS = 60.0
"""How long a plan is kept beyond the time that a site may work on it, for the reply to arrive."""

ROUNDS_BACK = 2
"""How many rounds before the last one that it answered a site may be asked for again, by a server whose newest
checkpoints were damaged: so many earlier ones are kept there, and so many states and answers here.
"""

CONTROL = "control/"
"""Prefix of control variates in a payload (SCAFFOLD), both ways; names of a model hold no `/`."""

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A run's name is a folder's name at server and sites, so it cannot hold a path."""


def study_json(study: StudyConfig) -> str:
    """Return what is run of a study as JSON; the ranges in which it may vary are no part of that."""
    return study.model_dump_json(exclude={"accept"})


def study_digest(study: StudyConfig) -> str:
    """Return the SHA-256 of a study's JSON, which names it in a checkpoint and, as one site sees it, in a plan."""
    return hashlib.sha256(study_json(study).encode()).hexdigest()


class _Plan(Record):
    protocol: Literal[6] = 6
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
    """Scale the inputs of this run by these numbers, or without any by this site's own training rows.

    Sent to every site before its first round where the study leaves the scale to the handshake.
    """

    kind: Literal["scale"] = "scale"
    scale: Scale | None


class InitialWeightsPlan(_LaterPlan):
    """Send the initial weights whose digest all sites agreed on (asked of one site)."""

    kind: Literal["initial_weights"] = "initial_weights"


Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes in hexadecimal digits."""


class SignedKey(Record):
    """A site's key of a run (X25519), and the signature of the site's own key under it."""

    key: Hex32
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{16,400}$")]


class KeysPlan(_LaterPlan):
    """Send your key of this run, signed, for secure sums."""

    kind: Literal["keys"] = "keys"


class PeersPlan(_LaterPlan):
    """Here are the signed keys of the sites of this run, yours among them; believe none without its signature."""

    kind: Literal["peers"] = "peers"
    keys: dict[SiteName, SignedKey] = Field(max_length=MOST_SITES)


Cohort = Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=MOST_SITES)]


class SecureRound(Record):
    """What the sites of a secure sum must agree on, in addition to the round and its weights.

    `attempt`: how often the round has been tried; `examples`, `loss` and `steps`: what each measures its own weight by,
    and its update per step; `noise`: the noise multiplier of the sum where it hides whole sites, of which each adds its
    share.
    """

    attempt: int = Field(ge=1, le=10_000)
    cohort: Cohort
    examples: int = Field(ge=1, le=2**53)
    loss: float = Field(ge=0, le=1e80)
    steps: float | None = Field(default=None, ge=1, le=1e9, exclude_if=lambda steps: steps is None)
    noise: float | None = Field(default=None, gt=0, le=1e9, exclude_if=lambda noise: noise is None)


class RoundPlan(_LaterPlan):
    """Evaluate the weights received, train, evaluate the served model, answer once.

    `accepted`: the round of this site's last update that counted; None if none has. The site goes on from the state
    that it kept after that round: a later round whose reply was lost or rejected leaves no trace.
    `asked`: in how many rounds of the run this site was asked, this one included; its local-only model gets the
    training of as many rounds.
    `share`: the part that this site's last update has in the weights sent; 0 if it is not in them.
    `base`: the round whose weights the payload is a difference from; None for weights in full.
    `best`: a round whose state this site keeps as well: with its model the study may end; None: of no other.
    `secure`: mask the update for a sum over these sites; None: send it as it is.
    """

    kind: Literal["round"] = "round"
    round: int = Field(ge=1)
    accepted: int | None = Field(default=None, ge=1)
    asked: int = Field(ge=1)
    share: float = Field(default=0.0, ge=0, le=1)
    base: int | None = Field(default=None, ge=1)
    best: int | None = Field(default=None, ge=1, exclude_if=lambda best: best is None)
    secure: SecureRound | None = Field(default=None, exclude_if=lambda secure: secure is None)

    @model_validator(mode="after")
    def _check(self) -> "RoundPlan":
        _check_past(self.accepted, self.asked, before=self.round, rounds=self.round)
        if self.base is not None and self.base != self.accepted:
            raise ValueError(f"base is round {self.base}, but the last accepted round is {self.accepted}")
        if self.best is not None and (self.accepted is None or self.best > self.accepted):
            raise ValueError(f"best is round {self.best}, but the last accepted round is {self.accepted}")
        return self


class UnmaskPlan(_LaterPlan):
    """Open your shares of the masks of a round: these sites have sent their update, the others of its cohort have not.

    The payload holds what each of them sealed for this site, in the order of their names.
    """

    kind: Literal["unmask"] = "unmask"
    round: int = Field(ge=1)
    attempt: int = Field(ge=1, le=10_000)
    survivors: Cohort


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


class RelayPlan(_LaterPlan):
    """To a relay, which `site` names: ask your leaves this, and answer once with all that they say.

    `seconds`, `absent_seconds`: how long a leaf has, and how long one that is away is waited for.
    `handshake`: the study as one of the leaves sees it, where they are greeted; later plans name it.
    `least`: without the updates of so many leaves the round cannot have its quorum, so no mean of fewer is made.
    `common`, `own`: fields that the plans of all leaves have in common, and those of each.
    """

    kind: Literal["relay"] = "relay"
    seconds: float = Field(gt=0, le=1e9)
    absent_seconds: float | None = Field(default=None, ge=0)
    least: int = Field(default=LEAST_LEAVES, ge=LEAST_LEAVES, le=MOST_LEAVES)
    handshake: StudyConfig | None = Field(default=None, exclude_if=lambda study: study is None)
    common: dict[str, Any] = Field(default_factory=dict)
    own: dict[SiteName, dict[str, Any]] = Field(default_factory=dict, max_length=MOST_LEAVES)


def _check_past(accepted: int | None, asked: int, *, before: int, rounds: int) -> None:
    """Refuse an impossible past: a site asked more often than there were rounds would train without end."""
    if accepted is not None and accepted >= before:
        raise ValueError(f"accepted is round {accepted}, expected one before round {before}")
    if asked > rounds:
        raise ValueError(f"asked {asked} times in {rounds} rounds")


Plan = Annotated[
    HandshakePlan
    | ScalePlan
    | InitialWeightsPlan
    | KeysPlan
    | PeersPlan
    | RoundPlan
    | UnmaskPlan
    | FinishPlan
    | RelayPlan,
    Field(discriminator="kind"),
]
