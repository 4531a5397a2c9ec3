"""Loss, predictions and the one evaluation loop of a site."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.client.data import Examples

EVALUATION_BATCH = 512


def loss_of(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Return the loss: of classes `y` binary cross-entropy for one logit `(B, 1)`, cross-entropy for `(B, C)`.

    Of numbers `y` (floats) it is the squared error of the one answer `(B, 1)`.
    """
    if y.is_floating_point():
        return functional.mse_loss(logits[:, 0].to(y.dtype), y, reduction=reduction)
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits.dtype), reduction=reduction)
    return functional.cross_entropy(logits, y, reduction=reduction)


def predictions(logits: Tensor) -> Tensor:
    """Return the predicted class per row `(B,)`: probability 0.5 for one logit, the largest otherwise."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, accuracy in [0, 1], a mask `(N,)` of correct answers, and outputs `(N, outputs)`; on the CPU."""

    loss: float
    accuracy: float
    right: Tensor
    logits: Tensor


@torch.no_grad()
def evaluate(module: nn.Module, examples: Examples) -> Evaluation:
    """Evaluate in inference mode on all examples (at least one)."""
    module.eval()
    total, outputs = 0.0, []
    for x, y in zip(torch.split(examples.x, EVALUATION_BATCH), torch.split(examples.y, EVALUATION_BATCH), strict=True):
        outputs.append(module(x))
        total += float(loss_of(outputs[-1], y, reduction="sum"))
    logits = torch.cat(outputs)
    answers = predictions(logits) if examples.tolerance is None else logits[:, 0]
    right = examples.right(answers).cpu()
    return Evaluation(total / len(right), float(right.double().mean()), right, logits.cpu())
