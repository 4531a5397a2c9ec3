"""What every strategy must hold: laws over updates of six sites, one function each."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from consilium.common.protocol.plans import CONTROL
from consilium.common.weights.arrays import Array, under
from consilium.common.weights.checks import check_like
from consilium.server.strategies import Update
from consilium.server.study.update_files import Spool
from consilium.testing.strategy_cases import (
    BUFFERS,
    FLOATS,
    SHARES,
    SIZES,
    WEIGHTS,
    begun,
    built,
    config_of,
    frozen_bytes,
    state_bytes,
    updates,
)


def is_a_frozen_dataclass_of_settings(kind: str) -> None:
    """State is an argument: nothing can be set on a strategy, and its fields are those of its configuration."""
    strategy = built(kind)
    assert dataclasses.is_dataclass(strategy)
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        strategy.memory = {}


def starts_before_round_1_from_the_weights_given(kind: str) -> None:
    """`init` keeps the weights as they are, knows the buffers and counts no round."""
    strategy = built(kind)
    state = begun(strategy)
    assert (0, BUFFERS, FLOATS) == (state.round, state.buffers, state.optimised)
    assert frozen_bytes(WEIGHTS) == frozen_bytes(state.weights)


def is_pure(kind: str) -> None:
    """Two calls with the same arguments give the same bits, and the arguments are what they were."""
    strategy = built(kind)
    state, given = begun(strategy), updates()

    def arguments() -> tuple[Any, ...]:
        return state_bytes(state), [(frozen_bytes(u.delta), frozen_bytes(u.control), dict(u.metrics)) for u in given]

    before, shares = arguments(), dict(SHARES)
    first, second = strategy.apply(state, given, shares), strategy.apply(state, given, shares)
    assert (before, SHARES) == (arguments(), shares)
    assert state_bytes(first.state) == state_bytes(second.state)
    assert dict(first.shares) == dict(second.shares)


def does_not_depend_on_the_order_of_updates(kind: str) -> None:
    """Bit for bit, over two rounds: who answers first is chance, and must not change the weights."""
    strategy = built(kind)

    def two_rounds(ordered: list[Update]) -> tuple[Any, ...]:
        shares = {update.site: SHARES[update.site] for update in ordered}
        state = strategy.apply(begun(strategy), ordered, shares).state
        step = strategy.apply(state, ordered, shares)
        return state_bytes(step.state), dict(step.shares)

    given = updates()
    expected = two_rounds(given)
    for order in ([5, 4, 3, 2, 1, 0], [1, 3, 0, 5, 2, 4], [2, 4, 0, 1, 5, 3]):
        assert expected == two_rounds([given[i] for i in order])


def takes_updates_from_an_iterator(kind: str) -> None:
    """`apply` reads its updates once."""
    strategy = built(kind)
    state = begun(strategy)
    assert state_bytes(strategy.apply(state, updates(), SHARES).state) == state_bytes(
        strategy.apply(state, iter(updates()), SHARES).state
    )


def takes_deltas_that_lie_on_disk(kind: str) -> None:
    """Kept in a spool or held in memory: the same bits, over two rounds."""
    strategy = built(kind)

    def two_rounds(given: list[Update]) -> tuple[Any, ...]:
        state = strategy.apply(begun(strategy), given, SHARES).state
        step = strategy.apply(state, given, SHARES)
        return state_bytes(step.state), dict(step.shares)

    with TemporaryDirectory() as folder, Spool(Path(folder), memory_bytes=0) as spool:
        kept = [
            dataclasses.replace(update, delta=spool.keep(update.delta), control=spool.keep(update.control))
            for update in updates()
        ]
        assert two_rounds(updates()) == two_rounds(kept)


def keeps_names_shapes_and_dtypes(kind: str) -> None:
    """New weights, memory and what travels along have the form they had at the start, in every round."""
    strategy = built(kind)
    first = begun(strategy)
    state = first
    for who in ("round 1", "round 2"):
        state = strategy.apply(state, updates(), SHARES).state
        check_like(state.weights, first.weights, who=f"{who}: weights")
        check_like(state.memory, first.memory, who=f"{who}: memory")
        check_like(state.along, first.along, who=f"{who}: along")
        assert all(type(array) is np.ndarray for part in (state.memory, state.along) for array in part.values())
        assert first.buffers == state.buffers


def moves_every_trained_array(kind: str) -> None:
    """No array is forgotten: after a round in which every site moved, all but the empty one differ."""
    strategy = built(kind)
    after = strategy.apply(begun(strategy), updates(), SHARES).state.weights
    assert {"empty"} == {name for name in FLOATS if np.array_equal(WEIGHTS[name], after[name])}


def tells_shares_by_site_that_sum_to_1(kind: str) -> None:
    """Every site that sent an update has its share, none is negative."""
    strategy = built(kind)
    shares = strategy.apply(begun(strategy), updates(), SHARES).shares
    assert set(SIZES) == set(shares)
    assert pytest.approx(1, abs=1e-12) == sum(shares.values())
    assert all(type(share) is float and share >= 0 for share in shares.values())


def uses_the_shares_given_or_reads_none(kind: str) -> None:
    """As its settings say: with `weighted`, other shares give other weights; without, none at all give the same.

    Where one update was taken whole, as Krum does, no share can change it.
    """
    strategy = built(kind)
    state, equal = begun(strategy), dict.fromkeys(SIZES, 1 / 6)
    expected = strategy.apply(state, updates(), SHARES)
    if config_of(kind).weighted and max(expected.shares.values()) == 1:
        assert config_of(kind).least_sites > 1, "a strategy that takes one update whole and needs no others"
    elif config_of(kind).weighted:
        other = strategy.apply(state, updates(), equal)
        assert state_bytes(expected.state) != state_bytes(other.state)
    else:
        assert state_bytes(expected.state) == state_bytes(strategy.apply(state, updates(), {}).state)


def keeps_a_running_variance_where_the_sites_have_it(kind: str) -> None:
    """No server optimiser acts on BatchNorm's statistics: between the sites' values, so never below 0, round by round.

    Every site has a variance of a few 1e-4 in round 1, far below the 0.01 that the server starts from: a step of
    Adam, or one with momentum, would overshoot 0.
    """
    strategy = built(kind)
    state = begun(strategy)
    for number in (1, 2, 3, 4):
        before = state.weights["bn.var"].astype(np.float32)
        sites = [np.full(2, seed * 1e-4 / number, np.float32) for seed in range(1, 7)]
        given = [
            dataclasses.replace(update, delta={**update.delta, "bn.var": site - before})
            for update, site in zip(updates(), sites, strict=True)
        ]
        state = strategy.apply(state, given, SHARES).state
        after = state.weights["bn.var"].astype(np.float64)
        assert np.all(after >= 0) and np.all(after >= min(map(np.min, sites)) - 1e-7)
        assert np.all(after <= max(map(np.max, sites)) + 1e-7)


def keeps_memory_and_control_of_optimised_arrays_only(kind: str) -> None:
    """Names end in an optimised array's; what travels along is a control variate."""
    strategy = built(kind)
    state = strategy.apply(begun(strategy), updates(), SHARES).state
    assert {name.split("/", 1)[1] for name in state.memory} <= set(FLOATS)
    assert set(state.along) in (set(), {CONTROL + name for name in FLOATS})
    assert set(under(state.along, CONTROL)) == {name.removeprefix(CONTROL) for name in state.along}


def counts_rounds(kind: str) -> None:
    """Every apply is one round."""
    strategy = built(kind)
    state = begun(strategy)
    for expected in (1, 2, 3):
        state = strategy.apply(state, updates(), SHARES).state
        assert expected == state.round


def leaves_what_the_weighting_keeps(kind: str) -> None:
    """The weighting's memory passes through."""
    strategy = built(kind)
    state = dataclasses.replace(begun(strategy), weighting={"smoothed/berlin": 0.5})
    assert {"smoothed/berlin": 0.5} == strategy.apply(state, updates(), SHARES).state.weighting


def refuses_no_updates(kind: str) -> None:
    """There is no default for a round in which nobody answered."""
    strategy = built(kind)
    with pytest.raises(ValueError, match="at least one update"):
        strategy.apply(begun(strategy), [], {})


def works_with_as_few_sites_as_its_settings_say_and_with_no_fewer(kind: str) -> None:
    """`least_sites` updates give finite weights; one less is refused with a sentence."""
    least, strategy = config_of(kind).least_sites, built(kind)
    few = updates()[:least]
    shares = {update.site: 1 / least for update in few}
    state = strategy.apply(begun(strategy), few, shares).state
    assert all(np.isfinite(array).all() for array in state.weights.values())
    with pytest.raises(ValueError, match="at least"):
        strategy.apply(begun(strategy), few[1:], shares)


def without_a_measurement_it_needs_names_the_site(kind: str) -> None:
    """Nothing is made up for a site that did not send what the settings' `needs` asks for."""
    strategy = built(kind)
    for name in config_of(kind).needs:
        given = updates()
        given[3] = dataclasses.replace(given[3], metrics={k: v for k, v in given[3].metrics.items() if k != name})
        with pytest.raises(ValueError, match=f"site 'paris' sent no '{name}'"):
            strategy.apply(begun(strategy), given, SHARES)


def reads_no_measurement_beyond_those_it_asks_for(kind: str) -> None:
    """The settings' `needs` are complete: all other metrics may be missing."""
    strategy, needs = built(kind), config_of(kind).needs
    bare = [dataclasses.replace(u, metrics={name: u.metrics[name] for name in needs}) for u in updates()]
    expected = state_bytes(strategy.apply(begun(strategy), updates(), SHARES).state)
    assert expected == state_bytes(strategy.apply(begun(strategy), bare, SHARES).state)


def sees_no_change_makes_none(kind: str) -> None:
    """If every delta is zero in the first round, the weights stay as they are."""
    strategy = built(kind)
    still = [dataclasses.replace(u, delta={n: np.zeros_like(a) for n, a in u.delta.items()}) for u in updates()]
    assert frozen_bytes(WEIGHTS) == frozen_bytes(strategy.apply(begun(strategy), still, SHARES).state.weights)


def works_where_nothing_is_shared(kind: str) -> None:
    """Method `local`: no arrays at all, two rounds, shares that sum to 1."""
    strategy = built(kind)
    state = strategy.init({}, frozenset())
    for _ in range(2):
        step = strategy.apply(state, updates({}), SHARES)
        state = step.state
    assert ({}, {}, {}) == (dict(state.weights), dict(state.memory), dict(state.along))
    assert pytest.approx(1, abs=1e-12) == sum(step.shares.values())


def works_where_only_buffers_and_integers_are_shared(kind: str) -> None:
    """Nothing to optimise: the rest still moves."""
    strategy = built(kind)
    rest: Mapping[str, Array] = {name: WEIGHTS[name] for name in WEIGHTS if name not in FLOATS}
    step = strategy.apply(strategy.init(rest, BUFFERS), updates(rest), SHARES)
    check_like(step.state.weights, rest, who="round 1")
    assert not np.array_equal(rest["bn.mean"], step.state.weights["bn.mean"])
    assert ({}, {}) == (dict(step.state.memory), dict(step.state.along))


LAWS: tuple[Callable[[str], None], ...] = (
    is_a_frozen_dataclass_of_settings,
    starts_before_round_1_from_the_weights_given,
    is_pure,
    does_not_depend_on_the_order_of_updates,
    takes_updates_from_an_iterator,
    takes_deltas_that_lie_on_disk,
    keeps_names_shapes_and_dtypes,
    moves_every_trained_array,
    tells_shares_by_site_that_sum_to_1,
    uses_the_shares_given_or_reads_none,
    keeps_a_running_variance_where_the_sites_have_it,
    keeps_memory_and_control_of_optimised_arrays_only,
    counts_rounds,
    leaves_what_the_weighting_keeps,
    refuses_no_updates,
    works_with_as_few_sites_as_its_settings_say_and_with_no_fewer,
    without_a_measurement_it_needs_names_the_site,
    reads_no_measurement_beyond_those_it_asks_for,
    sees_no_change_makes_none,
    works_where_nothing_is_shared,
    works_where_only_buffers_and_integers_are_shared,
)
"""All laws; each takes the strategy's name."""
