"""FedDyn at the site: a pull to the weights received that leaves the right point where it is.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization,
ICLR 2021, algorithm 1, https://openreview.net/forum?id=B7v4QMR6Z9w

    theta_k = SGD on F_k(theta) - <g_k, theta> + alpha / 2 * |theta - w|**2 from theta = w,
    so theta <- theta - eta * (grad F_k(theta) - g_k + alpha * (theta - w)) at every step;
    g_k <- g_k - alpha * (theta_k - w)

with `w` the weights received and `g_k` the gradient that the site had when it last took part (in its memory; 0 at
its first round). Solved exactly, the new g_k is grad F_k(theta_k): where all sites' g_k sum to 0, w stays where it is,
however different the sites are. Only theta_k - w is sent. The norm is squared, as in the paper. BatchNorm
that stays at the site has neither pull nor g_k.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model, get_weights
from consilium.client.training.loop import anchor_of, train
from consilium.client.training.request import Pull
from consilium.client.training.work import LocalWork
from consilium.common.weights.arithmetic import add_scaled, subtract
from consilium.common.weights.arrays import with_prefix

KEPT = "gradient/"


@dataclass(frozen=True)
class FedDyn:
    """Nothing is personal but the site's gradient; `alpha` > 0 is the strength of the pull."""

    alpha: float

    serves_as_held: ClassVar[bool] = True

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable by regularised steps, and move the site's gradient."""
        controlled = sorted(model.trainable - model.own_batch_norm)
        w = get_weights(model.module, controlled)
        g = {name: memory.get(KEPT + name, np.zeros_like(array)) for name, array in w.items()}
        at = {name: value for name, value in anchor_of(model).items() if name in w}
        less = {name: -torch.tensor(array, device=at[name].device) for name, array in g.items()}
        loss = train(model, work, correction=Pull(dict.fromkeys(at, self.alpha), at, less))
        new = add_scaled(g, subtract(get_weights(model.module, controlled), w), -self.alpha)
        return Outcome(with_prefix(new, KEPT), loss)

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the global model as it is."""
        return model.module
