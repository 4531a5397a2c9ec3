"""How often a site's test split was read, in `test-readings.json` of its state folder: a policy of the site."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from consilium.client.site.manifest import kept_twice
from consilium.common.errors import ProtocolError, StateError
from consilium.common.host.twice import write_twice
from consilium.common.protocol.counts import TestCounts
from consilium.common.protocol.plans import RunName
from consilium.common.study.names import Sha256
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig

_PRIVATE = 0o600
READINGS = "test-readings.json"
"""File of the state folder."""
NO_PART_OF_WHAT_IS_EVALUATED = frozenset(
    {
        "name",
        "sites",
        "num_sites",
        "quorum",
        "min_sites",
        "min_examples",
        "max_examples",
        "join_timeout_seconds",
        "round_timeout_seconds",
        "accept",
    }
)
"""Settings that a study can change and still ask for the same reading of a test split: its name, its sites, how many
of them and of their examples it takes, its time limits, and its ranges. Every other setting changes which model is
learned or measured."""


class Reading(Record):
    """One reading of a test split: by which run, of which weights, and its counts."""

    run: RunName
    time: str
    round: int = Field(ge=0)
    weights: Sha256
    test: TestCounts


class _File(Record):
    readings: dict[str, tuple[Reading, ...]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Readings:
    """How often one site's test split was read for one study, whatever its runs are called.

    A split that is read again and again with other weights becomes a validation split. The same weights give the same
    counts, so that a run that is repeated from the same seed, or resumed, is no other reading. What counts as the same
    study leaves `NO_PART_OF_WHAT_IS_EVALUATED` out.

    Args:
        allowed: how many readings with different weights the site's settings allow.
    """

    path: Path
    site: str
    key: str
    allowed: int = 1

    @classmethod
    def of(cls, config: SiteConfig, study: StudyConfig, *, data: str) -> "Readings":
        """Return a site's readings for a study; `data` is the digest of the split data."""
        settings = study.model_dump_json(exclude=set(NO_PART_OF_WHAT_IS_EVALUATED))
        key = hashlib.sha256(f"{config.name}\n{data}\n{settings}".encode()).hexdigest()
        return cls(config.state_dir / READINGS, config.name, key, config.test_readings)

    def made(self) -> tuple[Reading, ...]:
        """Return the readings made so far, the first one first.

        Raises:
            StateError: the file is damaged; nothing is read before it is put back.
        """
        return self._all().readings.get(self.key, ())

    def check(self, *, weights: str, round_number: int) -> TestCounts | None:
        """Return what these weights gave in an earlier reading; None if there was none and the site allows one.

        Raises:
            ProtocolError: the test split was read with other weights, as often as the site allows.
            StateError: the file is damaged.
        """
        made = self.made()
        for reading in made:
            if (reading.weights, reading.round) == (weights, round_number):
                return reading.test
        if len(made) < self.allowed:
            return None
        runs = ", ".join(f"'{reading.run}'" for reading in made)
        raise ProtocolError(
            f"site '{self.site}' has read the test split of this data for this study already, with other final weights "
            f"in run {runs}; test_readings = {self.allowed} in its site.toml allows no further reading"
        )

    def note(self, counts: TestCounts, *, run: str, weights: str, round_number: int) -> None:
        """Write a reading down, before its counts leave the site; an earlier one of the same weights stays as it is.

        Raises:
            StateError: the file is damaged, the folder is unwritable or the disk is full.
        """
        before = self._all().readings
        made = before.get(self.key, ())
        if any((reading.weights, reading.round) == (weights, round_number) for reading in made):
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        reading = Reading(run=run, time=now, round=round_number, weights=weights, test=counts)
        after = _File(readings={**before, self.key: (*made, reading)})
        write_twice(self.path, after.model_dump_json(indent=1).encode(), mode=_PRIVATE)

    def _all(self) -> _File:
        if (content := kept_twice(self.path, site=self.site)) is None:
            return _File()
        try:
            return _File.model_validate_json(content)
        except ValidationError as error:
            raise StateError(
                f"site '{self.site}': '{self.path}' is damaged, so it cannot be known whether the test split was read "
                "already: put it back from a backup, or delete it and its copy if you are sure "
                f"({describe(error, READINGS)[:300]})"
            ) from error
