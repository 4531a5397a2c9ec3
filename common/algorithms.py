"""Settings of every algorithm a study can name: one variant per file in strategies, weighting and methods.

Class variables say what a variant asks of the rest: `needs` are measurements that sites send for it,
`plain_sgd` that its step is defined for SGD without momentum and weight decay.
"""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import Field

from common.records import Record

Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]

# What a site measures only where it is asked for (all on its validation split but for the two noted).
RECEIVED_LOSS, UPDATE_LOSS = "received.loss", "update.loss"
"""Loss of the weights as received, and of the site's weights after training, each with its personal part."""
START_LOSS = "start.loss"
"""Loss of the weights as received on the whole training split."""
WITHOUT_ERROR = "without.error"
"""Error rate of the weights received with the site's own last update taken out."""
EFFECTIVE_STEPS = "train.effective_steps"
"""Local steps of the round, each weighted by how much of its gradient the momentum carried into the update."""
CANDIDATES = ("candidate-a", "candidate-b")
"""Two other weights that the server sends along; `candidate-a.loss`, `candidate-b.loss`."""
CANDIDATE_LOSSES = tuple(f"{name}.loss" for name in CANDIDATES)
LIMITS = {
    START_LOSS: (0.0, 1e9),
    EFFECTIVE_STEPS: (1.0, 1e9),
    WITHOUT_ERROR: (0.0, 1.0),
    # Squares of what float32 can be off by; sums of thousands of them stay numbers.
    **dict.fromkeys((RECEIVED_LOSS, UPDATE_LOSS, *CANDIDATE_LOSSES), (0.0, 1e80)),
}
"""Between which values a measurement that a strategy or a weighting reads can be."""
CLASS_COUNTS = "class counts"
"""Training examples per class, told in the handshake where the site's settings allow it."""


# --- personalisation methods: one variant per file in client/methods -------------------------------


class MethodSettings(Record):
    """Base of every method's settings."""

    plain_sgd: ClassVar[bool] = False
    plain_steps: ClassVar[bool] = True
    """The shared arrays move by the study's optimiser alone, so that `train.effective_steps` holds."""
    matched: ClassVar[bool] = False
    """The server's memory counts on what the site keeps: a site that lost it cannot go on in the run."""


class LocalMethod(MethodSettings):
    """Nothing is shared; every site trains alone."""

    kind: Literal["local"] = "local"


class FedAvgMethod(MethodSettings):
    """Everything is shared, nothing is personal."""

    kind: Literal["fedavg"] = "fedavg"


class FineTuneMethod(MethodSettings):
    """Everything is shared; a site serves the global model fine-tuned on its own training data."""

    kind: Literal["fine_tune"] = "fine_tune"
    epochs: int = Field(default=5, ge=1)
    steps: int | None = Field(default=None, ge=1)
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.01
    layers: Literal["all", "head"] = "all"


class FedProxMethod(MethodSettings):
    """Everything is shared; local training is pulled towards the weights received."""

    plain_steps: ClassVar[bool] = False
    kind: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.1, ge=0)


class ScaffoldMethod(MethodSettings):
    """The site's half of SCAFFOLD: local steps corrected by control variates."""

    plain_sgd: ClassVar[bool] = True
    matched: ClassVar[bool] = True
    kind: Literal["scaffold"] = "scaffold"


class FedDynMethod(MethodSettings):
    """The site's half of FedDyn: a pull to the weights received that is corrected by the site's last gradient."""

    plain_steps: ClassVar[bool] = False
    matched: ClassVar[bool] = True
    kind: Literal["feddyn"] = "feddyn"
    alpha: Positive = 0.1


class MoonMethod(MethodSettings):
    """Everything is shared; features are pulled to those of the weights received, away from the site's last ones."""

    kind: Literal["moon"] = "moon"
    mu: float = Field(default=1.0, ge=0)
    temperature: Positive = 0.5


class FedPerMethod(MethodSettings):
    """The backbone is shared, the head is personal."""

    kind: Literal["fedper"] = "fedper"


class FedRepMethod(MethodSettings):
    """The backbone is shared, the head is personal; the head is trained first, then the backbone."""

    kind: Literal["fedrep"] = "fedrep"
    head_epochs: int = Field(default=10, ge=1)


class FedRodMethod(MethodSettings):
    """Everything is shared, trained as if classes were balanced; a personal head is added to the shared one."""

    kind: Literal["fedrod"] = "fedrod"


class FendaMethod(MethodSettings):
    """The backbone is shared; a second backbone and a head on the features of both are personal."""

    kind: Literal["fenda"] = "fenda"


class LgFedAvgMethod(MethodSettings):
    """The head is shared, the backbone is personal."""

    kind: Literal["lg_fedavg"] = "lg_fedavg"


class FedBabuMethod(MethodSettings):
    """The backbone is shared and trained under a fixed head; a site serves a fine-tuned copy."""

    kind: Literal["fedbabu"] = "fedbabu"
    epochs: int = Field(default=5, ge=1)
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.01
    layers: Literal["all", "head"] = "all"


class FedBnMethod(MethodSettings):
    """Everything but BatchNorm is shared."""

    kind: Literal["fedbn"] = "fedbn"


class FedDbeMethod(MethodSettings):
    """Everything is shared but a vector that shifts what the head is given; the features' mean is held together."""

    kind: Literal["feddbe"] = "feddbe"
    kappa: float = Field(default=1.0, ge=0)
    mu: float = Field(default=1.0, gt=0, le=1)


class MrMtlMethod(MethodSettings):
    """A personal whole model, pulled towards the mean of all sites' personal models."""

    plain_steps: ClassVar[bool] = False
    kind: Literal["mr_mtl"] = "mr_mtl"
    lam: float = Field(default=1.0, ge=0)


class DittoMethod(MethodSettings):
    """A personal whole model, pulled towards the global one."""

    kind: Literal["ditto"] = "ditto"
    lam: float = Field(default=1.0, ge=0)


class ApflMethod(MethodSettings):
    """A personal whole model, mixed with the shared one in a proportion that each site learns."""

    plain_sgd: ClassVar[bool] = True
    kind: Literal["apfl"] = "apfl"
    alpha: float = Field(default=0.5, ge=0, le=1)
    adaptive: bool = True


class PFedMeMethod(MethodSettings):
    """A personal whole model that solves a proximal problem around the shared one at every step."""

    plain_sgd: ClassVar[bool] = True
    plain_steps: ClassVar[bool] = False
    kind: Literal["pfedme"] = "pfedme"
    lam: Positive = 15.0
    inner_steps: int = Field(default=5, ge=1)
    personal_learning_rate: Positive = 0.05


class FedAlaMethod(MethodSettings):
    """A site starts from its own mix, learned element by element, of its last and the global weights."""

    plain_steps: ClassVar[bool] = False
    kind: Literal["fedala"] = "fedala"
    layers: int = Field(default=1, ge=1)
    fraction: float = Field(default=0.8, gt=0, le=1)
    mix_learning_rate: Positive = 1.0
    tolerance: Positive = 0.1


class KnnPerMethod(MethodSettings):
    """Everything is shared; a site serves the global model mixed with nearest neighbours of its own examples."""

    kind: Literal["knn_per"] = "knn_per"
    neighbours: int = Field(default=10, ge=1)
    mix: float | None = Field(default=None, ge=0, le=1)


class PerFedAvgMethod(MethodSettings):
    """Meta-learning: weights from which one or a few local steps lead far."""

    plain_sgd: ClassVar[bool] = True
    plain_steps: ClassVar[bool] = False
    kind: Literal["per_fedavg"] = "per_fedavg"
    variant: Literal["first_order", "hessian_free"] = "first_order"
    inner_learning_rate: Positive = 0.01
    difference: Positive = 1e-3
    adapt_steps: int = Field(default=1, ge=0)


class ReptileMethod(MethodSettings):
    """Meta-learning: train as FedAvg does, serve after a few local steps."""

    kind: Literal["reptile"] = "reptile"
    adapt_steps: int = Field(default=5, ge=0)
    adapt_learning_rate: Positive = 0.01


MethodConfig = Annotated[
    LocalMethod
    | FedAvgMethod
    | FineTuneMethod
    | FedProxMethod
    | ScaffoldMethod
    | FedDynMethod
    | MoonMethod
    | FedPerMethod
    | FedRepMethod
    | FedRodMethod
    | FendaMethod
    | LgFedAvgMethod
    | FedBabuMethod
    | FedBnMethod
    | FedDbeMethod
    | MrMtlMethod
    | DittoMethod
    | ApflMethod
    | PFedMeMethod
    | FedAlaMethod
    | KnnPerMethod
    | PerFedAvgMethod
    | ReptileMethod,
    Field(discriminator="kind"),
]


# --- server strategies: one variant per file in server/strategies ----------------------------------


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


# --- dynamic weights: one variant per file in server/weighting -------------------------------------


class FactorSettings(Record):
    """Base of every factor's settings; a site's weight is the product of its factors, each to its exponent."""

    needs: ClassVar[frozenset[str]] = frozenset()
    exponent: float = Field(default=1.0, ge=0, le=10)


class SizeFactor(FactorSettings):
    """Number of training examples; exponent 0 is uniform, 0.5 the square root, 1 FedAvg."""

    kind: Literal["size"] = "size"


class LossFactor(FactorSettings):
    """Softmax of the validation loss after training: better updates count more."""

    needs: ClassVar[frozenset[str]] = frozenset({UPDATE_LOSS})
    kind: Literal["loss"] = "loss"
    temperature: Positive = 1.0


class FedDgGaFactor(FactorSettings):
    """Sites that the mean serves worse than their own update gain weight, step by step."""

    needs: ClassVar[frozenset[str]] = frozenset({RECEIVED_LOSS, UPDATE_LOSS})
    kind: Literal["feddg_ga"] = "feddg_ga"
    step: float = Field(default=0.2, gt=0, le=1)


class FedAdpFactor(FactorSettings):
    """Updates that point where the mean points count more."""

    kind: Literal["fedadp"] = "fedadp"
    alpha: Positive = 5.0


class FedCeFactor(FactorSettings):
    """Novelty of the update's direction, and how much the others' model errs without the site."""

    needs: ClassVar[frozenset[str]] = frozenset({WITHOUT_ERROR})
    kind: Literal["fedce"] = "fedce"
    mode: Literal["plus", "times"] = "plus"


class FedDiscoFactor(FactorSettings):
    """Size less the divergence of the site's label distribution; holds the size, so is not listed beside it."""

    needs: ClassVar[frozenset[str]] = frozenset({CLASS_COUNTS})
    kind: Literal["feddisco"] = "feddisco"
    a: float = Field(default=0.5, ge=0)
    b: float = Field(default=0.1, ge=0)
    metric: Literal["kl", "l1", "l2", "cosine"] = "kl"


class DivergenceFactor(FactorSettings):
    """Divergence of the site's label distribution from all sites', or its entropy."""

    needs: ClassVar[frozenset[str]] = frozenset({CLASS_COUNTS})
    kind: Literal["divergence"] = "divergence"
    measure: Literal["kl", "js", "entropy"] = "kl"
    favour: Literal["typical", "rare"] = "typical"


class AflFactor(FactorSettings):
    """Weights climb towards the sites with the highest loss."""

    needs: ClassVar[frozenset[str]] = frozenset({RECEIVED_LOSS})
    kind: Literal["afl"] = "afl"
    learning_rate: Positive = 0.1


class AutoFactor(FactorSettings):
    """Weights learned in the run: two candidate mixes are scored by the sites' own validation in each round."""

    needs: ClassVar[frozenset[str]] = frozenset(CANDIDATE_LOSSES)
    kind: Literal["auto"] = "auto"
    objective: Literal["mean", "worst"] = "mean"
    learning_rate: Positive = 1.0
    perturbation: float = Field(default=0.3, gt=0, le=2)


FactorConfig = Annotated[
    SizeFactor
    | LossFactor
    | FedDgGaFactor
    | FedAdpFactor
    | FedCeFactor
    | FedDiscoFactor
    | DivergenceFactor
    | AflFactor
    | AutoFactor,
    Field(discriminator="kind"),
]


class WeightingConfig(Record):
    """How much each site counts: the product of `factors`, smoothed over rounds, between two bounds."""

    factors: tuple[FactorConfig, ...] = Field(default=(SizeFactor(),), min_length=1)
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    minimum: float = Field(default=0.0, ge=0, lt=1)
    maximum: float = Field(default=1.0, gt=0, le=1)

    @property
    def needs(self) -> frozenset[str]:
        """What sites must measure or tell for it."""
        return frozenset().union(*(factor.needs for factor in self.factors))


# --- codecs: one variant per file in common/codecs, in the order in which a chain applies them -----


class IdentityCodec(Record):
    """Every array as it is."""

    kind: Literal["identity"] = "identity"


class Fp16Codec(Record):
    """Half-precision numbers, scaled per array."""

    kind: Literal["fp16"] = "fp16"
    error_feedback: bool = False


class Bf16Codec(Record):
    """The upper half of each float32."""

    kind: Literal["bf16"] = "bf16"
    error_feedback: bool = False


class IntegerDeltaCodec(Record):
    """The difference of the bit patterns: lossless, and small after zstd."""

    kind: Literal["integer_delta"] = "integer_delta"


class Int8Codec(Record):
    """One byte per value, rounded at random; `block` elements share a scale, 0 is the whole array."""

    kind: Literal["int8"] = "int8"
    block: int = Field(default=0, ge=0, le=65536)
    error_feedback: bool = False


class Int4Codec(Record):
    """Half a byte per value, rounded at random; `block` elements share a scale, 0 is the whole array."""

    kind: Literal["int4"] = "int4"
    block: int = Field(default=64, ge=0, le=65536)
    error_feedback: bool = False


class TopKCodec(Record):
    """Only the largest values of each array."""

    kind: Literal["top_k"] = "top_k"
    fraction: float = Field(default=0.05, gt=0, le=1)
    error_feedback: bool = True


class SignCodec(Record):
    """One bit per value and one magnitude per array."""

    kind: Literal["sign"] = "sign"
    error_feedback: bool = True


class LowRankCodec(Record):
    """Each matrix as the product of two narrow ones (PowerSGD)."""

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(default=4, ge=1, le=256)
    error_feedback: bool = True


class ZstdCodec(Record):
    """Entropy coding of the packed bytes; the last of a chain."""

    kind: Literal["zstd"] = "zstd"
    level: int = Field(default=3, ge=1, le=19)


CodecConfig = Annotated[
    IdentityCodec
    | Fp16Codec
    | Bf16Codec
    | IntegerDeltaCodec
    | Int8Codec
    | Int4Codec
    | TopKCodec
    | SignCodec
    | LowRankCodec
    | ZstdCodec,
    Field(discriminator="kind"),
]


def variants(config: Any) -> Iterator[Any]:
    """Yield the settings classes of a union such as `MethodConfig`, in its order."""
    if isinstance(config, type) and issubclass(config, Record):
        yield config
    elif get_origin(config) in (Union, UnionType):
        for variant in get_args(config):
            yield from variants(variant)
    elif get_args(config):
        yield from variants(get_args(config)[0])
