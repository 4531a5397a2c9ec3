"""MR-MTL: a site trains and serves a whole model of its own, pulled towards the mean of all sites' models.

Liu, Hu, Wu, Smith: On Privacy and Personalization in Cross-Silo Federated Learning, NeurIPS 2022, mean-regularised
multi-task learning, https://arxiv.org/abs/2206.07902

    v_k <- v_k - eta * (grad F_k(v_k) + lam * (v_k - w));   w(t+1) = mean over k of v_k

with `w` the weights received. `v_k` is never overwritten by w: it goes on from where the site's last round left it,
and starts from the `w` of the site's first round. It is sent (as a delta from w) and served, running statistics of
BatchNorm included: one model to train, where Ditto has two. The paper's mean counts every site the same, which is
weighting `size` with exponent 0 here. Where BatchNorm is local it has no mean, and nothing pulls it.
"""

from dataclasses import dataclass

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model, get_weights, set_weights
from consilium.client.training.loop import anchor_of, train
from consilium.client.training.request import Pull
from consilium.client.training.work import LocalWork
from consilium.common.weights.arrays import under, with_prefix

KEPT = "v/"


@dataclass(frozen=True)
class MrMtl:
    """Everything is shared; `lam` >= 0 is the strength of the pull on the site's own model, 0 local training."""

    lam: float

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train the site's own model, which the module holds afterwards; its difference from w is sent."""
        mean = anchor_of(model)
        pulled = {name: self.lam * (name not in model.own_batch_norm) for name in mean}
        set_weights(model.module, under(memory, KEPT))
        loss = train(model, work, correction=Pull(pulled, mean))
        return Outcome(with_prefix(get_weights(model.module, sorted(model.moving)), KEPT), loss)

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the site's own model; before its first round, the received weights."""
        set_weights(model.module, under(memory, KEPT))
        return model.module
