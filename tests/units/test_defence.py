"""How long updates may be, and which are shortened or rejected: by hand, and against a plain computation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from consilium.common.study.defence import DefenceConfig, NormConfig
from consilium.common.study.privacy import PrivacyConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import ImageTask
from consilium.common.weights.arrays import Array
from consilium.common.weights.scaled import Scaled
from consilium.server.strategies import ServerState, Update
from consilium.server.study.defence import Lengths, lengths_of, shortened, too_long
from consilium.server.study.strikes import counted, set_aside
from consilium.server.study.update_files import Spool

STATE = ServerState(
    3,
    {"w": np.zeros(4, np.float32), "bn.mean": np.zeros(2, np.float32), "bn.count": np.array(0)},
    frozenset({"bn.mean", "bn.count"}),
)


TWICE: Mapping[str, Any] = MappingProxyType({"kind": "median", "factor": 2.0})


def study(norm: Mapping[str, Any] | None = TWICE, **settings: Any) -> StudyConfig:
    """Return a study of many sites with a bound on updates."""
    task = ImageTask(classes=("no", "yes"))
    sites = tuple(f"site-{k}" for k in range(9))
    defence = DefenceConfig(norm=None if norm is None else TypeAdapter(NormConfig).validate_python(norm))
    training = {"epochs": 1, "batch_size": 10}
    values = {"name": "s", "sites": sites, "task": task, "training": training, "defence": defence}
    return StudyConfig.model_validate(values | settings)


def sent(*lengths: float, examples: Sequence[int] = (), statistics: Sequence[float] = ()) -> list[Update]:
    """Return updates of such lengths: of the trained array, and of the running mean."""
    return [
        Update(
            f"site-{k}",
            {
                "w": np.array([0, 0.6, 0, 0.8], np.float32) * np.float32(length),
                "bn.mean": np.array([(*statistics, *lengths)[k], 0], np.float32),
                "bn.count": np.array(7),
            },
            (*examples, *(100,) * len(lengths))[k],
            {},
        )
        for k, length in enumerate(lengths)
    ]


def judged(config: StudyConfig, updates: Sequence[Update]) -> dict[str, str]:
    """Return the sentences on the updates that are rejected."""
    return too_long(config, STATE, {u.site: (u.num_examples, lengths_of(u, STATE)) for u in updates})


def norm_of(update: Update, name: str = "w") -> float:
    """Return the length of one array of an update."""
    return float(np.linalg.norm(update.delta[name].astype(np.float64)))


def test_lengths_are_euclidean_norms_of_each_kind_of_arrays() -> None:
    """3 and 4 in the trained array, 6 and 8 in the statistics, 1 in the control variate; counters have none."""
    delta: dict[str, Array] = {
        "w": np.array([3, 0, 0, 4], np.float32),
        "bn.mean": np.array([6, 8], np.float32),
        "bn.count": np.array(99),
    }
    update = Update("a", delta, 1, {}, control={"w": np.array([0, 1, 0, 0], np.float32)})
    assert Lengths(5.0, 10.0, 1.0) == lengths_of(update, STATE)


@pytest.mark.parametrize("counter", [2**62, -(2**62)])
def test_counter_that_no_training_moves_is_rejected(counter: int) -> None:
    """A mean of such numbers is not exact, and of some rounds overflows: whatever the number of sites."""
    bad = replace(sent(1.0)[0], delta={**sent(1.0)[0].delta, "bn.count": np.array(counter)})
    assert ["site-0"] == list(judged(study(), [bad, *sent(1.0, 1.0)[1:]]))


def test_update_of_twice_the_median_stays_as_it_is() -> None:
    """Median 1 of 0.5, 1, 1, 1.5 and 1.999: nothing is longer than 2, so the very same updates are used."""
    updates = sent(0.5, 1, 1, 1.5, 1.999)
    after, factors = shortened(study(), STATE, updates)
    assert after is updates
    assert ({}, {}) == (factors, judged(study(), updates))


def test_by_default_it_is_three_times_the_median() -> None:
    """3.1 medians are shortened to 3, and 2.9 are not."""
    _, factors = shortened(study(None), STATE, sent(0.5, 1, 1, 2.9, 3.1))
    assert {"site-4": pytest.approx(3 / 3.1)} == factors


def test_longer_update_is_shortened_to_twice_the_median_and_keeps_its_way() -> None:
    """Of 0.5, 1, 1, 1.5 and 4 the last becomes 2 long, its parts still as 0.6 to 0.8; nobody is rejected."""
    updates = sent(0.5, 1, 1, 1.5, 4)
    after, factors = shortened(study(), STATE, updates)
    assert pytest.approx({"site-4": 0.5}) == factors
    assert pytest.approx(2.0, rel=1e-6) == norm_of(after[4])
    np.testing.assert_allclose(after[4].delta["w"].astype(np.float64), [0, 1.2, 0, 1.6], rtol=1e-6)
    assert all(one is other for one, other in zip(after[:4], updates[:4], strict=True))
    assert np.float32 == after[4].delta["w"].dtype
    assert 7 == after[4].delta["bn.count"]
    assert {} == judged(study(), updates)


@pytest.mark.parametrize("length", [5.1, 100.0, 1e30])
def test_update_of_more_than_five_medians_is_rejected_and_named(length: float) -> None:
    """A made-up number of 1e30 moves no median: with 4 others of length 1 the bound is 5."""
    problems = judged(study(), sent(1, 1, length, 1, 1))
    assert list(problems) == ["site-2"]
    assert (
        f"site 'site-2': its update has the length {length:.3g}, expected at most 5 (defence.norm)"
        in problems["site-2"]
    )


def test_two_of_seven_cannot_move_the_bound_beyond_honest_updates() -> None:
    """Whatever the two send, tiny or vast, the bound is between twice the least and twice the largest of the others."""
    honest = [0.8, 0.9, 1.0, 1.1, 1.2]
    for bad in (0.0, 1e-6, 3.0, 1e9):
        after, _ = shortened(study({**TWICE, "reject": 1e9}), STATE, sent(*honest, bad, bad))
        assert all(norm_of(update) <= 2 * 1.2 + 1e-6 for update in after)
        assert all(norm_of(one) >= min(0.8 * 2, value) - 1e-6 for one, value in zip(after, honest, strict=False))


def test_site_with_more_steps_may_send_more_and_one_with_fewer_no_less() -> None:
    """1,000 examples are 100 steps and 100 are 10: the large site's bound is 2 * 10, the small one's 2 * 1.

    Three small sites of length 1 and a large one of 12: usual for the large is the median of 10, 10, 10 and 12.
    """
    updates = sent(1, 1, 1, 12, examples=(100, 100, 100, 1000), statistics=(1, 1, 1, 1))
    assert updates is shortened(study(), STATE, updates)[0]
    alike = sent(1, 1, 1, 12, examples=(100, 100, 100, 100), statistics=(1, 1, 1, 1))
    assert ["site-3"] == list(judged(study(), alike))
    small = sent(1, 10, 10, 10, examples=(100, 1000, 1000, 1000), statistics=(1, 1, 1, 1))
    assert small is shortened(study(), STATE, small)[0]


def test_made_up_examples_let_an_update_grow_tenfold_and_no_more() -> None:
    """A site that announces a million examples in place of 100 may send 10 medians, and as much as twice that once."""
    updates = sent(1, 1, 1, 1, 1000, examples=(100, 100, 100, 100, 10**6), statistics=(1,) * 5)
    after, factors = shortened(study({**TWICE, "reject": 1e9}), STATE, updates)
    assert pytest.approx(20.0, rel=1e-6) == norm_of(after[4])
    assert pytest.approx({"site-4": 0.02}) == factors


def test_steps_that_the_study_sets_are_equal_whatever_the_examples() -> None:
    """With training.steps nobody may send more for more examples."""
    updates = sent(1, 1, 1, 1, 12, examples=(100, 100, 100, 100, 10**6), statistics=(1,) * 5)
    assert ["site-4"] == list(judged(study(training={"steps": 5}), updates))


def test_fewer_than_four_updates_are_rejected_for_absurd_lengths_only() -> None:
    """A median of three says little: 100 times the others' stays, a million times the weights' own size does not."""
    updates = sent(1, 1, 100)
    assert ({}, updates) == (judged(study(), updates), list(shortened(study(), STATE, updates)[0]))
    assert ["site-1"] == list(judged(study(), sent(1, 1e30, 1)))


def test_median_of_zero_bounds_nothing_but_the_absurd() -> None:
    """Where most sites send no change, as in a round with a learning rate of 0, another one's is no lie."""
    updates = sent(0, 0, 0, 1, 0)
    assert updates is shortened(study(), STATE, updates)[0]
    assert ["site-3"] == list(judged(study(), sent(0, 0, 0, 1e9, 0)))


def test_fixed_bound_holds_with_few_updates_too() -> None:
    """Bound 2: 3 becomes 2 long, 11 is more than five bounds and rejected."""
    config = study({"kind": "fixed", "bound": 2.0})
    after, factors = shortened(config, STATE, sent(1, 3))
    assert pytest.approx(2.0) == norm_of(after[1])
    assert ["site-1"] == list(factors)
    assert ["site-1"] == list(judged(config, sent(1, 11)))


def test_bound_that_is_off_lets_everything_pass() -> None:
    """Also 1e30: whoever switches it off wants that."""
    updates = sent(1, 1, 1, 1e30)
    assert ({}, updates) == (
        judged(study({"kind": "off"}), updates),
        shortened(study({"kind": "off"}), STATE, updates)[0],
    )


def test_statistics_have_a_bound_of_their_own() -> None:
    """A running mean four times as long as the others' is halved; the trained array beside it stays."""
    updates = sent(1, 1, 1, 1, 1, statistics=(1, 1, 4, 1, 1))
    after, factors = shortened(study(), STATE, updates)
    assert {"site-2": 0.5} == factors
    assert pytest.approx(2.0) == norm_of(after[2], "bn.mean")
    assert pytest.approx(1.0) == norm_of(after[2])
    assert "running statistics" in judged(study(), sent(1, 1, 1, 1, 1, statistics=(1, 1, 40, 1, 1)))["site-2"]


def test_control_variate_has_a_bound_of_its_own() -> None:
    """SCAFFOLD's second payload is as good a place for a lie as the first."""
    updates = [replace(u, control={"w": np.ones(4, np.float32)}) for u in sent(1, 1, 1, 1, 1)]
    updates[1] = replace(updates[1], control={"w": np.full(4, 4, np.float32)})
    after, factors = shortened(study(), STATE, updates)
    assert {"site-1": 0.5} == factors
    np.testing.assert_array_equal(after[1].control["w"], np.full(4, 2, np.float32))
    updates[1] = replace(updates[1], control={"w": np.full(4, 40, np.float32)})
    assert "change of the control variate" in judged(study(), updates)["site-1"]


def test_secure_sums_and_noise_of_whole_sites_have_no_bound_by_the_median() -> None:
    """The server sees no update by itself, or the bound would tell one site of the others."""
    for privacy in ({"secure_aggregation": True}, {"sites": {"noise": 1.0}}):
        config = study(None).model_copy(update={"privacy": PrivacyConfig.model_validate(privacy)})
        assert {} == judged(config, sent(1, 1, 1, 1, 1e30))


def test_shortened_update_on_disk_gives_the_same_blocks(tmp_path: Path) -> None:
    """Whole or in blocks, from a spool or memory: the same numbers, read no earlier than they are asked for."""
    with Spool(tmp_path) as spool:
        numbers, counts = np.arange(10, dtype=np.float32), np.arange(3)
        kept = Scaled(spool.keep({"w": numbers, "n": counts}), {"w": 0.5})
        np.testing.assert_array_equal(kept["w"], numbers * np.float32(0.5))
        np.testing.assert_array_equal(kept.block("w", 3, 99), numbers[3:] * np.float32(0.5))
        np.testing.assert_array_equal(kept["n"], counts)
        assert ((10,), np.dtype(np.float32)) == kept.spec("w")
        assert (["w", "n"], 2, True, False) == (list(kept), len(kept), "w" in kept, "x" in kept)


def test_lengths_do_not_hang_on_where_an_array_lies() -> None:
    """Sums differ in their last bits with the alignment of memory; nine digits of a length do not."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=100_003).astype(np.float32)
    state = ServerState(0, {"w": np.zeros_like(values)})
    room = np.zeros(len(values) + 16, np.float32)
    expected = lengths_of(Update("a", {"w": values}, 1, {}), state)
    for start in range(1, 16):
        room[start : start + len(values)] = values
        assert expected == lengths_of(Update("a", {"w": room[start : start + len(values)]}, 1, {}), state)


# --- strikes ----------------------------------------------------------------------------------------


def test_strikes_count_what_was_sent_in_a_row() -> None:
    """Accepted: none left; rejected for its content: one more; away or late: as before."""
    before = {"a": 2, "b": 1, "c": 1}
    after = counted(before, accepted=("a",), rejected={"b": "norm", "c": "timeout", "d": "shape", "e": "gone"})
    assert {"b": 2, "c": 1, "d": 1} == after


@pytest.mark.parametrize(("strikes", "expected"), [(3, {"b"}), (1, {"a", "b"}), (0, set())])
def test_site_with_enough_strikes_is_set_aside(strikes: int, expected: set[str]) -> None:
    """By default after three; 0 sets nobody aside."""
    config = study(defence=DefenceConfig(strikes=strikes))
    assert expected == set_aside(config, {"a": 2, "b": 3})


def test_defence_settings_are_checked() -> None:
    """A bound above the one for rejection, a bound of 0, and a kind that is none."""
    for norm in ({"kind": "median", "factor": 4, "reject": 3}, {"kind": "fixed", "bound": 0}, {"kind": "mean"}):
        with pytest.raises(ValidationError):
            TypeAdapter(NormConfig).validate_python(norm)
