"""The answers and gradients of several sites' batches at once: by formula for linear layers, else by `torch.func.vmap`.

A stack has the sites in its first dimension. Where a model is a chain of linear layers with ReLUs between them, an
answer's error is its link less the truth (sigmoid(z) - y, softmax(z) - one-hot y, or 2 (z - y)), and the gradient of a
layer is one product of matrices for each site, as in `layered_rows`. Any other model is called through `torch.func`,
which makes one operation for all sites of each of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from consilium.client.data import Examples
from consilium.client.data.target import Target
from consilium.client.models.small import FlatLinear
from consilium.client.training.layered_rows import chain_of
from consilium.client.training.request import Arrays
from consilium.client.training.stacked.rows import Block

OfBatch = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, list[Tensor | None]]]
"""`of_batch(x, truths, weights)` returns the answers `(S, B, outputs)`, and of each site's weighted sum of its rows'
losses the gradient by each trained array: None where the loss does not depend on it."""

StepDown = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""`step_down(x, truths, weights, rate)` moves the trained arrays by one step and returns the answers as they were."""


class StackedGradient(Protocol):
    """How the gradients of models that are built alike are found."""

    def prepared(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Return a block's inputs, truths and weights as they are given to steps, which are their first dimension."""
        ...

    def at(self, trained: Arrays, fixed: Arrays) -> OfBatch:
        """Return the function for a step's batches; the arrays may move in place between its calls."""
        ...


@dataclass(frozen=True)
class Linear:
    """A linear layer of a chain by the names of its arrays, of so many outputs."""

    weight: str
    bias: str | None
    outputs: int


@dataclass(frozen=True, eq=False)
class ByFormula:
    """The formula of a chain of linear layers, with None for each ReLU; `numbers`: labels are no classes."""

    layers: Sequence[Linear | None]
    outputs: int
    numbers: bool

    def prepared(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows `(T, S, B, D)`, and `-weight * truth` and `weight` of each answer, `(T, S, B, outputs)` or 1."""
        weights = block.weights[..., None] * (2 if self.numbers else 1)
        truths = functional.one_hot(block.y, self.outputs) if self.outputs > 1 else block.y[..., None]
        return block.x.flatten(3), -weights * truths, weights

    def at(self, trained: Arrays, fixed: Arrays) -> OfBatch:
        """Return the function for a step's batches."""
        passes, found = self._passes(trained, fixed), dict[str, Tensor | None]()

        def collect(name: str, errors: Tensor, given: Tensor | None) -> None:
            found[name] = errors.sum(dim=1) if given is None else torch.bmm(errors.mT, given)

        def of_batch(x: Tensor, truths: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor | None]]:
            answers = passes(x, truths, weights, collect)
            return answers, [found[name] for name in trained]

        return of_batch

    def step_down(self, trained: Arrays, fixed: Arrays, velocities: Arrays, momentum: float) -> StepDown:
        """Return SGD's step, without weight decay, in which no gradient is ever written down.

        Args:
            velocities: of the trained arrays where there is momentum; they are moved too.
        """
        passes, ones = self._passes(trained, fixed), dict[int, Tensor]()

        def step(x: Tensor, truths: Tensor, weights: Tensor, rate: float) -> Tensor:
            def move(name: str, errors: Tensor, given: Tensor | None) -> None:
                array = velocities[name] if momentum else trained[name]
                beta, alpha = (momentum, 1.0) if momentum else (1.0, -rate)
                if given is None:
                    rows = errors.shape[1]
                    if rows not in ones:
                        ones[rows] = errors.new_ones(errors.shape[0], 1, rows)
                    array[:, None].baddbmm_(ones[rows], errors, beta=beta, alpha=alpha)
                else:
                    array.baddbmm_(errors.mT, given, beta=beta, alpha=alpha)
                if momentum:
                    trained[name].add_(array, alpha=-rate)

            return passes(x, truths, weights, move)

        return step

    def _passes(self, trained: Arrays, fixed: Arrays) -> Callable[[Tensor, Tensor, Tensor, "_Found"], Tensor]:
        layers, at = self.layers, {**fixed, **trained}
        forth = [None if one is None else (at[one.weight].mT, one.bias and at[one.bias][:, None]) for one in layers]
        first = min(place for place, one in enumerate(layers) if one and (one.weight in trained or one.bias in trained))

        def passes(x: Tensor, truths: Tensor, weights: Tensor, found: _Found) -> Tensor:
            given = [x]
            for layer in forth:
                given.append(torch.relu(given[-1]) if layer is None else _linear(given[-1], *layer))
            errors = torch.addcmul(truths, self._link(given[-1]), weights)
            for place in range(len(layers) - 1, first - 1, -1):
                if (one := layers[place]) is None:
                    errors = torch.where(given[place + 1] > 0, errors, 0.0)
                    continue
                before = torch.bmm(errors, at[one.weight]) if place > first else errors  # before the weights move
                if one.weight in trained:
                    found(one.weight, errors, given[place])
                if one.bias is not None and one.bias in trained:
                    found(one.bias, errors, None)
                errors = before
            return given[-1]

        return passes

    def _link(self, z: Tensor) -> Tensor:
        return z if self.numbers else z.softmax(dim=2) if self.outputs > 1 else z.sigmoid()


_Found = Callable[[str, Tensor, Tensor | None], None]
"""`found(name, errors, given)`: the gradient of a weight is errors^T given, that of a bias the sum of the errors."""


def _linear(given: Tensor, weight: Tensor, bias: Any) -> Tensor:
    return torch.bmm(given, weight) if bias is None else torch.baddbmm(bias, given, weight)


@dataclass(frozen=True, eq=False)
class ByTorchFunc:
    """Any model that `torch.func.vmap` takes, and any loss of rows."""

    module: nn.Module
    aim: Target

    def prepared(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, labels and weights as they are."""
        return block.x, block.y, block.weights

    def at(self, trained: Arrays, fixed: Arrays) -> OfBatch:
        """Return the function for a step's batches."""

        def of_one(arrays: dict[str, Tensor], x: Tensor) -> Any:
            return functional_call(self.module, arrays, (x,))

        of_all = vmap(of_one)

        def of_batch(x: Tensor, truths: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor | None]]:
            with torch.enable_grad():
                leaves = {name: value.detach().requires_grad_() for name, value in trained.items()}
                answers = of_all({**fixed, **leaves}, x)
                losses = self.aim.row_losses(answers.flatten(0, 1), truths.flatten(0, 1))
                assert losses is not None
                whole = (losses.view(weights.shape) * weights).sum()
                found = torch.autograd.grad(whole, list(leaves.values()), allow_unused=True)
            return answers.detach(), list(found)

        return of_batch


def stacked_gradient(module: nn.Module, aim: Target, examples: Examples) -> ByFormula | ByTorchFunc:
    """Return how the gradients of models that are built like `module` are found.

    Args:
        aim: whose rows' losses are minimised.
        examples: of one of the sites.
    """
    layers = _linear_layers(module, examples.x) if aim.plain else None
    if layers is None:
        return ByTorchFunc(module, aim)
    outputs = [one for one in layers if one is not None][-1].outputs
    return ByFormula(layers, outputs, examples.y.is_floating_point())


def _linear_layers(module: nn.Module, x: Tensor) -> list[Linear | None] | None:
    """Return the linear layers of a chain, with None for each ReLU; None where the module is no such chain."""
    layers, names = chain_of(module, x), {id(value): name for name, value in module.named_parameters()}
    found = list[Linear | None]()
    for layer in layers or ():
        if isinstance(layer, nn.Linear) and type(layer) in (nn.Linear, FlatLinear):
            bias = None if layer.bias is None else names[id(layer.bias)]
            found.append(Linear(names[id(layer.weight)], bias, layer.out_features))
        elif type(layer) is nn.ReLU:
            found.append(None)
        elif type(layer) is not nn.Identity and not _flattens(layer):
            return None
    linear = [one for one in found if one is not None]
    return found if linear and found[-1] is not None and len(linear) == len(set(linear)) else None


def _flattens(layer: nn.Module) -> bool:
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
