"""Loss: sites whose update fits their own validation examples better count more, as in a softmax.

Dimitriadis, Kumatani, Gmyr, Gaur, Eskimez: Dynamic Gradient Aggregation for Federated Domain Adaptation, 2021,
https://arxiv.org/abs/2106.07578 (the idea; there from the training loss, here from the validation split)

    value_k = exp(-(L_k - min_j L_j) / temperature)

with L_k = the metric `update.loss`: the loss of the site's weights after training. The best site has the value 1,
whatever the scale of the losses. A small temperature follows differences closely. Keeps no memory.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from consilium.common.study.signals import UPDATE_LOSS
from consilium.server.weighting.contract import Evidence, Reading


@dataclass(frozen=True)
class Loss:
    """Softmax of the negative loss at `temperature`."""

    temperature: float

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return every site's value in [0, 1], 1 for the lowest loss."""
        losses = evidence.metric(UPDATE_LOSS)
        best = min(losses.values())
        values = {site: math.exp(-(loss - best) / self.temperature) for site, loss in losses.items()}
        return Reading(values, {"update_loss": losses})
