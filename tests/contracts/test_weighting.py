"""Weighting: the contract that every factor in the registry keeps, then product, smoothing, bounds and fallback."""

import dataclasses
import itertools
import math
import re
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from conftest import MakeStudy
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.study.signals import (
    CANDIDATES,
    CLASS_COUNTS,
    WITHOUT_ERROR,
)
from consilium.common.study.weightings import FactorConfig, WeightingConfig
from consilium.server.strategies import Update
from consilium.server.study.update_files import Spool
from consilium.server.weighting import WEIGHTINGS, Evidence, Reading, Weighed, Weighting, build_weighting
from consilium.server.weighting.contract import bounded
from consilium.testing import every, weighting_contract
from consilium.testing.weighting_cases import (
    COUNTS,
    METRICS,
    SIZES,
    alone,
    evidence,
    rounds,
    update,
)

every_factor = pytest.mark.parametrize("kind", WEIGHTINGS)
settings_of = {variant.model_fields["kind"].default: variant for variant in get_args(get_args(FactorConfig)[0])}


# --- contract: every factor, installed ones of other packages too ------------------------------------

test_factor_keeps_the_contract = weighting_contract(*every("weightings", WEIGHTINGS))


def test_registry_holds_every_kind_of_the_settings_in_their_order() -> None:
    """What a study.toml may name is what the registry holds."""
    assert list(settings_of) == list(WEIGHTINGS)


@pytest.mark.parametrize(
    ("kind", "need"), [(kind, need) for kind, variant in settings_of.items() for need in sorted(variant.needs)]
)
def test_missing_signal_weighs_the_round_by_size(kind: str, need: str) -> None:
    """Exactly the size shares, a note with the site and the signal, the memory as it was, and no candidates."""
    first = alone(kind, smoothing=0.5).weigh(evidence(), {})
    lean = [update(site, 2) for site in SIZES]
    lean[3] = update("porto", 2, metrics={name: 0.5 for name in METRICS if name != need})
    counts = {site: COUNTS[site] for site in COUNTS if site != "porto"} if need == CLASS_COUNTS else COUNTS
    weighed = alone(kind, smoothing=0.5).weigh(evidence(lean, 2, class_counts=counts), first.memory)
    assert {site: size / sum(SIZES.values()) for site, size in SIZES.items()} == dict(weighed.shares)
    assert 1 == len(weighed.notes)
    assert weighed.notes[0].startswith("weighted by size: ")
    assert need in weighed.notes[0] and "porto" in weighed.notes[0] and "lyon" not in weighed.notes[0]
    assert (dict(first.memory), {}) == (dict(weighed.memory), dict(weighed.candidates))


@every_factor
def test_module_names_its_paper(kind: str) -> None:
    """Authors and title, year, and a link stand in the module's docstring; the formula too."""
    text = sys.modules[WEIGHTINGS[kind].__module__].__doc__ or ""
    assert re.search(r"^.+: \S.{15,}", text.split("\n\n")[1], flags=re.DOTALL), "authors: title"
    assert re.search(r"\b(19|20)\d\d\b", text), "year"
    assert re.search(r"https://\S+", text), "link"
    assert "value_k" in text, "formula"


@pytest.mark.parametrize("kind", ["fedadp", "fedce"])
def test_memory_does_not_grow_with_the_number_of_sites(kind: str, tmp_path: Path) -> None:
    """Directions are measured over deltas on disk: 32 sites of a 1 MB model need less than one model more than 4."""

    def peak(count: int) -> int:
        with Spool(tmp_path) as spool:
            updates = []
            for number in range(count):
                arrays = np.random.default_rng(number).normal(size=(2, 131072)).astype(np.float32)
                kept = spool.keep({"a": arrays[0], "b": arrays[1]})
                updates.append(Update(f"site-{number:02}", kept, 10, {WITHOUT_ERROR: 0.5}))
            given_now = Evidence(updates, 1, 3, optimised=("a", "b"))
            tracemalloc.start()
            alone(kind).weigh(given_now, {})
            highest = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return highest

    assert peak(32) - peak(4) < 2**20


# --- product, exponents, audit ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Given:
    """A factor with values by hand."""

    values: Mapping[str, float]
    candidates: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return the values of this round's sites."""
        return Reading(self.values, candidates=self.candidates)


def three(**sizes: int) -> Evidence:
    """Three sites with nothing but a number of examples."""
    sizes = sizes or {"a": 1000, "b": 500, "c": 200}
    return Evidence([Update(site, {}, size, {}) for site, size in sizes.items()], 1, 10)


def test_size_weighs_three_hospitals_by_their_examples() -> None:
    """1000, 500 and 200 of 1700 count 10/17, 5/17 and 2/17, exactly."""
    assert {"a": 1000 / 1700, "b": 500 / 1700, "c": 200 / 1700} == dict(alone("size").weigh(three(), {}).shares)


@pytest.mark.parametrize(("exponent", "weights"), [(0.0, (1, 1, 1)), (0.5, (2, 3, 5)), (2.0, (16, 81, 625))])
def test_exponent_tempers_a_factor(exponent: float, weights: tuple[int, int, int]) -> None:
    """Sizes 4, 9, 25: to the power 0 all alike; square roots 2, 3, 5 of 10; squares 16, 81, 625 of 722."""
    config = WeightingConfig.model_validate({"factors": [{"kind": "size", "exponent": exponent}]})
    shares = build_weighting(config).weigh(three(a=4, b=9, c=25), {}).shares
    assert pytest.approx([weight / sum(weights) for weight in weights], abs=1e-15) == list(shares.values())


def test_shares_are_the_product_of_factors() -> None:
    """Sizes 1000, 500, 200 times 0.5, 2, 5 to the power 2 are 250, 2000, 5000 of 7250."""
    weighting = Weighting(
        (("size", WEIGHTINGS["size"](), 1.0), ("given", Given({"a": 0.5, "b": 2.0, "c": 5.0}), 2.0)),
        smoothing=0.0,
        minimum=0.0,
        maximum=1.0,
    )
    expected = {"a": 250 / 7250, "b": 2000 / 7250, "c": 5000 / 7250}
    assert pytest.approx(expected, abs=1e-15) == dict(weighting.weigh(three(), {}).shares)


def test_factor_of_zero_to_the_power_zero_is_no_factor() -> None:
    """Exponent 0 switches a factor off, at sites with the value 0 too."""
    weighting = Weighting(
        (("size", WEIGHTINGS["size"](), 1.0), ("given", Given({"a": 0.0, "b": 1.0, "c": 7.0}), 0.0)),
        smoothing=0.0,
        minimum=0.0,
        maximum=1.0,
    )
    assert {"a": 1000 / 1700, "b": 500 / 1700, "c": 200 / 1700} == dict(weighting.weigh(three(), {}).shares)


def test_shares_follow_from_the_recorded_signals() -> None:
    """The auditor's sum: the product of `<kind>.factor`, each to its exponent, divided by its sum over the sites."""
    exponents = {"size": 0.5, "loss": 2.0, "fedadp": 1.0, "afl": 0.3, "auto": 1.0}
    config = {"factors": [{"kind": kind, "exponent": power} for kind, power in exponents.items()]}
    weighting = build_weighting(WeightingConfig.model_validate(config | {"maximum": 1.0}))
    memory: Mapping[str, float] = {}
    for given_now in rounds():
        weighed = weighting.weigh(given_now, memory)
        weights = {
            site: math.prod(signals[f"{kind}.factor"] ** power for kind, power in exponents.items())
            for site, signals in weighed.signals.items()
        }
        total = sum(weights.values())
        assert pytest.approx({site: weight / total for site, weight in weights.items()}, abs=1e-12) == weighed.shares
        memory = weighed.memory


def test_weights_of_sites_do_not_depend_on_who_answered_first() -> None:
    """The caller sorts by name; any order of answers gives the same bits."""
    config = {"factors": [{"kind": kind} for kind in WEIGHTINGS if kind != "feddisco"]}
    weighting = build_weighting(WeightingConfig.model_validate(config))
    expected = weighting.weigh(evidence(map(update, SIZES)), {})
    assert expected == weighting.weigh(evidence(map(update, reversed(SIZES))), {})


# --- fallback --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5])
def test_factor_that_is_no_number_weighs_the_round_by_size(bad: float) -> None:
    """The note names the factor and the site; the bad value is not among the signals that are finite."""
    weighed = Weighting(
        (("given", Given({"a": 1.0, "b": bad, "c": 1.0}), 1.0),), smoothing=0.0, minimum=0.0, maximum=1.0
    ).weigh(three(), {"given/x": 1.0})
    assert {"a": 1000 / 1700, "b": 500 / 1700, "c": 200 / 1700} == dict(weighed.shares)
    assert ("weighted by size: factor 'given' is not a number >= 0 at b",) == weighed.notes
    assert all(math.isfinite(value) for signals in weighed.signals.values() for value in signals.values())


@pytest.mark.parametrize(
    ("value", "exponent", "what"), [(0.0, 1.0, "0 at every site"), (1e200, 10.0, "too large for a number")]
)
def test_product_that_is_no_weight_weighs_the_round_by_size(value: float, exponent: float, what: str) -> None:
    """All 0 leaves nothing to divide by, an overflow nothing to divide; neither ends the run."""
    weighting = Weighting(
        (("given", Given(dict.fromkeys("abc", value)), exponent),), smoothing=0.0, minimum=0.0, maximum=1.0
    )
    weighed = weighting.weigh(three(), {})
    assert {"a": 1000 / 1700, "b": 500 / 1700, "c": 200 / 1700} == dict(weighed.shares)
    assert (f"weighted by size: the product of given is {what}",) == weighed.notes


def test_candidate_that_is_no_weight_weighs_the_round_by_size() -> None:
    """Candidates go the way of the shares: none is sent that was not weighed."""
    nothing = Given(dict.fromkeys("abc", 1.0), {"candidate-a": dict.fromkeys("abc", 0.0)})
    weighed = Weighting((("given", nothing, 1.0),), smoothing=0.0, minimum=0.0, maximum=1.0).weigh(three(), {})
    assert ({}, 1) == (dict(weighed.candidates), len(weighed.notes))


def test_fallback_by_one_factor_teaches_no_other() -> None:
    """`auto` is read before `loss` finds its metric missing: its memory must not speak of candidates never sent."""
    config = WeightingConfig.model_validate({"factors": [{"kind": "auto"}, {"kind": "loss"}]})
    lean = [update(site, metrics={}) for site in SIZES]
    weighed = build_weighting(config).weigh(evidence(lean), {"afl/lambda/rome": 0.1})
    assert {"afl/lambda/rome": 0.1} == dict(weighed.memory)
    assert {"auto.factor", "auto.beta", "auto.sign"} == set(weighed.signals["rome"])


def test_fallback_keeps_to_the_bounds() -> None:
    """A maximum is a promise to the sites: 10/17 becomes 0.5, and 5/17 and 2/17 share the rest as 5 to 2."""
    weighed = Weighting(
        (("given", Given(dict.fromkeys("abc", 0.0)), 1.0),), maximum=0.5, smoothing=0.0, minimum=0.0
    ).weigh(three(), {})
    assert pytest.approx({"a": 0.5, "b": 2.5 / 7, "c": 1 / 7}, abs=1e-12) == dict(weighed.shares)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((97, 1, 1, 1), (0.5, 1 / 6, 1 / 6, 1 / 6)),
        ((50, 30, 10, 10), (0.5, 0.3, 0.1, 0.1)),
        ((98, 1, 1), (0.98, 0.01, 0.01)),
        ((9, 1), (0.9, 0.1)),
    ],
)
def test_no_site_has_more_than_half_of_four_or_more_unless_the_study_says_so(
    sizes: tuple[int, ...], expected: tuple[float, ...]
) -> None:
    """A made-up number of examples buys half of the weights at most; what is within that stays as it is, to the bit."""
    updates = [Update(site, {}, size, {}) for site, size in zip("abcd", sizes, strict=False)]
    weighed = build_weighting(WeightingConfig()).weigh(evidence(updates), {})
    assert pytest.approx(dict(zip("abcd", expected, strict=False)), abs=1e-15) == dict(weighed.shares)
    free = build_weighting(WeightingConfig(maximum=1.0)).weigh(evidence(updates), {})
    assert {site: size / sum(sizes) for site, size in zip("abcd", sizes, strict=False)} == dict(free.shares)
    if max(expected) == max(free.shares.values()):
        assert dict(free.shares) == dict(weighed.shares)


def test_study_with_secure_sums_bounds_no_share(make_study: MakeStudy) -> None:
    """Each site weighs itself there, and the record says what it counted."""
    assert None is make_study().weights_by.maximum
    assert 1.0 == make_study(privacy={"secure_aggregation": True}).weights_by.maximum


# --- smoothing -------------------------------------------------------------------------------------


def smoothing(values: Mapping[str, float], memory: Mapping[str, float]) -> Weighed:
    """Return what a weighting that remembers three quarters makes of given factors."""
    weighting = Weighting((("given", Given(values), 1.0),), smoothing=0.75, minimum=0.0, maximum=1.0)
    return weighting.weigh(three(**dict.fromkeys(values, 10)), memory)


def test_smoothing_over_two_rounds_by_hand() -> None:
    """Relative to the mean: 1.5, 0.5 in round 1; 0.5, 1.5 in round 2, of which a quarter enters: 1.25, 0.75.

    Their sum is 2, so the shares are 0.75, 0.25 and then 0.625, 0.375.
    """
    first = smoothing({"a": 3.0, "b": 1.0}, {})
    assert {"a": 0.75, "b": 0.25} == dict(first.shares)
    second = smoothing({"a": 1.0, "b": 3.0}, first.memory)
    assert pytest.approx({"a": 0.625, "b": 0.375}, abs=1e-15) == dict(second.shares)
    assert {"smoothed/a": 1.25, "smoothed/b": 0.75} == dict(second.memory)


def test_smoothing_waits_for_a_site_that_misses_a_round() -> None:
    """c has 1.5 relative to the mean in round 1, is away in round 2, and has 0.5 in round 3: 0.75 * 1.5 + 0.25 * 0.5.

    Round 1: 0.75, 0.75, 1.5. Round 2: a 1, b 1, so 0.8125 each. Round 3: a and b have 1.25 each, so
    0.75 * 0.8125 + 0.25 * 1.25 = 0.921875; c 1.25; the sum is 3.09375.
    """
    first = smoothing({"a": 1.0, "b": 1.0, "c": 2.0}, {})
    second = smoothing({"a": 1.0, "b": 1.0}, first.memory)
    assert pytest.approx(1.5, abs=1e-15) == second.memory["smoothed/c"]
    third = smoothing({"a": 5.0, "b": 5.0, "c": 2.0}, second.memory)
    expected = {"a": 0.921875 / 3.09375, "b": 0.921875 / 3.09375, "c": 1.25 / 3.09375}
    assert pytest.approx(expected, abs=1e-15) == dict(third.shares)


def test_smoothing_starts_a_late_joiner_at_its_own_weight() -> None:
    """b joins with 3 to 1, relative 1.5; a, alone before with 1, has 0.75 * 1 + 0.25 * 0.5 = 0.875."""
    second = smoothing({"a": 1.0, "b": 3.0}, smoothing({"a": 1.0}, {}).memory)
    assert pytest.approx({"a": 0.875 / 2.375, "b": 1.5 / 2.375}, abs=1e-15) == dict(second.shares)


# --- bounds ----------------------------------------------------------------------------------------


def test_bounds_by_hand() -> None:
    """0.7, 0.2, 0.1 within 0.15 and 0.5: the first is held at 0.5, the others share 0.5 as 2 to 1."""
    assert pytest.approx({"a": 0.5, "b": 1 / 3, "c": 1 / 6}, abs=1e-15) == bounded(
        {"a": 0.7, "b": 0.2, "c": 0.1}, 0.15, 0.5
    )


def test_lower_bound_by_hand() -> None:
    """0.7, 0.2, 0.1 with at least 0.25: b and c are held, a has what is left."""
    assert pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25}, abs=1e-15) == bounded(
        {"a": 0.7, "b": 0.2, "c": 0.1}, 0.25, 1.0
    )


def test_site_with_everything_shares_what_a_maximum_leaves() -> None:
    """All at one site and at most 0.5: the others, who have nothing to be proportional to, share the rest equally."""
    assert {"a": 0.5, "b": 0.25, "c": 0.25} == bounded({"a": 1.0, "b": 0.0, "c": 0.0}, 0.0, 0.5)


def test_site_without_a_share_gets_none_while_others_may_take_it() -> None:
    """0.9, 0.1, 0 and at most 0.5: b takes what a may not have, as far as it may."""
    assert {"a": 0.5, "b": 0.5, "c": 0.0} == bounded({"a": 0.9, "b": 0.1, "c": 0.0}, 0.0, 0.5)


@st.composite
def shares_and_bounds(draw: st.DrawFn) -> tuple[dict[str, float], float, float]:
    """Shares that sum to 1, and bounds that can hold."""
    raw = draw(st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1.0)), min_size=1, max_size=8).filter(any))
    shares = {f"site-{number}": value / math.fsum(raw) for number, value in enumerate(raw)}
    low = draw(st.floats(0, 1)) / len(raw)
    high = 1 / len(raw) + draw(st.floats(0, 1)) * (1 - 1 / len(raw))
    return shares, low, high


@given(shares_and_bounds())
def test_bounded_shares_are_the_nearest_thing_to_the_shares(case: tuple[dict[str, float], float, float]) -> None:
    """They sum to 1 within the bounds, in the old order, and are `clip(c * share)` for one c: proportions are kept."""
    shares, low, high = case
    seen = bounded(shares, low, high)
    assert shares.keys() == seen.keys()
    assert pytest.approx(1, abs=1e-12) == sum(seen.values())
    assert all(low <= share <= high for share in seen.values())
    by_share = sorted(shares, key=lambda site: (shares[site], seen[site]))
    assert all(seen[a] <= seen[b] * (1 + 1e-12) for a, b in itertools.pairwise(by_share))
    free = [site for site in shares if low + 1e-9 < seen[site] < high - 1e-9 and shares[site] > 0]
    for site in free:
        c = seen[site] / shares[site]
        for other, share in shares.items():
            assert pytest.approx(min(max(c * share, low), high), rel=1e-7, abs=1e-9) == seen[other]


@given(shares_and_bounds())
def test_shares_within_the_bounds_stay_as_they_are(case: tuple[dict[str, float], float, float]) -> None:
    """Bit for bit; so bounding twice is bounding once, but for rounding."""
    shares, low, high = case
    assert shares == bounded(shares, min(shares.values()), max(shares.values()))
    once = bounded(shares, low, high)
    assert pytest.approx(once, abs=1e-12) == bounded(once, low, high)


@pytest.mark.parametrize("bounds", [{"minimum": 0.4}, {"maximum": 0.3}])
def test_bounds_that_cannot_hold_give_equal_shares(bounds: dict[str, float]) -> None:
    """Three sites cannot each have 0.4, nor make up a whole with 0.3 each; the note says so."""
    weighed = alone("size", **bounds).weigh(three(), {})
    assert dict.fromkeys("abc", 1 / 3) == dict(weighed.shares)
    assert 1 == len(weighed.notes)
    assert weighed.notes[0].startswith("equal shares: 3 sites cannot each have ")


def test_bounds_that_just_hold_give_equal_shares_without_a_note() -> None:
    """Three sites with at least a third each."""
    weighed = alone("size", minimum=1 / 3).weigh(three(), {})
    assert pytest.approx(dict.fromkeys("abc", 1 / 3), abs=1e-12) == dict(weighed.shares)
    assert () == weighed.notes


def test_candidates_are_weighed_as_the_shares_are() -> None:
    """Other factors, smoothing and bounds count for them too.

    Sizes 1000, 500, 200; candidate values 1, 4, 5: 1000, 2000, 1000 of 4000, relative to the mean 0.75, 1.5, 0.75.
    Half of what was before (2, 1, 0) and half of this are 1.375, 1.25, 0.375 of 3; a is held at 0.45 and b
    and c share 0.55 as 1.25 to 0.375.
    """
    tried = Given(dict.fromkeys("abc", 1.0), {"candidate-a": {"a": 1.0, "b": 4.0, "c": 5.0}})
    weighting = Weighting(
        (("size", WEIGHTINGS["size"](), 1.0), ("given", tried, 1.0)), smoothing=0.5, maximum=0.45, minimum=0.0
    )
    weighed = weighting.weigh(three(), {"smoothed/a": 2.0, "smoothed/b": 1.0, "smoothed/c": 0.0})
    expected = {"a": 0.45, "b": 0.55 * 1.25 / 1.625, "c": 0.55 * 0.375 / 1.625}
    assert pytest.approx(expected, abs=1e-12) == dict(weighed.candidates["candidate-a"])
    assert pytest.approx({"a": 3.0 * 1000 / 1700 * 0.5 + 1, "b": 3.0 * 500 / 1700 * 0.5 + 0.5, "c": 300 / 1700}) == {
        site: weighed.memory[f"smoothed/{site}"] for site in "abc"
    }


def test_only_auto_asks_for_candidates_and_then_for_both() -> None:
    """Two candidates in every round that is weighted as the study says, each summing to 1 over its sites."""
    for kind in WEIGHTINGS:
        weighed = alone(kind).weigh(evidence(), {})
        assert (set(CANDIDATES) if kind == "auto" else set()) == set(weighed.candidates)
        for shares in weighed.candidates.values():
            assert set(SIZES) == set(shares)
            assert pytest.approx(1, abs=1e-12) == sum(shares.values())
            assert dict(weighed.shares) != dict(shares)
