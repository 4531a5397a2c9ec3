"""Personalisation methods by name; adding one touches its file, one config variant and one line here."""

from collections.abc import Mapping

from client.methods.apfl import Apfl
from client.methods.contract import Budget, Memory, Method, Outcome, extended
from client.methods.ditto import Ditto
from client.methods.fedala import FedAla
from client.methods.fedavg import FedAvg
from client.methods.fedbabu import FedBabu
from client.methods.fedbn import FedBn
from client.methods.feddbe import FedDbe
from client.methods.feddyn import FedDyn
from client.methods.fedper import FedPer
from client.methods.fedprox import FedProx
from client.methods.fedrep import FedRep
from client.methods.fedrod import FedRod
from client.methods.fenda import Fenda
from client.methods.fine_tune import FineTune
from client.methods.knn_per import KnnPer
from client.methods.lg_fedavg import LgFedAvg
from client.methods.local import Local
from client.methods.moon import Moon
from client.methods.mr_mtl import MrMtl
from client.methods.per_fedavg import PerFedAvg
from client.methods.pfedme import PFedMe
from client.methods.reptile import Reptile
from client.methods.scaffold import Scaffold
from common.study.methods import MethodConfig

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
    """Return the method that a study names, with its settings."""
    return METHODS[config.kind](**config.model_dump(exclude={"kind"}))


__all__ = ["METHODS", "Budget", "Memory", "Method", "Outcome", "build_method", "extended"]
