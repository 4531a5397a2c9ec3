"""What a study does against sites that send wrong numbers, by fault or on purpose: `[defence]`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from consilium.common.study.ranges import Positive
from consilium.common.study.record import Record


class MedianNorm(Record):
    """An update is bounded by the median length of the round's updates; from 4 updates on."""

    kind: Literal["median"] = "median"
    factor: float = Field(default=3.0, ge=1, le=1e6)
    """An update that is longer than so many medians is shortened to that."""
    reject: float = Field(default=5.0, ge=1, le=1e9)
    """One that is longer than so many medians is rejected."""

    @model_validator(mode="after")
    def _check(self) -> "MedianNorm":
        if self.reject < self.factor:
            raise ValueError(f"reject must be at least factor ({self.factor:g}), got {self.reject:g}")
        return self


class FixedNorm(Record):
    """An update is bounded by a length that the study gives, however many updates there are."""

    kind: Literal["fixed"] = "fixed"
    bound: Positive
    """Largest Euclidean norm of an update, over all arrays that gradients move; a longer one is shortened to it."""
    reject: float = Field(default=5.0, ge=1, le=1e9)
    """An update that is longer than so many bounds is rejected."""


class NoNorm(Record):
    """No update is shortened or rejected for its length."""

    kind: Literal["off"] = "off"


NormConfig = Annotated[MedianNorm | FixedNorm | NoNorm, Field(discriminator="kind")]


class DefenceConfig(Record):
    """What is done against sites that send wrong numbers, by fault or on purpose."""

    norm: NormConfig | None = None
    """How long an update may be: `{ kind = "median" }`, `{ kind = "fixed", bound = 10.0 }` or `{ kind = "off" }`. None:
    `median`; `off` where the server sees sums over sites only, where `privacy.sites` bounds updates already, and with
    `krum` and `trimmed_mean`, which leave bad updates out by themselves and need the number of all.
    """
    strikes: int = Field(default=3, ge=0)
    """So many answers of a site in a row that had to be rejected for what they held, and it is set aside for the rest
    of the run; 0: never. Answers that did not come do not count.
    """
    against: int | None = Field(default=None, ge=0, le=1_000_000)
    """In so many rounds a site's update may go against what the others have in common (those in which it does not are
    taken off again) before its updates do not count for a while; 0: they always count. None: 3; 0 where `norm` is off,
    and with methods that train what they send beside a part of their own (`fedper`, `fedrep`, ...).
    """
    undo: bool = True
    """Whether a round after which the loss of most sites jumps is run again, once in a run, without the site that made
    its step. Not where the server sees no single updates or rounds cannot be run again (`privacy.secure_aggregation`,
    `privacy.sites`, buffered rounds), nor with strategies that take no mean, nor with `strikes = 0`.
    """
