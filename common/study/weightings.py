"""Settings of every factor of the weights of sites."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from consilium.common.study.parts import OwnKinds
from consilium.common.study.ranges import Positive
from consilium.common.study.record import Record
from consilium.common.study.signals import CANDIDATE_LOSSES, CLASS_COUNTS, RECEIVED_LOSS, UPDATE_LOSS, WITHOUT_ERROR


class FactorSettings(Record):
    """Base of every factor's settings; a site's weight is the product of its factors, each to its exponent."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Measurements and facts that sites must send for it."""
    holds_size: ClassVar[bool] = False
    """The number of training examples is in it already."""
    of_data: ClassVar[bool] = False
    """It follows from a site's data alone, so that updates of different rounds can be compared by it."""
    exponent: float = Field(default=1.0, ge=0, le=10)
    """The power to which the factor is raised; 0 switches it off."""


class SizeFactor(FactorSettings):
    """Number of training examples; exponent 0 is uniform, 0.5 the square root, 1 FedAvg."""

    holds_size: ClassVar[bool] = True
    of_data: ClassVar[bool] = True
    kind: Literal["size"] = "size"


class LossFactor(FactorSettings):
    """Softmax of the validation loss after training: better updates count more."""

    needs: ClassVar[frozenset[str]] = frozenset({UPDATE_LOSS})
    kind: Literal["loss"] = "loss"
    temperature: Positive = 1.0
    """A small one follows differences of the loss closely."""


class FedDgGaFactor(FactorSettings):
    """Sites that the mean serves worse than their own update gain weight, step by step."""

    needs: ClassVar[frozenset[str]] = frozenset({RECEIVED_LOSS, UPDATE_LOSS})
    kind: Literal["feddg_ga"] = "feddg_ga"
    step: float = Field(default=0.2, gt=0, le=1)
    """Largest change of a site's weight in the first round; it shrinks over the rounds."""


class FedAdpFactor(FactorSettings):
    """Updates that point where the mean points count more."""

    kind: Literal["fedadp"] = "fedadp"
    alpha: Positive = 5.0
    """Height and steepness of the function of the angle."""


class FedCeFactor(FactorSettings):
    """Novelty of the update's direction, and how much the others' model errs without the site."""

    needs: ClassVar[frozenset[str]] = frozenset({WITHOUT_ERROR})
    kind: Literal["fedce"] = "fedce"
    mode: Literal["plus", "times"] = "plus"
    """Whether novelty and error are added or multiplied."""


class FedDiscoFactor(FactorSettings):
    """Size less the divergence of the site's label distribution; holds the size, so it is not combined with `size`."""

    needs: ClassVar[frozenset[str]] = frozenset({CLASS_COUNTS})
    holds_size: ClassVar[bool] = True
    of_data: ClassVar[bool] = True
    kind: Literal["feddisco"] = "feddisco"
    a: float = Field(default=0.5, ge=0)
    """How much the discrepancy counts relative to the size."""
    b: float = Field(default=0.1, ge=0)
    """Constant that is added for every site."""
    metric: Literal["kl", "l1", "l2", "cosine"] = "kl"
    """How the discrepancy of label distributions is measured."""


class DivergenceFactor(FactorSettings):
    """Divergence of the site's label distribution from all sites', or its entropy."""

    needs: ClassVar[frozenset[str]] = frozenset({CLASS_COUNTS})
    of_data: ClassVar[bool] = True
    kind: Literal["divergence"] = "divergence"
    measure: Literal["kl", "js", "entropy"] = "kl"
    """Kullback-Leibler or Jensen-Shannon divergence from all sites' labels, or the entropy of the site's own."""
    favour: Literal["typical", "rare"] = "typical"
    """Whether sites with typical or with rare labels count more."""


class AflFactor(FactorSettings):
    """Weights climb towards the sites with the highest loss."""

    needs: ClassVar[frozenset[str]] = frozenset({RECEIVED_LOSS})
    kind: Literal["afl"] = "afl"
    learning_rate: Positive = 0.1
    """Step size of the ascent."""


class AutoFactor(FactorSettings):
    """Weights learned in the run: two candidate mixes are scored by the sites' own validation in each round."""

    needs: ClassVar[frozenset[str]] = frozenset(CANDIDATE_LOSSES)
    kind: Literal["auto"] = "auto"
    objective: Literal["mean", "worst"] = "mean"
    """Whether the mean or the worst site's loss decides."""
    learning_rate: Positive = 1.0
    """Step size of the log-weights."""
    perturbation: float = Field(default=0.3, gt=0, le=2)
    """How far the two other mixes are from the current one, in log-weights."""


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
    OwnKinds("weightings", FactorSettings),
]


class WeightingConfig(Record):
    """How much each site counts: the product of `factors`, smoothed over rounds, between two bounds."""

    factors: tuple[FactorConfig, ...] = Field(default=(SizeFactor(),), min_length=1)
    """The factors, each with `kind`, `exponent` and its settings."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """How much of a site's weight is kept from the rounds before."""
    minimum: float = Field(default=0.0, ge=0, lt=1)
    """Least share of a site in a round."""
    maximum: float | None = Field(default=None, gt=0, le=1)
    """Greatest share of a site in a round; None: 0.5 in rounds of 4 updates or more, so that no site outweighs all
    others by what it announces, and 1 in smaller rounds and in secure sums, in which each site weighs itself.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Measurements and facts that sites must send for it."""
        return frozenset().union(*(factor.needs for factor in self.factors))
