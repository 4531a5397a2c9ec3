"""Strategies: the contract that every one in the registry keeps, then each one's own numbers."""

import dataclasses
import re
import sys
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel, TypeAdapter

from client.methods import METHODS
from common.algorithms import MethodConfig, StrategyConfig
from common.codecs import CODECS
from common.config import StudyConfig
from common.weights import Array, Weights, check_like
from server.strategies import STRATEGIES, ServerState, Strategy, Update, build_strategy
from server.strategies.fedavg import FedAvg

WEIGHTS: dict[str, Array] = {
    "body.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "head.bias": np.array([0.25, 0.5]),
    "scale": np.array(1.5, dtype=np.float32),
    "bn.count": np.array(7),
}


def delta(seed: int) -> dict[str, Array]:
    """A delta like WEIGHTS with values that no sum of float64 gets exactly."""
    generator = np.random.default_rng(seed)
    return {
        name: np.asarray(
            generator.integers(0, 9, array.shape) if name == "bn.count" else generator.normal(size=array.shape)
        ).astype(array.dtype)
        for name, array in WEIGHTS.items()
    }


def updates() -> list[Update]:
    sizes = {"berlin": 1000, "madrid": 500, "paris": 200, "rome": 3}
    return [
        Update(site, delta(seed), size, {"personal.loss": 0.1 * seed, "global.loss": 0.2 * seed})
        for seed, (site, size) in enumerate(sizes.items(), start=1)
    ]


def frozen_bytes(weights: Weights) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in weights.items()}


def state_bytes(state: ServerState) -> tuple[Any, ...]:
    return state.round, frozen_bytes(state.weights), frozen_bytes(state.memory)


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> Strategy:
    """Every strategy, with the settings it has when a study names only its kind."""
    return build_strategy(TypeAdapter(StrategyConfig).validate_python({"kind": request.param}))


# --- contract: every strategy ----------------------------------------------------------------------


def test_strategy_is_a_frozen_dataclass_of_settings(strategy: Strategy) -> None:
    """State is an argument: nothing can be set on a strategy, and its fields are those of its configuration."""
    assert dataclasses.is_dataclass(strategy)
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        strategy.memory = {}  # type: ignore[attr-defined]


def test_strategy_starts_before_round_1_from_the_weights_given(strategy: Strategy) -> None:
    """`init` keeps the weights as they are and counts no round."""
    state = strategy.init(WEIGHTS)
    assert 0 == state.round
    assert frozen_bytes(WEIGHTS) == frozen_bytes(state.weights)


def test_strategy_is_pure(strategy: Strategy) -> None:
    """Two calls with the same arguments give the same bits, and the arguments are what they were."""
    state, given = strategy.init(WEIGHTS), updates()
    before = state_bytes(state), [frozen_bytes(update.delta) for update in given]
    first, second = strategy.apply(state, given), strategy.apply(state, given)
    assert before == (state_bytes(state), [frozen_bytes(update.delta) for update in given])
    assert state_bytes(first.state) == state_bytes(second.state)
    assert dict(first.shares) == dict(second.shares)


def test_strategy_does_not_depend_on_the_order_of_updates(strategy: Strategy) -> None:
    """Bit for bit, over two rounds: who answers first is chance, and must not change the weights."""

    def two_rounds(ordered: list[Update]) -> tuple[Any, ...]:
        state = strategy.apply(strategy.init(WEIGHTS), ordered).state
        return state_bytes(strategy.apply(state, ordered).state)

    given = updates()
    expected = two_rounds(given)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]):
        assert expected == two_rounds([given[i] for i in order])


def test_strategy_takes_updates_from_an_iterator(strategy: Strategy) -> None:
    """`apply` reads its updates once."""
    state = strategy.init(WEIGHTS)
    assert state_bytes(strategy.apply(state, updates()).state) == state_bytes(
        strategy.apply(state, iter(updates())).state
    )


def test_strategy_keeps_names_shapes_and_dtypes(strategy: Strategy) -> None:
    """The new weights are like the old ones, the memory keeps its form from round to round."""
    first = strategy.apply(strategy.init(WEIGHTS), updates()).state
    second = strategy.apply(first, updates()).state
    check_like(first.weights, WEIGHTS, who="round 1")
    check_like(second.weights, WEIGHTS, who="round 2")
    check_like(second.memory, first.memory, who="memory")


def test_strategy_tells_shares_by_site_that_sum_to_1(strategy: Strategy) -> None:
    """Every site that sent an update has its share, none is negative."""
    shares = strategy.apply(strategy.init(WEIGHTS), updates()).shares
    assert {"berlin", "madrid", "paris", "rome"} == set(shares)
    assert pytest.approx(1, abs=1e-12) == sum(shares.values())
    assert all(share >= 0 for share in shares.values())


def test_strategy_counts_rounds(strategy: Strategy) -> None:
    """Every apply is one round."""
    state = strategy.init(WEIGHTS)
    for expected in (1, 2, 3):
        state = strategy.apply(state, updates()).state
        assert expected == state.round


def test_strategy_refuses_no_updates(strategy: Strategy) -> None:
    """There is no default for a round in which nobody answered."""
    with pytest.raises(ValueError, match="at least one update"):
        strategy.apply(strategy.init(WEIGHTS), [])


def test_strategy_that_sees_no_change_makes_none(strategy: Strategy) -> None:
    """If every delta is zero in the first round, the weights stay as they are."""
    still = [dataclasses.replace(u, delta={n: np.zeros_like(a) for n, a in u.delta.items()}) for u in updates()]
    assert frozen_bytes(WEIGHTS) == frozen_bytes(strategy.apply(strategy.init(WEIGHTS), still).state.weights)


@pytest.mark.parametrize("kind", sorted(STRATEGIES))
def test_strategy_module_names_its_paper(kind: str) -> None:
    """Authors and title, year, and a link stand in the module's docstring."""
    text = sys.modules[STRATEGIES[kind].__module__].__doc__ or ""
    assert re.search(r"^.+: \S.{15,}", text.split("\n\n")[1], flags=re.DOTALL), "authors: title"
    assert re.search(r"\b(19|20)\d\d\b", text), "year"
    assert re.search(r"https://\S+", text), "link"


# --- registries and configuration ------------------------------------------------------------------


def kinds(config: Any) -> set[str]:
    """Return the `kind` of every variant of a discriminated union of configuration models."""
    if get_origin(config) is Annotated:
        return kinds(get_args(config)[0])
    if get_origin(config) in (Union, UnionType):
        return set().union(*(kinds(variant) for variant in get_args(config)))
    assert issubclass(config, BaseModel)
    return {config.model_fields["kind"].default}


def test_every_strategy_kind_has_its_class_and_the_reverse() -> None:
    """What a study.toml may name is what the registry holds."""
    assert set(STRATEGIES) == kinds(StrategyConfig)


def test_every_method_kind_has_its_class_and_the_reverse() -> None:
    """What a study.toml may name is what the registry holds."""
    assert set(METHODS) == kinds(MethodConfig)


def test_every_codec_name_has_its_class_and_the_reverse() -> None:
    """What a study.toml may name is what the registry holds."""
    assert set(CODECS) == set(get_args(StudyConfig.model_fields["codec"].annotation))


@pytest.mark.parametrize(
    ("registry", "config"), [(STRATEGIES, StrategyConfig), (METHODS, MethodConfig)], ids=["strategies", "methods"]
)
def test_settings_in_the_file_are_the_fields_of_the_class(registry: dict[str, Any], config: Any) -> None:
    """A variant's keys, but for `kind`, are its class's fields, with the same defaults."""
    for kind, cls in registry.items():
        values = TypeAdapter(config).validate_python({"kind": kind}).model_dump(exclude={"kind"})
        assert values == dataclasses.asdict(cls(**values))
        defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
        assert defaults == {name: values[name] for name in defaults}, kind


# --- FedAvg ----------------------------------------------------------------------------------------


def scalar_update(site: str, value: float, num_examples: int) -> Update:
    return Update(site, {"w": np.array([value])}, num_examples, {})


def test_fedavg_weighs_three_hospitals_by_their_examples() -> None:
    """1000, 500 and 200 examples of 1700 count 10/17, 5/17 and 2/17, exactly."""
    sent = [scalar_update(*row) for row in (("a", 1.0, 1000), ("b", 1.0, 500), ("c", 1.0, 200))]
    shares = FedAvg().apply(FedAvg().init({"w": np.zeros(1)}), sent).shares
    assert {"a": 1000 / 1700, "b": 500 / 1700, "c": 200 / 1700} == dict(shares)


def test_fedavg_gives_the_numbers_worked_out_by_hand() -> None:
    """w = 10; deltas 17, -34 and 8.5 with 1000, 500 and 200 examples.

    mean = (1000 * 17 + 500 * (-34) + 200 * 8.5) / 1700 = (17000 - 17000 + 1700) / 1700 = 1, so w = 10 + 1 = 11.
    """
    sent = [scalar_update(*row) for row in (("a", 17.0, 1000), ("b", -34.0, 500), ("c", 8.5, 200))]
    state = FedAvg().apply(FedAvg().init({"w": np.array([10.0])}), sent).state
    assert pytest.approx(11.0, abs=1e-12) == state.weights["w"][0]


def test_fedavg_of_trained_weights_is_their_weighted_mean() -> None:
    """McMahan's form: w(t+1) = sum (n_k / n) w_k(t+1); with equal shares 0.5 * 3 + 0.5 * 9 = 6, whatever w(t) was."""
    for start in (0.0, 2.0, -4.0):
        sent = [scalar_update("a", 3.0 - start, 70), scalar_update("b", 9.0 - start, 70)]
        assert 6.0 == FedAvg().apply(FedAvg().init({"w": np.array([start])}), sent).state.weights["w"][0]


def test_fedavg_of_one_site_is_its_own_weights() -> None:
    """A single site trains alone: weights + delta, share 1."""
    start, change = np.array([1.0, 2.0], np.float32), np.array([0.5, -0.25], np.float32)
    step = FedAvg().apply(FedAvg().init({"w": start}), [Update("berlin", {"w": change}, 12, {})])
    assert ([1.5, 1.75], {"berlin": 1.0}) == (step.state.weights["w"].tolist(), dict(step.shares))


def test_fedavg_rounds_counters() -> None:
    """A BatchNorm counter at 7 with deltas 3 (2 of 3 examples) and 6 (1 of 3): 7 + 4 = 11, an int64."""
    start = FedAvg().init({"count": np.array(7)})
    sent = [Update("a", {"count": np.array(3)}, 20, {}), Update("b", {"count": np.array(6)}, 10, {})]
    count = FedAvg().apply(start, sent).state.weights["count"]
    assert (11, np.dtype(np.int64), ()) == (count, count.dtype, count.shape)


def test_fedavg_keeps_no_memory() -> None:
    """A checkpoint of FedAvg is the weights and the round."""
    assert {} == FedAvg().apply(FedAvg().init(WEIGHTS), updates()).state.memory
