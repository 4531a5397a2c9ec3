"""Who takes part in a round: a function of a seed and the round alone, in time that does not grow with the users."""

import numpy as np

from consilium.common.seeds import seed_for
from consilium.devices.population import Array, Floats, Ints

Seed = int | str
"""What chance follows from: the study's seed, or, where nobody may know who took part, a secret of the run."""


def draw_cohort(users: int, size: int, *, seed: Seed, round_number: int, each: bool) -> Ints:
    """Return the users of a round in rising order.

    Args:
        users: how many there are, numbered from 0.
        size: how many are drawn, at most all.
        each: every user is drawn by itself, with probability size / users (Poisson sampling, as the account of private
            rounds has it), so that `size` is what is expected. The number is drawn first, then who: the same law.
    """
    generator = np.random.default_rng([seed_for(seed, "cohort", round_number), seed_for(seed, "users", round_number)])
    if each and size < users:
        size = int(generator.binomial(users, size / users))
    if 2 * size <= users:
        return _chosen(users, size, generator)
    taking_part = np.ones(users, dtype=bool)  # of no more than twice as many as take part
    taking_part[_chosen(users, users - size, generator)] = False
    return np.flatnonzero(taking_part)


def _chosen(users: int, size: int, generator: np.random.Generator) -> Ints:
    """Return so many different users, at most half of all: numbers are drawn until there are enough different ones."""
    drawn = np.empty(0, dtype=np.int64)
    while True:
        more = generator.integers(0, users, size=size - len(drawn) + size // 8 + 8)
        drawn = np.concatenate([drawn, more])
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)]
        if len(drawn) >= size:
            return np.sort(drawn[:size])


def uniforms(users: Ints, *, seed: Seed, what: str, round_number: int = 0) -> Floats:
    """Return a number in [0, 1) for each user, which depends on the user, the seed, the purpose and the round alone.

    Nothing has to be kept for it: the user's number goes through the finaliser of SplitMix64 (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", OOPSLA 2014) twice, with a key in between.
    """
    keys = [np.uint64(seed_for(seed, what, round_number, part) << 32 | seed_for(part, what, seed)) for part in (0, 1)]
    mixed = _mixed(_mixed(users.astype(np.uint64) + keys[0]) ^ keys[1])
    return np.asarray((mixed >> np.uint64(11)) * 2.0**-53)


def _mixed(z: Array) -> Array:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
