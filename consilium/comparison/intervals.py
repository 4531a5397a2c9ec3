"""How sure a number of a comparison is: over test examples where there is one split, over splits where there are many.

One split: the test examples are drawn anew 2,000 times inside every site, the same rows for all models and seeds, so
differences are paired (Efron 1979, "Bootstrap Methods"). Five splits and more: their training rows overlap, so a plain
t interval is too narrow; its variance is corrected by the ratio of test to training rows (Nadeau and Bengio 2003,
"Inference for the Generalization Error", doi:10.1023/A:1024068626366).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from common.seeds import seed_for
from consilium.comparison.evaluation import Scores

Floats = NDArray[np.float64]

LEVEL = 0.95
DRAWS = 2000
MOST_COUNTS = 10_000_000
"""Of draws times examples, at once in memory."""
SLOW_DRAWS = 300
"""For metrics that are no mean over the examples."""
LEAST_SPLITS = 5
"""From here on intervals are over splits; with fewer, but more than one, there are none."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval; the bounds are None where nothing can be said."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def sign(self) -> int:
        """Return 1 or -1 where the interval is above or below 0, otherwise 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def corrected_t(values: Sequence[float], *, test_to_train: float) -> Interval:
    """Return the mean over splits and its corrected t interval; one value has no bounds.

    Args:
        test_to_train: test rows per training row of a split.
    """
    found, count = np.asarray(values, dtype=np.float64), len(values)
    mean = float(found.mean())
    if count < 2:
        return Interval(mean)
    error = float(np.sqrt((1 / count + test_to_train) * found.var(ddof=1)))
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error
    return Interval(mean, mean - half, mean + half)


def drawn(scores: Sequence[Scores], metric: str, *, seed: int, who: str) -> Floats:
    """Return a metric of one model at one site as a mean over seeds: of the examples, then of each bootstrap draw.

    Args:
        scores: one per seed, all on the same test examples.
        who: the site; models with the same `seed` and `who` get the same draws.

    NaN in the first place if a seed's metric is undefined; draws in which it is undefined are NaN.
    """
    size = len(scores[0])
    generator = np.random.default_rng(seed_for(seed, "bootstrap", who))
    adds = [one.per_example(metric) for one in scores]
    if known := [each for each in adds if each is not None]:
        mean = np.mean(known, axis=0)
        found = [mean.mean()]
        for first in range(0, DRAWS, (block := max(1, MOST_COUNTS // size))):
            counts = generator.multinomial(size, np.full(size, 1 / size), size=min(block, DRAWS - first))
            found.extend(counts @ mean / size)
        return np.array(found)
    rows = [np.arange(size), *(generator.integers(0, size, size) for _ in range(SLOW_DRAWS))]
    values = [[one.taken(taken).measure(metric) for one in scores] for taken in rows]
    return np.array([np.nan if None in each else np.mean(each) for each in values], dtype=np.float64)  # type: ignore[arg-type]


def summarised(draws: Floats) -> Interval | None:
    """Return value and percentile interval of what `drawn` gave; None if the value is undefined."""
    if np.isnan(draws[0]):
        return None
    if len(draws) == 1:
        return Interval(float(draws[0]))
    known = draws[1:][~np.isnan(draws[1:])]
    if len(known) < len(draws) / 2:  # mostly undefined: an interval of the rest would be one of something else
        return Interval(float(draws[0]))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(draws[0]), float(low), float(high))
