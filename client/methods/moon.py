"""MOON: FedAvg whose features are pulled to those of the weights received, away from those of the site's last round.

Li, He, Song: Model-Contrastive Federated Learning, CVPR 2021, algorithm 1, https://arxiv.org/abs/2103.16257

    w_k <- SGD on  F_k(w_k) + mu * mean over x of  -log( e^(c_w / tau) / (e^(c_w / tau) + e^(c_k / tau)) )
    c_w = cos(z, z_w),  c_k = cos(z, z_k)

with z, z_w and z_k what the head is given for x under w_k, under the weights as received, and under the weights as
this site trained them last (in its memory). The latter two are constants, from passes in evaluation mode. The paper
puts a projection of two layers before the head; here the study's model stays as it is, and z are its features. At a
site's first round there is no z_k, hence no term; `mu` = 0 is FedAvg, bit for bit.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model, flattened, get_weights, head_layer, set_weights, watched
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.errors import ModelError
from consilium.common.weights.arrays import Weights, under, with_prefix

KEPT = "last/"


@dataclass(frozen=True)
class Moon:
    """Nothing is personal; `mu` >= 0 is the weight of the term, `temperature` > 0 is tau."""

    mu: float
    temperature: float

    serves_as_held: ClassVar[bool] = True

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name.

        Raises:
            ModelError: nothing before the head is trained, so that this would be FedAvg under another name.
        """
        layer = head_layer(model)
        if all(name.rpartition(".")[0] == layer for name in model.trainable):
            raise ModelError(
                "method 'moon' compares the features before the head, but nothing before the head of this model is "
                "trained: choose method 'fedavg', train more of it (model.trainable), or take a model with features "
                "such as 'mlp' for tables"
            )
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable; the loss holds the term. Remember the weights this leaves."""
        if not self.mu:
            return Outcome({}, train(model, work))
        last = under(memory, KEPT)
        loss = self._contrasted(model, last, work) if last else train(model, work)
        return Outcome(with_prefix(get_weights(model.module, sorted(model.moving)), KEPT), loss)

    def _contrasted(self, model: Model, last: Weights, work: LocalWork) -> float:
        layer, received, before = head_layer(model), _constant(model, {}), _constant(model, last)

        def loss(answer: Any, y: Tensor) -> Tensor:
            logits, *features = answer
            z, z_received, z_before = (flattened(found, layer).float() for found in features)
            return work.loss(logits, y) + self.mu * contrast(z, z_received, z_before, self.temperature)

        with (
            watched(model.module, layer) as ask,
            watched(received, layer) as ask_received,
            watched(before, layer) as ask_before,
        ):

            def forward(x: Tensor) -> Any:
                with torch.no_grad():
                    constants = ask_received(x)[1], ask_before(x)[1]
                return *ask(x), *constants

            return train(model, work, forward=forward, loss=loss)

    def budget(self, work: LocalWork) -> Budget:
        """Return three times the round's steps: every batch passes forward through three models."""
        return Budget(replace(work, epochs=None, steps=3 * work.num_steps) if self.mu else work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the global model as it is."""
        return model.module


def contrast(z: Tensor, near: Tensor, far: Tensor, temperature: float) -> Tensor:
    """Return the mean of -log(e^a / (e^a + e^b)), a = cos(z, near) / temperature, b = cos(z, far) / temperature.

    Args:
        z, near, far: features `(B, D)`.
    """
    a, b = (functional.cosine_similarity(z, other, dim=1) for other in (near, far))
    return functional.softplus((b - a) / temperature).mean()


def _constant(model: Model, weights: Weights) -> nn.Module:
    """Return a copy of the module with `weights` in their places, in evaluation mode and not to be trained."""
    module = copy.deepcopy(model.module).requires_grad_(False).eval()
    set_weights(module, weights)
    return module
