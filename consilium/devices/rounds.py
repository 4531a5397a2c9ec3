"""The rounds of a simulation: draw a cohort, play the clock, train, add noise, move the weights, write them down."""

import time
from collections.abc import Generator
from dataclasses import replace

import numpy as np

from consilium.common.host.disk import check_room
from consilium.common.weights.arithmetic import distance
from consilium.common.weights.arrays import Array
from consilium.common.weights.checks import check_finite
from consilium.devices.clock import AWAY, DROPPED, LATE, Turn, play_turn, profiles_of
from consilium.devices.cohort import draw_cohort
from consilium.devices.measure import Scores, measure
from consilium.devices.personal import Personal
from consilium.devices.population import Floats, Ints
from consilium.devices.result import DeviceRound, ProfileResult
from consilium.devices.rows import user_name
from consilium.devices.simulation import (
    CHECKPOINT,
    KEY,
    ROUNDS,
    Simulation,
    Step,
    append,
    begun,
    chance_of,
    entropy_of,
)
from consilium.devices.training import train_cohort
from consilium.server.privacy.noise import with_cohort_noise
from consilium.server.strategies import ServerState, Update
from consilium.server.study.checkpoint import save_checkpoint
from consilium.server.weighting import Evidence


def run_rounds(simulation: Simulation) -> Generator[Step, None, None]:
    """Yield how far the simulation is: as it begins, and after every round; it goes on from its folder's checkpoint.

    Raises:
        StateError: what was written cannot be read or goes with another study, or the disk is full.
    """
    state, rounds = begun(simulation)
    personal = _personal(simulation, state.round)
    try:
        yield Step(state, rounds, {}, None if personal is None else personal.touched)
        while state.round < simulation.study.rounds:
            _check_room(simulation, state, personal)
            state, record, scores = _round(simulation, state, rounds, personal)
            rounds = (*rounds, record)
            append(simulation.folder / ROUNDS, record)
            save_checkpoint(simulation.folder / CHECKPOINT, state, run=simulation.run, study_digest=simulation.digest)
            if personal is not None:
                personal.finish(state.round)
            yield Step(state, rounds, scores, None if personal is None else personal.touched)
    finally:
        if personal is not None:
            personal.close()


def measured_again(simulation: Simulation, state: ServerState) -> dict[str, Scores]:
    """Measure the models of a state once more."""
    personal = _personal(simulation, state.round)
    try:
        return measure(simulation.learning, simulation.panel, state.weights, personal, number=state.round)
    finally:
        if personal is not None:
            personal.close()


def _personal(simulation: Simulation, upto: int) -> Personal | None:
    if not (names := simulation.learning.personal_names):
        return None
    numbers = sum(simulation.learning.beginning.initial[name].size for name in names)
    return Personal(simulation.folder, numbers, upto=upto)


def _check_room(simulation: Simulation, state: ServerState, personal: Personal | None) -> None:
    """Check that a round's checkpoint and personal weights can be written.

    Raises:
        DiskFull: they cannot.
    """
    held = sum(array.nbytes for array in {**state.weights, **state.memory}.values())
    own = 0 if personal is None else personal.place_bytes * simulation.study.asked_size
    check_room(simulation.folder, held + own, what="a round")


def _round(
    simulation: Simulation, state: ServerState, rounds: tuple[DeviceRound, ...], personal: Personal | None
) -> tuple[ServerState, DeviceRound, dict[str, Scores]]:
    began, number = time.process_time(), state.round + 1
    turn, now = _turn(simulation, number, rounds[-1].clock if rounds else 0.0)
    record = DeviceRound(
        round=number,
        **_counts(turn.fates).model_dump(),
        seconds=turn.seconds,
        clock=now + turn.seconds,
        bytes_down=turn.bytes_down,
        bytes_up=turn.bytes_up,
        profiles={
            one.name: _counts(turn.fates[turn.kinds == place])
            for place, one in enumerate(profiles_of(simulation.study))
        },
    )
    after = replace(state, round=number)
    if turn.enough:
        after, more = _moved(simulation, state, turn, personal)
        record = record.model_copy(update=more)
    else:
        record = record.model_copy(update={"accepted": 0})
    record = record.model_copy(update={"processor": time.process_time() - began})
    study, scores = simulation.study, dict[str, Scores]()
    if number % study.evaluate_every == 0 or number == study.rounds:
        if personal is not None:
            personal.finish(number)
        scores = measure(simulation.learning, simulation.panel, after.weights, personal, number=number)
        told = {name: found for name, one in scores.items() if (found := one.told()) is not None}
        record = record.model_copy(update={"measured": told})
    return after, record, scores


def _counts(fates: Ints) -> ProfileResult:
    away, dropped, late = (int((fates == one).sum()) for one in (AWAY, DROPPED, LATE))
    return ProfileResult(
        drawn=len(fates), accepted=len(fates) - away - dropped - late, away=away, dropped=dropped, late=late
    )


def _turn(simulation: Simulation, number: int, now: float) -> tuple[Turn, float]:
    """Draw a round's cohort and let it play."""
    study, learning, seed = simulation.study, simulation.learning, chance_of(simulation)
    users = draw_cohort(
        simulation.users,
        min(study.asked_size, simulation.users),
        seed=seed,
        round_number=number,
        each=simulation.privacy is not None,
    )
    rows = learning.rows_trained(learning.split(users)[1])
    size = sum(array.nbytes for array in learning.beginning.shared.values())
    return play_turn(study, users, rows, seed=seed, number=number, now=now, bytes_down=size, bytes_up=size), now


def _moved(
    simulation: Simulation, state: ServerState, turn: Turn, personal: Personal | None
) -> tuple[ServerState, dict[str, object]]:
    """Return the state after the training of those who answer, and what there is to say of it."""
    study, learning, privacy, number = simulation.study, simulation.learning, simulation.privacy, state.round + 1
    assert study.devices is not None
    users = turn.users[turn.answered]
    trained = train_cohort(
        learning,
        state.weights,
        users,
        _shares(simulation, users, number),
        number=number,
        personal=personal,
        clip=None if privacy is None else privacy.clip,
    )
    more: dict[str, object] = {
        "loss": trained.loss,
        "median_norm": trained.median_norm,
        "shortened": trained.shortened,
        "in_rows": trained.in_rows,
        "in_stacks": trained.in_stacks,
    }
    if not state.weights:
        return replace(state, round=number), more
    mean: dict[str, Array] = {name: np.asarray(array) for name, array in trained.mean.items()}
    if privacy is not None and simulation.multiplier is not None:
        mean = with_cohort_noise(
            mean,
            privacy,
            multiplier=simulation.multiplier,
            expected=study.devices.cohort,
            entropy=entropy_of(simulation.folder / KEY, number),
        )
    delta = {name: array.astype(state.weights[name].dtype) for name, array in mean.items()}
    whole = Update("cohort", delta, max(1, len(users)), {})
    after = simulation.strategy.apply(state, [whole], {"cohort": 1.0}).state
    check_finite(after.weights, who=f"round {number}: the new global weights")
    return replace(after, shares={}), {**more, "update_norm": float(f"{distance(after.weights, state.weights):.12g}")}


def _shares(simulation: Simulation, users: Ints, number: int) -> Floats:
    """Return how much each user's update counts: by the study's weighting, or all alike, whoever came."""
    study, learning = simulation.study, simulation.learning
    assert study.devices is not None
    if simulation.privacy is not None:
        return np.full(len(users), 1 / study.devices.cohort)
    if not study.strategy.weighted:
        return np.full(len(users), 1 / max(1, len(users)))
    sizes = learning.split(users)[1].tolist()
    names = [user_name(user) for user in users.tolist()]
    updates = [Update(name, {}, size, {}) for name, size in zip(names, sizes, strict=True)]
    weighed = simulation.weighting.weigh(Evidence(updates, round=number, rounds=study.rounds), {})
    return np.array([weighed.shares[name] for name in names])
