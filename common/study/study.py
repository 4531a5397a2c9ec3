"""A study, `study.toml`: the decisions of its coordinator."""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    model_validator,
)

from consilium.common.errors import ConfigError
from consilium.common.study.codecs import CodecConfig
from consilium.common.study.defence import DefenceConfig
from consilium.common.study.device_names import group_of
from consilium.common.study.devices import DevicesConfig, with_defaults_of_devices
from consilium.common.study.extents import RangeTable
from consilium.common.study.groups import (
    MOST_GROUPS,
    GroupConfig,
    group_problems,
    without_required_sites,
    without_sites,
)
from consilium.common.study.mask_rules import with_defaults_of_masks
from consilium.common.study.methods import FedAvgMethod, MethodConfig
from consilium.common.study.metrics import known_metrics
from consilium.common.study.names import SiteName, without_duplicates
from consilium.common.study.pace import BufferedPace, PaceConfig, RoundsPace
from consilium.common.study.privacy import PrivacyConfig
from consilium.common.study.record import Record
from consilium.common.study.relays import RelayTable, relay_of, relay_problems
from consilium.common.study.rules import problems
from consilium.common.study.stopping import StoppingConfig
from consilium.common.study.strategies import FedAvgStrategy, StrategyConfig
from consilium.common.study.task import Task
from consilium.common.study.training import ModelConfig, SplitConfig, TrainingConfig
from consilium.common.study.weightings import SizeFactor, WeightingConfig


class StudyConfig(Record):
    """A study: who takes part, what is learned, and how. The same text at server and sites."""

    model_config = ConfigDict(json_schema_extra=without_required_sites)

    name: SiteName
    """The study's name."""
    sites: tuple[SiteName, ...]
    """Names of the sites that take part, as approved; a study with groups or devices can do without."""
    groups: tuple[GroupConfig, ...] = Field(default=(), max_length=MOST_GROUPS, exclude_if=lambda groups: not groups)
    """Groups of devices beside the sites, or in their place: each device enrols by its group's token, and
    `cohort` of those that are connected are asked in a round.
    """
    devices: DevicesConfig | None = Field(default=None, exclude_if=lambda devices: devices is None)
    """Users without names, by the hundred thousand, in place of sites and groups: `consilium simulate` runs such a
    study, and nothing else does.
    """
    relays: RelayTable = Field(default_factory=dict, exclude_if=lambda relays: not relays)
    """Relays between the server and some of the sites, each with the names of its sites: `{ north = ["kiel", "bremen"]
    }`. A relay sends the server the mean of its sites' updates, and never one by itself.
    """
    num_sites: int | None = Field(default=None, ge=1)
    """Not for the file: plans carry the number of sites in place of the other sites' names."""
    seed: int = Field(default=42, ge=0)
    """Everything random follows from it."""
    rounds: int = Field(default=10, ge=1)
    """Rounds of training."""
    schedule: PaceConfig = Field(default=RoundsPace(), exclude_if=lambda schedule: schedule == RoundsPace())
    """When the server makes new weights: `{ kind = "rounds" }`, or `{ kind = "buffered", size = 5 }` as soon as so many
    updates are there, so that nobody waits for slow sites.
    """
    task: Task
    """What is predicted, and from what."""
    model: ModelConfig = ModelConfig()
    """Which model, from which weights, and which part of it is trained."""
    training: TrainingConfig = TrainingConfig(epochs=1)
    """How a site trains in one round; without the table, one epoch."""
    stopping: StoppingConfig | None = Field(default=None, exclude_if=lambda stopping: stopping is None)
    """When the study ends before its last round; None: never."""
    split: SplitConfig = SplitConfig()
    """How each site divides its own rows."""
    method: MethodConfig = FedAvgMethod()
    """What sites share, train and serve; its settings stand in the same table. Of masks it is `fedbn` where none is
    named.
    """
    strategy: StrategyConfig = FedAvgStrategy()
    """How the server makes new weights; its settings stand in the same table."""
    weighting: WeightingConfig | None = None
    """How much each site counts; None: by size, or all alike where the strategy's paper says so."""
    defence: DefenceConfig = Field(default=DefenceConfig(), exclude_if=lambda defence: defence == DefenceConfig())
    """What is done against sites that send wrong numbers, by fault or on purpose."""
    uplink: tuple[CodecConfig, ...] = ()
    """How updates travel: a chain of codecs, each with `kind` and its settings."""
    downlink: tuple[CodecConfig, ...] = ()
    """How weights travel, likewise; a site that holds the weights of the round before gets the coded difference."""
    privacy: PrivacyConfig = Field(default=PrivacyConfig(), exclude_if=lambda privacy: privacy == PrivacyConfig())
    """What protects patients and sites from those who see what leaves; by default only what stays at the sites."""
    keep_updates: bool = Field(default=False, exclude_if=lambda keep: not keep)
    """The coordinator keeps every accepted update on its disk, so that an auditor can compute the weights again."""
    cohort_fraction: float = Field(default=1.0, gt=0, le=1)
    """Part of the sites asked in each round, rounded up; a site trains alone in the rounds it is asked in."""
    over_selection: float = Field(default=0.0, ge=0, le=1, exclude_if=lambda part: part == 0)
    """So many more sites are asked than `cohort_fraction` says, as a part of those; a round ends with the updates that
    come first, so that nobody waits for the slowest, and slow sites count less often. Bonawitz 2019 asks 0.3 more.
    """
    quorum: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    """Usable updates that a round needs: a number, or `"all"` for one from every site asked. With fewer the run pauses
    until sites are back. None: more than half of the sites asked, and as many as the strategy needs; all of them where
    secure sums or noise of the whole federation are reckoned by it, and in a simulation, where nobody's link fails.
    """
    min_sites: int | None = Field(default=None, ge=1)
    """Sites that must be there to start at once; the others join from the next round on. None: all are waited for, for
    `join_timeout_seconds`, and after that as many as the quorum needs are enough.
    """
    min_examples: int = Field(default=20, ge=2)
    """A site with fewer usable examples is refused."""
    max_examples: int = Field(default=10_000_000, ge=1, le=2**53)
    """A site that announces more examples is refused: none can outweigh all others by a made-up number."""
    keep_best: bool = False
    """Each site also keeps the model of its round with the least validation loss, and measures it at the end."""
    evaluate_every: int = Field(default=1, ge=1)
    """Sites measure on their validation rows once in this many rounds, and in the last one; a method that fine-tunes
    before every measurement can spend more on that than on training.
    """
    metrics: Annotated[tuple[str, ...], Field(max_length=20), AfterValidator(known_metrics)] = ()
    """What is measured on validation rows in addition to loss and accuracy: of classes `auroc`, `average_precision`,
    `f1`, `balanced_accuracy`, `brier`; of numbers `mae`, `rmse`, `r2`; or metrics of a package of your own.
    """
    local_baseline: bool = True
    """Every site also trains a model alone, with the same budget, to say whether joining helps; half of the work."""
    join_timeout_seconds: float = Field(default=120.0, gt=0)
    """How long to wait for all sites."""
    round_timeout_seconds: float = Field(default=600.0, gt=0)
    """How long to wait for a site's answer."""
    straggler_seconds: float | None = Field(default=None, ge=0, exclude_if=lambda seconds: seconds is None)
    """How long a round that has its quorum still waits for connected sites; None: until `round_timeout_seconds`."""
    absent_seconds: float = Field(default=8.0, ge=0, exclude_if=lambda seconds: seconds == 8.0)
    """How long a site's connection may be lost before a round that all others have answered goes on without it."""
    pause_limit_seconds: float = Field(default=604_800.0, ge=0, exclude_if=lambda seconds: seconds == 604_800.0)
    """How long a run pauses below its quorum before it ends; a week unless told otherwise."""
    accept: RangeTable = Field(default_factory=dict)
    """Ranges of settings, such as `rounds = "<= 50"`, in which this study may be run later without a new bundle; sites
    see them when they accept the study.
    """

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_task(cls, values: Any) -> Any:
        return with_defaults_of_masks(with_defaults_of_devices(without_sites(values)))

    @model_validator(mode="after")
    def _check(self) -> "StudyConfig":
        without_duplicates(self.sites, what="sites")
        if not self.sites and not self.groups and self.devices is None:
            raise ValueError("sites: name at least one site, or a group of devices in groups")
        if self.num_sites is None and (shared := group_problems(self.groups, self.sites)):
            raise ValueError("; ".join(shared))
        if self.num_sites is None and (unrelayed := list(relay_problems(self.relays, self.sites))):
            raise ValueError("; ".join(unrelayed))
        if self.num_sites is not None and len(self.sites) != 1:
            raise ValueError(f"num_sites is counted, not set: remove it; sites names {len(self.sites)}")
        if self.min_sites is not None and self.min_sites > self.all_sites:
            raise ValueError(f"min_sites must be at most the number of sites ({self.all_sites}), got {self.min_sites}")
        if isinstance(self.quorum, int) and self.quorum > self.cohort_size:
            raise ValueError(
                f"quorum must be at most the sites asked in a round ({self.cohort_size}), got {self.quorum}"
            )
        if found := problems(self):
            raise ValueError("; ".join(found))
        return self

    @property
    def asked_size(self) -> int:
        """How many sites are asked in a round: the cohort, and those beyond it that are not waited for."""
        if self.devices is not None:
            return min(self.devices.users or self._more(self.cohort_size), self._more(self.cohort_size))
        return self.asked_sites + sum(self.asked_of(group) for group in self.groups)

    @property
    def asked_sites(self) -> int:
        """How many of the sites that are named are asked in a round, those beyond the cohort among them."""
        of_groups = sum(group.cohort for group in self.groups)
        return min(self.all_sites - of_groups, self._more(self.cohort_size - of_groups))

    def asked_of(self, group: GroupConfig) -> int:
        """Return how many devices of a group are asked in a round: its cohort, and those beyond it."""
        return self._more(group.cohort)

    def _more(self, size: int) -> int:
        return math.ceil(size * (1 + self.over_selection) - 1e-9)

    @property
    def least_updates(self) -> int:
        """How many usable updates a round of a deployed study has at least: the quorum as a number."""
        if isinstance(self.schedule, BufferedPace):
            return self.schedule.size
        if isinstance(self.quorum, int):
            return self.quorum
        by_all = self.privacy.sites is not None or self.privacy.secure_aggregation
        if self.quorum == "all" or by_all:
            return self.cohort_size
        bounded = math.ceil(1 / (self.weights_by.maximum or 1.0) - 1e-12)
        return min(self.cohort_size, max(self.cohort_size // 2 + 1, self.strategy.least_sites, bounded))

    @property
    def least_sites_to_start(self) -> int:
        """How many sites must be there for a deployed study to begin: enough that no round begins below its quorum."""
        if self.min_sites is not None:
            return self.min_sites
        return min(self.all_sites, max(self.all_sites // 2 + 1, self.least_updates))

    @property
    def weights_by(self) -> WeightingConfig:
        """How sites count: the weighting, or by default size weights with the strategy's own exponent."""
        given = self.weighting or WeightingConfig(factors=(SizeFactor(exponent=self.strategy.size_exponent),))
        # In a secure sum each site weighs itself, at a relay beside a few others: no share can be bounded there.
        whole = (self.privacy.secure_aggregation or bool(self.relays)) and given.maximum is None
        return given.model_copy(update={"maximum": 1.0}) if whole else given

    @property
    def codec(self) -> str:
        """How weights travel, in short: `up: top_k+int8, down: identity`; `identity` where both are."""
        up, down = ("+".join(item.kind for item in link) or "identity" for link in (self.uplink, self.downlink))
        return "identity" if up == down == "identity" else f"up: {up}, down: {down}"

    @property
    def needs(self) -> frozenset[str]:
        """Measurements and facts that sites send for the strategy and the weighting, in addition to the usual ones."""
        return self.strategy.needs | self.weights_by.needs

    @property
    def cohort_size(self) -> int:
        """How many sites are asked in a round: `cohort_fraction` of them, rounded up, and the cohorts of the groups."""
        if self.devices is not None:
            return self.devices.cohort
        of_groups = sum(group.cohort for group in self.groups)
        # 0.07 * 100 is 7.000000000000001 in floating point, and asks 7 sites all the same
        return max(1, math.ceil(round(self.cohort_fraction * (self.all_sites - of_groups), 9)) + of_groups)

    @property
    def fixed_test(self) -> bool:
        """Whether the test rows are given, so that another `split.seed` draws no others."""
        return self.task.test is not None or self.split.parts is not None

    @property
    def all_sites(self) -> int:
        """How many sites there are at least in a round in which all are asked: of a group, its cohort."""
        if self.devices is not None:
            return self.devices.users or self.devices.cohort
        return self.num_sites or len(self.sites) + sum(group.cohort for group in self.groups)

    def takes_part(self, site: str) -> bool:
        """Return whether a site is one of the study's: by its name, or as a device of one of its groups."""
        return site in self.sites or self.group_of(site) is not None

    def group_of(self, site: str) -> str | None:
        """Return the group that a device is of; None for every other site."""
        name = group_of(site) if self.groups else None
        return name if any(group.name == name for group in self.groups) else None

    @property
    def members(self) -> tuple[str, ...]:
        """Who takes part, in words: the sites' names, and the groups."""
        return (*self.sites, *(f"up to {group.cohort} devices of group {group.name}" for group in self.groups))

    def seen_by(self, site: str) -> "StudyConfig":
        """Return the study as one of its sites sees it: how many sites take part, no other site's name, no ranges.

        What may change is for the bundle alone to say, never for a plan.

        Raises:
            ConfigError: the site is not one of the study's.
        """
        if not self.takes_part(site):
            raise ConfigError(f"site '{site}' is not one of the sites of study '{self.name}'")
        relay = relay_of(self.relays, site)
        relays = {} if relay is None else {relay: (site,)}
        return self.model_copy(update={"sites": (site,), "num_sites": self.all_sites, "accept": {}, "relays": relays})
