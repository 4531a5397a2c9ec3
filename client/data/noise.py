"""Noise on the class counts that a site tells: geometric, drawn once per data set from a key that stays here.

Ghosh, Roughgarden, Sundararajan: Universally Utility-Maximizing Privacy Mechanisms, STOC 2009,
https://arxiv.org/abs/0811.2841 (the two-sided geometric mechanism; for counts, of sensitivity 1)

    told_c = max(0, n_c + X - Y),    X, Y ~ Geometric(1 - exp(-epsilon)) - 1

Adding or removing one example changes one count by 1, so the told counts are epsilon-differentially private.
The same data and key always give the same noise: asking again teaches nothing more.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.errors import StateError
from common.files import check_writable, write_atomically

KEY_BYTES = 32


def noisy_counts(counts: Mapping[str, int], classes: Sequence[str], epsilon: float, *, key: bytes) -> dict[str, int]:
    """Return counts with noise for every class of the study, also for those that the site does not hold.

    Args:
        counts: examples per class, classes without examples may be missing.
        epsilon: > 0; smaller is more private. The standard deviation is about 1.4 / epsilon.
    """
    exact = {name: counts.get(name, 0) for name in classes}
    seed = hashlib.sha256(key + json.dumps([exact, epsilon], sort_keys=True).encode()).digest()
    generator = np.random.default_rng(int.from_bytes(seed, "big"))
    p = -math.expm1(-epsilon)
    noise = generator.geometric(p, len(exact)) - generator.geometric(p, len(exact))
    return {name: max(0, count + int(extra)) for (name, count), extra in zip(exact.items(), noise, strict=True)}


def noise_key(state_dir: Path, *, site: str) -> bytes:
    """Return the site's own key for its noise, made at the first call and kept in its state folder.

    Raises:
        StateError: the folder is unwritable, or the key there is damaged.
    """
    path = state_dir / "noise.key"
    if not path.exists():
        check_writable(state_dir, what=f"site '{site}': state folder")
        write_atomically(path, os.urandom(KEY_BYTES), mode=0o600)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise StateError(f"site '{site}': '{path}' has {len(key)} bytes, expected {KEY_BYTES}")
    return key
