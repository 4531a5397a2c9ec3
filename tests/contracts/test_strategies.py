"""Strategies: the contract that every one in the registry keeps; their own numbers are in test_strategy_numbers."""

import dataclasses
import re
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter

from consilium.client.methods import METHODS
from consilium.common.codecs import CODECS
from consilium.common.study.codecs import CodecConfig
from consilium.common.study.methods import MethodConfig
from consilium.common.study.ranges import variants
from consilium.common.study.strategies import StrategyConfig
from consilium.common.weights.arithmetic import add_scaled, weighted_mean
from consilium.server.strategies import STRATEGIES, ServerState, build_strategy
from consilium.testing import every, strategy_contract
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
    updates,
)

COORDINATES = ("median", "trimmed_mean")
"""Strategies that treat each coordinate for itself: no set of shares gives their weights."""

ROBUST = (*COORDINATES, "krum", "geometric_median")
"""Strategies that weigh by the shares and by where the updates lie."""

KINDS = sorted(STRATEGIES)


every_kind = pytest.mark.parametrize("kind", KINDS)


# --- contract: every strategy, installed ones of other packages too ---------------------------------

test_strategy_keeps_the_contract = strategy_contract(*every("strategies", STRATEGIES))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if config_of(kind).weighted and kind not in ROBUST])
def test_weighted_strategy_tells_the_shares_it_was_given(kind: str) -> None:
    """What counted is what the weighting said, but for the robust strategies, which weigh once more."""
    strategy, equal = built(kind), dict.fromkeys(SIZES, 1 / 6)
    for shares in (SHARES, equal):
        assert shares == dict(strategy.apply(begun(strategy), updates(), shares).shares)


def test_state_divides_its_arrays_into_optimised_and_averaged() -> None:
    """Trained floats on one side; buffers and integers, trained or not, on the other; nothing is in both."""
    state = ServerState(0, WEIGHTS, BUFFERS)
    assert (FLOATS, ("bn.count", "bn.mean", "bn.var", "token")) == (state.optimised, state.averaged)


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
