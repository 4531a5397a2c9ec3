"""What every factor of the weights must hold: laws over rounds in which sites come and go."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from consilium.common.study.signals import CANDIDATE_LOSSES, CLASS_COUNTS
from consilium.server.strategies import ServerState
from consilium.server.study.checkpoint import load_checkpoint, save_checkpoint
from consilium.server.study.update_files import Spool
from consilium.testing.weighting_cases import (
    COUNTS,
    METRICS,
    SIZES,
    alone,
    evidence,
    factor,
    frozen,
    rounds,
    settings_of,
    sites_in,
    update,
)


def is_a_frozen_dataclass_of_its_settings(kind: str) -> None:
    """Fields are the keys of study.toml but `kind` and `exponent`, where the defaults are; nothing can be set."""
    values = settings_of(kind).model_dump(exclude={"kind", "exponent"})
    cls: Any = type(factor(kind))
    assert values == dataclasses.asdict(cls(**values))
    assert {dataclasses.MISSING} >= {field.default for field in dataclasses.fields(cls)}
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        cls(**values).memory = {}


def is_pure(kind: str) -> None:
    """Over three rounds: twice the same answer, and evidence and memory are what they were."""
    memory: Mapping[str, float] = {}
    for given_now in rounds():
        before, kept = frozen(given_now), dict(memory)
        first, second = factor(kind).read(given_now, memory), factor(kind).read(given_now, memory)
        assert (before, kept) == (frozen(given_now), dict(memory))
        assert first == second
        memory = first.memory


def gives_every_site_a_number(kind: str) -> None:
    """With sites that come and go: finite, >= 0, and not all 0; the shares are theirs and sum to 1."""
    memory: Mapping[str, float] = {}
    for given_now in rounds():
        values = factor(kind).read(given_now, {n.partition("/")[2]: v for n, v in memory.items()}).values
        assert set(given_now.sites) == set(values)
        assert all(math.isfinite(value) and value >= 0 for value in values.values())
        weighed = alone(kind).weigh(given_now, memory)
        assert () == weighed.notes
        assert set(given_now.sites) == set(weighed.shares)
        assert pytest.approx(1, abs=1e-12) == sum(weighed.shares.values())
        memory = weighed.memory


def reads_deltas_from_disk_as_from_memory(kind: str) -> None:
    """A delta kept in a spool gives the same bits."""
    for given_now in rounds():
        with TemporaryDirectory() as folder, Spool(Path(folder), memory_bytes=0) as spool:
            kept = [dataclasses.replace(item, delta=spool.keep(item.delta)) for item in given_now.updates]
            assert factor(kind).read(given_now, {}) == factor(kind).read(evidence(kept, given_now.round), {})


def needs_no_more_than_its_settings_say(kind: str) -> None:
    """`needs` is what sites are asked to measure: with these metrics and nothing else no signal is missing."""
    needs, memory = settings_of(kind).needs, dict[str, float]()
    for given_now in rounds():
        lean = [
            dataclasses.replace(item, metrics={name: item.metrics[name] for name in METRICS if name in needs})
            for item in given_now.updates
        ]
        counts = COUNTS if CLASS_COUNTS in needs else {}
        weighed = alone(kind).weigh(evidence(lean, given_now.round, class_counts=counts), memory)
        assert () == weighed.notes
        memory = dict(weighed.memory)


def missing_signal_costs_one_round_only(kind: str) -> None:
    """Once every site sends what is needed, rounds are weighted as the study says: none waits for what never came."""
    weighting, memory, notes = alone(kind), dict[str, float](), []
    for number in (1, 2, 3, 4):
        updates = [update(site, number) for site in SIZES]
        if number == 2:
            updates[0] = update("berlin", 2, metrics={})
        if number == 3:  # no candidates were sent after the fallback, so no site can have measured them
            lean = {name: value for name, value in update("berlin", 3).metrics.items() if name not in CANDIDATE_LOSSES}
            updates = [dataclasses.replace(item, metrics=lean) for item in updates]
        weighed = weighting.weigh(evidence(updates, number), memory)
        memory = dict(weighed.memory)
        notes.append(len(weighed.notes))
    asks_for_metrics = bool(settings_of(kind).needs - {CLASS_COUNTS})
    assert [0, int(asks_for_metrics), 0, 0] == notes


def equal_sites_get_equal_weights_in_the_first_round(kind: str) -> None:
    """Nothing distinguishes the sites but their names, so nothing may distinguish their weights."""
    same = [dataclasses.replace(update("berlin"), site=site) for site in SIZES]
    counts = dict.fromkeys(SIZES, COUNTS["berlin"])
    shares = alone(kind).weigh(evidence(same, class_counts=counts), {}).shares
    assert pytest.approx(dict.fromkeys(SIZES, 0.2), abs=1e-9) == dict(shares)


def lone_site_has_the_whole(kind: str) -> None:
    """A round that only one site answered, twice."""
    memory: Mapping[str, float] = {}
    for number in (1, 2):
        weighed = alone(kind).weigh(evidence([update("rome", number)], number), memory)
        assert ({"rome": 1.0}, ()) == (dict(weighed.shares), weighed.notes)
        memory = weighed.memory


def knows_sites_by_name(kind: str) -> None:
    """With every site renamed, everywhere, the same numbers stand under the new names."""

    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"clinic-{site}": value for site, value in values.items()}

    memory: Mapping[str, float] = {}
    other_memory: Mapping[str, float] = {}
    for given_now in rounds():
        others = [dataclasses.replace(item, site=f"clinic-{item.site}") for item in given_now.updates]
        other = evidence(others, given_now.round, class_counts=renamed(COUNTS))
        seen, again = factor(kind).read(given_now, memory), factor(kind).read(other, other_memory)
        assert renamed(seen.values) == again.values
        assert {name: renamed(values) for name, values in seen.signals.items()} == dict(again.signals)
        memory, other_memory = seen.memory, again.memory
        assert {name.replace("/", "/clinic-"): value for name, value in memory.items()} == dict(other_memory)


def remembers_numbers_under_the_names_of_sites(kind: str) -> None:
    """`what/site`, for sites that took part so far; who is away is not forgotten."""
    memory: Mapping[str, float] = {}
    seen: set[str] = set()
    for given_now in rounds():
        memory = factor(kind).read(given_now, memory).memory
        seen |= set(given_now.sites)
        assert all(name.count("/") == 1 and isinstance(value, float) for name, value in memory.items())
        assert sites_in(memory) in (set(), seen)


def memory_survives_a_checkpoint(kind: str) -> None:
    """Three rounds with a restart after each give the bits of three rounds without."""
    plain: Mapping[str, float] = {}
    restarted: Mapping[str, float] = {}
    weighting = alone(kind, smoothing=0.3)
    for given_now in rounds():
        expected, seen = weighting.weigh(given_now, plain), weighting.weigh(given_now, restarted)
        assert expected == seen
        plain = expected.memory
        state = ServerState(given_now.round, {"w": np.zeros(1)}, weighting=seen.memory)
        with TemporaryDirectory() as folder:
            save_checkpoint(Path(folder) / "checkpoint", state, run="r", study_digest="d")
            restarted = load_checkpoint(Path(folder) / "checkpoint", study_digest="d").weighting
        assert dict(plain) == dict(restarted)


LAWS: tuple[Callable[[str], None], ...] = (
    is_a_frozen_dataclass_of_its_settings,
    is_pure,
    gives_every_site_a_number,
    reads_deltas_from_disk_as_from_memory,
    needs_no_more_than_its_settings_say,
    missing_signal_costs_one_round_only,
    equal_sites_get_equal_weights_in_the_first_round,
    lone_site_has_the_whole,
    knows_sites_by_name,
    remembers_numbers_under_the_names_of_sites,
    memory_survives_a_checkpoint,
)
"""All laws; each takes the factor's name."""
