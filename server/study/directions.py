"""Updates that go against what the others have in common: noticed round by round, and after a while not counted.

A bound on lengths (`defence.py`) does not see an update that is as long as an honest one and points the other way: a
sign that is wrong, labels that are coded otherwise, a site that works against the others. Two honest updates of one
round mostly point into one half of the space, for both lead from the same weights to where the loss is lower.

With unit vectors u_k of the updates' arrays that gradients move, and n_k the length over the median of the lengths,

    agreement_k = min(n_k, 1) * weighted median over sites j of <u_k, u_j>

by what the labels of k and j have in common: the sum over classes of the smaller of the two sites' shares of it; a site
that does not share its class counts counts as if it had as many of each class that it has. So hospitals with other
diseases are not compared with each other; where labels are no classes all count alike. A site goes
**against** the others in a round if its agreement is at most AGAINST while the median of the others' is at least
TOGETHER: where the others do not agree either, as near the end of training, nobody is against them. The length counts
because an update that hardly moves harms nobody.

One round says little: honest sites of few classes go to and fro. So each site has a count that goes up by one in each
round in which it goes against the others and down by one in each in which it goes with them (an agreement from 0 on),
never below 0: a CUSUM (Page: Continuous Inspection Schemes, Biometrika 41, 1954). While the count is at
`defence.against` or more, the site's updates are rejected; it is asked all the same, keeps its personal part, and
counts again when it has gone with the others for long enough. AGAINST and TOGETHER were chosen on the honest studies
and on two seeds of the lies of docs/auditor/lies.md; its table is of other seeds.

With more than REFERENCES updates each is compared with so many of them, drawn for the round, so that a round of n
updates costs n * REFERENCES products and not n * n.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.common.seeds import seed_for
from consilium.common.study.defence import NoNorm
from consilium.common.study.study import StudyConfig
from consilium.server.strategies import ServerState, Update
from consilium.server.study.defence import FEWEST, Lengths, can_undo, norm_of

Floats = npt.NDArray[np.float64]
Counts = Mapping[str, Mapping[str, int]]

AGAINST_OTHERS = "against"
"""The short reason for which an update does not count."""
AGAINST = -0.2
"""Agreement with the others at which an update goes against them."""
TOGETHER = 0.1
"""Agreement of the others among themselves from which on there is something to go against."""
REFERENCES = 16
"""Updates that each update is compared with, at most."""
ROUNDS = 3
"""Default of `defence.against`."""
BEYOND = 2
"""How far a count goes beyond `defence.against`, so that a site counts again after so many rounds and one more."""


def rounds_against(config: StudyConfig) -> int:
    """Return after how many rounds against the others a site's updates do not count; 0: they always do.

    Off by default where updates have no bound by default: there the server sees sums only, or the strategy leaves
    outlying updates out by itself; and where relays send it means. Off too where a site trains what it sends beside a
    part of its own: what one head wants of the layers below need not be what another one wants. (FedPer on the four
    heart hospitals: one of 45 ill patients of 46 goes against the others from round 3 on, and is right.)
    """
    if config.defence.against is not None:
        return config.defence.against
    apart = isinstance(norm_of(config), NoNorm) or not config.method.comparable or bool(config.relays)
    return 0 if apart else ROUNDS


@dataclass(frozen=True)
class Directions:
    """How a round's updates go together; empty where there are too few.

    Args:
        agreement: of each site with the others, from -1 to 1.
        against: the sites that go against the others.
        sites: those whose updates were compared, at most REFERENCES; else empty.
        cosines: of every two of these sites' updates, shape (sites, sites).
    """

    agreement: Mapping[str, float] = field(default_factory=dict)
    against: frozenset[str] = frozenset()
    sites: tuple[str, ...] = ()
    cosines: Floats | None = field(default=None, compare=False)

    def counts(self, before: Mapping[str, int], *, most: int) -> dict[str, int]:
        """Return every site's count after the round; sites at 0 are left out."""
        counts = dict(before)
        for site, agreement in self.agreement.items():
            if site in self.against:
                counts[site] = min(most, counts.get(site, 0) + 1)
            elif agreement >= 0:
                counts[site] = max(0, counts.get(site, 0) - 1)
        return {site: count for site, count in sorted(counts.items()) if count}


def directions_of(
    config: StudyConfig,
    state: ServerState,
    updates: Sequence[Update],
    *,
    lengths: Mapping[str, Lengths],
    labels: Counts,
) -> Directions:
    """Return how the updates of a round go together.

    Args:
        lengths: of the updates.
        labels: how many training examples of each class a site has, or 1 of each class that it has; none of a site
            whose labels are no classes.
    """
    sites = tuple(update.site for update in updates)
    norms = np.array([lengths[site].trained for site in sites])
    is_judged = rounds_against(config) > 0 and len(sites) >= FEWEST
    if not is_judged and (len(sites) > REFERENCES or not can_undo(config)):
        return Directions()
    references = _references(config, state, len(sites))
    cosines = _cosines(state, updates, norms, references)
    all_pairs = Directions(sites=sites, cosines=cosines) if len(sites) <= REFERENCES else Directions()
    if not is_judged:
        return all_pairs
    common = _in_common(sites, labels)[:, references]
    common[references, np.arange(len(references))] = 0  # no update is compared with itself
    usual = float(np.median(norms)) or 1.0
    medians = np.array([_median(*each) for each in zip(cosines, common, strict=True)])
    agreement = np.round(medians * np.minimum(norms / usual, 1), 4)
    against = [
        site
        for k, site in enumerate(sites)
        if agreement[k] <= AGAINST and float(np.median(np.delete(agreement, k))) >= TOGETHER
    ]
    return replace(all_pairs, agreement=dict(zip(sites, agreement.tolist(), strict=True)), against=frozenset(against))


def counts_after(config: StudyConfig, before: Mapping[str, int], directions: Directions) -> dict[str, int]:
    """Return every site's count after a round; sites at 0 are left out."""
    return directions.counts(before, most=rounds_against(config) + BEYOND)


def not_counted(
    config: StudyConfig, before: Mapping[str, int], directions: Directions, *, spare: int
) -> dict[str, str]:
    """Return a sentence on each site whose update does not count in this round.

    Args:
        before: the sites' counts before it.
        spare: how many updates the round can do without.
    """
    fewest, after = rounds_against(config), counts_after(config, before, directions)
    refused = [site for site in directions.agreement if fewest and after.get(site, 0) >= fewest]
    worst = sorted(refused, key=lambda site: (-after[site], directions.agreement[site], site))
    return {site: _sentence(site, after[site]) for site in worst[: max(0, spare)]}


def _sentence(site: str, count: int) -> str:
    return (
        f"site '{site}': its updates went against what the others have in common, again and again (a count of {count}, "
        "defence.against), so they do not count for now: are its labels coded as the others'?"
    )


def _references(config: StudyConfig, state: ServerState, count: int) -> npt.NDArray[np.int64]:
    """Return which updates the others are compared with."""
    if count <= REFERENCES:
        return np.arange(count)
    chance = np.random.default_rng(seed_for(config.seed, "directions", state.round + 1))
    return np.sort(chance.choice(count, REFERENCES, replace=False))


def _cosines(state: ServerState, updates: Sequence[Update], norms: Floats, references: npt.NDArray[np.int64]) -> Floats:
    """Return the cosines of the updates and the references; 0 where one of them has no length, or an absurd one.

    Each array is read once, and one array of all updates is in memory at a time.
    """
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=np.isfinite(norms) & (norms > 0))
    products = np.zeros((len(updates), len(references)))
    for name in state.optimised:
        arrays = [np.asarray(update.delta[name]).ravel() for update in updates]
        dtype = np.float32 if arrays[0].dtype.itemsize <= 4 else np.float64
        rows: npt.NDArray[Any] = np.stack([array.astype(dtype) for array in arrays])
        rows *= scale[:, None].astype(dtype)
        products += rows @ rows[references].T
    return np.nan_to_num(products, nan=0.0, posinf=0.0, neginf=0.0)


def _in_common(sites: Sequence[str], labels: Counts) -> Floats:
    """Return how much the labels of each two sites have in common, from 0 to 1."""
    classes = sorted({name for site in sites for name in labels.get(site, {})})
    counts = np.array([[max(0, labels.get(site, {}).get(name, 0)) for name in classes] for site in sites], float)
    counts = counts.reshape(len(sites), len(classes))
    totals = counts.sum(axis=1)
    known = totals > 0
    shares = counts / np.where(known, totals, 1)[:, None]
    common = sum((np.minimum.outer(column, column) for column in shares.T), np.zeros((len(sites), len(sites))))
    common[~known, :] = common[:, ~known] = 1
    return common


def _median(values: Floats, weights: Floats) -> float:
    """Return the weighted median, halfway between two values where that divides the weights equally; 0 without any."""
    if not weights.sum() > 0:
        return 0.0
    order = np.argsort(values, kind="stable")
    order = order[weights[order] > 0]
    below = np.cumsum(weights[order]) / weights[order].sum()
    low, high = np.searchsorted(below, [0.5 - 1e-12, 0.5 + 1e-12])
    return float(values[order[low]] + values[order[min(high, len(order) - 1)]]) / 2
