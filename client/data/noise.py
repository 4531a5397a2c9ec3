"""Noise on the class counts that a site reports: geometric, fixed per class and count by a key that stays here.

Ghosh, Roughgarden, Sundararajan: Universally Utility-Maximizing Privacy Mechanisms, STOC 2009,
https://arxiv.org/abs/0811.2841 (the two-sided geometric mechanism; for counts, of sensitivity 1)

    reported_c = max(0, n_c + X - Y),    X, Y ~ Geometric(1 - exp(-epsilon)) - 1,        c over the study's classes

Adding or removing one example changes one count by 1, so the reported counts alone are epsilon-differentially
private. The exact number of examples is reported as well: the label of one example is then protected by
2 epsilon, since another label changes two counts. The noise of a class depends on the key, the class, its count and
epsilon only, so asking again, or for other classes as well, reveals nothing more; counts that have changed (more
data, another split) are reported with new noise and spend epsilon anew.
"""

import hmac
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from consilium.client.privacy.commitment import site_secret


def noisy_counts(counts: Mapping[str, int], classes: Sequence[str], epsilon: float, *, key: bytes) -> dict[str, int]:
    """Return counts with noise, >= 0, for every class of the study, also for those that the site does not hold.

    Args:
        counts: examples per class, classes without examples may be missing.
        epsilon: > 0; smaller is more private. The standard deviation is about 1.4 / epsilon.
        key: the site's own (`noise_key`).
    """
    exact = {name: counts.get(name, 0) for name in classes}
    return {name: max(0, count + _noise(name, count, epsilon, key)) for name, count in exact.items()}


def noisy_label_counts(
    counts: Mapping[str, tuple[int, int]], epsilon: float, *, most: int, key: bytes
) -> dict[str, tuple[int, int]]:
    """Return counts of several labels with noise: how many examples have each, and how many have it not.

    An example may change one count of each of the L labels, so that each has the noise of `epsilon / L`.

    Args:
        epsilon: > 0, for all counts together.
        most: how many examples the site reports to have; no count is larger, and none below 0.
        key: the site's own (`noise_key`).
    """
    cells = {(name, there): of[not there] for name, of in counts.items() for there in (True, False)}
    names = {cell: json.dumps([cell[0], cell[1]]) for cell in cells}
    exact = {names[cell]: count for cell, count in cells.items()}
    noised = noisy_counts(exact, list(exact), epsilon / max(len(counts), 1), key=key)
    told = {cell: min(most, noised[name]) for cell, name in names.items()}
    return {name: (told[name, True], told[name, False]) for name in counts}


def label_noise(num_labels: int, epsilon: float) -> float | None:
    """Return the standard deviation of the noise on each count of so many labels; None where it is nothing."""
    share = math.exp(-epsilon / max(num_labels, 1))
    return math.sqrt(2 * share) / -math.expm1(-epsilon / max(num_labels, 1)) or None


def _noise(name: str, count: int, epsilon: float, key: bytes) -> int:
    seed = hmac.digest(key, json.dumps([name, count, epsilon]).encode(), "sha256")
    generator = np.random.default_rng(int.from_bytes(seed, "big"))
    up, down = generator.geometric(-math.expm1(-epsilon), 2)
    return int(up) - int(down)


def noise_key(state_dir: Path, *, site: str) -> bytes:
    """Return the site's own key for its noise, made at the first call and kept in its state folder.

    Raises:
        StateError: the folder is unwritable, or the key there is unreadable or damaged.
    """
    return site_secret(state_dir / "noise.key", site=site)
