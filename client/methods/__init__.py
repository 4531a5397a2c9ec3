"""Personalisation methods by name; adding one touches its file, one config variant and one line here."""

from collections.abc import Mapping

from client.methods.base import Budget, Memory, Method, Outcome
from client.methods.fedavg import FedAvg
from client.methods.fedper import FedPer
from client.methods.fine_tune import FineTune
from client.methods.local import Local
from common.algorithms import MethodConfig

METHODS: Mapping[str, type[Method]] = {
    "local": Local,
    "fedavg": FedAvg,
    "fine_tune": FineTune,
    "fedper": FedPer,
}


def build_method(config: MethodConfig) -> Method:
    """Return the method that a study names, with its settings."""
    return METHODS[config.kind](**config.model_dump(exclude={"kind"}))


__all__ = ["METHODS", "Budget", "Memory", "Method", "Outcome", "build_method"]
