"""Which sites are asked in a round: a pure function of (seed, round, sites)."""

import math
from collections.abc import Collection

import numpy as np

from common.seeds import seed_for


def choose_cohort(sites: Collection[str], *, seed: int, round_number: int, fraction: float = 1.0) -> tuple[str, ...]:
    """Return the sites asked in a round, sorted by name.

    Args:
        fraction: share of the sites, in (0, 1]; rounded up, so that at least one is asked.
    """
    ordered = sorted(sites)
    # 0.07 * 100 is 7.000000000000001 in floating point, and asks 7 sites all the same
    size = max(1, math.ceil(round(fraction * len(ordered), 9)))
    if size == len(ordered):
        return tuple(ordered)
    generator = np.random.default_rng(seed_for(seed, "cohort", round_number))
    chosen = generator.choice(len(ordered), size=size, replace=False)
    return tuple(ordered[index] for index in sorted(chosen))
