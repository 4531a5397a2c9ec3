"""What the rules on combinations read of a study: they are below the study, which they are checked for."""

from collections.abc import Mapping
from typing import Literal, Protocol

from consilium.common.study.codecs import CodecConfig
from consilium.common.study.defence import DefenceConfig
from consilium.common.study.devices import DevicesConfig
from consilium.common.study.groups import GroupConfig
from consilium.common.study.pace import PaceConfig
from consilium.common.study.privacy import PrivacyConfig
from consilium.common.study.reading_rules import Settings
from consilium.common.study.stopping import StoppingConfig
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.training import TrainingConfig
from consilium.common.study.weightings import WeightingConfig


class Study(Settings, Protocol):
    """The part of a study that the rules read."""

    @property
    def training(self) -> TrainingConfig:
        """How a site trains in one round."""
        ...

    @property
    def rounds(self) -> int:
        """Rounds of training."""
        ...

    @property
    def stopping(self) -> StoppingConfig | None:
        """When the study ends before its last round; None: never."""
        ...

    @property
    def schedule(self) -> PaceConfig:
        """When the server makes new weights."""
        ...

    @property
    def strategy(self) -> StrategyConfig:
        """How the server makes new weights."""
        ...

    @property
    def weighting(self) -> WeightingConfig | None:
        """How much each site counts; None: as the strategy has it."""
        ...

    @property
    def defence(self) -> DefenceConfig:
        """What is done against sites that send wrong numbers."""
        ...

    @property
    def uplink(self) -> tuple[CodecConfig, ...]:
        """How updates travel."""
        ...

    @property
    def downlink(self) -> tuple[CodecConfig, ...]:
        """How weights travel."""
        ...

    @property
    def privacy(self) -> PrivacyConfig:
        """What protects patients and sites."""
        ...

    @property
    def keep_updates(self) -> bool:
        """Whether the coordinator keeps every accepted update."""
        ...

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        ...

    @property
    def devices(self) -> DevicesConfig | None:
        """Users without names, of whom a cohort is simulated; None: sites and groups take part."""
        ...

    @property
    def keep_best(self) -> bool:
        """Whether sites keep the model of their best round."""
        ...

    @property
    def local_baseline(self) -> bool:
        """Whether every site also trains alone."""
        ...

    @property
    def groups(self) -> tuple[GroupConfig, ...]:
        """Groups of devices that enrol by a token."""
        ...

    @property
    def relays(self) -> Mapping[str, tuple[str, ...]]:
        """The sites that each relay stands before, by its name."""
        ...

    @property
    def least_updates(self) -> int:
        """Usable updates that a round has at least."""
        ...

    @property
    def over_selection(self) -> float:
        """How many more sites are asked than a round needs, as a part of those."""
        ...

    @property
    def straggler_seconds(self) -> float | None:
        """How long a round that has its quorum still waits for the others."""
        ...

    @property
    def quorum(self) -> int | Literal["all"] | None:
        """Usable updates that a round needs, as the study's file has them."""
        ...

    @property
    def cohort_fraction(self) -> float:
        """Part of the sites that a round needs."""
        ...

    @property
    def cohort_size(self) -> int:
        """Sites asked in a round."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Measurements that sites send in addition to the usual ones."""
        ...

    @property
    def fixed_test(self) -> bool:
        """Whether the test rows are given."""
        ...
