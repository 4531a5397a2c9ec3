"""Personalisation methods by name; adding one touches its file, one config variant and one line here."""

from collections.abc import Mapping

from consilium.client.methods.apfl import Apfl
from consilium.client.methods.contract import (
    Budget,
    Memory,
    Method,
    Outcome,
    extended,
    private_steps,
    rebuilt,
    serves_as_held,
)
from consilium.client.methods.ditto import Ditto
from consilium.client.methods.fedala import FedAla
from consilium.client.methods.fedavg import FedAvg
from consilium.client.methods.fedbabu import FedBabu
from consilium.client.methods.fedbn import FedBn
from consilium.client.methods.feddbe import FedDbe
from consilium.client.methods.feddyn import FedDyn
from consilium.client.methods.fedper import FedPer
from consilium.client.methods.fedprox import FedProx
from consilium.client.methods.fedrep import FedRep
from consilium.client.methods.fedrod import FedRod
from consilium.client.methods.fenda import Fenda
from consilium.client.methods.fine_tune import FineTune
from consilium.client.methods.knn_per import KnnPer
from consilium.client.methods.lg_fedavg import LgFedAvg
from consilium.client.methods.local import Local
from consilium.client.methods.moon import Moon
from consilium.client.methods.mr_mtl import MrMtl
from consilium.client.methods.per_fedavg import PerFedAvg
from consilium.client.methods.pfedme import PFedMe
from consilium.client.methods.reptile import Reptile
from consilium.client.methods.scaffold import Scaffold
from consilium.common.study.methods import MethodConfig
from consilium.common.study.parts import implementation_of

METHODS: Mapping[str, type[Method]] = {
    "local": Local,
    "fedavg": FedAvg,
    "fine_tune": FineTune,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "feddyn": FedDyn,
    "moon": Moon,
    "fedper": FedPer,
    "fedrep": FedRep,
    "fedrod": FedRod,
    "fenda": Fenda,
    "lg_fedavg": LgFedAvg,
    "fedbabu": FedBabu,
    "fedbn": FedBn,
    "feddbe": FedDbe,
    "mr_mtl": MrMtl,
    "ditto": Ditto,
    "apfl": Apfl,
    "pfedme": PFedMe,
    "fedala": FedAla,
    "knn_per": KnnPer,
    "per_fedavg": PerFedAvg,
    "reptile": Reptile,
}


def build_method(config: MethodConfig) -> Method:
    """Return the method that a study names, built in or of a package of one's own, with its settings.

    Raises:
        ConfigError: the package may not be used here, or cannot be imported.
    """
    method: type[Method] = METHODS.get(config.kind) or implementation_of("methods", config.kind)
    return method(**config.model_dump(exclude={"kind"}))


__all__ = [
    "METHODS",
    "Budget",
    "Memory",
    "Method",
    "Outcome",
    "build_method",
    "extended",
    "private_steps",
    "rebuilt",
    "serves_as_held",
]
