"""Dynamic weights by name; adding one touches its file, one config variant and one line here."""

from collections.abc import Mapping

from common.study.weightings import WeightingConfig
from server.weighting.afl import Afl
from server.weighting.auto import Auto
from server.weighting.contract import Evidence, Factor, Reading, SignalMissing, Weighed, Weighting
from server.weighting.divergence import Divergence
from server.weighting.fedadp import FedAdp
from server.weighting.fedce import FedCe
from server.weighting.feddg_ga import FedDgGa
from server.weighting.feddisco import FedDisco
from server.weighting.loss import Loss
from server.weighting.size import Size

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


def build_weighting(config: WeightingConfig) -> Weighting:
    """Return the weighting that a study describes."""
    factors = tuple(
        (item.kind, WEIGHTINGS[item.kind](**item.model_dump(exclude={"kind", "exponent"})), item.exponent)
        for item in config.factors
    )
    return Weighting(factors, **config.model_dump(exclude={"factors"}))


__all__ = ["WEIGHTINGS", "Evidence", "Factor", "Reading", "SignalMissing", "Weighed", "Weighting", "build_weighting"]
