"""Who of a cohort answers, and when, on a virtual clock: devices are away, slow, or give up, as the study has it.

A user's kind of device, its speed and the hour at which it can be asked follow from a seed and the user's number;
whether it gives up, from the round as well. Nothing of it is kept. In a private study a round takes what
`round_timeout_seconds` says, whoever came: the hour of the next one, and so who is away then, hangs on nobody.

    seconds = bytes down / link + rows trained / speed + bytes up / link,     speed = median * exp(spread * normal)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from consilium.common.study.devices import DeviceProfile
from consilium.common.study.study import StudyConfig
from consilium.devices.cohort import Seed, uniforms
from consilium.devices.population import Floats, Ints

DAY = 86_400.0
_NUMBERS = ("available", "dropout", "rows_per_second", "megabits_down", "megabits_up", "spread")
ANSWERED, AWAY, DROPPED, LATE = range(4)
"""What became of a user that was drawn: too late is whoever the round did not wait for."""


@dataclass(frozen=True, eq=False)
class Turn:
    """A round on the virtual clock.

    Args:
        users: the cohort, in rising order.
        fates: what became of each: `ANSWERED`, `AWAY`, `DROPPED` or `LATE`.
        kinds: the number of each one's profile.
        seconds: how long the round took.
        enough: whether as many answered as the quorum says.
        bytes_down, bytes_up: of all devices that were there, and of those that answered.
    """

    users: Ints
    fates: Ints
    kinds: Ints
    seconds: float
    enough: bool
    bytes_down: int
    bytes_up: int

    @property
    def answered(self) -> Ints:
        """Places in `users` of those whose update counts."""
        return np.flatnonzero(self.fates == ANSWERED)


def profiles_of(study: StudyConfig) -> tuple[DeviceProfile, ...]:
    """Return the study's kinds of devices; one that is always there where it names none."""
    assert study.devices is not None
    return study.devices.profiles or (DeviceProfile(name="devices"),)


def play_turn(
    study: StudyConfig, users: Ints, rows: Ints, *, seed: Seed, number: int, now: float, bytes_down: int, bytes_up: int
) -> Turn:
    """Let a cohort have its round.

    Args:
        rows: how many rows each would train on, each as often as it comes.
        seed: what devices are, and what becomes of them, follows from it.
        number: the round, from 1.
        now: seconds on the virtual clock when it begins.
        bytes_down, bytes_up: of one device.
    """
    profiles = profiles_of(study)
    kinds = _kinds(profiles, uniforms(users, seed=seed, what="profile"))
    per_kind = {name: np.array([getattr(one, name) for one in profiles])[kinds] for name in _NUMBERS}
    speed = np.exp(per_kind["spread"] * _normal(users, seed))
    down = 8e-6 * bytes_down / per_kind["megabits_down"]
    up = 8e-6 * bytes_up / per_kind["megabits_up"]
    took = (down + rows / per_kind["rows_per_second"] + up) / speed
    hour = (now / DAY + uniforms(users, seed=seed, what="hour")) % 1.0
    fates = np.full(len(users), ANSWERED, dtype=np.int64)
    fates[uniforms(users, seed=seed, what="dropout", round_number=number) < per_kind["dropout"]] = DROPPED
    fates[hour >= per_kind["available"]] = AWAY
    fates, seconds = _waited(study, fates, took)
    count = int((fates == ANSWERED).sum())
    there = int((fates != AWAY).sum())
    return Turn(users, fates, kinds, seconds, count >= _quorum(study, len(users)), bytes_down * there, bytes_up * count)


def _waited(study: StudyConfig, fates: Ints, took: Floats) -> tuple[Ints, float]:
    """Return the fates with those that the round did not wait for, and how long it took."""
    deadline, fates = study.round_timeout_seconds, fates.copy()
    fates[(fates == ANSWERED) & (took > deadline)] = LATE
    if study.privacy.sites is not None:
        return fates, deadline
    order = np.flatnonzero(fates == ANSWERED)
    order = order[np.argsort(took[order], kind="stable")]
    end = deadline if np.isin(fates, (DROPPED, LATE)).any() else float(took[order].max(initial=0.0))
    if study.over_selection and len(order) >= study.cohort_size:
        end = min(end, float(took[order[study.cohort_size - 1]]))
        fates[order[study.cohort_size :]] = LATE
        return fates, end
    least = max(1, _quorum(study, len(fates)))
    if study.straggler_seconds is not None and len(order) >= least:
        end = min(end, float(took[order[least - 1]]) + study.straggler_seconds)
        fates[(fates == ANSWERED) & (took > end)] = LATE
    return fates, end


def _quorum(study: StudyConfig, drawn: int) -> int:
    """Return how many answers a round needs: none in a private study, whose noise hides how many there are."""
    if study.privacy.sites is not None:
        return 0
    if isinstance(study.quorum, int):
        return study.quorum
    return min(drawn, study.cohort_size if study.quorum == "all" else study.cohort_size // 2 + 1)


def _kinds(profiles: Sequence[DeviceProfile], drawn: Floats) -> Ints:
    ends = np.cumsum([profile.share for profile in profiles])
    return np.minimum(np.searchsorted(ends / ends[-1], drawn, side="right"), len(profiles) - 1)


def _normal(users: Ints, seed: Seed) -> Floats:
    """Return a standard normal number for each user (Box and Muller)."""
    u, v = (uniforms(users, seed=seed, what=what) for what in ("speed", "angle"))
    return np.asarray(np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * math.pi * v))
