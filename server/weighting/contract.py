"""The contract of a factor of a site's weight, and how factors become shares: product, smoothing, bounds.

    weight_k = product over factors f of  value_f(k) ** exponent_f,        share_k = weight_k / sum_j weight_j

Everything is keyed by the sites' names: connections come and go. Where a signal is missing or no weight is
left, the round is weighted by size, a note says so, and the weighting's memory stays as it is; no value is made up.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from consilium.server.strategies.contract import Update

PerSite = Mapping[str, float]
HALF, FEWEST = 0.5, 4
"""The greatest share of a site unless a study says otherwise, in rounds of so many sites or more.

Of two or three sites one may well have most of the examples; among more, a number that nobody can check would decide.
"""
TINY = 1e-300
"""Stands for a share of 0 where the bounds leave a rest that only sites without a share can take."""


class SignalMissing(Exception):
    """A factor cannot be read or used in this round; the text says which sites and what."""


@dataclass(frozen=True)
class Evidence:
    """The evidence that a factor may use in one round.

    Args:
        updates: the accepted updates, in the order of site names, at least one.
        round: this round, from 1.
        rounds: how many the study plans.
        class_counts: training examples per class at each site that shares them, of this round or not.
        optimised: names of the trained floating-point arrays: what a direction is measured over.
        seed: of this round's own chance.
    """

    updates: Sequence[Update]
    round: int
    rounds: int
    class_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    optimised: tuple[str, ...] = ()
    seed: int = 0

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that sent an update, in sorted order."""
        return tuple(update.site for update in self.updates)

    @property
    def sizes(self) -> dict[str, float]:
        """Training examples per site."""
        return {update.site: float(update.num_examples) for update in self.updates}

    def metric(self, name: str) -> dict[str, float]:
        """Return every site's measurement of this name.

        Raises:
            SignalMissing: names the sites that did not send it.
        """
        if missing := [update.site for update in self.updates if name not in update.metrics]:
            raise SignalMissing(f"{name} is missing from {', '.join(missing)}")
        return {update.site: float(update.metrics[name]) for update in self.updates}

    def counts(self) -> dict[str, Mapping[str, int]]:
        """Return every site's examples per class, at least one example each.

        Raises:
            SignalMissing: names the sites that do not share them, or whose counts are all 0 after noise.
        """
        if missing := [site for site in self.sites if not sum(self.class_counts.get(site, {}).values())]:
            raise SignalMissing(f"class counts are missing or all 0 from {', '.join(missing)}")
        return {site: self.class_counts[site] for site in self.sites}

    def mixed(self, name: str, shares: PerSite) -> npt.NDArray[np.float64]:
        """Return `sum_k share_k * delta_k` of one array in float64; needs memory for a few arrays, not for all sites'.

        Args:
            name: an array of every delta.
            shares: one number per site of the round.
        """
        mixture = np.zeros(self.updates[0].delta[name].shape)
        for update in self.updates:
            mixture += shares[update.site] * update.delta[name].astype(np.float64)
        return mixture


@dataclass(frozen=True)
class Reading:
    """One factor's values for the sites of one round.

    Args:
        values: the factor per site, finite and >= 0; one for every site of the evidence.
        signals: the raw numbers behind it: signal -> site -> value; for the audit.
        memory: the factor's whole memory from now on: numbers under `what/site`.
        candidates: other values to try instead, under the names in `consilium.common.study.signals.CANDIDATES`.
    """

    values: PerSite
    signals: Mapping[str, PerSite] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    candidates: Mapping[str, PerSite] = field(default_factory=dict)


class Factor(Protocol):
    """One factor of a site's weight. Settings are fields of a frozen dataclass; memory is an argument."""

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return the factor's values for this round's sites; pure.

        Raises:
            SignalMissing: a site did not send a measurement that is needed.
        """
        ...


@dataclass(frozen=True)
class Weighed:
    """The shares of a round, and how they came about.

    Args:
        shares: per site, >= 0, summing to 1.
        signals: site -> signal -> value; `<factor>.factor` is the value that entered the product.
        memory: the weighting's whole memory from now on.
        notes: sentences on deviations from the study (a fallback to size weights, bounds that cannot hold).
        candidates: other shares to try, by name; none in a round that is weighted by size instead.
    """

    shares: PerSite
    signals: Mapping[str, Mapping[str, float]]
    memory: Mapping[str, float]
    notes: tuple[str, ...] = ()
    candidates: Mapping[str, PerSite] = field(default_factory=dict)


@dataclass(frozen=True)
class Weighting:
    """Factors with their exponents, then smoothing over rounds, then bounds.

    Args:
        factors: (kind, factor, exponent), each kind once.
        smoothing: in [0, 1): how much of a site's weight relative to the cohort's mean is kept from the round
            before; an exponential moving average per site, over the rounds it took part in.
        minimum, maximum: bounds of a share; they come last, so that they hold for size weights too. Without a
            maximum it is HALF from FEWEST sites on.
    """

    factors: tuple[tuple[str, Factor, float], ...]
    smoothing: float
    minimum: float
    maximum: float | None

    def weigh(self, evidence: Evidence, memory: Mapping[str, float]) -> Weighed:
        """Return the shares of one round; pure.

        A round in which a factor cannot be read or used is weighted by size, unsmoothed, and leaves the memory
        as it was: no factor may build on shares or candidates that were never used.
        """
        readings: dict[str, Reading] = {}
        try:
            for kind, factor, _ in self.factors:
                readings[kind] = factor.read(evidence, _under(memory, f"{kind}/"))
            values = {kind: reading.values for kind, reading in readings.items()}
            raw = self._product(evidence.sites, values)
            others = {
                name: self._product(evidence.sites, values | {kind: instead})
                for kind, reading in readings.items()
                for name, instead in reading.candidates.items()
            }
        except SignalMissing as error:
            shares, notes = self._within_bounds(normalised(evidence.sizes))
            signals = _signals(evidence.sites, readings)
            return Weighed(shares, signals, memory, (f"weighted by size: {error}", *notes))
        smoothed = self._smoothed(raw, memory)
        shares, notes = self._within_bounds(normalised(smoothed or raw))
        candidates = {
            name: self._within_bounds(normalised(self._smoothed(other, memory) or other))[0]
            for name, other in others.items()
        }
        kept = {name: value for name, value in memory.items() if name.partition("/")[0] not in readings}
        for kind, reading in readings.items():
            kept |= {f"{kind}/{name}": value for name, value in reading.memory.items()}
        kept |= remember("smoothed", smoothed)
        return Weighed(shares, _signals(evidence.sites, readings), kept, notes, candidates)

    def _product(self, sites: Sequence[str], values: Mapping[str, PerSite]) -> dict[str, float]:
        """Return the product of the factors, each to its exponent; one weight at least is > 0, all are finite."""
        for kind, factor in values.items():
            if bad := [site for site in sites if not (math.isfinite(factor[site]) and factor[site] >= 0)]:
                raise SignalMissing(f"factor '{kind}' is not a number >= 0 at {', '.join(bad)}")
        try:
            weights = {
                site: math.prod(values[kind][site] ** power for kind, _, power in self.factors) for site in sites
            }
            total = math.fsum(weights.values())
        except OverflowError:
            total = math.inf
        if not 0 < total < math.inf:
            what = "0 at every site" if total == 0 else "too large for a number"
            raise SignalMissing(f"the product of {', '.join(values)} is {what}")
        return weights

    def _smoothed(self, raw: PerSite, memory: Mapping[str, float]) -> dict[str, float]:
        """Return the moving average of each site's weight relative to the cohort's mean; nothing without smoothing."""
        if not self.smoothing:
            return {}
        now = {site: share * len(raw) for site, share in normalised(raw).items()}
        before = recall(memory, "smoothed")
        keep = self.smoothing
        return {site: keep * before.get(site, value) + (1 - keep) * value for site, value in now.items()}

    def _within_bounds(self, shares: PerSite) -> tuple[dict[str, float], tuple[str, ...]]:
        low, high, count = self.minimum, self.maximum, len(shares)
        if high is None:
            high = HALF if count >= FEWEST else 1.0
        if low * count > 1 + 1e-12 or high * count < 1 - 1e-12:
            note = f"equal shares: {count} sites cannot each have {low:g} to {high:g} of the whole"
            return dict.fromkeys(shares, 1 / count), (note,)
        return bounded(shares, low, high), ()


def normalised(values: PerSite) -> dict[str, float]:
    """Return the values divided by their sum (which is > 0)."""
    total = math.fsum(values.values())
    return {site: value / total for site, value in values.items()}


def bounded(shares: PerSite, low: float, high: float) -> dict[str, float]:
    """Return shares within [low, high] that sum to 1 and keep their proportions where no bound holds them.

    They are `clip(c * share, low, high)` with the one c for which they sum to 1. Needs
    `low * n <= 1 <= high * n`; shares that are within the bounds already are returned as they are.
    A rest that the bounds take from all others is divided equally among the sites that have no share.
    """
    if all(low <= share <= high for share in shares.values()):
        return dict(shares)
    wanted = {site: max(share, TINY) for site, share in shares.items()}

    def clipped(c: float) -> dict[str, float]:
        return {site: min(max(c * share, low), high) for site, share in wanted.items()}

    # Between two of these values of c the same sites are free of bounds, and the sum is linear in c.
    turns = sorted({bound / share for share in wanted.values() for bound in (low, high)})
    turn = turns[max(0, bisect_right(turns, 1.0, key=lambda c: math.fsum(clipped(c).values())) - 1)]
    result = clipped(turn)
    free = {site: share for site, share in wanted.items() if low / share <= turn < high / share}
    if free:
        rest = 1 - math.fsum(share for site, share in result.items() if site not in free)
        result |= {site: min(max(rest * share, low), high) for site, share in normalised(free).items()}
    return result


def recall(memory: Mapping[str, float], what: str) -> dict[str, float]:
    """Return the numbers in memory under `what/site`, by site."""
    return _under(memory, f"{what}/")


def remember(what: str, values: PerSite) -> dict[str, float]:
    """Return values by site as memory under `what/site`."""
    return {f"{what}/{site}": value for site, value in values.items()}


def _signals(sites: Sequence[str], readings: Mapping[str, Reading]) -> dict[str, dict[str, float]]:
    signals: dict[str, dict[str, float]] = {site: {} for site in sites}
    for kind, reading in readings.items():
        for name, values in {"factor": reading.values, **reading.signals}.items():
            for site in sites:
                if math.isfinite(value := values.get(site, math.nan)):
                    signals[site][f"{kind}.{name}"] = value
    return signals


def _under(memory: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in memory.items() if name.startswith(prefix)}
