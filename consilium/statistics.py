"""95 % intervals for accuracies and for their paired difference, from counts alone.

Lawrence D. Brown, T. Tony Cai, Anirban DasGupta, "Interval Estimation for a Binomial Proportion",
Statistical Science 16(2), 2001, section 4.1.1 (the Jeffreys interval), doi:10.1214/ss/1009213286.

One mechanism for every number: draw from the posterior under the Jeffreys prior, compute the number
of every draw, and take the 2.5 % and 97.5 % quantiles. With `k` of `n` test examples right::

    accuracy    ~ Beta(k + 1/2, n - k + 1/2)                            majority, global
    (a,b,c,d)   ~ Dirichlet(n_a + 1/2, n_b + 1/2, n_c + 1/2, n_d + 1/2) the pairs (local, personal)
    local       = a + b         a both right, b only local right,
    personal    = a + c         c only personal right, d neither
    personal - local = c - b

`local` and `personal` come from the same draw, so their difference is paired: examples that both
models get right do not widen it. Their own distribution is Beta(k + 1, n - k + 1), a little wider
than Jeffreys'. A number over sites (mean, minimum) is computed draw by draw; sites are independent.
Point estimates are plain proportions `k / n` and may lie outside a draw-wise interval (`k = n`, or
the minimum over many sites).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.protocol import TestCounts
from common.seeds import seed_for

DRAWS = 20_000
LEVEL = 0.95
PRIOR = 0.5
ACCURACIES = ("majority", "local", "global", "personal")
MEASURES = (*ACCURACIES, "personal_minus_local")

# One number per draw; index 0 holds the point estimate, so that both go through the same formulas.
Draws = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A point estimate and its 95 % interval."""

    value: float
    low: float
    high: float


Measures = Mapping[str, Estimate | None]


@dataclass(frozen=True)
class Statistics:
    """Every measure of `MEASURES` per site, and over the sites; None where there is no such model."""

    sites: Mapping[str, Measures]
    mean: Measures
    weighted_mean: Measures
    worst: Measures


def estimate(counts: Mapping[str, TestCounts], *, seed: int) -> Statistics:
    """Return accuracies and differences with their intervals, per site and over the sites.

    A site's numbers depend on `seed`, its name and its counts, never on the other sites. `mean` weighs
    every site the same, `weighted_mean` by its test examples; `worst` is the lowest site per measure.

    Raises:
        ProtocolError: counts that cannot be: more right than tested, or pairs that do not add up.
    """
    draws = {site: _posterior(count, seed_for(seed, "report", site)) for site, count in counts.items()}
    sizes = np.array([count.num_test for count in counts.values()], dtype=np.float64)
    parts = list(draws.values())
    return Statistics(
        sites={site: {name: _summary(values) for name, values in of_site.items()} for site, of_site in draws.items()},
        mean=_over_sites(parts, lambda table: table.mean(axis=0)),
        weighted_mean=_over_sites(parts, lambda table: np.average(table, axis=0, weights=sizes)),
        worst=_over_sites(parts, lambda table: table.min(axis=0)),
    )


def _posterior(count: TestCounts, seed: int) -> dict[str, Draws | None]:
    generator = np.random.default_rng(seed)
    if count.pairs is None:
        return {
            "majority": _beta(count.majority, count.num_test, generator),
            "local": None,
            "global": None if count.global_ is None else _beta(count.global_, count.num_test, generator),
            "personal": _beta(count.personal, count.num_test, generator),
            "personal_minus_local": None,
        }
    pairs = np.array(count.pairs, dtype=np.float64)
    table = np.vstack([pairs / count.num_test, generator.dirichlet(pairs + PRIOR, size=DRAWS)])
    both, only_local, only_personal = table[:, 0], table[:, 1], table[:, 2]
    return {
        "majority": _beta(count.majority, count.num_test, generator),
        "local": both + only_local,
        "global": None if count.global_ is None else _beta(count.global_, count.num_test, generator),
        "personal": both + only_personal,
        "personal_minus_local": only_personal - only_local,
    }


def _beta(right: int, tested: int, generator: np.random.Generator) -> Draws:
    draws = generator.beta(right + PRIOR, tested - right + PRIOR, size=DRAWS)
    return np.concatenate([[right / tested], draws])


def _over_sites(
    parts: Sequence[Mapping[str, Draws | None]], combine: Callable[[Draws], Draws]
) -> dict[str, Estimate | None]:
    result: dict[str, Estimate | None] = {}
    for name in MEASURES:
        known = [draws for part in parts if (draws := part[name]) is not None]
        # A mean over the sites that happen to have a number would be a mean of something else.
        result[name] = _summary(combine(np.stack(known))) if known and len(known) == len(parts) else None
    return result


def _summary(draws: Draws | None) -> Estimate | None:
    if draws is None:
        return None
    low, high = np.quantile(draws[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=float(draws[0]), low=float(low), high=float(high))
