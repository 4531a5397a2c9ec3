"""Divergence: how typical a site's labels are of all sites' together, or how diverse they are.

Chen, Fu, Wang, Duan: DWFed: A statistical-heterogeneity-based dynamic weighted model aggregation algorithm for
federated learning, Frontiers in Neurorobotics 2022, https://doi.org/10.3389/fnbot.2022.1041553 (related work for
the idea; the definition is ours)

    kl:       value_k = exp(-KL(q_k || qbar)),                 rare: exp(+KL(q_k || qbar))
    js:       value_k = exp(-JS(q_k, qbar)),                   rare: exp(+JS(q_k, qbar))
    entropy:  value_k = H(q_k) / log C  (1 if C = 1),          rare: exp(-H(q_k) / log C)

with q_k the site's label distribution (the class counts it shares, divided by their sum), qbar that of this round's
sites together (the sums of their counts), C the number of classes that these sites hold, natural logarithms and
JS(q, p) = KL(q || m) / 2 + KL(p || m) / 2 with m = (q + p) / 2. `favour` = "typical" gives less weight to sites
with rare labels, which may be those one wants to learn from; "rare" gives them more. A site with a single class has
entropy 0 and so no weight under "typical". Keeps no memory.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from consilium.server.weighting.contract import Evidence, Reading

Distribution = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """Divergence or entropy by `measure`, in favour of the typical or the rare."""

    measure: Literal["kl", "js", "entropy"]
    favour: Literal["typical", "rare"]

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return every site's value, >= 0."""
        shared = evidence.counts()
        classes = sorted({name for counts in shared.values() for name, count in counts.items() if count})
        counts = {site: np.array([own.get(name, 0) for name in classes], np.float64) for site, own in shared.items()}
        pooled = np.sum(list(counts.values()), axis=0)
        measured = {site: self._measured(own / own.sum(), pooled / pooled.sum()) for site, own in counts.items()}
        values = {site: self._value(number) for site, number in measured.items()}
        return Reading(values, {self.measure: measured})

    def _measured(self, own: Distribution, pooled: Distribution) -> float:
        """Return the divergence or entropy that `measure` names, >= 0."""
        if self.measure == "kl":
            return _kl(own, pooled)
        if self.measure == "js":
            middle = (own + pooled) / 2
            return (_kl(own, middle) + _kl(pooled, middle)) / 2
        most = math.log(len(own))
        uniform = np.full(len(own), 1 / len(own))
        return (most - _kl(own, uniform)) / most if most > 0 else 1.0

    def _value(self, number: float) -> float:
        if self.measure == "entropy" and self.favour == "typical":
            return max(0.0, number)
        return math.exp(number if self.measure != "entropy" and self.favour == "rare" else -number)


def _kl(one: Distribution, other: Distribution) -> float:
    """Return KL(one || other) in nats; `other` is > 0 where `one` is."""
    held = one > 0
    return float(np.sum(one[held] * np.log(one[held] / other[held])))
