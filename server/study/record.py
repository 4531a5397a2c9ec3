"""The values that pass between the steps of a round, and the record that is kept of it."""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from consilium.common.results import RoundRecord, SiteRound
from consilium.server.strategies import ServerState, Update
from consilium.server.study.defence import Lengths
from consilium.server.study.directions import Directions
from consilium.server.study.downlink import Sending
from consilium.server.study.exchange import Answer


@dataclass(frozen=True)
class Cohort:
    """The sites that are asked in a round.

    Args:
        quorum: how many usable updates the round needs.
        asked: in how many rounds each site was asked, this one included.
        began: when the round did (`time.monotonic`).
    """

    round: int
    sites: tuple[str, ...]
    quorum: int
    asked: Mapping[str, int]
    began: float


@dataclass
class Intake:
    """The answers of a round so far; the sites that answered contain those that were accepted."""

    updates: list[Update] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    sites: dict[str, SiteRound] = field(default_factory=dict)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    shortened: dict[str, float] = field(default_factory=dict)
    directions: Directions = field(default_factory=Directions)
    without: dict[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    transfer_seconds: float = 0.0
    checking_seconds: float = 0.0
    enough_since: float | None = None
    """When the quorum was there (`time.monotonic`)."""

    def arrived(self, answer: Answer) -> None:
        """Count an answer, whether it is usable or not."""
        self.bytes_up += answer.bytes_up
        self.bytes_down += answer.bytes_down
        self.transfer_seconds += answer.transfer_seconds
        if answer.reply is not None:
            self.answered.append(answer.site)

    def withdraw(self, sites: Collection[str]) -> None:
        """Take updates out again that had been accepted."""
        self.updates = [update for update in self.updates if update.site not in sites]
        self.sites = {site: record for site, record in self.sites.items() if site not in sites}

    def forget(self, sites: Iterable[str]) -> None:
        """Forget what was wrong with the answers of sites that are asked again."""
        for site in sites:
            self.rejected.pop(site, None)
            self.details.pop(site, None)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The sites that sent a usable update, in sorted order."""
        return tuple(sorted(self.sites))


@dataclass(frozen=True)
class Aggregation:
    """The result of a round's updates.

    Args:
        shares: how much each site counted, summing to 1.
        signals: the measurements that the shares were computed from, per site.
        notes: why the round was not weighted as the study says.
        update_norm: Euclidean norm of the change of the global weights.
        site_epsilon: what site-level privacy has spent so far; None in studies without it.
    """

    state: ServerState
    shares: Mapping[str, float]
    signals: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    update_norm: float
    seconds: float
    site_epsilon: float | None = None


def make_record(
    cohort: Cohort, intake: Intake, sending: Sending, aggregation: Aggregation | None = None
) -> RoundRecord:
    """Return what happened in a round; without an aggregation, up to where it ended."""
    record = RoundRecord(
        round=cohort.round,
        asked=cohort.sites,
        answered=tuple(sorted(set(intake.answered))),
        accepted=intake.accepted,
        rejected=intake.rejected,
        details=intake.details,
        bytes_up=intake.bytes_up,
        bytes_down=intake.bytes_down,
        seconds=round(time.monotonic() - cohort.began, 4),
        transfer_seconds=intake.transfer_seconds,
        aggregation_seconds=intake.checking_seconds,
        downlink_nmse=sending.nmse,
        shortened=intake.shortened,
        against={site: intake.directions.agreement[site] for site in sorted(intake.directions.against)},
        without=intake.without,
        sites=intake.sites,
    )
    return record if aggregation is None else _with_aggregation(record, aggregation)


def _with_aggregation(record: RoundRecord, aggregation: Aggregation) -> RoundRecord:
    weighted = {
        site: {"weight": share, "signals": dict(aggregation.signals.get(site, {}))}
        for site, share in aggregation.shares.items()
    }
    return record.model_copy(
        update={
            "aggregation_seconds": record.aggregation_seconds + aggregation.seconds,
            "update_norm": aggregation.update_norm,
            "site_epsilon": aggregation.site_epsilon,
            "notes": aggregation.notes,
            "sites": {site: of.model_copy(update=weighted.get(site)) for site, of in record.sites.items()},
        }
    )
