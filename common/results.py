"""The content of a finished run's `result.json`, as models: the server writes them, and every report reads them."""

from typing import Literal

from pydantic import ConfigDict, Field

from consilium.common.engines import EngineName
from consilium.common.protocol.cards import Count, Versions
from consilium.common.protocol.counts import TestCounts
from consilium.common.protocol.replies import HandshakeReply, PrivacySpent
from consilium.common.study.names import ClassName, SiteName
from consilium.common.study.record import Record
from consilium.common.study.scale import ColumnScale
from consilium.common.study.study import StudyConfig


class SiteRound(Record):
    """The accepted update of one site in one round, in numbers.

    Args:
        seconds: the site's work on it.
        metrics: measured by the site: `global.loss`, `personal.accuracy`, ...
        weight: the site's share of the round; None where the round ended before it was known.
        signals: the measurements that the share was computed from.
        privacy: what a private study has spent at the site after this round; None in other studies.
        stale: how many rounds before this one its weights were sent, in a study whose rounds are buffered.
    """

    num_examples: int
    seconds: float
    metrics: dict[str, float]
    weight: float | None = Field(default=None, exclude_if=lambda weight: weight is None)
    signals: dict[str, float] = Field(default_factory=dict)
    privacy: PrivacySpent | None = Field(default=None, exclude_if=lambda privacy: privacy is None)
    stale: int = Field(default=0, ge=0, exclude_if=lambda stale: stale == 0)


class RoundRecord(Record):
    """What happened in one round; asked contains answered contains accepted.

    Args:
        rejected: the short reason per site.
        details: the sentence that explains it, per site.
        update_norm: Euclidean norm of the change of the global weights.
        downlink_nmse: squared error of the coded weights over the squared norm of their change.
        notes: why the round was not weighted as the study says.
        site_epsilon: what the weights of all rounds so far tell of any one site, with site-level privacy; None without.
        shortened: by which factor an update was shortened that was much longer than others', per site.
        against: how far an update went against the others', per site that did: at least -1, below 0.
        without: per site that made more than half of the round's step, which part of it is left without the site.
    """

    round: int
    asked: tuple[SiteName, ...]
    answered: tuple[SiteName, ...] = ()
    accepted: tuple[SiteName, ...] = ()
    rejected: dict[SiteName, str] = Field(default_factory=dict)
    details: dict[SiteName, str] = Field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    transfer_seconds: float = 0.0
    aggregation_seconds: float = 0.0
    update_norm: float = 0.0
    downlink_nmse: float = 0.0
    notes: tuple[str, ...] = ()
    site_epsilon: float | None = Field(default=None, exclude_if=lambda epsilon: epsilon is None)
    shortened: dict[SiteName, float] = Field(default_factory=dict, exclude_if=lambda shortened: not shortened)
    against: dict[SiteName, float] = Field(default_factory=dict, exclude_if=lambda against: not against)
    without: dict[SiteName, float] = Field(default_factory=dict, exclude_if=lambda without: not without)
    sites: dict[SiteName, SiteRound] = Field(default_factory=dict)


class SiteFacts(Record):
    """Facts on a site from the handshake that are of interest after the run; the counts are those of a `DataCard`."""

    pid: int
    num_examples: Count
    num_train: Count
    num_validation: Count
    num_test: Count
    num_skipped: Count
    classes: tuple[ClassName, ...]
    class_counts: dict[ClassName, Count] | None = None
    label_counts: dict[ClassName, tuple[Count, Count]] | None = Field(
        default=None, exclude_if=lambda counts: counts is None
    )
    label_noise: float | None = Field(default=None, exclude_if=lambda noise: noise is None)
    num_groups: Count | None = None
    num_copies: Count = 0
    num_alike: Count = 0
    test_digest: str = ""
    data_commitment: str = ""

    @classmethod
    def of(cls, reply: HandshakeReply) -> "SiteFacts":
        """Return the facts in a site's answer to the handshake."""
        return cls(pid=reply.pid, **reply.card.model_dump(include=cls.model_fields.keys() - {"pid"}))


class SiteResult(SiteFacts):
    """A site's facts, and its counts on the test split; None where it did not report them.

    Args:
        privacy: what a private study has spent at the site in all; None in other studies.
    """

    test: TestCounts | None
    privacy: PrivacySpent | None = Field(default=None, exclude_if=lambda privacy: privacy is None)


class ScaleFacts(Record):
    """Whose numbers the inputs were scaled by, and the numbers themselves where all sites have the same."""

    by: Literal["study", "federation", "site"]
    columns: dict[str, ColumnScale] | None = Field(default=None, exclude_if=lambda columns: columns is None)


class Stopped(Record):
    """A study that ended before its last round.

    Args:
        round: the last that was run.
        metric: what is measured on the sites' validation rows.
        best_round, best: the round of its best mean over the sites, and that mean.
    """

    round: int
    metric: str
    best_round: int
    best: float

    @property
    def text(self) -> str:
        """The state in words: `stopped early after round 12: ...`."""
        passed = self.round - self.best_round
        return (
            f"stopped early after round {self.round}: the sites' mean validation {self.metric} has not improved for "
            f"{passed} round{'' if passed == 1 else 's'} (best: {self.best:.4g} in round {self.best_round})"
        )


class EngineUse(Record):
    """The trainings of a run in one process.

    Args:
        stacked: how many were done as part of a stack.
        alone: how many were done by themselves, exactly as deployed, by the reason.
    """

    name: EngineName
    stacked: Count = 0
    alone: dict[str, Count] = Field(default_factory=dict)


class RunResult(Record):
    """The content of `result.json`.

    Args:
        stopped: why it ended before the study's last round; None where it did not.
        final_round: the round whose model the run ended with, where that is not its last one.
        started: ISO 8601, UTC.
        transport: what carried plans and payloads.
        tls: whether the connections were encrypted.
        versions: equal at all sites.
        engine: how sites trained that did so in stacks; None where each trained by itself, as deployed.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    run: str
    study: StudyConfig
    seed: int
    transport: str
    tls: bool
    started: str
    seconds: float
    versions: Versions
    engine: EngineUse | None = Field(default=None, exclude_if=lambda engine: engine is None)
    warnings: tuple[str, ...]
    stopped: Stopped | None = Field(default=None, exclude_if=lambda stopped: stopped is None)
    final_round: int | None = Field(default=None, exclude_if=lambda final_round: final_round is None)
    scale: ScaleFacts
    rounds: tuple[RoundRecord, ...]
    sites: dict[SiteName, SiteResult]
