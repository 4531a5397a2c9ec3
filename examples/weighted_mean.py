"""Average three sites' models, dictionaries {layer: value}, by their 1000, 500 and 200 examples (FedAvg).

Run: `python examples/weighted_mean.py`
"""

from collections.abc import Mapping

import numpy as np

from consilium.common.study.strategies import FedAvgStrategy
from consilium.common.study.weightings import WeightingConfig
from consilium.common.weights.arithmetic import subtract
from consilium.common.weights.arrays import Weights
from consilium.server.strategies import Update, build_strategy
from consilium.server.weighting import Evidence, build_weighting

GLOBAL: Weights = {"conv": np.array(1.0), "head": np.array([0.0, 0.0])}
"""What the server sent to all sites."""
MODELS: Mapping[str, tuple[Weights, int]] = {
    "berlin": ({"conv": np.array(1.7), "head": np.array([1.0, 0.0])}, 1000),
    "lyon": ({"conv": np.array(3.4), "head": np.array([0.0, 1.0])}, 500),
    "porto": ({"conv": np.array(8.5), "head": np.array([0.0, 0.0])}, 200),
}
"""What each site has after its training, and how many examples it trained on."""


def main() -> None:
    """Print the shares of the sites and the mean of their models."""
    updates = [
        Update(site, delta=subtract(model, GLOBAL), num_examples=count, metrics={})
        for site, (model, count) in MODELS.items()
    ]
    strategy = build_strategy(FedAvgStrategy(), rounds=1, num_sites=len(updates), learning_rate=0.1)
    weighed = build_weighting(WeightingConfig()).weigh(Evidence(updates, round=1, rounds=1), {})
    step = strategy.apply(strategy.init(GLOBAL), updates, weighed.shares)
    for site, share in step.shares.items():
        print(f"{site}: {MODELS[site][1]} examples, share {share:.4f}")
    for layer, value in step.state.weights.items():
        print(f"{layer}: {np.asarray(value, dtype=float).round(4).tolist()}")


if __name__ == "__main__":
    main()
