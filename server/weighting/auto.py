"""Auto: weights learned in the run; two other mixtures travel along, and the sites measure which is better.

Xia, Yang, Li, Myronenko, Xu et al.: Auto-FedAvg: Learnable Federated Averaging for Multi-Institutional Medical
Image Segmentation, 2021, https://arxiv.org/abs/2104.10195, and Li, Lin, Shang, Wu: Revisiting Weighted Aggregation
in Federated Learning with Neural Networks, ICML 2023, https://arxiv.org/abs/2302.10911 (learned weights); Spall:
Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation, IEEE Transactions on
Automatic Control 1992, https://doi.org/10.1109/9.119632 (learning from two measurements, without server data)

    value_k = exp(beta_k);        candidate a: exp(beta_k + c s_k),  candidate b: exp(beta_k - c s_k),  s_k = +-1
    beta_k <- beta_k - learning_rate * (J_a - J_b) / (2 c) * s_k,        then centred to mean 0 and clipped to +-5

with c = `perturbation` and J the mean over the sites by size, or the worst, of the metrics `candidate-a.loss` and
`candidate-b.loss`, which the sites measure in the round after. The signs are drawn from `Evidence.seed` for this
round's sites, anew while all are equal, since that would be no other mixture. Only a site that was in the
candidates is moved by them; after a round without candidates nothing is. beta holds every site seen so far and
starts at 0; a late joiner enters with the mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from consilium.common.study.signals import CANDIDATE_LOSSES, CANDIDATES
from consilium.server.weighting.contract import Evidence, PerSite, Reading, normalised, recall, remember

LIMIT = 5.0


@dataclass(frozen=True)
class Auto:
    """Simultaneous perturbation of the log-weights by `perturbation`, steps of `learning_rate` on `objective`."""

    objective: Literal["mean", "worst"]
    learning_rate: float
    perturbation: float

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return the exponential of every site's log-weight, and two candidates around it.

        Raises:
            SignalMissing: candidates were sent in the round before, and a site did not measure them.
        """
        beta, signs, sent = (recall(memory, what) for what in ("beta", "sign", "sent"))
        mean = sum(beta.values()) / len(beta) if beta else 0.0
        beta = {site: mean for site in evidence.sites if site not in beta} | beta
        losses: dict[str, dict[str, float]] = {}
        if moving := [site for site in sent if sent[site] == evidence.round - 1]:
            losses = {name: evidence.metric(name) for name in CANDIDATE_LOSSES}
            a, b = (self._objective(evidence, losses[name]) for name in CANDIDATE_LOSSES)
            slope = (a - b) / (2 * self.perturbation)
            beta = _centred(beta | {site: beta[site] - self.learning_rate * slope * signs[site] for site in moving})
        drawn = _signs(evidence.sites, evidence.seed)
        now = dict.fromkeys(evidence.sites, float(evidence.round))
        kept = remember("beta", beta) | remember("sign", signs | drawn) | remember("sent", sent | now)
        own = {site: beta[site] for site in evidence.sites}
        shifts = zip(CANDIDATES, (self.perturbation, -self.perturbation), strict=True)
        candidates = {name: _mixture(own, drawn, shift) for name, shift in shifts}
        return Reading(_mixture(own, drawn, 0.0), losses | {"beta": own, "sign": drawn}, kept, candidates)

    def _objective(self, evidence: Evidence, losses: PerSite) -> float:
        if self.objective == "worst":
            return max(losses.values())
        return sum(share * losses[site] for site, share in normalised(evidence.sizes).items())


def _mixture(beta: PerSite, signs: PerSite, shift: float) -> dict[str, float]:
    return {site: math.exp(value + shift * signs[site]) for site, value in beta.items()}


def _centred(beta: PerSite) -> dict[str, float]:
    mean = sum(beta.values()) / len(beta)
    return {site: max(-LIMIT, min(LIMIT, value - mean)) for site, value in beta.items()}


def _signs(sites: Sequence[str], seed: int) -> dict[str, float]:
    """Draw +1 or -1 for each site; both occur unless there is only one site."""
    generator = np.random.default_rng(seed)
    while True:
        drawn = generator.integers(0, 2, len(sites)) * 2.0 - 1
        if len(sites) == 1 or abs(drawn.sum()) < len(sites):
            return dict(zip(sites, map(float, drawn), strict=True))
