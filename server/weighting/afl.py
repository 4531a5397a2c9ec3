"""AFL: the weights climb towards the sites with the highest loss, until the worst mixture is served best.

Mohri, Sivek, Suresh: Agnostic Federated Learning, ICML 2019, https://arxiv.org/abs/1902.00146 (the ascent step on
the weights); Duchi, Shalev-Shwartz, Singer, Chandra: Efficient Projections onto the l1-Ball for Learning in High
Dimensions, ICML 2008, https://doi.org/10.1145/1390156.1390191 (the projection)

    lambda <- project(lambda + learning_rate * (F - mean F)),        value_k = lambda_k

with F_k = the metric `received.loss`, the loss of the weights that round began with; the mean is over this round's
sites. `project` gives the nearest point of the simplex. Taking the mean off changes nothing when all sites take
part; otherwise it keeps the sites that were not asked, whose F is unknown, from losing weight to those that were.
Deviations from the paper, in which F_k is the empirical risk on the training examples and the answer is the mean of all
iterates: here F_k is measured on the site's validation examples, which show overfitting, and the weights after the last
round are served, as in tens of rounds the first ones would spoil the mean; so the paper's guarantee for convex losses,
which is for that mean, does not cover them.

`lambda` holds every site seen so far and starts uniform; a late joiner enters with 1 / K, K counting it, and the
others are scaled to make room.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from consilium.common.study.signals import RECEIVED_LOSS
from consilium.server.weighting.contract import Evidence, PerSite, Reading, recall, remember


@dataclass(frozen=True)
class Afl:
    """Projected gradient ascent at `learning_rate`."""

    learning_rate: float

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return every site's lambda after the step, >= 0; 0 for a site that is served well enough."""
        losses, known = evidence.metric(RECEIVED_LOSS), recall(memory, "lambda")
        new = [site for site in evidence.sites if site not in known]
        entry = 1 / (len(known) + len(new))
        before = {site: share * (1 - len(new) * entry) for site, share in known.items()} | dict.fromkeys(new, entry)
        mean = sum(losses.values()) / len(losses)
        moved = before | {site: before[site] + self.learning_rate * (loss - mean) for site, loss in losses.items()}
        after = project_simplex(moved)
        values = {site: after[site] for site in evidence.sites}
        return Reading(values, {"received_loss": losses}, remember("lambda", after))


def project_simplex(values: PerSite) -> dict[str, float]:
    """Return the point nearest to `values` whose coordinates are >= 0 and sum to 1.

    It is `max(0, value - theta)`, with theta found from the largest values down (Duchi 2008, figure 1).
    """
    total, theta = 0.0, 0.0
    for count, value in enumerate(sorted(values.values(), reverse=True), start=1):
        total += value
        if value >= (total - 1) / count:
            theta = (total - 1) / count
    return {site: max(0.0, value - theta) for site, value in values.items()}
