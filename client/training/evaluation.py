"""The one evaluation loop of a site."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from consilium.client.data import Examples

EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, score in [0, 1], a mask `(N,)` of correct answers, and outputs `(N, outputs)`; on the CPU.

    Args:
        accuracy: the share of correct answers, or what stands for it; NaN where these examples do not say.
    """

    loss: float
    accuracy: float
    right: Tensor
    logits: Tensor


@torch.no_grad()
def evaluate(module: nn.Module, examples: Examples) -> Evaluation:
    """Evaluate in inference mode on all examples (at least one)."""
    module.eval()
    logits = torch.cat([module(x) for x in torch.split(examples.x, EVALUATION_BATCH)])
    answers = examples.target.answers(logits)
    right = examples.right(answers).cpu()
    loss = float(examples.target.loss(logits, examples.y))
    return Evaluation(loss, examples.target.score(answers, examples.y), right, logits.cpu())
