"""Which sites are asked in a round: a pure function of (seed, round, sites)."""

from collections.abc import Collection

import numpy as np

from consilium.common.seeds import seed_for


def choose_cohort(sites: Collection[str], *, seed: int, round_number: int, size: int) -> tuple[str, ...]:
    """Return the sites asked in a round, sorted by name.

    Args:
        size: how many, at most all of them.
    """
    ordered = sorted(sites)
    if size >= len(ordered):
        return tuple(ordered)
    generator = np.random.default_rng(seed_for(seed, "cohort", round_number))
    chosen = generator.choice(len(ordered), size=size, replace=False)
    return tuple(ordered[index] for index in sorted(chosen))
