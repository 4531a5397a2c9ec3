"""FedRoD: a shared model trained as if classes were balanced, and a personal head that fits the site's own data.

Chen, Chao: On Bridging Generic and Personalized Federated Learning for Image Classification, ICLR 2022, the variant
with linear personal heads, https://arxiv.org/abs/2107.00778

    g = head(phi(x)),  p = head_k(phi(x)):    what the shared and the personal head answer to the same features
    (phi, head) <- SGD on  CE(g + log n_k, y)            n_k: the site's training examples of each class
    head_k      <- SGD on  CE(g + p, y)                  g and phi(x) are constants here

on the same batches, both from where they are before the batch, by the study's optimiser. (phi, head) is sent. A site
serves g + p, which is the model with head + head_k in place of the head, as heads are linear. head_k starts from 0:
a site that never trained serves the global model. For one logit, log n_k is log(n_1 / n_0); with equal counts the
first loss is FedAvg's. A site with examples of one class only has nothing to balance: its first loss is 0, and so is
its gradient. For `linear` the features are the inputs, and head_k is a linear model.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model, flattened, get_weights, head_layer, set_weights, watched
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import under, with_prefix

KEPT = "head_k/"
NEVER = -1e4
"""In place of the logarithm of 0 examples: its exponential is 0, and no infinity is subtracted from another."""


@dataclass(frozen=True)
class FedRod:
    """Everything is shared; the personal head is in memory."""

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train the shared model by the balanced loss and head_k by its own; the loss is the sum of both."""
        layer = head_layer(model)
        own, trained = _own_head(model, memory)
        prior = log_prior(work.examples.y, model.module.state_dict()[_joined(layer, "weight")].shape[0])

        def loss(answer: Any, y: Tensor) -> Tensor:
            logits, features = answer
            added = flattened(own(features.detach()), layer)
            return work.loss(logits + prior, y) + work.loss(logits.detach() + added, y)

        with watched(model.module, layer) as ask:
            total = train(
                model, work, forward=ask, loss=loss, extra={KEPT + name: one for name, one in trained.items()}
            )
        kept = {name: np.array(parameter.detach().cpu().numpy()) for name, parameter in trained.items()}
        return Outcome(with_prefix(kept, KEPT), total)

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work: each part of what is served gets one gradient per batch."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Add the personal head to the received one; the received weights at a site that never trained."""
        own = under(memory, KEPT)
        set_weights(model.module, add_scaled(get_weights(model.module, own), own))
        return model.module


def log_prior(y: Tensor, outputs: int) -> Tensor:
    """Return what the balanced loss adds to the logits `(outputs,)`: log n_c, less that of the largest class.

    Args:
        y: the site's training classes `(N,)`.
        outputs: 1 for two classes with one logit, which gets log(n_1 / n_0).
    """
    counts = torch.bincount(y, minlength=max(outputs, 2)).double()
    logs = (counts / counts.max()).log().clamp(min=NEVER)
    return (logs if outputs > 1 else logs[1:] - logs[:1]).float()


def _own_head(model: Model, memory: Memory) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Return the personal head, and those of its parameters that the study trains, by their names in the model."""
    layer, kept = head_layer(model), under(memory, KEPT)
    own = copy.deepcopy(model.module.get_submodule(layer))
    found = dict[str, nn.Parameter]()
    for name, parameter in own.named_parameters():
        at = _joined(layer, name)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(kept[at]) if at in kept else torch.zeros_like(parameter))
        parameter.requires_grad_(at in model.trainable)
        if at in model.trainable:
            found[at] = parameter
    return own, found


def _joined(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name
