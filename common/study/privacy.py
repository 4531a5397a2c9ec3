"""What a study promises its patients: `[privacy]`, with `[privacy.examples]` and `[privacy.sites]`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from consilium.common.study.ranges import Positive
from consilium.common.study.record import Record

Delta = Annotated[float, Field(gt=0, lt=0.01)]
"""Probability with which the bound of epsilon may be missed."""


class ExamplePrivacy(Record):
    """Differential privacy for each patient of each site, against everybody who sees what leaves the site.

    Add or remove one patient of a site's data, and the probability of everything that leaves it in the study's run
    changes by at most a factor of e^epsilon, but for a probability of delta.
    """

    epsilon: float | None = Field(default=None, gt=0, le=100)
    """The budget of each site for the whole run; each site finds the noise that keeps to it."""
    noise: float | None = Field(default=None, ge=0.1, le=1000)
    """Or the noise multiplier of a step, in units of `clip`; each site says what that costs."""
    delta: Delta | None = None
    """None: the largest power of ten up to 1 / (10 n) at each site, with n the number of patients that it announces."""
    clip: float = Field(default=1.0, ge=1e-12, le=1e6)
    """Largest Euclidean norm of one patient's gradient; longer ones are shortened to it."""
    adaptive_clip: float | None = Field(default=None, gt=0, lt=1)
    """The part of the gradients that `clip` should leave as they are: it is then adapted, and this is paid for."""
    unit: Literal["patient", "example"] = "patient"
    """Whom the promise is made to: each patient with all of their rows, or each row."""
    numbers: float = Field(default=0.1, ge=0, le=0.5)
    """Part of the budget for numbers that are no weights: how many rows there are, scores and counts."""

    @model_validator(mode="after")
    def _check(self) -> "ExamplePrivacy":
        if (self.epsilon is None) == (self.noise is None):
            raise ValueError("give exactly one of 'epsilon' (the noise is found) and 'noise' (the cost is found)")
        return self


class SiteLevelPrivacy(Record):
    """Differential privacy for each site as a whole: noise on the mean update.

    The server adds it, against everybody but itself; with `secure_aggregation` each site adds its share before the
    update is masked, against the server too. For studies of many sites or devices: with few, the noise that hides one
    would hide all.
    """

    epsilon: float | None = Field(default=None, gt=0, le=100)
    """The budget of the whole run; the server finds the noise that keeps to it, and with secure sums sites check it."""
    noise: float | None = Field(default=None, ge=0.1, le=1000)
    """Or the noise multiplier of a round, in units of `clip`."""
    delta: Delta = 1e-5
    """Probability with which the bound of epsilon may be missed."""
    clip: Positive = 1.0
    """Largest Euclidean norm of one site's update; longer ones are shortened to it."""
    colluding: int | None = Field(default=None, ge=0, exclude_if=lambda colluding: colluding is None)
    """With secure sums: how many sites of a round may tell the server their own noise, and the promise to the others
    still holds; the more, the more noise. None: as many as the masks withstand, a third of the sites asked.
    """

    @model_validator(mode="after")
    def _check(self) -> "SiteLevelPrivacy":
        if (self.epsilon is None) == (self.noise is None):
            raise ValueError("give exactly one of 'epsilon' (the noise is found) and 'noise' (the cost is found)")
        return self


class PrivacyConfig(Record):
    """What protects patients and sites from those who see what leaves."""

    examples: ExamplePrivacy | None = None
    """Noise at each site, for each of its patients; without the table, none."""
    sites: SiteLevelPrivacy | None = None
    """Noise for each site as a whole, from 50 sites on, at the server or in secure sums; without the table, none."""
    secure_aggregation: bool = False
    """The server learns sums over sites of what they send in a round, never one site's."""
    bound: float = Field(default=10.0, gt=0, le=1e6)
    """Secure aggregation: the largest Euclidean norm of a site's update; a longer one is shortened to it. With `sites`
    it is their `clip`.
    """

    @property
    def longest(self) -> float:
        """The largest Euclidean norm of an update in a secure sum."""
        return self.bound if self.sites is None else self.sites.clip

    @property
    def hides_sites(self) -> bool:
        """Whether whole sites are hidden from the server too: sums have noise when it sees them."""
        return self.sites is not None and self.secure_aggregation

    @property
    def is_none(self) -> bool:
        """Whether the study protects nothing in addition to what stays at the sites."""
        return self.examples is None and self.sites is None and not self.secure_aggregation
