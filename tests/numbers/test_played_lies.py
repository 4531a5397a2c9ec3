"""benchmarks/lies.py, small: sites that are played go through the real server, and what it does about lies is seen."""

from collections.abc import Sequence

import numpy as np
import pytest
from lies import ROUNDS, config_of, play
from lying.digits import CLASSES, EXAMPLES, SIDE, Data
from lying.sites import Lie

from consilium.common.results import RoundRecord

SITES = 5


def parts(seed: int = 1) -> list[Data]:
    """Return sites with pictures whose digit is where the light is."""
    chance = np.random.default_rng(seed)
    sites = []
    for _ in range(SITES):
        y = chance.integers(CLASSES, size=EXAMPLES)
        x = (chance.random((EXAMPLES, SIDE * SIDE)) / 4).astype(np.float32)
        for k in range(8):
            x[np.arange(EXAMPLES), 8 * y + k] = 1
        sites.append(Data(x, y))
    return sites


def rounds_with(attack: str, defence: str = "default") -> Sequence[RoundRecord]:
    """Return the rounds of a study in which the first site lies."""
    config = config_of(SITES, 1, defence, 1)
    lies = {} if attack == "none" else {config.sites[0]: Lie(attack, SITES)}
    return play(config, parts(), lies, 1)[1]


def test_site_that_sends_ten_times_its_update_is_set_aside() -> None:
    """Rejected in rounds 1 to 3, and asked no more."""
    rounds = rounds_with("x10")
    assert [{"site-0": "norm"}] * 3 == [record.rejected for record in rounds[:3]]
    assert all(record.asked == ("site-1", "site-2", "site-3", "site-4") for record in rounds[3:])


@pytest.mark.parametrize("attack", ["sign flip", "label flip"])
def test_site_that_goes_the_other_way_soon_does_not_count(attack: str) -> None:
    """From some round on none of its updates counts, since it goes against them or grows too long; all others do."""
    rounds = rounds_with(attack)
    first = next(number for number, record in enumerate(rounds) if record.rejected)
    assert 2 <= first <= 7
    assert {"site-0": "against"} == rounds[first].rejected
    assert all({"site-1", "site-2", "site-3", "site-4"} == {*record.accepted} for record in rounds[first:])


def test_without_a_defence_and_without_a_lie_all_count() -> None:
    """Every update in every round."""
    for rounds in (rounds_with("none"), rounds_with("x10", "off")):
        assert ROUNDS == len(rounds)
        assert all(SITES == len(record.accepted) and not record.rejected for record in rounds)
