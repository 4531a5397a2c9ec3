"""Evidence of five sites over three rounds that factors of the weights are tested with."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from consilium.common.study.signals import CANDIDATE_LOSSES, RECEIVED_LOSS, UPDATE_LOSS, WITHOUT_ERROR
from consilium.common.study.weightings import FactorConfig, WeightingConfig
from consilium.common.weights.arrays import Array
from consilium.server.strategies import Update
from consilium.server.weighting import Evidence, Factor, Weighting, build_weighting

SIZES = {"berlin": 1000, "lyon": 500, "madrid": 200, "porto": 120, "rome": 3}
OPTIMISED = ("body.weight", "head.bias")
METRICS = (RECEIVED_LOSS, UPDATE_LOSS, WITHOUT_ERROR, *CANDIDATE_LOSSES)
COUNTS = {
    "berlin": {"healthy": 700, "ill": 300},
    "lyon": {"healthy": 250, "ill": 250},
    "madrid": {"healthy": 200},
    "porto": {"healthy": 20, "ill": 90, "unclear": 10},
    "rome": {"ill": 3},
}
ROUNDS = ((1, "berlin lyon madrid porto"), (2, "berlin madrid porto"), (3, "berlin lyon porto rome"))
"""Sites per round: two miss one, one joins in the third."""


def delta(seed: int) -> dict[str, Array]:
    """A delta with trained arrays, a buffer and a counter."""
    generator = np.random.default_rng(seed)
    return {
        "body.weight": generator.normal(size=(2, 3)).astype(np.float32),
        "head.bias": generator.normal(size=2),
        "bn.mean": generator.normal(size=2),
        "bn.count": generator.integers(0, 9, ()),
    }


def update(site: str, number: int = 1, **changes: Any) -> Update:
    """An update that depends on the site and the round, with every metric that a factor may need."""
    seed = 100 * number + list(SIZES).index(site)
    measured = np.random.default_rng(seed).uniform(0.1, 0.9, len(METRICS)).tolist()
    metrics = dict(zip(METRICS, measured, strict=True))
    return dataclasses.replace(Update(site, delta(seed), SIZES[site], metrics), **changes)


def evidence(updates: Iterable[Update] | None = None, number: int = 1, **changes: Any) -> Evidence:
    """What a factor sees in a round; by default of all five sites."""
    ordered = sorted(updates or map(update, SIZES), key=lambda item: item.site)
    standard = Evidence(ordered, number, rounds=10, class_counts=COUNTS, optimised=OPTIMISED, seed=number)
    return dataclasses.replace(standard, **changes)


def rounds() -> list[Evidence]:
    """Return the evidence of some rounds, in which not every site takes part."""
    return [evidence([update(site, number) for site in sites.split()], number) for number, sites in ROUNDS]


def factor(kind: str) -> Factor:
    """The factor with the settings it has when a study names only its kind."""
    return alone(kind).factors[0][1]


def alone(kind: str, **settings: Any) -> Weighting:
    """A weighting of one factor, in which a site may have all of the weights."""
    return build_weighting(WeightingConfig.model_validate({"factors": [{"kind": kind}], "maximum": 1.0, **settings}))


def frozen(given: Evidence) -> tuple[Any, ...]:
    """Everything that a factor could change, as bytes and copies."""
    arrays = [{name: array.tobytes() for name, array in item.delta.items()} for item in given.updates]
    return arrays, [dict(item.metrics) for item in given.updates], {s: dict(c) for s, c in given.class_counts.items()}


def sites_in(memory: Mapping[str, float]) -> set[str]:
    """Return the sites that a memory is about."""
    return {name.rpartition("/")[2] for name in memory}


def settings_of(kind: str) -> FactorConfig:
    """Return the settings of a factor of which a study names only the kind."""
    return WeightingConfig.model_validate({"factors": [{"kind": kind}]}).factors[0]
