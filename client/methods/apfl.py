"""APFL: a personal whole model, mixed with the shared one in a proportion that each site learns.

Deng, Kamani, Mahdavi: Adaptive Personalized Federated Learning, 2020, algorithm 1,
https://arxiv.org/abs/2003.13461

    mixed = alpha v + (1 - alpha) w;  for each batch B, all from the same w, v and alpha:
    w <- w - learning_rate * grad f(w; B)
    v <- v - learning_rate * alpha * grad f(mixed; B)
    alpha <- clip(alpha - learning_rate * <grad f(mixed; B), v - w>, 0, 1)       if `adaptive`

The right-hand sides hold w, v and alpha as they are before the batch: neither gradient sees the other's step.
alpha moves once a round, at its first batch, as in the authors' own code; `alpha` is where it starts. At a site's
first round v is what it received, so that alpha cannot move there yet. w is sent; the site serves `mixed` of its v
and the received w. Statistics of BatchNorm are shared from w's passes, and the personal model's own from those
of `mixed`. Plain SGD. In a private study w alone has noise, and v has batches of its own: v and alpha never leave and
do not move w.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import begin, full_gradient, gradients_of, own_randomness, train_by
from consilium.client.training.request import Arrays, GradientAt, OwnSteps
from consilium.client.training.work import LocalWork, batches
from consilium.common.weights.arrays import under


@dataclass(frozen=True)
class Apfl:
    """Start with the share `alpha` in [0, 1] of the personal model, and learn it if `adaptive`."""

    alpha: float
    adaptive: bool

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train w in the module, and v in memory; the loss is that of w."""
        v, alpha = _personal(model, memory), torch.tensor(self._share(memory), dtype=torch.float64)
        moving = {f"v/{name}": v[name] for name in model.trainable} | {"alpha": alpha.to(work.examples.x.device)}
        own = OwnSteps(
            partial(self._alone, model, work, v, moving["alpha"]),
            step=partial(self._of_stack, work.learning_rate),
            streams=(work,),
            settings=self.adaptive,
            arrays=moving,
        )
        mean = train_by(own, model, work)
        share = float(moving["alpha"])
        kept = {f"v/{name}": np.array(value.cpu().numpy()) for name, value in v.items()}
        return Outcome(kept | {"alpha": np.array(share)}, mean, metrics={"apfl.alpha": share})

    def _alone(self, model: Model, work: LocalWork, v: dict[str, Tensor], share: Tensor) -> float:
        shared, alpha, losses = begin(model), float(share), list[float]()
        v_buffers = {name: v[name] for name in model.moving - shared.keys()}
        with own_randomness(work):
            steps = zip(gradients_of(model, shared, work), batches(work.free), strict=True)
            for number, ((loss, gradients), (x, y)) in enumerate(steps):
                mixed = {name: _mixed(alpha, v[name], w).requires_grad_() for name, w in shared.items()}
                at_mixed = partial(functional_call, model.module, mixed | v_buffers)
                _, mixed_gradients = full_gradient(at_mixed, x, y, list(mixed.values()), work.free)
                slope = 0.0
                with torch.no_grad():
                    for (name, w), g, m in zip(shared.items(), gradients, mixed_gradients, strict=True):
                        slope += float((m.double() * (v[name].double() - w.double())).sum())
                        v[name].add_(m, alpha=-work.learning_rate * alpha)
                        if g is not None:
                            w.add_(g, alpha=-work.learning_rate)
                if self.adaptive and number == 0:
                    alpha = min(max(alpha - work.learning_rate * slope, 0.0), 1.0)
                losses += [] if loss is None else [loss]
        share.fill_(alpha)
        return sum(losses) / max(1, len(losses))

    def _of_stack(self, rate: float, w: Arrays, arrays: Arrays, gradient: GradientAt, number: int) -> None:
        """Take one step of sites whose arrays are stacked, with an alpha for each."""
        share, v = arrays["alpha"], {name: arrays[f"v/{name}"] for name in w}
        shares = {name: share.float().view(-1, *[1] * (array.ndim - 1)) for name, array in w.items()}
        mixed = {name: shares[name] * v[name] + (1 - shares[name]) * array for name, array in w.items()}
        at_w, at_mixed = gradient(w, 0), gradient(mixed, 0)
        slopes = [(at_mixed[name].double() * (v[name].double() - w[name].double())).flatten(1).sum(dim=1) for name in w]
        for name, array in w.items():
            v[name].sub_(rate * shares[name] * at_mixed[name])
            array.sub_(at_w[name], alpha=rate)
        if self.adaptive and number == 0:
            share.copy_((share - rate * sum(slopes)).clamp(0.0, 1.0))

    def budget(self, work: LocalWork) -> Budget:
        """Return twice the round's steps: every batch gives a gradient to w and one to v."""
        return Budget(replace(work, epochs=None, steps=2 * work.num_steps))

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the mix of v and the received w, with v's buffers; the received weights if v was never trained."""
        v, state = _personal(model, memory), model.module.state_dict()
        for name in model.moving:
            trained = name in model.trainable
            state[name].copy_(_mixed(self._share(memory), v[name], state[name]) if trained else v[name])
        return model.module

    def _share(self, memory: Memory) -> float:
        return float(memory["alpha"].astype(np.float64)) if "alpha" in memory else self.alpha


def _personal(model: Model, memory: Memory) -> dict[str, Tensor]:
    """Return v, copied: what the model holds at the site's first round."""
    state, own = model.module.state_dict(), under(memory, "v/")
    return {
        name: torch.from_numpy(np.array(own[name], copy=True)).to(state[name]) if own else state[name].clone()
        for name in sorted(model.moving)
    }


def _mixed(alpha: float, v: Tensor, w: Tensor) -> Tensor:
    return alpha * v + (1 - alpha) * w.detach()
