"""Server strategies by name; adding one touches its file, one config variant and one line here."""

from collections.abc import Mapping

from consilium.common.study.parts import implementation_of
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.study import StudyConfig
from consilium.server.strategies.contract import ServerState, Step, Strategy, Update, by_site
from consilium.server.strategies.fedadagrad import FedAdagrad
from consilium.server.strategies.fedadam import FedAdam
from consilium.server.strategies.fedavg import FedAvg
from consilium.server.strategies.fedavgm import FedAvgM
from consilium.server.strategies.feddyn import FedDyn
from consilium.server.strategies.fedexp import FedExP
from consilium.server.strategies.fednova import FedNova
from consilium.server.strategies.fedyogi import FedYogi
from consilium.server.strategies.geometric_median import GeometricMedian
from consilium.server.strategies.krum import Krum
from consilium.server.strategies.median import Median
from consilium.server.strategies.per_fedavg import PerFedAvg
from consilium.server.strategies.qfedavg import QFedAvg
from consilium.server.strategies.reptile import Reptile
from consilium.server.strategies.scaffold import Scaffold
from consilium.server.strategies.trimmed_mean import TrimmedMean

STRATEGIES: Mapping[str, type[Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedexp": FedExP,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "qfedavg": QFedAvg,
    "scaffold": Scaffold,
    "feddyn": FedDyn,
    "fednova": FedNova,
    "reptile": Reptile,
    "per_fedavg": PerFedAvg,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "geometric_median": GeometricMedian,
}


def build_strategy(config: StrategyConfig, *, rounds: int, num_sites: int, learning_rate: float) -> Strategy:
    """Return the strategy that a study names, with its settings and the facts of the study that it takes.

    Args:
        rounds: how many the study plans, for what changes over them (Reptile's step).
        num_sites: how many sites the study names (SCAFFOLD's control variate and FedDyn's drift are over all of them).
        learning_rate: the sites' own, for a strategy whose setting of that name is left open (q-FedAvg).
    """
    facts = {"rounds": rounds, "num_sites": num_sites, "learning_rate": learning_rate}
    settings = config.model_dump(exclude={"kind"})
    settings |= {name: facts[name] for name in config.takes if settings.get(name) is None}
    strategy: type[Strategy] = STRATEGIES.get(config.kind) or implementation_of("strategies", config.kind)
    return strategy(**settings)


def strategy_of(study: StudyConfig, *, num_sites: int | None = None) -> Strategy:
    """Return the strategy of a study.

    Args:
        num_sites: None: as many as it names.
    """
    return build_strategy(
        study.strategy,
        rounds=study.rounds,
        num_sites=len(study.sites) if num_sites is None else num_sites,
        learning_rate=study.training.learning_rate,
    )


__all__ = ["STRATEGIES", "ServerState", "Step", "Strategy", "Update", "build_strategy", "by_site", "strategy_of"]
