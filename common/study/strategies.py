"""Settings of every strategy: what the server makes of the updates."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.study.ranges import Beta, Positive
from common.study.record import Record
from common.study.signals import EFFECTIVE_STEPS, START_LOSS


class StrategySettings(Record):
    """Base of every strategy's settings.

    `weighted`: it takes the shares that the weighting gives; otherwise it sets its own.
    `without_momentum`: it reads the sites' learning rate as the size of their steps, so they take SGD without momentum.
    `size_exponent`: the exponent of the size weights that a study without `weighting` gets.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    weighted: ClassVar[bool] = True
    without_momentum: ClassVar[bool] = False
    size_exponent: ClassVar[float] = 1.0

    @property
    def least_sites(self) -> int:
        """How many updates a round needs at least."""
        return 1


class FedAvgStrategy(StrategySettings):
    """Weighted mean of the updates."""

    kind: Literal["fedavg"] = "fedavg"
    learning_rate: Positive = 1.0


class FedAvgMStrategy(StrategySettings):
    """Weighted mean with momentum at the server."""

    kind: Literal["fedavgm"] = "fedavgm"
    learning_rate: Positive = 1.0
    momentum: Beta = 0.9


class FedExPStrategy(StrategySettings):
    """Weighted mean with a step that grows as the updates differ; the mean of the last two weights is served."""

    kind: Literal["fedexp"] = "fedexp"
    epsilon: Positive = 1e-3


class FedAdamStrategy(StrategySettings):
    """Adam at the server."""

    kind: Literal["fedadam"] = "fedadam"
    learning_rate: Positive = 0.1
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    tau: Positive = 1e-3


class FedYogiStrategy(StrategySettings):
    """Yogi at the server."""

    kind: Literal["fedyogi"] = "fedyogi"
    learning_rate: Positive = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    tau: Positive = 1e-3


class FedAdagradStrategy(StrategySettings):
    """Adagrad at the server."""

    kind: Literal["fedadagrad"] = "fedadagrad"
    learning_rate: Positive = 0.1
    beta1: Beta = 0.0
    tau: Positive = 1e-3


class QFedAvgStrategy(StrategySettings):
    """Sites with a higher loss count more; `learning_rate` is the sites' own by default."""

    needs: ClassVar[frozenset[str]] = frozenset({START_LOSS})
    weighted: ClassVar[bool] = False
    without_momentum: ClassVar[bool] = True
    kind: Literal["qfedavg"] = "qfedavg"
    q: float = Field(default=0.1, ge=0)
    learning_rate: Positive | None = None


class ScaffoldStrategy(StrategySettings):
    """The server's half of SCAFFOLD: keeps and sends the mean control variate."""

    size_exponent: ClassVar[float] = 0.0
    kind: Literal["scaffold"] = "scaffold"
    learning_rate: Positive = 1.0


class FedDynStrategy(StrategySettings):
    """The server's half of FedDyn: the unweighted mean, and a correction by the sum of what all sites moved by."""

    weighted: ClassVar[bool] = False
    kind: Literal["feddyn"] = "feddyn"


class FedNovaStrategy(StrategySettings):
    """Updates divided by the sites' numbers of local steps before the mean."""

    needs: ClassVar[frozenset[str]] = frozenset({EFFECTIVE_STEPS})
    kind: Literal["fednova"] = "fednova"


class ReptileStrategy(StrategySettings):
    """A step towards the mean of the sites' weights that shrinks to 0 over the rounds."""

    size_exponent: ClassVar[float] = 0.0
    kind: Literal["reptile"] = "reptile"
    step: float = Field(default=1.0, gt=0, le=1)
    anneal: bool = True


class PerFedAvgStrategy(StrategySettings):
    """The server's half of Per-FedAvg: the unweighted mean."""

    weighted: ClassVar[bool] = False
    kind: Literal["per_fedavg"] = "per_fedavg"


class MedianStrategy(StrategySettings):
    """The median of each coordinate."""

    weighted: ClassVar[bool] = False
    kind: Literal["median"] = "median"


class TrimmedMeanStrategy(StrategySettings):
    """The mean of each coordinate without its `trim` lowest and highest values."""

    weighted: ClassVar[bool] = False
    kind: Literal["trimmed_mean"] = "trimmed_mean"
    trim: int = Field(default=1, ge=0)

    @property
    def least_sites(self) -> int:
        """One more than what is trimmed."""
        return 2 * self.trim + 1


class KrumStrategy(StrategySettings):
    """The mean of the `keep` updates that are closest to the others; 1 is Krum, more is Multi-Krum."""

    weighted: ClassVar[bool] = False
    kind: Literal["krum"] = "krum"
    attackers: int = Field(default=1, ge=0)
    keep: int = Field(default=1, ge=1)

    @property
    def least_sites(self) -> int:
        """2 f + 3 sites for f attackers, and one more than f + 2 for each that is kept beyond the first."""
        return max(2 * self.attackers + 3, self.keep + self.attackers + 2)


class GeometricMedianStrategy(StrategySettings):
    """The point whose weighted sum of distances to the updates is least."""

    kind: Literal["geometric_median"] = "geometric_median"
    iterations: int = Field(default=32, ge=1)
    smoothing: Positive = 1e-6


StrategyConfig = Annotated[
    FedAvgStrategy
    | FedAvgMStrategy
    | FedExPStrategy
    | FedAdamStrategy
    | FedYogiStrategy
    | FedAdagradStrategy
    | QFedAvgStrategy
    | ScaffoldStrategy
    | FedDynStrategy
    | FedNovaStrategy
    | ReptileStrategy
    | PerFedAvgStrategy
    | MedianStrategy
    | TrimmedMeanStrategy
    | KrumStrategy
    | GeometricMedianStrategy,
    Field(discriminator="kind"),
]
