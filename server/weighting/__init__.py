"""Dynamic weights by name; adding one touches its file, one config variant and one line here."""

from collections.abc import Mapping

from consilium.common.study.parts import implementation_of
from consilium.common.study.weightings import FactorConfig, WeightingConfig
from consilium.server.weighting.afl import Afl
from consilium.server.weighting.auto import Auto
from consilium.server.weighting.contract import Evidence, Factor, Reading, SignalMissing, Weighed, Weighting
from consilium.server.weighting.divergence import Divergence
from consilium.server.weighting.fedadp import FedAdp
from consilium.server.weighting.fedce import FedCe
from consilium.server.weighting.feddg_ga import FedDgGa
from consilium.server.weighting.feddisco import FedDisco
from consilium.server.weighting.loss import Loss
from consilium.server.weighting.size import Size

WEIGHTINGS: Mapping[str, type[Factor]] = {
    "size": Size,
    "loss": Loss,
    "feddg_ga": FedDgGa,
    "fedadp": FedAdp,
    "fedce": FedCe,
    "feddisco": FedDisco,
    "divergence": Divergence,
    "afl": Afl,
    "auto": Auto,
}


def build_factor(config: FactorConfig) -> Factor:
    """Return one factor, built in or of a package of one's own, with its settings.

    Raises:
        ConfigError: the package cannot be imported.
    """
    factor: type[Factor] = WEIGHTINGS.get(config.kind) or implementation_of("weightings", config.kind)
    return factor(**config.model_dump(exclude={"kind", "exponent"}))


def build_weighting(config: WeightingConfig) -> Weighting:
    """Return the weighting that a study describes."""
    factors = tuple((item.kind, build_factor(item), item.exponent) for item in config.factors)
    return Weighting(factors, **config.model_dump(exclude={"factors"}))


__all__ = ["WEIGHTINGS", "Evidence", "Factor", "Reading", "SignalMissing", "Weighed", "Weighting", "build_weighting"]
