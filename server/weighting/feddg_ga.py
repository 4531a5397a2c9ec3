"""FedDG-GA: sites that the mean serves worse than their own update did gain weight, step by step.

Zhang, Xu, Yao, Zhang, Tian, Wang: Federated Domain Generalization with Generalization Adjustment, CVPR 2023,
https://openaccess.thecvf.com/content/CVPR2023/html/Zhang_Federated_Domain_Generalization_With_Generalization_Adjustment_CVPR_2023_paper.html

    G_k = L_k(w(r + 1)) - L_k(w_k(r + 1)),        d_r = step * (1 - (r - 1) / rounds)
    a_k <- clip(a_k + d_r * (G_k - mean G) / max_j |G_j - mean G|, 0, 1),        a <- a / sum a,        value_k = a_k

Round r's gap is known one round later, when the sites measure what they received: L_k(w(r + 1)) is the metric
`received.loss` of this round, L_k(w_k(r + 1)) the metric `update.loss` that the site sent in the round before.
`a` holds every site seen so far and starts equal; a late joiner enters with the mean. A site that was not in the
round before has no gap and keeps its `a`; the mean and the maximum are over the sites with a gap. Gaps that
differ by no more than rounding change nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from consilium.common.study.signals import RECEIVED_LOSS, UPDATE_LOSS
from consilium.server.weighting.contract import Evidence, PerSite, Reading, normalised, recall, remember

ROUNDING = 1e-12


@dataclass(frozen=True)
class FedDgGa:
    """Adjustment by at most `step` in the first rounds, by less and less towards the last."""

    step: float

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return every site's `a`, adjusted by the gaps of the round before."""
        received, update = evidence.metric(RECEIVED_LOSS), evidence.metric(UPDATE_LOSS)
        known, asked = recall(memory, "a"), recall(memory, "round")
        mean = sum(known.values()) / len(known) if known else 1.0
        before = normalised(known | {site: mean for site in evidence.sites if site not in known})
        losses, measured = recall(memory, "update_loss"), evidence.round - 1
        gaps = {site: received[site] - losses[site] for site in evidence.sites if asked.get(site) == measured}
        a = self._adjusted(before, gaps, 1 - (measured - 1) / evidence.rounds)
        signals = {"received_loss": received, "update_loss": update, "gap": gaps}
        now = dict.fromkeys(evidence.sites, float(evidence.round))
        kept = dict(memory) | remember("a", a) | remember("update_loss", update) | remember("round", now)
        return Reading({site: a[site] for site in evidence.sites}, signals, kept)

    def _adjusted(self, a: PerSite, gaps: PerSite, decay: float) -> dict[str, float]:
        mean = sum(gaps.values()) / len(gaps) if gaps else 0.0
        away = {site: gap - mean for site, gap in gaps.items()}
        largest = max(map(abs, away.values()), default=0.0)
        if largest <= ROUNDING:
            return dict(a)
        moved = {site: a[site] + self.step * decay * deviation / largest for site, deviation in away.items()}
        return normalised({**a, **{site: min(1.0, max(0.0, value)) for site, value in moved.items()}})
