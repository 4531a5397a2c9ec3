"""Server strategies by name; adding one touches its file, one config variant and one line here."""

from collections.abc import Mapping

from common.config import StrategyConfig
from server.strategies.base import ServerState, Step, Strategy, Update
from server.strategies.fedavg import FedAvg

STRATEGIES: Mapping[str, type[Strategy]] = {"fedavg": FedAvg}


def build_strategy(config: StrategyConfig) -> Strategy:
    """Return the strategy that a study names, with its settings."""
    return STRATEGIES[config.kind](**config.model_dump(exclude={"kind"}))


__all__ = ["STRATEGIES", "ServerState", "Step", "Strategy", "Update", "build_strategy"]
