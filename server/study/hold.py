"""Patience: a run that has too few answers waits for the sites that are missing, and asks them again.

A site that is away, or did not answer in time, may come back; one whose answer was refused would send the same again.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from consilium.common.errors import CohortTooSmall, DiskFull
from consilium.common.events.run import RunPaused, RunWentOn
from consilium.common.results import RoundRecord
from consilium.server.study.context import Study

log = logging.getLogger(__name__)

PASSING, OF_OTHERS = frozenset({"gone", "timeout", "crash"}), "sum"
"""Problems that may be over when a site is asked again, and that of one whose relay waits for more of its sites."""
MOST_CRASHES = 3
"""How often in a row a site's process may die of one plan before it is not asked again."""
LOOK_SECONDS, DISK_SECONDS, DEVICE_SECONDS = 0.2, 5.0, 5.0
"""Pauses between looks at who is connected, at the room on the disk, and for devices, whose pauses grow up to that."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Before a site is asked again that is connected and did not answer: doubled each time."""


class RoundShort(Exception):
    """A secure round has too few answers at one of its steps; the round can be tried again.

    Args:
        problems: a short name for each site without a usable answer.
        usable: how many have one.
        needed: how many must have.
        record: of the round so far, where its updates were too few.
    """

    def __init__(
        self,
        message: str,
        problems: Mapping[str, str],
        *,
        usable: int,
        needed: int,
        record: RoundRecord | None = None,
    ) -> None:
        super().__init__(message)
        self.problems, self.usable, self.needed, self.record = dict(problems), usable, needed, record


@dataclass
class Hold:
    """One step of a run that is repeated for the sites that are missing in it.

    Args:
        round: that of the step; 0 before the first.
        quorum: how many sites it needs.
        most_seconds: how long it waits at most, if that is less than the study's pause.
    """

    study: Study
    round: int
    quorum: int
    most_seconds: float = math.inf
    began: float | None = None
    _attempts: int = 0
    _crashes: dict[str, int] = field(default_factory=dict)

    def can_wait(self, problems: Mapping[str, str], *, usable: int) -> bool:
        """Return whether the quorum can still be reached, and there is time left to wait for it.

        Args:
            problems: a short name for each site without a usable answer.
        """
        for site, problem in problems.items():
            self._crashes[site] = self._crashes.get(site, 0) + 1 if problem == "crash" else 0
        limit = self._limit
        if not self.study.exchange.patient or usable + len(self.passing(problems)) < self.quorum or limit <= 0:
            return False
        return self.began is None or time.monotonic() - self.began < limit

    def passing(self, problems: Mapping[str, str]) -> list[str]:
        """Return the sites that are worth asking again."""
        own = {
            site
            for site, problem in problems.items()
            if problem in PASSING and self._crashes.get(site, 0) < MOST_CRASHES
        }
        relays = [leaves for leaves in self.study.config.relays.values() if own & set(leaves)]
        return sorted(own | {leaf for leaves in relays for leaf in leaves if problems.get(leaf) == OF_OTHERS})

    def wait(self, problems: Mapping[str, str], *, usable: int) -> tuple[str, ...]:
        """Pause until a site that is missing can be asked again; return all that are missing.

        They are empty where the limit of the pause is over.
        """
        missing = tuple(self.passing(problems))
        self.pause(missing, usable=usable)
        self._attempts += 1
        quick = min(FIRST_PAUSE_SECONDS * 2 ** (self._attempts - 1), LONGEST_PAUSE_SECONDS)
        away = {site for site in missing if problems[site] == "gone"}
        slow = {site for site in missing if problems[site] not in ("gone", OF_OTHERS)}
        return missing if self._until_back(slow, away, quick) else ()

    def pause(self, missing: Collection[str], *, usable: int, why: str = "") -> None:
        """Say that the run waits, once."""
        if self.began is not None:
            return
        self.began = time.monotonic()
        event = RunPaused(round=self.round, usable=usable, quorum=self.quorum, missing=tuple(sorted(missing)), why=why)
        self.study.folder.log(event)
        log.warning("run pauses round=%d usable=%d quorum=%d missing=%s why=%s", *_facts(event))

    def wait_while_full(self, check: Callable[[], object]) -> None:
        """Pause for as long as a disk has no room.

        Args:
            check: raises DiskFull.

        Raises:
            DiskFull: there is still none when the limit of the pause is over, or nobody may wait.
        """
        limit = self.study.config.pause_limit_seconds if self.study.exchange.patient else 0.0
        while True:
            try:
                check()
            except DiskFull as full:
                if limit <= 0 or (self.began is not None and time.monotonic() - self.began >= limit):
                    raise
                self.pause((), usable=0, why=str(full))
                time.sleep(DISK_SECONDS)
                continue
            self.over()
            return

    def wait_for_devices(self, usable: int, lacking: str) -> None:
        """Pause for a moment, longer each time, while too few devices of groups are there.

        Args:
            lacking: who is missing, in words.

        Raises:
            CohortTooSmall: the limit of the pause is over, or nobody may come.
        """
        limit = self.study.config.pause_limit_seconds if self.study.exchange.patient else 0.0
        if limit <= 0 or (self.began is not None and time.monotonic() - self.began >= limit):
            raise CohortTooSmall(
                f"round {self.round}: {usable} sites can be asked, expected {self.quorum}; missing: {lacking}"
            )
        self.pause((), usable=usable, why=f"too few devices are connected; missing: {lacking}")
        time.sleep(min(LOOK_SECONDS * 2**self._attempts, DEVICE_SECONDS))
        self._attempts = min(self._attempts + 1, 10)

    def over(self) -> None:
        """Say that the run goes on, if it had paused."""
        if self.began is None:
            return
        seconds, self.began = round(time.monotonic() - self.began, 3), None
        self.study.folder.log(RunWentOn(round=self.round, seconds=seconds))

    @property
    def _limit(self) -> float:
        return min(self.study.config.pause_limit_seconds, self.most_seconds)

    def _until_back(self, slow: Collection[str], away: Collection[str], quick: float) -> bool:
        """Wait until one that was away is connected, or for a while where a connected one did not answer."""
        assert self.began is not None
        asked, end = time.monotonic(), self.began + self._limit
        while (now := time.monotonic()) < end:
            connected = self.study.exchange.connected()
            if connected & set(away) or (connected & set(slow) and now >= asked + quick):
                return True
            time.sleep(min(LOOK_SECONDS, max(0.0, end - now)))
        return False


def _facts(event: RunPaused) -> tuple[int, int, int, str, str]:
    return event.round, event.usable, event.quorum, ", ".join(event.missing), event.why
