"""The loss and the gradient of every row by itself, as private training clips them; no row sees another one.

Two ways to the same numbers: `torch.func` over a chunk of rows, which most models take; and row after row for models
that it cannot take (layers that draw into a tensor of their own, such as stochastic depth). A row is given to the
model as a batch of one, so that a layer that would mix rows cannot, and what a model writes into its buffers on the
way is thrown away.
"""

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from consilium.client.data.target import loss_of

RowGradients = Callable[[Tensor, Tensor], tuple[Tensor, list[Tensor]]]
"""`rows(x, y)` returns the loss of each row `(B,)`, and the rows' gradients `(B, *shape)` by each parameter; B >= 1."""


Loss = Callable[[Tensor, Tensor], Tensor]
"""`loss(answer, y)` is the loss of a batch of one row."""


def row_gradients(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, y: Tensor, *, loss: Loss = loss_of
) -> RowGradients:
    """Return how the gradients of a module's rows are found, at what its parameters hold whenever it is asked.

    Args:
        parameters: those to differentiate by, named as in the module.
        x, y: examples, of which the first is tried out, with zeros for its inputs.
        loss: of a row by itself.
    """
    rows = _by_torch_func(module, parameters, loss)
    if not len(x):
        return rows
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a layer that torch.func takes, but slower than row by row
            rows(torch.zeros_like(x[:1]), y[:1])
    except (RuntimeError, UserWarning):  # in many words, for layers that it does not take
        return _one_by_one(module, parameters, loss)
    return rows


def _by_torch_func(module: nn.Module, parameters: Mapping[str, nn.Parameter], loss: Loss) -> RowGradients:
    def of_row(at: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(module, at, (x[None],)), y[None])

    of_rows = vmap(grad_and_value(of_row), in_dims=(None, 0, 0), randomness="different")

    def rows(x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        gradients, losses = of_rows({name: value.detach() for name, value in parameters.items()}, x, y)
        return losses, [gradients[name] for name in parameters]

    return rows


def _one_by_one(module: nn.Module, parameters: Mapping[str, nn.Parameter], loss: Loss) -> RowGradients:
    @torch.enable_grad()
    def row(x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        own = loss(functional_call(module, {**parameters, **buffers}, (x,)), y)
        return own.detach(), torch.autograd.grad(own, list(parameters.values()), materialize_grads=True)

    def rows(x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        found = [row(*pair) for pair in zip(torch.split(x, 1), torch.split(y, 1), strict=True)]
        losses, gradients = zip(*found, strict=True)
        return torch.stack(losses), [torch.stack(of_one) for of_one in zip(*gradients, strict=True)]

    return rows
