"""What a simulation of devices found, as models: `result.json`."""

from typing import Annotated

from pydantic import Field

from consilium.common.study.record import Record
from consilium.common.study.study import StudyConfig

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Which users are told of: from the worst twentieth to the best."""
Share = Annotated[float, Field(ge=0, le=1)]


class Measured(Record):
    """One model at the measured users, on rows that nobody trained on.

    Args:
        users, rows: how many there are.
        loss, score: the means over all their rows.
        quantiles: the score below which 5, 25, 50, 75 and 95 percent of the users are.
    """

    users: int
    rows: int
    loss: float
    score: Share
    quantiles: tuple[float, ...]


class ProfileResult(Record):
    """What became of one kind of device, in numbers of users that were drawn."""

    drawn: int = 0
    accepted: int = 0
    away: int = 0
    dropped: int = 0
    late: int = 0


class DeviceRound(Record):
    """One round.

    Args:
        drawn: the cohort; of these `away` could not be asked, `dropped` never answered, `late` were not waited for.
        accepted: how many updates are in the new weights; 0 where fewer came than the quorum.
        seconds, clock: how long the round took on the virtual clock, and what that shows at its end.
        bytes_down, bytes_up: over all devices.
        loss: the mean training loss.
        update_norm: how far the weights moved.
        median_norm, shortened: of the users' updates, in a private study, and which part was longer than the clip.
        processor: processor seconds of this machine, without measuring.
        in_rows, in_stacks: how many users trained without a copy of the weights, and in stacks of copies.
        profiles: the same numbers by kind of device.
        measured: models, in rounds in which they are measured.
    """

    round: int
    drawn: int
    away: int = 0
    dropped: int = 0
    late: int = 0
    accepted: int = 0
    seconds: float = 0.0
    clock: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    loss: float = 0.0
    update_norm: float = 0.0
    median_norm: float | None = None
    shortened: float = 0.0
    processor: float = 0.0
    in_rows: int = 0
    in_stacks: int = 0
    profiles: dict[str, ProfileResult] = Field(default_factory=dict)
    measured: dict[str, Measured] = Field(default_factory=dict)


class DevicePrivacy(Record):
    """What the weights of all rounds tell of any one user.

    Args:
        multiplier: the noise of a round in units of `clip`.
        rate: the probability with which a user takes part in a round.
        rounds: how many were released.
    """

    epsilon: float
    delta: float
    multiplier: float
    clip: float
    rate: float
    rounds: int


class DeviceResult(Record):
    """A finished simulation.

    Args:
        users, rows: how many there are.
        seconds: of this machine.
        touched: how many users took part at least once, where personal weights are kept; None elsewhere. The personal
            model is told of at measured users among these.
        unmeasured: how many users were drawn to be measured at, but have too few rows to hold any out.
        privacy: None without noise.
        groups: by group and model, where users have groups.
    """

    study: StudyConfig
    run: str
    started: str
    seconds: float
    users: int
    rows: int
    touched: int | None = None
    unmeasured: int = 0
    privacy: DevicePrivacy | None = None
    rounds: tuple[DeviceRound, ...] = ()
    measured: dict[str, Measured] = Field(default_factory=dict)
    groups: dict[str, dict[str, Measured]] = Field(default_factory=dict)
    profiles: dict[str, ProfileResult] = Field(default_factory=dict)
    constant: Measured | None = None

    @property
    def promise(self) -> str:
        """What is promised to the users, in a sentence."""
        if self.privacy is None:
            return "Nothing hides a user: devices.private is false, so the updates were averaged without noise."
        kept = self.privacy
        return (
            f"The weights of {kept.rounds} rounds tell little of any one user: epsilon {kept.epsilon:.3g} at delta "
            f"{kept.delta:g}, by noise of {kept.multiplier:.3g} times the clip of {kept.clip:g} in each round, in "
            f"which a user takes part with probability {kept.rate:.3g}. It holds against those who see the weights and "
            "do not know who took part, which is drawn of a key that is deleted at the end; what is measured here has "
            "no noise."
        )

    @property
    def clock(self) -> str:
        """How long it took on the virtual clock, in words."""
        return in_time(self.rounds[-1].clock if self.rounds else 0.0)


def in_time(seconds: float) -> str:
    """Return seconds in words: `2.5 hours`."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
