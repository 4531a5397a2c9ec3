"""The gradients of rows of linear layers one after the other by their formula, without making one for each row.

With z = W a + b in a layer and a row's error e = dL/dz there: dL/dW = e a^T and dL/db = e; the error before it is
W^T e, and 0 behind a ReLU that was 0. The norm of a row's gradient is therefore the root of the layers' sum of
|e|^2 (|a|^2 + 1), and the rows' sum, each with a factor f, is (f e)^T a. These are the models `linear` and `mlp`, and
heads of such layers on the features of a frozen backbone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from consilium.client.models.small import FlatLinear

_PASSING = (nn.Flatten, nn.Identity)
"""Layers that pass errors on as they are; dropout does so only before the first layer that is trained."""


@dataclass(frozen=True, eq=False)
class LayerRows:
    """What rows see in one linear layer: their `errors` `(B, outputs)` and what the layer is `given` `(B, D)`.

    Args:
        weight, bias: whether this one is trained.
    """

    errors: Tensor
    given: Tensor
    weight: bool
    bias: bool

    def squares(self) -> Tensor:
        """Return the square of the norm of each row's gradient in this layer `(B,)`."""
        exact = torch.float64  # in float32 a tiny error's square is 0, however large what the layer is given
        lengths = self.given.new_zeros(1, dtype=exact)
        if self.weight:
            lengths = torch.linalg.vector_norm(self.given, dim=1, dtype=exact).square_()
        errors: Tensor = torch.linalg.vector_norm(self.errors, dim=1, dtype=exact).square_()
        return errors.mul_(lengths.add_(1) if self.bias else lengths).float()

    def of_rows(self) -> list[Tensor]:
        """Return each row's gradient `(B, *shape)` by what is trained."""
        weight = [self.errors[:, :, None] * self.given[:, None, :]] if self.weight else []
        return [*weight, self.errors] if self.bias else weight

    def weighted(self, factors: Tensor) -> list[Tensor]:
        """Return the rows' sum, each with a factor `(B,)`, by what is trained."""
        errors = self.errors * factors[:, None]
        weight = [errors.t() @ self.given] if self.weight else []
        return [*weight, errors.sum(dim=0)] if self.bias else weight

    def kept(self, mask: Tensor) -> "LayerRows":
        """Return the rows of a mask."""
        return LayerRows(self.errors[mask], self.given[mask], self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class LayeredRows:
    """The rows of a model that is a chain of linear layers, of ReLUs between them, and of layers that pass rows on.

    Args:
        layers: in their order.
        trained: for each linear layer that is trained, whether its weight and its bias are.
    """

    layers: Sequence[nn.Module]
    trained: Mapping[nn.Module, tuple[bool, bool]]

    def see(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[LayerRows]]:
        """Return the rows' losses `(B,)`, and what they see in each trained layer, in the layers' order."""
        given = [x]
        for layer in self.layers:
            given.append(functional.relu(given[-1]) if type(layer) is nn.ReLU else layer(given[-1]))
        losses, errors = losses_and_errors(given[-1], y)
        found = list[LayerRows]()
        for layer, before in zip(reversed(self.layers), reversed(given[:-1]), strict=True):
            if layer in self.trained:
                found.insert(0, LayerRows(errors, before, *self.trained[layer]))
            if len(found) == len(self.trained):
                break
            if isinstance(layer, nn.Linear):
                errors = errors @ layer.weight
            elif type(layer) is nn.ReLU:
                errors = errors * (before > 0)
        return losses, found

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the losses and gradients of rows, as `RowGradients` do."""
        losses, layers = self.see(x, y)
        return losses, [part for layer in layers for part in layer.of_rows()]


def layered_rows(module: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor) -> LayeredRows | None:
    """Return the formula for a module's rows `x` `(N, ...)`; None where it does not hold."""
    layers, ids = chain_of(module, x), [id(one) for one in parameters.values()]
    if layers is None or any(one._forward_hooks or one._forward_pre_hooks for one in (module, *layers)):
        return None
    linear = [one for one in layers if isinstance(one, nn.Linear)]
    flags = {one: (id(one.weight) in ids, id(one.bias) in ids) for one in linear}
    trained: dict[nn.Module, tuple[bool, bool]] = {one: flag for one, flag in flags.items() if any(flag)}
    found = [p for one in linear for p, own in zip((one.weight, one.bias), flags[one], strict=True) if own]
    if len(linear) != len(set(linear)) or [id(one) for one in found] != ids:
        return None
    first = layers.index(next(iter(trained)))
    fits = all(_fits(layer, before=place < first) for place, layer in enumerate(layers))
    return LayeredRows(layers, trained) if fits else None


def _fits(layer: nn.Module, *, before: bool) -> bool:
    """Tell whether a layer may be there, `before` what is trained or behind it."""
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    return type(layer) in (nn.Linear, FlatLinear, nn.ReLU, *_PASSING, *((nn.Dropout,) if before else ()))


def chain_of(module: nn.Module, x: Tensor) -> list[nn.Module] | None:
    """Return the layers that a module's inputs pass one after the other, as rows `(B, D)`; None if it is no chain."""
    if type(module) is FlatLinear:
        return [nn.Flatten(), module]
    layers: list[nn.Module] | None = None
    if type(module) is nn.Linear:
        layers = [module]
    elif type(module) is nn.Sequential:
        layers = _flat(module)
    elif isinstance(module, fx.GraphModule):
        first, *nodes, last = module.graph.nodes
        pairs = zip([first, *nodes], [*nodes, last], strict=True)
        if all(node.all_input_nodes == [before] for before, node in pairs) and {n.op for n in nodes} == {"call_module"}:
            layers = [module.get_submodule(str(node.target)) for node in nodes]
    return layers if layers and (x.ndim == 2 or type(layers[0]) is nn.Flatten) else None


def _flat(sequence: nn.Sequential) -> list[nn.Module]:
    """Return the layers of a sequence, and of sequences in it."""
    return [layer for child in sequence for layer in (_flat(child) if type(child) is nn.Sequential else [child])]


def losses_and_errors(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss (`loss_of`) of each row of answers `z` `(B, outputs)`, and its derivative by them."""
    if y.is_floating_point():
        off = z[:, 0] - y
        return off.square(), 2 * off[:, None]
    if z.shape[1] == 1:
        known = y.to(z.dtype)
        losses = functional.binary_cross_entropy_with_logits(z[:, 0], known, reduction="none")
        return losses, (z[:, 0].sigmoid() - known)[:, None]
    log_parts = z.log_softmax(dim=1)
    errors = log_parts.exp().scatter_(1, y[:, None], -1.0, reduce="add")
    return functional.nll_loss(log_parts, y, reduction="none"), errors
