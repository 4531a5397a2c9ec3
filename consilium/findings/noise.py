"""What the noise on a private study's counts adds to every interval, and when it leaves nothing to say.

A site of a private study counts right and wrong answers of a model, adds noise of standard deviation `s` to each, and
reports the share `v = right / (right + wrong)` of them, as a count of the test patients that it announces
(`TestCounts.noise`). By the delta method that noise gives the share the standard deviation

    s sqrt((1 - v)^2 + v^2) / n,    n the number of test patients,

in addition to what redrawn patients do to it. How often the intervals are right was measured:
`benchmarks/results/noised_counts.csv`.
"""

import math
from typing import Final

from consilium.common.intervals.interval import Interval, widened
from consilium.common.protocol.counts import TestCounts

MOST_NOISE: Final = 0.125
"""A share on which the noise has a larger standard deviation than this is not shown: it would be the noise."""


def noise_on(counts: TestCounts, share: float) -> float:
    """Return the standard deviation that noise gives to a share of a site's counts; 0 where these are exact."""
    if counts.noise is None:
        return 0.0
    return counts.noise * math.hypot(share, 1 - share) / counts.num_test


def too_noisy(counts: TestCounts) -> bool:
    """Return whether the noise leaves nothing to be said of any share of a site's counts."""
    return noise_on(counts, 1.0) > MOST_NOISE


def with_noise(one: Interval, noise: float) -> Interval:
    """Return a share's interval with the noise on its counts in it."""
    return widened(one, noise, least=0.0, most=1.0)
