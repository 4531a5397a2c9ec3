"""What a factor of a site's weight is, and how factors become shares: product, smoothing, bounds.

    weight_k = product over factors f of  value_f(k) ** exponent_f,        share_k = weight_k / sum_j weight_j

Everything is keyed by the sites' names: connections come and go. Where a signal is missing or no weight is
left, the round is weighted by size and a note says so; nothing is made up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.strategies.base import Update

PerSite = Mapping[str, float]


class SignalMissing(Exception):
    """A site did not send what a factor needs; the text says who and what."""


@dataclass(frozen=True)
class Evidence:
    """What a factor may look at in one round.

    Args:
        updates: the accepted updates, in the order of site names, at least one.
        round: this round, from 1.
        rounds: how many the study plans.
        class_counts: training examples per class at each site that told them.
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
        """Who sent an update, in sorted order."""
        return tuple(update.site for update in self.updates)

    @property
    def sizes(self) -> dict[str, float]:
        """Training examples per site."""
        return {update.site: float(update.num_examples) for update in self.updates}

    def metric(self, name: str) -> dict[str, float]:
        """Return what every site measured under a name.

        Raises:
            SignalMissing: names the sites that did not send it.
        """
        if missing := [update.site for update in self.updates if name not in update.metrics]:
            raise SignalMissing(f"{name} is missing from {', '.join(missing)}")
        return {update.site: float(update.metrics[name]) for update in self.updates}

    def counts(self) -> dict[str, Mapping[str, int]]:
        """Return every site's examples per class.

        Raises:
            SignalMissing: names the sites that did not tell them.
        """
        if missing := [site for site in self.sites if not sum(self.class_counts.get(site, {}).values())]:
            raise SignalMissing(f"class counts are missing from {', '.join(missing)}")
        return {site: self.class_counts[site] for site in self.sites}


@dataclass(frozen=True)
class Reading:
    """What one factor says of the sites of one round.

    Args:
        values: the factor per site, finite and >= 0; one for every site of the evidence.
        signals: the raw numbers behind it: signal -> site -> value; for the audit.
        memory: the factor's whole memory from now on: numbers under `what/site`.
        candidates: other values to try instead, under the names in `common.algorithms.CANDIDATES`.
    """

    values: PerSite
    signals: Mapping[str, PerSite] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    candidates: Mapping[str, PerSite] = field(default_factory=dict)


class Factor(Protocol):
    """One factor of a site's weight. Settings are fields of a frozen dataclass; memory is an argument."""

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return what the factor says of this round's sites; pure.

        Raises:
            SignalMissing: a site did not send what is needed.
        """
        ...


@dataclass(frozen=True)
class Weighed:
    """The shares of a round, and how they came about.

    Args:
        shares: per site, >= 0, summing to 1.
        signals: site -> signal -> value; `<factor>.factor` is what entered the product.
        memory: what the weighting keeps.
        notes: sentences on what did not go as the study says (a fallback to size weights, bounds that cannot hold).
        candidates: other shares to try, by name.
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
        minimum, maximum: bounds of a share; they hold for what is used, so they come last.
    """

    factors: tuple[tuple[str, Factor, float], ...]
    smoothing: float = 0.0
    minimum: float = 0.0
    maximum: float = 1.0

    def weigh(self, evidence: Evidence, memory: Mapping[str, float]) -> Weighed:
        """Return the shares of one round; pure."""
        readings: dict[str, Reading] = {}
        exponents = {kind: exponent for kind, _, exponent in self.factors}
        try:
            for kind, factor, _ in self.factors:
                readings[kind] = factor.read(evidence, _under(memory, f"{kind}/"))
            raw = _product(evidence.sites, {kind: reading.values for kind, reading in readings.items()}, exponents)
            notes: tuple[str, ...] = ()
        except SignalMissing as error:
            raw, notes = evidence.sizes, (f"weighted by size: {error}",)
        kept = dict(memory)
        for kind, reading in readings.items():
            kept = {name: value for name, value in kept.items() if not name.startswith(f"{kind}/")}
            kept |= {f"{kind}/{name}": value for name, value in reading.memory.items()}
        shares, smoothed, problem = self._shares(raw, memory)
        candidates = {}
        for kind, reading in readings.items():
            for name, values in reading.candidates.items():
                others = {other: item.values for other, item in readings.items()} | {kind: values}
                candidates[name] = self._shares(_product(evidence.sites, others, exponents), memory)[0]
        signals = _signals(evidence.sites, readings)
        return Weighed(shares, signals, kept | smoothed, notes + ((problem,) if problem else ()), candidates)

    def _shares(self, raw: PerSite, memory: Mapping[str, float]) -> tuple[PerSite, dict[str, float], str | None]:
        shares = normalised(raw)
        smoothed: dict[str, float] = {}
        if self.smoothing:
            relative = {site: share * len(shares) for site, share in shares.items()}
            for site, value in relative.items():
                before = memory.get(f"smoothed/{site}", value)
                smoothed[f"smoothed/{site}"] = self.smoothing * before + (1 - self.smoothing) * value
            shares = normalised({site: smoothed[f"smoothed/{site}"] for site in shares})
        low, high = self.minimum, self.maximum
        if low * len(shares) > 1 + 1e-12 or high * len(shares) < 1 - 1e-12:
            equal = dict.fromkeys(shares, 1 / len(shares))
            return (
                equal,
                smoothed,
                f"equal shares: {len(shares)} sites cannot each have {low:g} to {high:g} of the whole",
            )
        return bounded(shares, low, high), smoothed, None


def normalised(values: PerSite) -> dict[str, float]:
    """Return the values divided by their sum (which is > 0)."""
    total = math.fsum(values.values())
    return {site: value / total for site, value in values.items()}


def bounded(shares: PerSite, low: float, high: float) -> dict[str, float]:
    """Return shares within [low, high] that sum to 1 and keep their proportions where no bound holds them.

    They are `clip(c * share, low, high)` with the one c for which they sum to 1. Needs
    `low * n <= 1 <= high * n`; shares that are within the bounds already are returned as they are.
    """
    if all(low <= share <= high for share in shares.values()):
        return dict(shares)
    positive = {site: max(share, 1e-300) for site, share in shares.items()}

    def clipped(log_c: float) -> dict[str, float]:
        scaled = {site: math.exp(min(700.0, log_c + math.log(share))) for site, share in positive.items()}
        return {site: min(max(value, low), high) for site, value in scaled.items()}

    below, above = -800.0, 800.0
    for _ in range(200):
        middle = (below + above) / 2
        below, above = (middle, above) if math.fsum(clipped(middle).values()) < 1 else (below, middle)
    result = clipped(above)
    free = [site for site, share in result.items() if low < share < high]
    missing = 1 - math.fsum(result.values())
    for site in free[:1]:  # the last bits of the bisection
        result[site] += missing
    return result


def _product(sites: Sequence[str], values: Mapping[str, PerSite], exponents: PerSite) -> dict[str, float]:
    product = dict.fromkeys(sites, 1.0)
    for kind, factor in values.items():
        if bad := [site for site in sites if not math.isfinite(factor[site]) or factor[site] < 0]:
            raise SignalMissing(f"factor '{kind}' is not a number >= 0 at {', '.join(bad)}")
        for site in sites:
            product[site] *= factor[site] ** exponents[kind]
    total = math.fsum(product.values())
    if not 0 < total < math.inf:
        raise SignalMissing(f"the product of {', '.join(values)} is 0 at every site" if total == 0 else "overflow")
    return product


def _signals(sites: Sequence[str], readings: Mapping[str, Reading]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {site: {} for site in sites}
    for kind, reading in readings.items():
        named = {"factor": reading.values, **reading.signals}
        for name, values in named.items():
            for site, value in values.items():
                if site in found and math.isfinite(value):
                    found[site][f"{kind}.{name}"] = value
    return found


def _under(memory: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in memory.items() if name.startswith(prefix)}
