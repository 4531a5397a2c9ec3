"""Strategies: the contract that every one in the registry keeps; their own numbers are in test_strategy_numbers."""

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from consilium.client.methods import METHODS
from consilium.common.codecs import CODECS
from consilium.common.protocol.plans import CONTROL
from consilium.common.study.codecs import CodecConfig
from consilium.common.study.methods import MethodConfig
from consilium.common.study.ranges import variants
from consilium.common.study.signals import EFFECTIVE_STEPS, START_LOSS
from consilium.common.study.strategies import StrategyConfig
from consilium.common.weights.arithmetic import add_scaled, weighted_mean
from consilium.common.weights.arrays import Array, Weights, under
from consilium.common.weights.checks import check_like
from consilium.server.strategies import STRATEGIES, ServerState, Strategy, Update, build_strategy
from consilium.server.study.update_files import Spool

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

COORDINATES = ("median", "trimmed_mean")
"""Strategies that treat each coordinate for itself: no set of shares gives their weights."""

KINDS = sorted(STRATEGIES)


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


@pytest.fixture(params=KINDS)
def strategy(request: pytest.FixtureRequest) -> Strategy:
    """Every strategy, with the settings it has when a study names only its kind."""
    return built(request.param)


every_kind = pytest.mark.parametrize("kind", KINDS)


# --- contract: every strategy ----------------------------------------------------------------------


def test_strategy_is_a_frozen_dataclass_of_settings(strategy: Strategy) -> None:
    """State is an argument: nothing can be set on a strategy, and its fields are those of its configuration."""
    assert dataclasses.is_dataclass(strategy)
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        strategy.memory = {}


def test_strategy_starts_before_round_1_from_the_weights_given(strategy: Strategy) -> None:
    """`init` keeps the weights as they are, knows the buffers and counts no round."""
    state = begun(strategy)
    assert (0, BUFFERS, FLOATS) == (state.round, state.buffers, state.optimised)
    assert frozen_bytes(WEIGHTS) == frozen_bytes(state.weights)


def test_state_divides_its_arrays_into_optimised_and_averaged() -> None:
    """Trained floats on one side; buffers and integers, trained or not, on the other; nothing is in both."""
    state = ServerState(0, WEIGHTS, BUFFERS)
    assert (FLOATS, ("bn.count", "bn.mean", "bn.var", "token")) == (state.optimised, state.averaged)


def test_strategy_is_pure(strategy: Strategy) -> None:
    """Two calls with the same arguments give the same bits, and the arguments are what they were."""
    state, given = begun(strategy), updates()

    def arguments() -> tuple[Any, ...]:
        return state_bytes(state), [(frozen_bytes(u.delta), frozen_bytes(u.control), dict(u.metrics)) for u in given]

    before, shares = arguments(), dict(SHARES)
    first, second = strategy.apply(state, given, shares), strategy.apply(state, given, shares)
    assert (before, SHARES) == (arguments(), shares)
    assert state_bytes(first.state) == state_bytes(second.state)
    assert dict(first.shares) == dict(second.shares)


def test_strategy_does_not_depend_on_the_order_of_updates(strategy: Strategy) -> None:
    """Bit for bit, over two rounds: who answers first is chance, and must not change the weights."""

    def two_rounds(ordered: list[Update]) -> tuple[Any, ...]:
        shares = {update.site: SHARES[update.site] for update in ordered}
        state = strategy.apply(begun(strategy), ordered, shares).state
        step = strategy.apply(state, ordered, shares)
        return state_bytes(step.state), dict(step.shares)

    given = updates()
    expected = two_rounds(given)
    for order in ([5, 4, 3, 2, 1, 0], [1, 3, 0, 5, 2, 4], [2, 4, 0, 1, 5, 3]):
        assert expected == two_rounds([given[i] for i in order])


def test_strategy_takes_updates_from_an_iterator(strategy: Strategy) -> None:
    """`apply` reads its updates once."""
    state = begun(strategy)
    assert state_bytes(strategy.apply(state, updates(), SHARES).state) == state_bytes(
        strategy.apply(state, iter(updates()), SHARES).state
    )


def test_strategy_takes_deltas_that_lie_on_disk(strategy: Strategy, tmp_path: Path) -> None:
    """Kept in a spool or held in memory: the same bits, over two rounds."""

    def two_rounds(given: list[Update]) -> tuple[Any, ...]:
        state = strategy.apply(begun(strategy), given, SHARES).state
        step = strategy.apply(state, given, SHARES)
        return state_bytes(step.state), dict(step.shares)

    with Spool(tmp_path) as spool:
        kept = [
            dataclasses.replace(update, delta=spool.keep(update.delta), control=spool.keep(update.control))
            for update in updates()
        ]
        assert two_rounds(updates()) == two_rounds(kept)


def test_strategy_keeps_names_shapes_and_dtypes(strategy: Strategy) -> None:
    """New weights, memory and what travels along have the form they had at the start, in every round."""
    first = begun(strategy)
    state = first
    for who in ("round 1", "round 2"):
        state = strategy.apply(state, updates(), SHARES).state
        check_like(state.weights, first.weights, who=f"{who}: weights")
        check_like(state.memory, first.memory, who=f"{who}: memory")
        check_like(state.along, first.along, who=f"{who}: along")
        assert all(type(array) is np.ndarray for part in (state.memory, state.along) for array in part.values())
        assert first.buffers == state.buffers


def test_strategy_moves_every_trained_array(strategy: Strategy) -> None:
    """No array is forgotten: after a round in which every site moved, all but the empty one differ."""
    after = strategy.apply(begun(strategy), updates(), SHARES).state.weights
    assert {"empty"} == {name for name in FLOATS if np.array_equal(WEIGHTS[name], after[name])}


def test_strategy_tells_shares_by_site_that_sum_to_1(strategy: Strategy) -> None:
    """Every site that sent an update has its share, none is negative."""
    shares = strategy.apply(begun(strategy), updates(), SHARES).shares
    assert set(SIZES) == set(shares)
    assert pytest.approx(1, abs=1e-12) == sum(shares.values())
    assert all(type(share) is float and share >= 0 for share in shares.values())


@every_kind
def test_strategy_that_is_weighted_uses_the_shares_given_and_another_does_not_read_them(kind: str) -> None:
    """As its settings say: with `weighted`, other shares give other weights; without, none at all give the same."""
    strategy = built(kind)
    state, equal = begun(strategy), dict.fromkeys(SIZES, 1 / 6)
    expected = strategy.apply(state, updates(), SHARES)
    if config_of(kind).weighted:
        other = strategy.apply(state, updates(), equal)
        assert state_bytes(expected.state) != state_bytes(other.state)
        assert kind == "geometric_median" or (SHARES, equal) == (dict(expected.shares), dict(other.shares))
    else:
        assert state_bytes(expected.state) == state_bytes(strategy.apply(state, updates(), {}).state)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in COORDINATES])
def test_strategy_moves_buffers_and_integers_by_the_weighted_mean(kind: str) -> None:
    """Whatever the optimiser: with the step's shares, bit for bit, over three rounds."""
    strategy = built(kind)
    state = begun(strategy)
    for _ in range(3):
        step = strategy.apply(state, updates(), SHARES)
        mean = weighted_mean([update.delta for update in updates()], [step.shares[update.site] for update in updates()])
        expected = add_scaled(state.weights, mean)
        for name in state.averaged:
            assert frozen_bytes(expected)[name] == frozen_bytes(step.state.weights)[name]
        state = step.state


def test_strategy_keeps_a_running_variance_where_the_sites_have_it(strategy: Strategy) -> None:
    """No server optimiser acts on BatchNorm's statistics: between the sites' values, so never below 0, round by round.

    Every site has a variance of a few 1e-4 in round 1, far below the 0.01 that the server starts from: a step of
    Adam, or one with momentum, would overshoot 0.
    """
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


def test_strategy_keeps_memory_and_control_of_optimised_arrays_only(strategy: Strategy) -> None:
    """Names end in an optimised array's; what travels along is a control variate."""
    state = strategy.apply(begun(strategy), updates(), SHARES).state
    assert {name.split("/", 1)[1] for name in state.memory} <= set(FLOATS)
    assert set(state.along) in (set(), {CONTROL + name for name in FLOATS})
    assert set(under(state.along, CONTROL)) == {name.removeprefix(CONTROL) for name in state.along}


def test_strategy_counts_rounds(strategy: Strategy) -> None:
    """Every apply is one round."""
    state = begun(strategy)
    for expected in (1, 2, 3):
        state = strategy.apply(state, updates(), SHARES).state
        assert expected == state.round


def test_strategy_leaves_what_the_weighting_keeps(strategy: Strategy) -> None:
    """The weighting's memory passes through."""
    state = dataclasses.replace(begun(strategy), weighting={"smoothed/berlin": 0.5})
    assert {"smoothed/berlin": 0.5} == strategy.apply(state, updates(), SHARES).state.weighting


def test_strategy_refuses_no_updates(strategy: Strategy) -> None:
    """There is no default for a round in which nobody answered."""
    with pytest.raises(ValueError, match="at least one update"):
        strategy.apply(begun(strategy), [], {})


@every_kind
def test_strategy_works_with_as_few_sites_as_its_settings_say_and_with_no_fewer(kind: str) -> None:
    """`least_sites` updates give finite weights; one less is refused with a sentence."""
    least, strategy = config_of(kind).least_sites, built(kind)
    few = updates()[:least]
    shares = {update.site: 1 / least for update in few}
    state = strategy.apply(begun(strategy), few, shares).state
    assert all(np.isfinite(array).all() for array in state.weights.values())
    with pytest.raises(ValueError, match="at least"):
        strategy.apply(begun(strategy), few[1:], shares)


@every_kind
def test_strategy_without_a_measurement_it_needs_names_the_site(kind: str) -> None:
    """Nothing is made up for a site that did not send what the settings' `needs` asks for."""
    strategy = built(kind)
    for name in config_of(kind).needs:
        given = updates()
        given[3] = dataclasses.replace(given[3], metrics={k: v for k, v in given[3].metrics.items() if k != name})
        with pytest.raises(ValueError, match=f"site 'paris' sent no '{name}'"):
            strategy.apply(begun(strategy), given, SHARES)


@every_kind
def test_strategy_reads_no_measurement_beyond_those_it_asks_for(kind: str) -> None:
    """The settings' `needs` are complete: all other metrics may be missing."""
    strategy, needs = built(kind), config_of(kind).needs
    bare = [dataclasses.replace(u, metrics={name: u.metrics[name] for name in needs}) for u in updates()]
    expected = state_bytes(strategy.apply(begun(strategy), updates(), SHARES).state)
    assert expected == state_bytes(strategy.apply(begun(strategy), bare, SHARES).state)


def test_strategy_that_sees_no_change_makes_none(strategy: Strategy) -> None:
    """If every delta is zero in the first round, the weights stay as they are."""
    still = [dataclasses.replace(u, delta={n: np.zeros_like(a) for n, a in u.delta.items()}) for u in updates()]
    assert frozen_bytes(WEIGHTS) == frozen_bytes(strategy.apply(begun(strategy), still, SHARES).state.weights)


def test_strategy_works_where_nothing_is_shared(strategy: Strategy) -> None:
    """Method `local`: no arrays at all, two rounds, shares that sum to 1."""
    state = strategy.init({}, frozenset())
    for _ in range(2):
        step = strategy.apply(state, updates({}), SHARES)
        state = step.state
    assert ({}, {}, {}) == (dict(state.weights), dict(state.memory), dict(state.along))
    assert pytest.approx(1, abs=1e-12) == sum(step.shares.values())


def test_strategy_works_where_only_buffers_and_integers_are_shared(strategy: Strategy) -> None:
    """Nothing to optimise: the rest still moves."""
    rest: Mapping[str, Array] = {name: WEIGHTS[name] for name in WEIGHTS if name not in FLOATS}
    step = strategy.apply(strategy.init(rest, BUFFERS), updates(rest), SHARES)
    check_like(step.state.weights, rest, who="round 1")
    assert not np.array_equal(rest["bn.mean"], step.state.weights["bn.mean"])
    assert ({}, {}) == (dict(step.state.memory), dict(step.state.along))


@every_kind
def test_strategy_module_names_its_paper(kind: str) -> None:
    """Authors and title, year, and a link stand in the module's docstring."""
    text = sys.modules[STRATEGIES[kind].__module__].__doc__ or ""
    assert re.search(r"^.+: \S.{15,}", text.split("\n\n")[1], flags=re.DOTALL), "authors: title"
    assert re.search(r"\b(19|20)\d\d\b", text), "year"
    assert re.search(r"https://\S+", text), "link"


# --- registries and configuration ------------------------------------------------------------------


def kinds(config: Any) -> list[str]:
    """Return the `kind` of every variant of a union of settings, in its order."""
    return [variant.model_fields["kind"].default for variant in variants(config)]


def test_every_strategy_kind_has_its_class_and_the_reverse() -> None:
    """What a study.toml may name is what the registry holds, in the same order."""
    assert list(STRATEGIES) == kinds(StrategyConfig)


def test_every_method_kind_has_its_class_and_the_reverse() -> None:
    """What a study.toml may name is what the registry holds."""
    assert set(METHODS) == set(kinds(MethodConfig))


def test_every_codec_name_has_its_class_and_the_reverse() -> None:
    """What a study.toml may name is what the registry holds."""
    assert list(CODECS) == kinds(CodecConfig)


FILLED: dict[str, dict[str, float]] = {
    "qfedavg": {"learning_rate": 0.05},
    "scaffold": {"num_sites": 5},
    "feddyn": {"num_sites": 5},
    "reptile": {"rounds": 7},
}
"""Fields that come from elsewhere in the study."""


@every_kind
def test_strategy_settings_in_the_file_are_the_fields_of_the_class(kind: str) -> None:
    """A variant's keys, but for `kind`, are its class's fields; some come from the study, and none has two defaults."""
    config = config_of(kind)
    expected = config.model_dump(exclude={"kind"}) | FILLED.get(kind, {})
    strategy: Any = build_strategy(config, rounds=7, num_sites=5, learning_rate=0.05)
    assert expected == dataclasses.asdict(strategy)
    assert {dataclasses.MISSING} >= {field.default for field in dataclasses.fields(strategy)}
    assert type(strategy) is STRATEGIES[kind]


def test_strategy_takes_the_sites_learning_rate_only_where_the_study_leaves_it_open() -> None:
    """q-FedAvg's own `learning_rate` wins over the sites'."""
    config = TypeAdapter(StrategyConfig).validate_python({"kind": "qfedavg", "q": 2, "learning_rate": 0.5})
    strategy: Any = build_strategy(config, rounds=7, num_sites=5, learning_rate=0.05)
    assert {"q": 2, "learning_rate": 0.5} == dataclasses.asdict(strategy)


def test_method_settings_in_the_file_are_the_fields_of_the_class() -> None:
    """A variant's keys, but for `kind`, are its class's fields, and the default of each is the key's alone."""
    for kind, cls in METHODS.items():
        values = TypeAdapter(MethodConfig).validate_python({"kind": kind}).model_dump(exclude={"kind"})
        method: Any = cls(**values)
        assert values == dataclasses.asdict(method)
        assert {dataclasses.MISSING} >= {field.default for field in dataclasses.fields(method)}, kind
