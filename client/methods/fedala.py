"""FedALA: a site starts each round from its own mix, learned element by element, of its last and the new weights.

Zhang, Hua, Wang, Song, Xue, Ma, Guan: FedALA: Adaptive Local Aggregation for Personalized Federated Learning,
AAAI 2023, algorithm 1, https://arxiv.org/abs/2212.01197

    init = local + W * (received - local)       over the top `layers` layers; below them, and in all buffers, received
    W <- clip(W - mix_learning_rate * grad_init f * (received - local), 0, 1)       W = 1 at first

with local = what the site trained last. W is learned on a random `fraction` of the training examples before the
round's training goes on from init: one pass a round; at the first time passes go on until the standard deviation
of the last 10 losses is below `tolerance`, 100 at most. A site that never trained starts from what it received.

A layer is a module that owns trainable parameters; the top ones are the last in the module's order. W is learned
with layers in evaluation mode, as the mix is served: running statistics stay, and those of the batch are not used. (The
paper is silent on this. In the authors' code layers are in whatever mode the last call left them, and the statistics
that moved are thrown away.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import numpy as np
import torch
from torch import Tensor, nn

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model, get_weights
from consilium.client.training.loop import begin, full_gradient, train
from consilium.client.training.work import LocalWork, batches
from consilium.common.seeds import seed_for
from consilium.common.weights.arrays import Array, Weights, under, with_prefix

LAST_LOSSES, MOST_PASSES = 10, 100


@dataclass(frozen=True)
class FedAla:
    """Mix the top `layers` layers; learn the mix on a `fraction` in (0, 1] of the training examples."""

    layers: int
    fraction: float
    mix_learning_rate: float
    tolerance: float

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable, from the site's own mix; keep the top layers and W."""
        mix = self._start(model, memory, work)
        loss = train(model, work)
        local = get_weights(model.module, sorted(top_layers(model, self.layers)))
        return Outcome(with_prefix(local, "local/") | with_prefix(mix, "mix/"), loss)

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work and one pass that learns W; the first time's further passes are not counted."""
        steps = math.ceil(self.fraction * len(work.examples) / work.batch_size)
        serving = replace(work, epochs=None, steps=steps, seed=seed_for(work.seed, "mix"))
        return Budget(replace(work, epochs=None, steps=work.num_steps + steps), before_serving=serving)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve what the next round's training would start from."""
        self._start(model, memory, work)
        return model.module

    def _start(self, model: Model, memory: Memory, work: LocalWork) -> Weights:
        """Put init into the model, which holds the received weights, and return W; nothing at the first round."""
        if not (own := under(memory, "local/")):
            return {}
        parameters = begin(model, top_layers(model, self.layers))
        model.module.eval()
        received = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        local = {name: _like(own[name], there) for name, there in received.items()}
        known = under(memory, "mix/")
        mix = {n: _like(known[n], there) if known else torch.ones_like(there) for n, there in received.items()}
        merge = Merge(parameters, local, received, mix)
        merge.put()
        self._learn(model, merge, work, passes=1 if known else MOST_PASSES)
        return {name: np.array(w.cpu().numpy()) for name, w in mix.items()}

    def _learn(self, model: Model, merge: "Merge", work: LocalWork, *, passes: int) -> None:
        part, losses = self._part(work), list[float]()
        while len(losses) < passes:
            seen = []
            for x, y in batches(replace(part, seed=seed_for(part.seed, len(losses)))):
                loss, gradients = full_gradient(model.module, x, y, list(merge.parameters.values()), work)
                merge.step(gradients, self.mix_learning_rate)
                seen.append(loss)
            losses.append(fmean(seen))
            if len(losses) >= LAST_LOSSES and pstdev(losses[-LAST_LOSSES:]) < self.tolerance:
                return

    def _part(self, work: LocalWork) -> LocalWork:
        seed, examples = seed_for(work.seed, "mix"), work.examples
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).to(examples.y.device)
        chosen = order[: math.ceil(self.fraction * len(order))]
        return replace(
            work,
            examples=replace(examples, x=examples.x[chosen], y=examples.y[chosen], groups=None),
            seed=seed,
            epochs=1,
            steps=None,
        )


def top_layers(model: Model, layers: int) -> frozenset[str]:
    """Return the trainable parameters of the last `layers` modules that own any."""
    names = [name for name, _ in model.module.named_parameters() if name in model.trainable]
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in names))[-layers:]
    return frozenset(name for name in names if name.rpartition(".")[0] in owners)


@dataclass(frozen=True)
class Merge:
    """The top layers in the module, what they are mixed of, and W, which `step` changes; all by the same names."""

    parameters: dict[str, nn.Parameter]
    local: dict[str, Tensor]
    received: dict[str, Tensor]
    mix: dict[str, Tensor]

    @torch.no_grad()
    def put(self) -> None:
        """Write init into the module; exactly local where W is 0, exactly received where it is 1."""
        for name, parameter in self.parameters.items():
            parameter.copy_(torch.lerp(self.local[name], self.received[name], self.mix[name]))

    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Move W against the gradients at init, within [0, 1], and write the new init."""
        for (name, w), gradient in zip(self.mix.items(), gradients, strict=True):
            w.sub_(gradient * (self.received[name] - self.local[name]), alpha=rate).clamp_(0, 1)
        self.put()


def _like(array: Array, there: Tensor) -> Tensor:
    return torch.from_numpy(np.array(array, copy=True)).to(there)
