"""pFedMe: a personal model solves a proximal problem around the site's copy of the global one at every step.

Dinh, Tran, Nguyen: Personalized Federated Learning with Moreau Envelopes, NeurIPS 2020, algorithm 1,
https://arxiv.org/abs/2006.08848

    w_k = theta = w(t);  for each batch B:
        `inner_steps` times:  theta <- theta - personal_learning_rate * [grad f(theta; B) + lam * (theta - w_k)]
        w_k <- w_k - learning_rate * lam * (w_k - theta)

w_k is sent, theta is served; theta goes on from batch to batch. `learning_rate` is the study's; the server's
step beta is the `learning_rate` of strategy `fedavg`. The inner steps are stable only for
personal_learning_rate * lam < 2, the outer ones for learning_rate * lam < 2. Buffers, shared and served, are
as theta's passes leave them.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model, get_weights, set_weights
from consilium.client.training.loop import anchor_of, begin, full_gradient, own_randomness, train_by
from consilium.client.training.request import OwnSteps
from consilium.client.training.work import LocalWork, batches
from consilium.common.weights.arrays import under, with_prefix


@dataclass(frozen=True)
class PFedMe:
    """Pull theta towards w_k by `lam`, in `inner_steps` steps of `personal_learning_rate` per batch."""

    lam: float
    inner_steps: int
    personal_learning_rate: float

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train theta, which the module holds meanwhile, and leave w_k in the module; the loss is theta's."""
        centre = anchor_of(model)
        loss = train_by(OwnSteps(partial(self._alone, model, work, centre)), model, work)
        theirs = get_weights(model.module, sorted(model.moving))
        with torch.no_grad():
            for name, parameter in model.module.named_parameters():
                if name in centre:
                    parameter.copy_(centre[name])
        return Outcome(with_prefix(theirs, "theta/"), loss)

    def _alone(self, model: Model, work: LocalWork, centre: dict[str, Tensor]) -> float:
        parameters, losses = begin(model), list[float]()
        with own_randomness(work):
            for x, y in batches(work):
                for _ in range(self.inner_steps):
                    loss, gradients = full_gradient(model.module, x, y, list(parameters.values()), work)
                    with torch.no_grad():
                        for (name, theta), gradient in zip(parameters.items(), gradients, strict=True):
                            pull = self.lam * (theta - centre[name])
                            theta.sub_(gradient + pull, alpha=self.personal_learning_rate)
                    losses.append(loss)
                for name, w in centre.items():
                    w.sub_(w - parameters[name].detach(), alpha=work.learning_rate * self.lam)
        return sum(losses) / len(losses)

    def budget(self, work: LocalWork) -> Budget:
        """Return `inner_steps` times the round's steps: theta takes that many gradients."""
        return Budget(replace(work, epochs=None, steps=self.inner_steps * work.num_steps))

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve theta as last trained here; the received weights at a site that never trained."""
        set_weights(model.module, under(memory, "theta/"))
        return model.module
