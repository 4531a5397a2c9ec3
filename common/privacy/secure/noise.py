"""A site's share of the noise of a secure sum, so that the sum has it before anybody sees it, the server included.

Kairouz, Liu and Steinke: The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation,
ICML 2021, <https://arxiv.org/abs/2102.06387>. With the noise multiplier z, the clip C, at most N sites in a sum and at
least t of those that answer honest, each site i sends, masked, modulo 2**32,

    round(delta_i / step) + noise_i,    step = C / length,    |round(delta_i / step)| <= length,
    noise_i discrete Gaussian of deviation s = ceil(sqrt((z^2 length^2 + SPARE) / t)),
    length = floor((2**31 - room) / (N + FAR z sqrt(N / t)))

so that the noise of any t sites together has the deviation z C, and no sum leaves the words: it is below
N length + FAR sqrt(N) s < 2**31 but for a chance of 2 exp(-FAR^2 / 2) = 1e-42 for each number, as discrete Gaussian
noise is no further from 0 than normal noise (Canonne, Kamath and Steinke 2020). One that did would be a wrong number,
and tell nothing more: what is done to a noised sum is post-processing.

What it costs is what normal noise of z C costs, by `accounting.py`. (1) The sum of t discrete Gaussians differs from
one of deviation sqrt(t) s, in the logarithm of the chance of any number, by no more than
5 sum over k < t of exp(-2 pi^2 s^2 k / (k + 1)) (their theorem 9). (2) Normal noise of variance v on a whole number,
rounded at random by a discrete Gaussian of variance SPARE around it, is a discrete Gaussian of variance v + SPARE, but
for 8 exp(-2 pi^2 SPARE) in the same measure (Peikert: An Efficient and Parallel Gaussian Sampler for Lattices, CRYPTO
2010, <https://eprint.iacr.org/2010/088>, theorem 3.1): so discrete noise costs no more than normal noise of less
variance by SPARE. Both differences are below 1e-800, whatever the number of parameters and rounds: `excess` says so.
"""

import math
from dataclasses import dataclass

from consilium.common.privacy.secure.sizes import threshold
from consilium.common.study.study import StudyConfig

FAR = 14
"""How many deviations of all sites' noise the words have room for."""
SPARE = 100
"""Variance, in squared words, by which discrete noise is larger than the normal noise that it costs."""
LEAST_LEFT = 0.9
"""How much of the clip rounding to whole words must leave."""
_TAIL = 100.0
"""A sum is refused as too long if honest sites make one of that length with a chance of exp(-100) at most."""


@dataclass(frozen=True)
class NoiseShare:
    """What sites and server must agree on for the noise of a sum.

    Args:
        multiplier: z, deviation of the noise of `honest` sites together, in units of the clip; above 0.
        honest: t, how many sites of a sum, at least, add noise that nobody takes off; at least 1.
        sites: N, how many terms a sum has at most; at least t.
    """

    multiplier: float
    honest: int
    sites: int

    @property
    def length(self) -> int:
        """How many words stand for the clip."""
        room = 1 + FAR * math.sqrt(self.sites) * (1 + math.sqrt(SPARE / self.honest))
        return math.floor((2**31 - room) / (self.sites + FAR * self.multiplier * math.sqrt(self.sites / self.honest)))

    @property
    def deviation(self) -> int:
        """Deviation of one site's noise, in words."""
        return math.ceil(math.sqrt(((self.multiplier * self.length) ** 2 + SPARE) / self.honest))

    def radius(self, numbers: int) -> float:
        """Return how long an update of so many numbers may be, in words, that is no longer than the clip once rounded.

        Rounding moves each number by half a word at most, and all together by half the root of how many they are.
        """
        return (self.length - math.sqrt(numbers) / 2) * (1 - 1e-9)

    def holds(self, numbers: int) -> bool:
        """Return whether words are fine enough for updates of so many numbers."""
        return self.radius(numbers) >= LEAST_LEFT * self.length

    def longest(self, terms: int, numbers: int) -> float:
        """Return the largest norm of a sum of so many terms, in words, noise included; honest sites stay below.

        Hsu, Kakade and Zhang: A tail inequality for quadratic forms of subgaussian random vectors, 2012,
        <https://arxiv.org/abs/1110.2842>: |noise|^2 <= s^2 (d + 2 sqrt(d x) + 2 x) but for a chance of exp(-x).
        """
        square = numbers + 2 * math.sqrt(numbers * _TAIL) + 2 * _TAIL
        return terms * self.length + math.sqrt(terms * square) * self.deviation

    def multiplier_of(self, honest: int) -> float:
        """Return the noise multiplier of a sum in which so many sites were honest; at least `multiplier` from t on."""
        return math.sqrt(honest * self.deviation**2 - SPARE) / self.length

    def excess(self, numbers: int, rounds: int) -> float:
        """Return the logarithm of how much more than normal noise this costs at most, added to epsilon in all rounds.

        Args:
            numbers: of an update.
        """
        of_sum = math.log(10 * self.honest) - math.pi**2 * self.deviation**2
        of_rounding = math.log(16) - 2 * math.pi**2 * SPARE
        return math.log(2 * numbers * rounds) + max(of_sum, of_rounding)


def fewest_answers(study: StudyConfig) -> int:
    """Return how many updates a sum of a study has at least: sites open no sum of fewer that has noise for sites."""
    return study.least_updates


def colluding_sites(study: StudyConfig) -> int:
    """Return how many sites of a sum may tell the server their own noise without breaking the promise of the others."""
    privacy, asked = study.privacy.sites, study.cohort_size
    if privacy is None or privacy.colluding is None:
        return asked - threshold(asked)
    return privacy.colluding


def honest_sites(study: StudyConfig) -> int:
    """Return how many sites of a sum, at least, add noise that nobody takes off."""
    return fewest_answers(study) - colluding_sites(study)


def noise_share(study: StudyConfig, multiplier: float | None) -> NoiseShare | None:
    """Return how sites share the noise of a study's sums; None in studies without noise for whole sites in them.

    Args:
        multiplier: z, as the round's plan has it.
    """
    if multiplier is None or study.privacy.sites is None or not study.privacy.secure_aggregation:
        return None
    sites = study.num_sites or len(study.sites)
    return NoiseShare(multiplier, honest_sites(study), sites)
