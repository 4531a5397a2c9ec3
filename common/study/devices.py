"""Studies of many small devices in place of sites with names: `[devices]` of a study, which is simulated."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from consilium.common.study.names import SiteName, clean_text, without_duplicates
from consilium.common.study.ranges import Positive
from consilium.common.study.record import Record

EPSILON = 8.0
"""The budget of a private study of devices that names none."""

ArrayName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(clean_text)]


class DeviceProfile(Record):
    """One kind of device: how often it is there, how quick it is, and how often it gives up; all on a virtual clock.

    What one device is drawn to be follows from the study's seed and its number, so nothing is kept of it.
    """

    name: SiteName
    """What results call it."""
    share: Positive = 1.0
    """How many devices are of this kind, relative to the shares of the others."""
    available: float = Field(default=1.0, gt=0, le=1)
    """Part of each day in which a device can be asked (idle, charging, on Wi-Fi); it begins at an hour of its own."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which a device that has begun a round never answers."""
    rows_per_second: Positive = 1000.0
    """Rows that the median device trains in a second."""
    megabits_down: Positive = 20.0
    """Speed of the median device's link towards it, in megabits a second."""
    megabits_up: Positive = 5.0
    """Speed of the median device's link from it."""
    spread: float = Field(default=0.0, ge=0, le=5)
    """How far devices are from the median: the standard deviation of the logarithm of their speeds."""


class DevicesConfig(Record):
    """Users by the hundred thousand, of whom a small cohort trains in each round: `consilium simulate`.

    In such a study no site has a name, `sites` is left out, and the mean of each round has noise unless `private` is
    false.
    """

    cohort: int = Field(ge=1)
    """How many users a round takes; in a private study each user takes part with probability cohort / users."""
    users: int | None = Field(default=None, ge=1)
    """How many of the data's users there are, from the first on; None: all."""
    private: bool = True
    """Noise that hides each user, as `privacy.sites` says or with an epsilon of 8; false: none. Where no delta is
    given, it is the largest power of ten up to 1 / (10 n), with n the number of users.
    """
    groups: ArrayName | None = Field(default=None, exclude_if=lambda name: name is None)
    """The array, or the column, with each user's group, by which results are told; None: no groups."""
    measured: int = Field(default=1000, ge=1, le=100_000)
    """How many users, the same in every round, models are measured at: on rows that are never trained on."""
    profiles: tuple[DeviceProfile, ...] = Field(default=(), max_length=20)
    """Kinds of devices; none: all are always there, and alike."""

    @model_validator(mode="after")
    def _check(self) -> "DevicesConfig":
        without_duplicates(tuple(profile.name for profile in self.profiles), what="profiles")
        if self.users is not None and self.cohort > self.users:
            raise ValueError(f"cohort must be at most the number of users ({self.users}), got {self.cohort}")
        return self


def with_defaults_of_devices(values: Any) -> Any:
    """Return a study's settings with what follows from `[devices]`: no names, no baseline, noise unless refused.

    The delta of the noise stays open until the number of users is known.
    """
    devices = values.get("devices") if isinstance(values, dict) else None
    if isinstance(devices, DevicesConfig):
        devices = devices.model_dump()
    if not isinstance(devices, dict):
        return values
    values = {"local_baseline": False, **values}
    privacy, split = values.get("privacy", {}), values.get("split", {})
    if isinstance(split, dict):
        values["split"] = {"validation": 0.0, **split}
    if devices.get("private", True) is True and isinstance(privacy, dict) and "sites" not in privacy:
        values["privacy"] = {**privacy, "sites": {"epsilon": EPSILON}}
        values.setdefault("weighting", {"factors": [{"kind": "size", "exponent": 0.0}]})
    return values
