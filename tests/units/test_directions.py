"""Which updates go against the others: by hand, against a plain computation, and what becomes of a site's count."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.common.study.study import StudyConfig
from consilium.common.study.task import ImageTask
from consilium.server.strategies import ServerState, Update
from consilium.server.study.defence import lengths_of
from consilium.server.study.directions import (
    AGAINST,
    BEYOND,
    REFERENCES,
    TOGETHER,
    Directions,
    counts_after,
    directions_of,
    not_counted,
    rounds_against,
)

Floats = npt.NDArray[np.float64]
STATE = ServerState(3, {"body.w": np.zeros(3, np.float32), "head.w": np.zeros(2, np.float32), "n": np.array(0)})
FORWARD = np.array([1.0, 1, 1, 1, 1])


def study(*, settings: Mapping[str, Any] = MappingProxyType({}), **defence: Any) -> StudyConfig:
    """Return a study of many sites."""
    sites = tuple(f"site-{k:02}" for k in range(40))
    training = {"epochs": 1, "batch_size": 10}
    values = {"name": "s", "sites": sites, "task": ImageTask(classes=("no", "yes")), "training": training}
    return StudyConfig.model_validate(values | {"defence": defence} | dict(settings))


def updates_of(vectors: Sequence[Floats]) -> list[Update]:
    """Return updates of such numbers, in two arrays; a counter moves with them."""
    return [
        Update(
            f"site-{k:02}",
            {"body.w": one[:3].astype(np.float32), "head.w": one[3:].astype(np.float32), "n": np.array(5)},
            100,
            {},
        )
        for k, one in enumerate(vectors)
    ]


def directions(
    vectors: Sequence[Floats], counts: Mapping[str, Mapping[str, int]] | None = None, **defence: Any
) -> Directions:
    """Return how such updates go together."""
    updates = updates_of(vectors)
    lengths = {update.site: lengths_of(update, STATE) for update in updates}
    return directions_of(study(**defence), STATE, updates, lengths=lengths, labels=counts or {})


def near(count: int, seed: int = 1, spread: float = 0.4) -> list[Floats]:
    """Return honest updates: one way but for chance."""
    chance = np.random.default_rng(seed)
    return [FORWARD + spread * chance.normal(size=5) for _ in range(count)]


def plain(vectors: Sequence[Floats]) -> list[float]:
    """Return each one's agreement with the others, computed one by one."""
    lengths = [float(np.linalg.norm(one)) for one in vectors]
    found = []
    for k, one in enumerate(vectors):
        cosines = [float(one @ vectors[j]) / (lengths[k] * lengths[j]) for j in range(len(vectors)) if j != k]
        found.append(min(lengths[k] / float(np.median(lengths)), 1) * float(np.median(cosines)))
    return found


@settings(max_examples=50, deadline=None)
@given(st.integers(4, REFERENCES), st.integers(0, 10**6))
def test_agreement_is_the_median_cosine_times_the_length(count: int, seed: int) -> None:
    """Any updates at all, with and without a common way."""
    chance = np.random.default_rng(seed)
    vectors = [chance.normal(size=5) * chance.uniform(0.1, 3) + chance.uniform(-1, 1) for _ in range(count)]
    found = directions(vectors)
    assert [*found.agreement.values()] == pytest.approx(plain(vectors), abs=2e-4)

    def against(slack: float) -> set[str]:
        return {
            f"site-{k:02}"
            for k, own in enumerate(plain(vectors))
            if own <= AGAINST + slack and np.median(np.delete(plain(vectors), k)) >= TOGETHER - slack
        }

    assert against(-2e-4) <= found.against <= against(2e-4)  # rounding decides at the very edge


@pytest.mark.parametrize("bad", [1, 2])
def test_opposite_updates_go_against_the_others_and_nobody_else_does(bad: int) -> None:
    """One of five or two of seven with the wrong sign."""
    vectors = near(5 if bad == 1 else 7)
    found = directions([*(-one for one in vectors[:bad]), *vectors[bad:]])
    assert {f"site-{k:02}" for k in range(bad)} == found.against


def test_update_that_hardly_moves_is_not_against_anybody() -> None:
    """The other way, but a tenth as long: it harms nobody."""
    first, *others = near(5)
    assert "site-00" in directions([-first, *others]).against
    assert not directions([-0.1 * first, *others]).against


def test_where_the_others_do_not_agree_nobody_is_against_them() -> None:
    """One site goes against all axes that the others follow, each another one."""
    axes = [*np.eye(5)]
    assert not directions([-FORWARD, *axes]).against


def test_fewer_than_four_updates_are_not_judged() -> None:
    """Of three, two agree by chance often enough."""
    found = directions([-FORWARD, FORWARD, FORWARD])
    assert ({}, frozenset()) == (found.agreement, found.against)


def test_sites_with_other_labels_are_not_compared() -> None:
    """Four hospitals have the first class alone, two the second, and their updates are opposite: both are right."""
    vectors = [*near(4), *(-one for one in near(2, seed=2))]
    first, second = {"no": 50, "yes": 0}, {"no": 0, "yes": 80}
    counts = {f"site-{k:02}": first if k < 4 else second for k in range(6)}
    assert {"site-04", "site-05"} == directions(vectors).against
    assert not directions(vectors, counts).against
    assert "site-00" in directions([-vectors[0], *vectors[1:]], counts).against, "its own kind says so"


def test_counts_of_some_sites_alone_count_for_these() -> None:
    """A site that does not tell its classes is compared with all, one without a label in common with nobody."""
    first, *others = near(5)
    vectors = [-first, *others]
    assert {"site-00"} == directions(vectors, {"site-01": {"no": 1}}).against
    alone = {"site-00": {"yes": 9}, **{f"site-{k:02}": {"no": 9} for k in range(1, 5)}}
    assert (0.0, frozenset()) == (directions(vectors, alone).agreement["site-00"], directions(vectors, alone).against)


def test_noised_counts_below_zero_are_none() -> None:
    """Noise on class counts may make them negative."""
    first, *others = near(5)
    counts = {f"site-{k:02}": {"no": 5 if k else -5, "yes": 10} for k in range(5)}
    assert {"site-00"} == directions([-first, *others], counts).against


@pytest.mark.parametrize("odd", [np.zeros(5), np.full(5, 1e30)])
def test_update_of_no_length_or_an_absurd_one_breaks_nothing(odd: Floats) -> None:
    """Nothing is divided by 0, and no sum is too large."""
    found = directions([odd, *near(4)])
    assert all(np.isfinite([*found.agreement.values()]))
    assert not found.against


def test_many_updates_are_compared_with_sixteen_of_them() -> None:
    """Of forty, four have the wrong sign; whoever is drawn, these are found and no other."""
    vectors = near(40)
    found = directions([*(-one for one in vectors[:4]), *vectors[4:]])
    assert {f"site-{k:02}" for k in range(4)} == found.against
    assert 40 == len(found.agreement)


def test_count_goes_up_against_the_others_and_down_with_them() -> None:
    """It stays where a site does neither, never falls below 0, and ends two above the setting."""
    config = study()
    against, neither, together = (
        Directions({"a": agreement}, frozenset({"a"} if agreement <= AGAINST else ()))
        for agreement in (-0.4, -0.1, 0.3)
    )
    counts: dict[str, int] = {}
    seen = []
    for one in (together, against, neither, against, together, *[against] * 6, *[together] * 6):
        counts = counts_after(config, counts, one)
        seen.append(counts.get("a", 0))
    most = rounds_against(config) + BEYOND
    assert [0, 1, 1, 2, 1, 2, 3, 4, most, most, most, 4, 3, 2, 1, 0, 0] == seen


def test_updates_do_not_count_from_the_third_round_on() -> None:
    """After two rounds against the others a third is one too many; the sentence says why."""
    found = Directions({"a": -0.5, "b": 0.3, "c": 0.3}, frozenset({"a"}))
    assert {} == not_counted(study(), {"a": 1}, found, spare=1)
    refused = not_counted(study(), {"a": 2}, found, spare=1)
    assert "site 'a': its updates went against what the others have in common, again and again" in refused["a"]
    assert {"a"} == not_counted(study(against=1), {}, found, spare=1).keys()
    assert {} == not_counted(study(against=0), {"a": 9}, found, spare=1)


def test_round_does_without_no_more_than_it_can() -> None:
    """The worst ones first; all count where the round needs all."""
    found = Directions({"a": -0.3, "b": -0.5, "c": 0.3}, frozenset({"a", "b"}))
    counts = {"a": 2, "b": 2}
    assert [2, 1, 0, 0] == [len(not_counted(study(), counts, found, spare=spare)) for spare in (2, 1, 0, -1)]
    assert {"b"} == not_counted(study(), counts, found, spare=1).keys()


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        ({}, 3),
        ({"defence": {"against": 5}}, 5),
        ({"defence": {"norm": {"kind": "off"}}}, 0),
        ({"defence": {"norm": {"kind": "off"}, "against": 2}}, 2),
        ({"privacy": {"secure_aggregation": True}}, 0),
        ({"strategy": {"kind": "krum"}, "quorum": 40}, 0),
        ({"strategy": {"kind": "median"}}, 3),
        ({"method": {"kind": "fedper"}}, 0),
        ({"method": {"kind": "fedper"}, "defence": {"against": 3}}, 3),
        ({"method": {"kind": "ditto"}}, 3),
    ],
)
def test_it_is_on_where_updates_have_a_bound(settings: dict[str, Any], rounds: int) -> None:
    """And off where the server sees sums only, or the strategy leaves outlying updates out."""
    assert rounds == rounds_against(study(settings=settings))
