"""FedDBE: every site's own shift of the features takes up what is peculiar to it, so that the shared part need not.

Zhang, Hua, Cao, Wang, Song, Xue, Ma, Guan: Eliminating Domain Bias for Federated Learning in Representation Space,
NeurIPS 2023, algorithm 1, https://openreview.net/forum?id=nO5i1XdUS0

    answer(x) = head(phi(x) + m_k),    phi(x) = what the model's head is given
    loss of a batch B = F(B) + kappa * mean over features of 1/2 * (rbar - gbar)**2
    rbar <- (1 - mu) * rbar + mu * mean of phi over B, from 0 at every round

The site's shift m_k starts from 0, is trained with the model by the study's optimiser, and is kept and served. `rbar`
passes gradients through the batch's own mean alone. `gbar` is the mean of all sites' rbar after one plain round, and
fixed from then on: round 1 is that round, so it is FedAvg, and its update counts (the authors' code trains it
beforehand and drops it). gbar travels with the weights, as two buffers of the model that its forward pass does not
read: `dbe_mean`, and `dbe_known`, which is 1 as soon as there is a gbar. A site that joins later has it with the
weights. The mean over sites is that of the study's weights, so by size as in the paper where the study says no other.
What leaves a site in round 1 is therefore a mean over patients, with mu = 1 over those of the last batch.

The authors train a small CNN with kappa = 50 and mu = 1. The features of maps `(D, H, W)` are shifted channel by
channel. In pieces of `micro_batch_size` examples every piece counts as a batch for rbar. The reported loss includes the
pull to gbar.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from consilium.client.methods.contract import Budget, Memory, Outcome, filled
from consilium.client.models import Model, Shifted, head_layer, num_features
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.errors import ModelError
from consilium.common.weights.arrays import Weights

MEAN, KNOWN, SHIFT = "dbe_mean", "dbe_known", "shift"


@dataclass(frozen=True)
class FedDbe:
    """Everything is shared but the shift; `kappa` >= 0 pulls the features' mean, of which a batch counts `mu`."""

    kappa: float
    mu: float

    def extended(self, model: Model, input_shape: tuple[int, ...]) -> Model:
        """Return the model with buffers for gbar, for which there is none yet."""
        model.module.register_buffer(MEAN, torch.zeros(num_features(model, input_shape)))
        model.module.register_buffer(KNOWN, torch.zeros((), dtype=torch.long))
        return replace(model, names=tuple(model.module.state_dict()), extra=frozenset({MEAN, KNOWN}))

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name.

        Raises:
            ModelError: the model has no features before its head, so that the mean of inputs would leave the site.
        """
        if not head_layer(model):
            raise ModelError(
                "method 'feddbe' shifts the features before the head, but the head of this model is given the inputs "
                "themselves: choose method 'fedper', or a model with features such as 'mlp' for tables"
            )
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train the model and the shift; while there is no gbar, the model alone, and report the features' mean."""
        shifted, target = _shifted(model, memory), model.module.get_buffer(MEAN)
        known, mean = bool(model.module.get_buffer(KNOWN)), torch.zeros_like(target)

        def loss(answer: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
            nonlocal mean
            logits, features = answer
            running = (1 - self.mu) * mean + self.mu * features.float().mean(dim=0)
            mean = running.detach()
            pull = self.kappa / 2 * (running - target).square().mean() if known else 0.0
            return work.loss(logits, y) + pull

        extra = {SHIFT: shifted.shift} if known else {}
        told = train(model, work, forward=shifted.see, loss=loss, extra=extra)
        if not known:
            target.copy_(mean)
            model.module.get_buffer(KNOWN).fill_(1)
        return Outcome({SHIFT: np.array(shifted.shift.detach().cpu().numpy())}, told)

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work: the shift takes no batch of its own."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the received model with the site's shift, 0 before it was trained."""
        return _shifted(model, memory)

    def rebuilt(self, model: Model, arrays: Weights) -> nn.Module:
        """Return the model with the shift that its file holds."""
        return filled(_shifted(model, {}), arrays)


def _shifted(model: Model, memory: Memory) -> Shifted:
    at = model.module.get_buffer(MEAN)
    return Shifted(model, torch.tensor(memory[SHIFT], device=at.device) if SHIFT in memory else torch.zeros_like(at))
