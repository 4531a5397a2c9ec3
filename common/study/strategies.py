"""Settings of every strategy: how the server makes new weights from the updates."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from consilium.common.study.parts import OwnKinds
from consilium.common.study.ranges import Beta, Positive
from consilium.common.study.record import Record
from consilium.common.study.signals import EFFECTIVE_STEPS, START_LOSS


class StrategySettings(Record):
    """Base of every strategy's settings; declares the facts on a strategy that the rest of the program needs."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Measurements that sites must make for it."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Facts of the study that it is built with where its own settings do not set them: `rounds`, `num_sites`,
    `learning_rate`."""
    weighted: ClassVar[bool] = True
    """It takes the shares that the weighting gives; otherwise it sets its own."""
    without_momentum: ClassVar[bool] = False
    """It reads the sites' learning rate as the size of their steps, so they take SGD without momentum."""
    size_exponent: ClassVar[float] = 1.0
    """The exponent of the size weights that a study without `weighting` gets."""
    travels: ClassVar[bool] = False
    """It keeps control variates, which travel with the weights, both ways."""
    matched: ClassVar[bool] = False
    """It is one half of an algorithm: the method of the same name is the other."""
    plain: ClassVar[bool] = False
    """It is the plain weighted mean, so it fits a study that shares nothing."""
    of_mean: ClassVar[bool] = False
    """Of the updates it takes nothing but their weighted mean."""
    of_sums: ClassVar[bool] = False
    """Of the updates it takes nothing but their mean, weighted or plain, and the sum of control variates, so that the
    mean in every site's place gives the same."""
    per_step: ClassVar[bool] = False
    """The mean that it takes of what gradients move is of updates per step: each divided by its site's steps."""

    @property
    def least_sites(self) -> int:
        """How many updates a round needs at least."""
        return 1

    @property
    def exact_mean(self) -> bool:
        """Whether the new weights are the old ones plus the mean of the deltas, from which one can be taken out."""
        return False


class FedAvgStrategy(StrategySettings):
    """Weighted mean of the updates."""

    of_sums: ClassVar[bool] = True
    plain: ClassVar[bool] = True
    of_mean: ClassVar[bool] = True
    kind: Literal["fedavg"] = "fedavg"
    learning_rate: Positive = 1.0
    """How much of the mean update is taken."""

    @property
    def exact_mean(self) -> bool:
        """Whether the step is as long as the mean."""
        return self.learning_rate == 1


class FedAvgMStrategy(StrategySettings):
    """Weighted mean with momentum at the server."""

    of_sums: ClassVar[bool] = True
    of_mean: ClassVar[bool] = True
    kind: Literal["fedavgm"] = "fedavgm"
    learning_rate: Positive = 1.0
    """How much of the momentum is taken."""
    momentum: Beta = 0.9
    """How much of the momentum is kept from round to round; 0 is FedAvg."""


class FedExPStrategy(StrategySettings):
    """Weighted mean with a step that grows as the updates differ; the mean of the last two weights is served."""

    kind: Literal["fedexp"] = "fedexp"
    epsilon: Positive = 1e-3
    """Keeps the step small where the mean update is all but 0; in squared units of the weights."""


class FedAdamStrategy(StrategySettings):
    """Adam at the server."""

    of_sums: ClassVar[bool] = True
    of_mean: ClassVar[bool] = True
    kind: Literal["fedadam"] = "fedadam"
    learning_rate: Positive = 0.1
    """Step size at the server."""
    beta1: Beta = 0.9
    """Decay of the first moment."""
    beta2: Beta = 0.99
    """Decay of the second moment."""
    tau: Positive = 1e-3
    """Bounds how far small updates are scaled up."""


class FedYogiStrategy(StrategySettings):
    """Yogi at the server."""

    of_sums: ClassVar[bool] = True
    of_mean: ClassVar[bool] = True
    kind: Literal["fedyogi"] = "fedyogi"
    learning_rate: Positive = 0.01
    """Step size at the server."""
    beta1: Beta = 0.9
    """Decay of the first moment."""
    beta2: Beta = 0.99
    """Decay of the second moment."""
    tau: Positive = 1e-3
    """Bounds how far small updates are scaled up."""


class FedAdagradStrategy(StrategySettings):
    """Adagrad at the server."""

    of_sums: ClassVar[bool] = True
    of_mean: ClassVar[bool] = True
    kind: Literal["fedadagrad"] = "fedadagrad"
    learning_rate: Positive = 0.1
    """Step size at the server."""
    beta1: Beta = 0.0
    """Decay of the first moment."""
    tau: Positive = 1e-3
    """Bounds how far small updates are scaled up."""


class QFedAvgStrategy(StrategySettings):
    """Sites with a higher loss count more; `learning_rate` is the sites' own by default."""

    needs: ClassVar[frozenset[str]] = frozenset({START_LOSS})
    takes: ClassVar[frozenset[str]] = frozenset({"learning_rate"})
    weighted: ClassVar[bool] = False
    without_momentum: ClassVar[bool] = True
    kind: Literal["qfedavg"] = "qfedavg"
    q: float = Field(default=0.1, ge=0)
    """How much more a site with a higher loss counts; 0: all sites count the same."""
    learning_rate: Positive | None = None
    """The step size that the slope of the loss is estimated from; None: the sites' own."""


class ScaffoldStrategy(StrategySettings):
    """The server's half of SCAFFOLD: keeps and sends the mean control variate."""

    of_sums: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset({"num_sites"})
    travels: ClassVar[bool] = True
    matched: ClassVar[bool] = True
    size_exponent: ClassVar[float] = 0.0
    kind: Literal["scaffold"] = "scaffold"
    learning_rate: Positive = 1.0
    """How much of the mean update is taken."""


class FedDynStrategy(StrategySettings):
    """The server's half of FedDyn: the unweighted mean, and a correction by the sum of all sites' deltas."""

    of_sums: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset({"num_sites"})
    matched: ClassVar[bool] = True
    weighted: ClassVar[bool] = False
    kind: Literal["feddyn"] = "feddyn"


class FedNovaStrategy(StrategySettings):
    """Updates divided by the sites' numbers of local steps before the mean."""

    of_sums: ClassVar[bool] = True
    per_step: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({EFFECTIVE_STEPS})
    kind: Literal["fednova"] = "fednova"


class ReptileStrategy(StrategySettings):
    """A step towards the mean of the sites' weights that shrinks to 0 over the rounds."""

    of_sums: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset({"rounds"})
    size_exponent: ClassVar[float] = 0.0
    kind: Literal["reptile"] = "reptile"
    step: float = Field(default=1.0, gt=0, le=1)
    """Length of the step towards the mean, in the first round."""
    anneal: bool = True
    """Whether the step shrinks over the rounds, to 0 after the last."""


class PerFedAvgStrategy(StrategySettings):
    """The server's half of Per-FedAvg: the unweighted mean."""

    of_sums: ClassVar[bool] = True
    weighted: ClassVar[bool] = False
    kind: Literal["per_fedavg"] = "per_fedavg"


class MedianStrategy(StrategySettings):
    """The weighted median of each coordinate; all sites count alike without a weighting."""

    size_exponent: ClassVar[float] = 0.0
    kind: Literal["median"] = "median"


class TrimmedMeanStrategy(StrategySettings):
    """The mean of each coordinate without its `trim` lowest and highest values; a weighting trims by shares."""

    size_exponent: ClassVar[float] = 0.0
    kind: Literal["trimmed_mean"] = "trimmed_mean"
    trim: int = Field(default=1, ge=0)
    """How many of the lowest and of the highest values are left out, of as many as there are updates."""

    @property
    def least_sites(self) -> int:
        """One more than the number of values that are trimmed."""
        return 2 * self.trim + 1


class KrumStrategy(StrategySettings):
    """The weighted mean of the `keep` updates that are closest to the others; 1 is Krum, more is Multi-Krum."""

    size_exponent: ClassVar[float] = 0.0
    kind: Literal["krum"] = "krum"
    attackers: int = Field(default=1, ge=0)
    """How many sites may be malicious."""
    keep: int = Field(default=1, ge=1)
    """How many updates are averaged; 1 is Krum, more is Multi-Krum."""

    @property
    def least_sites(self) -> int:
        """2 f + 3 sites for f attackers, and one more than f + 2 for each that is kept beyond the first."""
        return max(2 * self.attackers + 3, self.keep + self.attackers + 2)


class GeometricMedianStrategy(StrategySettings):
    """The point whose weighted sum of distances to the updates is least."""

    kind: Literal["geometric_median"] = "geometric_median"
    iterations: int = Field(default=32, ge=1)
    """Most steps of Weiszfeld's algorithm."""
    smoothing: Positive = 1e-6
    """Distances below this count as this."""


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
    OwnKinds("strategies", StrategySettings),
]
