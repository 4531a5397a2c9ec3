"""Weights, updates and shares that strategies are tested with."""

from typing import Any

import numpy as np
from pydantic import TypeAdapter

from consilium.common.study.signals import EFFECTIVE_STEPS, START_LOSS
from consilium.common.study.strategies import StrategyConfig
from consilium.common.weights.arrays import Array, Weights
from consilium.server.strategies import ServerState, Strategy, Update, build_strategy

ROUNDS, LEARNING_RATE = 10, 0.1
BUFFERS = frozenset({"bn.mean", "bn.var", "bn.count"})
WEIGHTS: dict[str, Array] = {
    "body.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "head.bias": np.array([0.25, 0.5]),
    "scale": np.array(1.5, dtype=np.float32),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "bn.mean": np.array([0.5, -0.25], dtype=np.float32),
    "bn.var": np.array([0.01, 1.0], dtype=np.float32),
    "bn.count": np.array(7),
    "token": np.array([3, 4, 5], dtype=np.int32),
}
FLOATS = ("body.weight", "empty", "head.bias", "scale")
"""What a server optimiser may act on; `token` is an integer that is no buffer."""

SIZES = {"berlin": 1000, "lyon": 900, "madrid": 500, "paris": 200, "porto": 40, "rome": 3}
SHARES = {site: size / sum(SIZES.values()) for site, size in SIZES.items()}


def values(like: Weights, seed: int) -> dict[str, Array]:
    """Arrays of the same form with values that no sum of float64 gets exactly."""
    generator = np.random.default_rng(seed)
    return {
        name: np.asarray(
            generator.integers(0, 9, array.shape)
            if array.dtype.kind == "i"
            else 0.01 * generator.normal(size=array.shape)
        ).astype(array.dtype)
        for name, array in like.items()
    }


def updates(like: Weights = WEIGHTS) -> list[Update]:
    """Six sites' updates with all that any strategy needs."""
    return [
        Update(
            site,
            delta=values(like, seed),
            num_examples=size,
            metrics={"global.loss": 0.2 * seed, START_LOSS: 0.3 * seed, EFFECTIVE_STEPS: 1.5 * seed},
            control=values({name: like[name] for name in FLOATS if name in like}, seed + 100),
        )
        for seed, (site, size) in enumerate(SIZES.items(), start=1)
    ]


def frozen_bytes(weights: Weights) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return all there is to compare of arrays."""
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in weights.items()}


def state_bytes(state: ServerState) -> tuple[Any, ...]:
    """Return all there is to compare of a state."""
    parts = (state.weights, state.memory, state.along)
    return state.round, state.buffers, dict(state.weighting), *(frozen_bytes(part) for part in parts)


def config_of(kind: str) -> StrategyConfig:
    """Return the settings of a strategy of which a study names only the kind."""
    config: StrategyConfig = TypeAdapter(StrategyConfig).validate_python({"kind": kind})
    return config


def built(kind: str) -> Strategy:
    """Return a strategy with its default settings."""
    return build_strategy(config_of(kind), rounds=ROUNDS, num_sites=len(SIZES), learning_rate=LEARNING_RATE)


def begun(strategy: Strategy) -> ServerState:
    """Return a strategy's state before round 1."""
    return strategy.init(WEIGHTS, BUFFERS)
