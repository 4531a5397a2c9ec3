"""SCAFFOLD at the site: local steps corrected by how far the site's gradients are from all sites'.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning, ICML 2020, algorithm 1 with option II, https://arxiv.org/abs/1910.06378

    y <- y - eta * (g(y) - c_k + c)  for R steps from y = x,    c_k+ = c_k - c + (x - y) / (R * eta)

with `x` the weights received, `c` = `work.control`, `c_k` the site's own control variate (in its memory; 0 at
its first round), `eta` = `work.learning_rate` and `R` = `work.num_steps`. The site sends y - x and c_k+ - c_k.
Holds for plain SGD. Without a `c` from the server it is 0 for all that is trained. BatchNorm that stays at the
site has neither `c` nor `c_k`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model, get_weights
from consilium.client.training.loop import train
from consilium.client.training.request import Pull
from consilium.client.training.work import LocalWork
from consilium.common.weights.arithmetic import add_scaled, subtract
from consilium.common.weights.arrays import with_prefix

KEPT = "control/"


@dataclass(frozen=True)
class Scaffold:
    """Nothing is personal but the control variate."""

    serves_as_held: ClassVar[bool] = True

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable by corrected steps, and move the site's control variate."""
        x = get_weights(model.module, sorted(work.control or _shared_parameters(model)))
        zero = {name: np.zeros_like(array) for name, array in x.items()}
        c, c_k = work.control or zero, {name: memory.get(KEPT + name, zero[name]) for name in x}
        more = {name: torch.tensor(a, device=work.examples.x.device) for name, a in subtract(c, c_k).items()}
        loss = train(model, work, correction=Pull(shift=more))
        y, steps = get_weights(model.module, x), work.num_steps * work.learning_rate
        new = add_scaled(subtract(c_k, c), subtract(x, y), 1 / steps)
        return Outcome(with_prefix(new, KEPT), loss, control=subtract(new, c_k))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the global model as it is."""
        return model.module


def _shared_parameters(model: Model) -> frozenset[str]:
    return model.trainable - (model.batch_norm if model.batch_norm_policy == "local" else frozenset())
