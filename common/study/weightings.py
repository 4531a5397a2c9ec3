"""Settings of every factor of the weights of sites."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.study.ranges import Positive
from common.study.record import Record
from common.study.signals import CANDIDATE_LOSSES, CLASS_COUNTS, RECEIVED_LOSS, UPDATE_LOSS, WITHOUT_ERROR


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
