"""A round's updates become the next weights: how much each counts, and what the strategy makes of them."""

import time
from collections.abc import Sequence
from dataclasses import replace

from consilium.common.events.run import WeightingFallback
from consilium.common.protocol.plans import CONTROL
from consilium.common.seeds import seed_for
from consilium.common.weights.arithmetic import distance
from consilium.common.weights.arrays import Array, with_prefix
from consilium.common.weights.checks import check_finite
from consilium.server.privacy.noise import site_epsilon, with_site_noise
from consilium.server.strategies import ServerState, Update
from consilium.server.study.context import Study
from consilium.server.study.record import Aggregation
from consilium.server.weighting import Evidence, Weighed


def aggregate(study: Study, state: ServerState, updates: Sequence[Update]) -> Aggregation:
    """Weigh the updates and apply them to the weights.

    Raises:
        UpdateRejected: the new weights are not finite.
    """
    began, number = time.monotonic(), state.round + 1
    weighed = weigh(study, state, updates)
    noised = with_site_noise(study.config, updates, weighed.shares)
    step = study.strategy.apply(state, noised, weighed.shares)
    check_finite(step.state.weights, who=f"round {number}: the new global weights")
    control = {name: array for name, array in step.state.along.items() if name.startswith(CONTROL)}
    along = control | candidates(study, state, updates, weighed)
    if weighed.notes:
        study.folder.log(WeightingFallback(round=number, message="; ".join(weighed.notes)))
    after = replace(step.state, along=along, weighting=weighed.memory, shares=dict(step.shares))
    # NumPy's sums differ in their last bits with where an array lies in memory; equal runs have equal records.
    norm = float(f"{distance(after.weights, state.weights):.12g}")
    epsilon = site_epsilon(study.config, rounds_done=number)
    return Aggregation(after, after.shares, weighed.signals, weighed.notes, norm, time.monotonic() - began, epsilon)


def weigh(study: Study, state: ServerState, updates: Sequence[Update]) -> Weighed:
    """Return how much each update counts."""
    number = state.round + 1
    evidence = Evidence(
        updates,
        round=number,
        rounds=study.config.rounds,
        class_counts=study.class_counts,
        optimised=state.optimised,
        seed=seed_for(study.config.seed, "weighting", number),
    )
    return study.weighting.weigh(evidence, state.weighting)


def candidates(study: Study, state: ServerState, updates: Sequence[Update], weighed: Weighed) -> dict[str, Array]:
    """Return the weights that each candidate's shares give, under its name, for the sites to compare."""
    arrays: dict[str, Array] = {}
    for name, shares in weighed.candidates.items():
        weights = study.strategy.apply(state, updates, shares).state.weights
        check_finite(weights, who=f"round {state.round + 1}: {name}")
        arrays |= with_prefix(weights, f"{name}/")
    return arrays
