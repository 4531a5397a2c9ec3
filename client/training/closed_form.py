"""The gradient of a linear model by its formula: for so small a model autograd takes three times as long."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional

from consilium.client.models.small import FlatLinear


def is_linear(forward: Any, at: Sequence[Tensor]) -> TypeGuard[FlatLinear]:
    """Return whether `forward` is a plain linear model of one output, and all of `at` are its own parameters."""
    return (
        type(forward) is FlatLinear
        and forward.out_features == 1
        and not forward._forward_pre_hooks
        and not forward._forward_hooks
        and all(to is forward.weight or to is forward.bias for to in at)
    )


@torch.no_grad()
def linear_gradient(model: FlatLinear, x: Tensor, y: Tensor) -> tuple[float, dict[Tensor, Tensor]]:
    """Return the mean loss of a batch and its gradient by parameter, to the last bit as autograd has them.

    With z = W x + b, one output, and n examples, of the loss L (squared error of numbers, else binary cross-entropy):

        dL/dz = 2 (z - y) / n    or    (sigmoid(z) - y) / n        dL/dW = sum of dL/dz x        dL/db = sum of dL/dz

    Args:
        x: the batch `(B, ...)`.
        y: float numbers or int64 classes 0 and 1, `(B,)`.
    """
    flat = x.flatten(1)
    z = functional.linear(flat, model.weight, model.bias)
    answers, known = z[:, 0], y.to(z.dtype)
    if y.is_floating_point():
        loss = functional.mse_loss(answers, known)
        by_answer = (answers - known) * (2 / len(y))
    else:
        loss = functional.binary_cross_entropy_with_logits(answers, known)
        by_answer = (answers.sigmoid() - known) / len(y)
    by_z = by_answer[:, None]
    return float(loss), {model.weight: by_z.t() @ flat, model.bias: by_z.sum(dim=0)}
