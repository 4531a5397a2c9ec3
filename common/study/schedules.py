"""Learning-rate schedules of a study's training: `[training.schedule]`."""

from typing import Annotated, Literal

from pydantic import Field

from consilium.common.study.record import Record


class _Schedule(Record):
    by: Literal["round", "step"] = "round"
    """When the rate changes: from round to round, or with every step of all rounds' steps."""
    warmup: int = Field(default=0, ge=0)
    """Rounds at the beginning in which the rate rises linearly to `learning_rate`; the rest follows after them."""
    warmup_start: float = Field(default=0.1, gt=0, le=1)
    """Where the rise begins, as a part of `learning_rate`."""
    rounds: int | None = Field(default=None, ge=1)
    """Rounds that the schedule is made for, after which the rate stays; None: those of the study."""


class CosineSchedule(_Schedule):
    """The rate falls along half a cosine, to `least` where another round would begin."""

    kind: Literal["cosine"] = "cosine"
    least: float = Field(default=0.0, ge=0, le=1)
    """What the rate falls to, as a part of `learning_rate`."""


class LinearSchedule(_Schedule):
    """The rate falls along a line, to `least` where another round would begin."""

    kind: Literal["linear"] = "linear"
    least: float = Field(default=0.0, ge=0, le=1)
    """What the rate falls to, as a part of `learning_rate`."""


class StepSchedule(_Schedule):
    """The rate is multiplied by `factor` once in `every` rounds."""

    kind: Literal["step"] = "step"
    every: int = Field(ge=1)
    """Rounds between two falls."""
    factor: float = Field(default=0.1, gt=0, le=1)
    """What the rate is multiplied by."""


class ExponentialSchedule(_Schedule):
    """The rate is multiplied by `factor` in every round."""

    kind: Literal["exponential"] = "exponential"
    factor: float = Field(gt=0, le=1)
    """What the rate is multiplied by."""


class WarmupSchedule(_Schedule):
    """The rate rises linearly in the first rounds, and stays at `learning_rate` then."""

    kind: Literal["linear_warmup"] = "linear_warmup"
    warmup: int = Field(ge=1)
    """Rounds in which the rate rises."""


ScheduleConfig = Annotated[
    CosineSchedule | LinearSchedule | StepSchedule | ExponentialSchedule | WarmupSchedule, Field(discriminator="kind")
]
