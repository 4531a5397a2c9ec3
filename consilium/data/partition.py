"""Divides the examples of a pool among sites: by labels, number, device, chance, turn, or a column that is there.

Every function returns for each site the numbers of its examples, ascending; every example goes to exactly one site.
All chance comes from `seed`, so one version of NumPy gives the same division at every call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.common.data.npz import Array
from consilium.common.errors import ConfigError
from consilium.common.seeds import seed_for

Rows = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Partition = tuple[Rows, ...]

DRAWS = 1000
"""How often a division is drawn at most until every site has the least number of examples."""


def by_dirichlet(y: Rows, *, sites: int, alpha: float, min_examples: int, seed: int) -> Partition:
    """Divide so that every label's examples are spread over the sites by a draw of its own.

    Yurochkin et al.: Bayesian Nonparametric Federated Learning of Neural Networks, 2019, section 4,
    https://arxiv.org/abs/1905.12022; also in Li 2022, section 4.2, and what "Dirichlet(alpha)" means in most
    comparisons of methods since. For label k with n_k examples:

        q_k ~ Dirichlet(alpha, ..., alpha)             over the sites
        n_ik = n_k q_ki, rounded                       examples of label k at site i

    A small alpha gives each label to few sites, so sites have few labels and different sizes; a large one makes all
    sites like the pool.

    Args:
        y: labels, integers of shape `(N,)`.
        alpha: concentration, 0.001..1e6.
        min_examples: the whole division is drawn anew until every site has so many.

    Raises:
        ConfigError: alpha is not in range, or no such division comes up.
    """
    _check(len(y), sites=sites, min_examples=min_examples)
    _check_alpha(alpha)
    _, label, totals = np.unique(y, return_inverse=True, return_counts=True)
    for draw in range(DRAWS):
        chance = np.random.default_rng(seed_for(seed, "dirichlet", draw))
        shares = chance.dirichlet(np.full(sites, alpha), size=len(totals))
        counts = np.stack([_shared_out(n, shares[k], chance) for k, n in enumerate(totals)], axis=1)
        if counts.sum(axis=1).min() >= min_examples:
            return _dealt(label, counts, chance)
    raise ConfigError(_not_found("dirichlet", sites, alpha, min_examples))


def by_classes(y: Rows, *, sites: int, per_site: int, min_examples: int, seed: int) -> Partition:
    """Divide so that each site has `per_site` labels, and each label's examples are shared evenly by its sites.

    After McMahan et al.: Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017, section 3,
    https://arxiv.org/abs/1602.05629 (there a client gets shards of the sorted set, so sometimes more labels).
    A label with fewer examples than sites that should have it is missing at some of them.

    Raises:
        ConfigError: more labels per site than there are, too few to place every label, or a site gets too few
            examples.
    """
    _check(len(y), sites=sites, min_examples=min_examples)
    _, label, totals = np.unique(y, return_inverse=True, return_counts=True)
    num_labels = len(totals)
    if not 1 <= per_site <= num_labels:
        raise ConfigError(f"--labels-per-site must be in 1..{num_labels}, the labels that the pool has, got {per_site}")
    if sites * per_site < num_labels:
        raise ConfigError(
            f"{sites} sites with {per_site} labels each cannot hold all {num_labels} labels; raise --labels-per-site "
            "or --sites"
        )
    chance = np.random.default_rng(seed_for(seed, "classes"))
    holds = np.zeros((sites, num_labels))
    for site in range(sites):
        # Those that the fewest sites have so far, by chance among equals: every label ends at equally many, +- 1.
        rarest = np.lexsort((chance.random(num_labels), holds.sum(axis=0)))
        holds[site, rarest[:per_site]] = 1.0
    counts = np.stack([_shared_out(n, holds[:, k], chance) for k, n in enumerate(totals)], axis=1)
    if (least := int(counts.sum(axis=1).min())) < min_examples:
        raise ConfigError(
            f"with {per_site} labels at each of {sites} sites one site gets {least} examples, expected at least "
            f"{min_examples}; lower --min-examples or --sites, or change --labels-per-site"
        )
    return _dealt(label, counts, chance)


def by_quantity(count: int, *, sites: int, alpha: float, min_examples: int, seed: int) -> Partition:
    """Divide at random into sites of different sizes: `sizes = count * q`, q ~ Dirichlet(alpha, ..., alpha).

    Li, Diao, Chen, He: Federated Learning on Non-IID Data Silos, 2022, section 4.3,
    https://arxiv.org/abs/2102.02079.

    Raises:
        ConfigError: alpha is not in range, or no such division comes up.
    """
    _check(count, sites=sites, min_examples=min_examples)
    _check_alpha(alpha)
    for draw in range(DRAWS):
        chance = np.random.default_rng(seed_for(seed, "quantity", draw))
        sizes = _shared_out(count, chance.dirichlet(np.full(sites, alpha)), chance)
        if sizes.min() >= min_examples:
            return _dealt(np.zeros(count, dtype=np.int64), sizes[:, None], chance)
    raise ConfigError(_not_found("quantity", sites, alpha, min_examples))


def evenly(y: Rows, *, sites: int, min_examples: int, seed: int) -> Partition:
    """Divide so that sizes, and each label's examples, differ by at most one between sites.

    Raises:
        ConfigError: there are too few examples.
    """
    _check(len(y), sites=sites, min_examples=min_examples)
    chance = np.random.default_rng(seed_for(seed, "evenly"))
    shuffled = chance.permutation(len(y))
    by_label = shuffled[np.argsort(y[shuffled], kind="stable")]
    return tuple(np.sort(by_label[site::sites]) for site in range(sites))


def interleaved(count: int, *, sites: int, min_examples: int) -> Partition:
    """Divide in turn, without chance: site i of n gets the examples i, i + n, i + 2n, ... (`x[i::n]`).

    Raises:
        ConfigError: there are too few examples.
    """
    _check(count, sites=sites, min_examples=min_examples)
    return tuple(np.arange(site, count, sites) for site in range(sites))


def contiguous(count: int, *, sites: int, min_examples: int) -> Partition:
    """Divide into runs of neighbours of one size, give or take one example, in the order of the pool, without chance.

    Raises:
        ConfigError: there are too few examples.
    """
    _check(count, sites=sites, min_examples=min_examples)
    return tuple(np.array_split(np.arange(count), sites))


def iid(count: int, *, sites: int, min_examples: int, seed: int) -> Partition:
    """Divide at random into sites of one size, give or take one example; labels fall as they fall.

    Raises:
        ConfigError: there are too few examples.
    """
    _check(count, sites=sites, min_examples=min_examples)
    shuffled = np.random.default_rng(seed_for(seed, "iid")).permutation(count)
    return tuple(np.sort(rows) for rows in np.array_split(shuffled, sites))


def labels_of_groups(y: Rows, groups: Rows) -> Rows:
    """Return the most frequent label of each group `(G,)`, the smallest of those equally frequent.

    Args:
        y: labels `(N,)`.
        groups: numbers of groups 0..G-1 `(N,)`, each there.
    """
    values, label = np.unique(y, return_inverse=True)
    table = np.zeros((int(groups.max()) + 1, len(values)), dtype=np.int64)
    np.add.at(table, (groups, label), 1)
    return np.asarray(values[table.argmax(axis=1)], dtype=np.int64)


def rows_of_groups(parts: Partition, groups: Rows) -> Partition:
    """Return the rows of each site, where `parts` are numbers of groups: all rows of a group are at one site."""
    return tuple(np.flatnonzero(np.isin(groups, part)) for part in parts)


def kept_together(parts: Partition, groups: Rows) -> Partition:
    """Return a division in which each group is at the site that has most of its rows, at a tie the first such one."""
    site_of = np.empty(len(groups), dtype=np.int64)
    for site, rows in enumerate(parts):
        site_of[rows] = site
    table = np.zeros((int(groups.max()) + 1, len(parts)), dtype=np.int64)
    np.add.at(table, (groups, site_of), 1)
    chosen = table.argmax(axis=1)[groups]
    return tuple(np.flatnonzero(chosen == site) for site in range(len(parts)))


def by_value(values: Sequence[str]) -> dict[str, Rows]:
    """Return the rows of each value of a natural site column, values in the order of the alphabet."""
    held = np.array(values, dtype=np.str_)
    return {str(value): np.flatnonzero(held == value) for value in np.unique(held)}


# --- feature shift ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """How a site's device shows an image of 0..255: `127.5 + contrast (pixel - 127.5) + brightness + noise N(0, 1)`."""

    contrast: float
    brightness: float
    noise: float


def device_of(site: int, *, seed: int) -> Device:
    """Return a site's own device: contrast in 0.4..1.2, brightness in -60..60, noise in 0..20."""
    chance = np.random.default_rng(seed_for(seed, "device", site))
    contrast, brightness, noise = chance.uniform((0.4, -60, 0), (1.2, 60, 20)).round(3).tolist()
    return Device(contrast, brightness, noise)


def as_seen_by(device: Device, x: Array, *, site: int, seed: int) -> Array:
    """Return a site's images, uint8 in 0..255 or floats in 0..1, as its device shows them: same shape and type."""
    top = 255.0 if x.dtype == np.uint8 else 1.0
    noise = np.random.default_rng(seed_for(seed, "device noise", site)).standard_normal(x.shape, dtype=np.float32)
    pixels: npt.NDArray[Any] = x.astype(np.float32) * np.float32(255 / top)
    shown = 127.5 + device.contrast * (pixels - 127.5) + device.brightness + device.noise * noise
    shown = shown.clip(0, 255) * np.float32(top / 255)
    return (shown.round() if top == 255.0 else shown).astype(x.dtype)


# --- shared ----------------------------------------------------------------------------------------


def _check(count: int, *, sites: int, min_examples: int) -> None:
    if sites < 2:
        raise ConfigError(f"--sites must be at least 2, got {sites}")
    if min_examples < 1:
        raise ConfigError(f"--min-examples must be at least 1, got {min_examples}")
    if sites * min_examples > count:
        raise ConfigError(
            f"{sites} sites with at least {min_examples} examples each need {sites * min_examples}, the pool has "
            f"{count}; lower --sites or --min-examples"
        )


def _check_alpha(alpha: float) -> None:
    if not 1e-3 <= alpha <= 1e6:
        raise ConfigError(f"--alpha must be in 0.001..1000000, got {alpha:g}")


def _not_found(by: str, sites: int, alpha: float, min_examples: int) -> str:
    return (
        f"--by {by}: in {DRAWS} draws with alpha {alpha:g}, none gave each of {sites} sites at least {min_examples} "
        "examples; raise --alpha, or lower --min-examples or --sites"
    )


def _shared_out(count: int, weights: npt.NDArray[np.float64], chance: np.random.Generator) -> Counts:
    """Return whole numbers that add up to `count`, in proportion to weights; the largest remainders are rounded up."""
    if weights.sum() <= 0:  # so small an alpha that no site wants this label: one gets it
        weights = np.eye(len(weights))[chance.integers(len(weights))]
    exact = count * (weights / weights.sum())
    whole: Counts = np.floor(exact).astype(np.int64)
    remainders = np.where(weights > 0, exact - whole, -1.0)
    order = chance.permutation(len(weights))  # equal remainders are rounded up by chance, not always at the first site
    largest = order[np.argsort(-remainders[order], kind="stable")]
    whole[largest[: count - int(whole.sum())]] += 1
    return whole


def _dealt(label: Rows, counts: Counts, chance: np.random.Generator) -> Partition:
    """Return the rows of each site: `counts[i, k]` examples of label k at site i, which ones by chance."""
    hands: list[list[Rows]] = [[] for _ in counts]
    for k in range(counts.shape[1]):
        rows = chance.permutation(np.flatnonzero(label == k))
        for hand, part in zip(hands, np.split(rows, np.cumsum(counts[:-1, k])), strict=True):
            hand.append(part)
    return tuple(np.sort(np.concatenate(hand)) for hand in hands)
