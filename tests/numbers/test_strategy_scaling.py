"""Server memory of a round: what a strategy holds of updates on disk does not grow with the number of sites."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from consilium.common.study.signals import EFFECTIVE_STEPS, START_LOSS
from consilium.common.study.strategies import StrategyConfig
from consilium.common.weights.arrays import Array
from consilium.server.strategies import STRATEGIES, Step, Strategy, Update, build_strategy
from consilium.server.strategies.contract import BLOCK_BYTES
from consilium.server.study.update_files import Spool

MODEL: dict[str, Array] = {
    "body.weight": np.zeros((512, 500), np.float32),
    "head.weight": np.zeros((2, 4000), np.float32),
    "bn.var": np.ones(50, np.float32),
    "bn.count": np.array(0),
}
BUFFERS = frozenset({"bn.var", "bn.count"})
MODEL_BYTES = sum(array.nbytes for array in MODEL.values())
FEW, MANY = 12, 32

BLOCKS = ("median", "trimmed_mean", "krum", "geometric_median")
"""Strategies that look at blocks of coordinates of all sites at once; all others hold one array of one site."""


def delta(site: int) -> dict[str, Array]:
    """Return a site's update of a large model."""
    generator = np.random.default_rng(site)
    noise = generator.standard_normal(256_000, np.float32)
    return {
        name: np.array(site) if name == "bn.count" else noise[: array.size].reshape(array.shape)
        for name, array in MODEL.items()
    }


@pytest.fixture(scope="module")
def spooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Update]]:
    """The updates of MANY sites, on disk."""
    folder: Path = tmp_path_factory.mktemp("spool")
    with Spool(folder) as spool:
        yield [
            Update(
                f"site-{site:02}",
                kept := spool.keep(delta(site)),
                1,
                {START_LOSS: 1.0 + site, EFFECTIVE_STEPS: 1.0 + site},
                control=kept,
            )
            for site in range(MANY)
        ]


def built(kind: str, sites: int) -> Strategy:
    """Return a strategy that such a number of sites suffices for."""
    changes = {"trimmed_mean": {"trim": 1}, "krum": {"attackers": 0, "keep": min(sites - 2, 10)}}.get(kind, {})
    config = TypeAdapter(StrategyConfig).validate_python({"kind": kind, **changes})
    return build_strategy(config, rounds=10, num_sites=sites, learning_rate=0.1)


def applied(kind: str, updates: list[Update]) -> tuple[Step, int]:
    """Return a round's step, and the bytes that were allocated at most at one time to make it."""
    strategy = built(kind, len(updates))
    state = strategy.init(MODEL, BUFFERS)
    shares = {update.site: 1 / len(updates) for update in updates}
    tracemalloc.start()
    try:
        step = strategy.apply(state, updates, shares)
        return step, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [kind for kind in STRATEGIES if kind not in ("median", "trimmed_mean")])
def test_strategy_holds_no_more_for_many_sites_than_for_few(kind: str, spooled: list[Update]) -> None:
    """From 12 to 32 sites the peak grows by less than one model, where holding the deltas would be 28 more."""
    few, many = (applied(kind, spooled[:number])[1] for number in (FEW, MANY))
    assert many - few < MODEL_BYTES


@pytest.mark.parametrize("kind", BLOCKS)
def test_strategy_that_compares_sites_works_in_blocks(kind: str, spooled: list[Update]) -> None:
    """The peak stays within 5 blocks, 40 MiB: less than the float64 values of 32 sites, let alone sorting them."""
    assert applied(kind, spooled)[1] < 5 * BLOCK_BYTES < 2 * MANY * MODEL_BYTES


def test_median_of_many_blocks_is_that_of_the_whole(spooled: list[Update]) -> None:
    """Eight blocks of the large array give what NumPy gives at once; counters 0 to 31 have the median 15.5, so 16."""
    after = applied("median", spooled)[0].state.weights
    expected: Any = np.median(np.stack([update.delta["body.weight"][:20] for update in spooled]), axis=0)
    np.testing.assert_allclose(after["body.weight"][:20], expected, rtol=1e-6)  # type: ignore[arg-type]  # these are floats
    last: Any = np.median(np.stack([update.delta["body.weight"][-20:] for update in spooled]), axis=0)
    np.testing.assert_allclose(after["body.weight"][-20:], last, rtol=1e-6)  # type: ignore[arg-type]  # these are floats
    assert 16 == after["bn.count"]


def test_control_variates_of_many_sites_are_read_one_by_one(spooled: list[Update]) -> None:
    """SCAFFOLD's second payload is on disk too: the same bits as from memory."""
    few = spooled[:FEW]
    inside = [replace(update, delta=dict(update.delta), control=dict(update.control)) for update in few]
    one, other = (applied("scaffold", updates)[0].state for updates in (few, inside))
    np.testing.assert_equal(dict(one.along), dict(other.along))
