"""Per-FedAvg: learn weights from which one gradient step on a site's own examples leads far.

Fallah, Mokhtari, Ozdaglar: Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach, NeurIPS 2020, algorithm 1, https://arxiv.org/abs/2002.07948

    min over w of sum_k f_k(w - alpha grad f_k(w));   each local step takes three independent batches D, D', D'':
    v = w - alpha g(w; D)
    first_order:   w <- w - beta g(v; D')
    hessian_free:  w <- w - beta [g(v; D') - alpha (g(w + d h; D'') - g(w - d h; D'')) / (2 d)],   h = g(v; D')

with alpha = `inner_learning_rate`, beta = `work.learning_rate`, d = `difference`. The step is taken from w, not
from the adapted v. BatchNorm's running statistics are as all these passes leave them. A site serves w after
`adapt_steps` plain steps of size alpha on its training examples; plain SGD throughout.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from consilium.client.methods.contract import Budget, Memory, Outcome
from consilium.client.models import Model
from consilium.client.training.loop import begin, full_gradient, own_randomness, train, train_by
from consilium.client.training.request import Arrays, GradientAt, OwnSteps
from consilium.client.training.work import LocalWork, batches
from consilium.common.seeds import seed_for

Variant = Literal["first_order", "hessian_free"]
Batch = tuple[Tensor, Tensor]
STREAMS = ("D", "D'", "D''")


@dataclass(frozen=True)
class PerFedAvg:
    """Take meta-gradients; adapt for `adapt_steps` batches before serving, 0 for the global model as it is."""

    variant: Variant
    inner_learning_rate: float
    difference: float
    adapt_steps: int

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Take `work.num_steps` outer steps; the loss is that of D' at the adapted weights."""
        drawing = tuple(
            replace(work, epochs=None, steps=work.num_steps, seed=seed_for(work.seed, name)) for name in STREAMS
        )
        alone = partial(self._alone, model, work, drawing)
        streams = drawing[:2] if self.variant == "first_order" else drawing
        own = OwnSteps(alone, partial(self._of_stack, work.learning_rate), streams, settings=self, loss_of=1)
        return Outcome(memory, train_by(own, model, work))

    def _alone(self, model: Model, work: LocalWork, drawing: tuple[LocalWork, ...]) -> float:
        parameters, total = begin(model), 0.0
        for number, drawn in enumerate(zip(*map(batches, drawing), strict=True)):
            total += self._step(model, parameters, drawn, replace(work, seed=seed_for(work.seed, number)))
        return total / work.num_steps

    def _of_stack(self, rate: float, w: Arrays, _: Arrays, gradient: GradientAt, __: int) -> None:
        def at(point: list[Tensor], batch: int) -> list[Tensor]:
            return list(gradient(dict(zip(w, point, strict=True)), batch).values())

        for array, after in zip(w.values(), self._moved(list(w.values()), at, rate), strict=True):
            array.copy_(after)

    def _step(
        self, model: Model, parameters: dict[str, nn.Parameter], drawn: tuple[Batch, ...], work: LocalWork
    ) -> float:
        losses: list[float] = []

        def gradient(point: list[Tensor], batch: int) -> list[Tensor]:
            leaves = {name: at.detach().requires_grad_() for name, at in zip(parameters, point, strict=True)}
            x, y = drawn[batch]
            # Seeded alike for both passes over D'': their difference must not be one between dropout masks.
            with own_randomness(replace(work, seed=seed_for(work.seed, STREAMS[batch]))):
                forward = partial(functional_call, model.module, leaves)
                loss, found = full_gradient(forward, x, y, list(leaves.values()), work)
            losses.append(loss)
            return found

        moved = self._moved([parameter.detach() for parameter in parameters.values()], gradient, work.learning_rate)
        with torch.no_grad():
            for parameter, after in zip(parameters.values(), moved, strict=True):
                parameter.copy_(after)
        return losses[STREAMS.index("D'")]

    def _moved(
        self, w: list[Tensor], gradient: Callable[[list[Tensor], int], list[Tensor]], rate: float
    ) -> list[Tensor]:
        return meta_step(
            w,
            gradient,
            alpha=self.inner_learning_rate,
            beta=rate,
            variant=self.variant,
            difference=self.difference,
        )

    def budget(self, work: LocalWork) -> Budget:
        """Return as many steps as the round takes gradients (2 or 4 per outer step), and the adaptation."""
        gradients = 2 if self.variant == "first_order" else 4
        return Budget(replace(work, epochs=None, steps=gradients * work.num_steps), self._adapting(work))

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Adapt the received weights on the site's training examples."""
        if (adapting := self._adapting(work)) is not None:
            train(model, adapting)
        return model.module

    def _adapting(self, work: LocalWork) -> LocalWork | None:
        if not self.adapt_steps:
            return None
        plain = replace(work, optimiser="sgd", momentum=0.0, weight_decay=0.0, learning_rate=self.inner_learning_rate)
        return replace(plain, rates=None, steps=self.adapt_steps, epochs=None, seed=seed_for(work.seed, "adapt"))


def meta_step(
    w: list[Tensor],
    gradient: Callable[[list[Tensor], int], list[Tensor]],
    *,
    alpha: float,
    beta: float,
    variant: Variant,
    difference: float,
) -> list[Tensor]:
    """Return the weights after one outer step; `gradient(v, i)` is that of batch i (D, D', D'' = 0, 1, 2) at v."""
    adapted = _moved(w, gradient(w, 0), -alpha)
    outer = gradient(adapted, 1)
    if variant == "first_order":
        return _moved(w, outer, -beta)
    ahead = gradient(_moved(w, outer, difference), 2)
    behind = gradient(_moved(w, outer, -difference), 2)
    curved = [(a - b) / (2 * difference) for a, b in zip(ahead, behind, strict=True)]
    return _moved(w, _moved(outer, curved, -alpha), -beta)


def _moved(start: list[Tensor], direction: list[Tensor], step: float) -> list[Tensor]:
    return [at + step * towards for at, towards in zip(start, direction, strict=True)]
