"""Ditto: a site serves a whole model of its own, which is pulled towards the global one as it trains.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021,
algorithm 1, https://arxiv.org/abs/2012.04221

    w_k <- SGD on F_k(w_k) from w, as in FedAvg; this is sent
    v_k <- v_k - eta * (grad F_k(v_k) + lam * (v_k - w)), as many steps; this is kept, and served

with `w` the weights received. `v_k` is in the site's memory, running statistics of BatchNorm included, and
starts from the `w` of the site's first round. It is never sent and moves nothing that is, so it has no noise in a
private study. Where BatchNorm is local it has no global counterpart, and the site's own BatchNorm in w stands for it.
"""

from dataclasses import dataclass, replace

from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model, get_weights, set_weights
from consilium.client.training.loop import proximal, train
from consilium.client.training.work import LocalWork
from consilium.common.seeds import seed_for
from consilium.common.weights.arrays import under, with_prefix

KEPT = "v/"


@dataclass(frozen=True)
class Ditto:
    """Everything is shared; `lam` >= 0 is the strength of the pull on the personal model, 0 local training."""

    lam: float

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train the shared model as FedAvg does, then the personal one; the loss is the shared model's."""
        received, pull = get_weights(model.module, model.moving), proximal(model, self.lam)
        loss = train(model, work)
        trained = get_weights(model.module, model.moving)
        set_weights(model.module, received | under(memory, KEPT))
        train(model, replace(work.free, seed=seed_for(work.seed, "ditto")), correction=pull)
        personal = get_weights(model.module, model.moving)
        set_weights(model.module, trained)
        return Outcome(with_prefix(personal, KEPT), loss)

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work: the personal model takes as many steps as the shared one."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the personal model; before the site's first round, the received weights."""
        set_weights(model.module, under(memory, KEPT))
        return model.module
