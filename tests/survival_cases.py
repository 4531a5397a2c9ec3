"""Random patients with times, ties and censoring, for tests of survival."""

import numpy as np
from numpy.typing import NDArray

from consilium.common.survival.times import Floats, Times


def patients(count: int, *, seed: int, most: int = 40) -> tuple[Times, Floats]:
    """Return times in whole numbers up to `most`, so that many are equal, and risks `(N,)`, some equal too."""
    chance = np.random.default_rng(seed)
    risks = np.round(chance.normal(size=count), 1)
    times = np.ceil(np.minimum(chance.exponential(most / 2 * np.exp(-risks / 2)), most - 1)) + 1
    return Times(times, chance.random(count) < 0.6), risks


def structured(of: Times) -> NDArray[np.void]:
    """Return times as scikit-survival takes them."""
    return np.array(
        list(zip(of.events.tolist(), of.times.tolist(), strict=True)), dtype=[("event", "?"), ("time", "f8")]
    )
