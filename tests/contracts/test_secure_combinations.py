"""What can be part of a secure sum, over all registries: what is listed works, and the rest is refused by name."""

from typing import Any

import numpy as np
import pytest
from conftest import MakeStudy, method_settings
from pydantic import TypeAdapter

from consilium.common.errors import ConfigError
from consilium.common.privacy.secure.noise import colluding_sites
from consilium.common.study.privacy_rules import SUMMABLE, SUMMABLE_FACTORS
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.weightings import FactorConfig
from consilium.common.weights.arithmetic import weighted_mean
from consilium.common.weights.arrays import Array
from consilium.server.strategies import STRATEGIES, Update, build_strategy
from consilium.server.weighting import WEIGHTINGS

SUM = {"secure_aggregation": True}
STRATEGY: TypeAdapter[StrategyConfig] = TypeAdapter(StrategyConfig)
FACTOR: TypeAdapter[FactorConfig] = TypeAdapter(FactorConfig)


def settings_of(kind: str) -> dict[str, Any]:
    """Return a study's settings that make a strategy legal, but for the secure sum."""
    paired = {"scaffold", "feddyn", "reptile", "per_fedavg"}
    if kind in paired:
        return method_settings(kind)
    own = {"attackers": 0} if kind == "krum" else {}
    return {**method_settings("fedavg"), "strategy": {"kind": kind, **own}}


@pytest.mark.parametrize("kind", STRATEGIES)
def test_strategy_can_be_summed_or_is_refused_with_those_that_can(make_study: MakeStudy, kind: str) -> None:
    """By what it declares; the list in the sentence is the registry's."""
    declared = STRATEGY.validate_python({"kind": kind}).of_sums
    assert declared == (kind in SUMMABLE)
    make_study(**settings_of(kind))
    if declared:
        make_study(**settings_of(kind), privacy=SUM)
        return
    with pytest.raises(
        ConfigError, match=f"strategy '{kind}' needs each update by itself: set strategy.kind to one of"
    ) as error:
        make_study(**settings_of(kind), privacy=SUM)
    assert all(name in str(error.value) for name in SUMMABLE)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_mean_in_every_sites_place_gives_the_same(kind: str) -> None:
    """The law of `of_sums`; strategies that do not declare it break it, so that none is refused for nothing."""
    chance = np.random.default_rng(7)
    config = STRATEGY.validate_python({"kind": kind, **({"attackers": 0} if kind == "krum" else {})})
    strategy = build_strategy(config, rounds=5, num_sites=6, learning_rate=0.1)
    state = strategy.init({"a": np.zeros((3, 2)), "bn": np.zeros(2)}, frozenset({"bn"}))
    names = ("bern", "bonn", "graz", "lyon", "oslo")
    shares = dict(zip(names, (0.4, 0.3, 0.1, 0.1, 0.1), strict=True)) if config.weighted else dict.fromkeys(names, 0.2)
    updates = []
    for number, name in enumerate(names):
        delta: dict[str, Array] = {"a": chance.normal(size=(3, 2)), "bn": chance.normal(size=2)}
        control: dict[str, Array] = {"a": chance.normal(size=(3, 2))} if config.travels else {}
        metrics = {"start.loss": 1.0 + number, "train.effective_steps": 1.0 + number}
        updates.append(Update(name, delta, 10, metrics, control))
    mean = weighted_mean([update.delta for update in updates], [shares[name] for name in names])
    if config.per_step:
        rates = [shares[update.site] / update.metrics["train.effective_steps"] for update in updates]
        mean |= weighted_mean([{"a": update.delta["a"]} for update in updates], rates)
    control = weighted_mean([update.control for update in updates], [0.2] * 5) if config.travels else {}
    same = [Update(update.site, mean, 10, update.metrics, control) for update in updates]
    one, other = strategy.apply(state, updates, shares).state, strategy.apply(state, same, shares).state
    equal = all(
        np.allclose(arrays[name], others[name], atol=1e-12)
        for arrays, others in ((one.weights, other.weights), (one.memory, other.memory), (one.along, other.along))
        for name in arrays
    )
    assert config.of_sums == equal


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_weighting_can_be_summed_or_is_refused_with_those_that_can(make_study: MakeStudy, kind: str) -> None:
    """A weight that a site can know by itself; combined with size, and by itself."""
    weighting = {"factors": [{"kind": kind}]}
    if kind in SUMMABLE_FACTORS:
        make_study(weighting=weighting, privacy=SUM)
        return
    with pytest.raises(
        ConfigError, match=f"weighting '{kind}' compares the sites with each other.*weigh by size or loss"
    ):
        make_study(weighting=weighting, privacy=SUM)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"weighting": {"factors": [{"kind": "size"}], "smoothing": 0.5}},
            "weighting.smoothing, .minimum and .maximum need",
        ),
        (
            {"weighting": {"factors": [{"kind": "size"}], "maximum": 0.5}},
            "weighting.smoothing, .minimum and .maximum need",
        ),
        ({"uplink": [{"kind": "int8"}]}, "codec 'int8' of the uplink changes numbers that must add up"),
        (
            {"uplink": [{"kind": "zstd"}]},
            "codec 'zstd' of the uplink changes numbers that must add up, or makes nothing",
        ),
        ({"keep_updates": True}, "keep_updates keeps every site's update"),
        ({"sites": ["bern", "bonn"]}, "needs 3 updates of the 2 sites that are asked in a round"),
        ({"cohort_fraction": 0.5}, "needs 3 updates of the 2 sites that are asked in a round"),
        ({"sites": [f"site-{number}" for number in range(65)]}, "64 at most, and a round of this study has 65"),
        ({"sites": ["a", "b", "c", "d", "e", "f"], "quorum": 3}, "needs 4 updates of the 6 sites"),
    ],
)
def test_combination_is_refused_before_round_1(make_study: MakeStudy, changes: dict[str, Any], sentence: str) -> None:
    """When the study is read; each sentence says what to change."""
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        make_study(**changes, privacy=SUM)


def test_site_level_noise_is_combined_where_sites_are_enough_and_few_collude(make_study: MakeStudy) -> None:
    """Sites add their shares; of 60 that are asked 20 may collude, by default as many, and without sums none can."""
    sites = [f"site-{number}" for number in range(60)]
    more: dict[str, Any] = {
        "weighting": {"factors": [{"kind": "size", "exponent": 0}]},
        "task": {
            **{"kind": "table", "classes": ["no", "yes"], "label": "ill", "scale": "site"},
            "columns": {"a": {"kind": "number"}},
        },
    }
    make_study(sites=sites, **more, privacy={"sites": {"epsilon": 3.0}})
    study = make_study(sites=sites, **more, privacy={**SUM, "sites": {"epsilon": 3.0}})
    assert (True, 20) == (study.privacy.hides_sites, colluding_sites(study))
    make_study(sites=sites, **more, privacy={**SUM, "sites": {"epsilon": 3.0, "colluding": 20}})
    with pytest.raises(ConfigError, match=r"colluding = 21 is more than a third of the 60 .* set 20 or fewer"):
        make_study(sites=sites, **more, privacy={**SUM, "sites": {"epsilon": 3.0, "colluding": 21}})
    with pytest.raises(ConfigError, match=r"in this study the server adds it: set privacy\.secure_aggregation = true"):
        make_study(sites=sites, **more, privacy={"sites": {"epsilon": 3.0, "colluding": 0}})
    with pytest.raises(ConfigError, match=r"privacy\.sites needs at least 50 updates in a round"):
        make_study(sites=sites[:49], **more, privacy={**SUM, "sites": {"epsilon": 3.0}})


def test_downlink_codecs_can_stay(make_study: MakeStudy) -> None:
    """All sites of a round train from the same weights, to the last bit."""
    make_study(downlink=[{"kind": "int8"}], privacy=SUM)
