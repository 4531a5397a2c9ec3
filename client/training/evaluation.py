"""The one evaluation loop of a site."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from consilium.client.data import Examples
from consilium.client.data.target import CountedTarget

EVALUATION_BATCH = 512
EVALUATION_PIXELS = 2**20
"""Most pixels that a model of pixels is asked about at a time: its maps have as many places, each with channels."""


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, score in [0, 1], and outputs `(N, outputs)`; on the CPU.

    Where every pixel has an answer, the outputs are too many: `logits` holds the answers `(N, H, W)` in their place.

    Args:
        accuracy: the share of correct answers, or what stands for it; NaN where these examples do not say.
        mask: of correct answers `(N,)`; None where answers are neither right nor wrong.
    """

    loss: float
    accuracy: float
    mask: Tensor | None
    logits: Tensor

    @property
    def right(self) -> Tensor:
        """The mask of correct answers `(N,)`.

        Raises:
            TypeError: these answers are neither right nor wrong.
        """
        if self.mask is None:
            raise TypeError("these answers are neither right nor wrong")
        return self.mask


@torch.no_grad()
def evaluate(module: nn.Module, examples: Examples) -> Evaluation:
    """Evaluate in inference mode on all examples (at least one)."""
    module.eval()
    if examples.target.dense:
        return _of_pixels(module, examples)
    if len(examples) <= EVALUATION_BATCH:
        logits = module(examples.x)
    else:
        logits = torch.cat([module(x) for x in torch.split(examples.x, EVALUATION_BATCH)])
    answers = examples.target.answers(logits)
    right = examples.right(answers).cpu() if isinstance(examples.target, CountedTarget) else None
    loss = float(examples.target.loss(logits, examples.y))
    return Evaluation(loss, examples.target.score(answers, examples.y), right, logits.cpu())


def pictures_at_once(x: Tensor) -> int:
    """Return how many of the pictures `(N, C, H, W)` a model of pixels is asked about at a time."""
    return max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // (x.shape[-1] * x.shape[-2])))


def _of_pixels(module: nn.Module, examples: Examples) -> Evaluation:
    target, answers, loss = examples.target, list[Tensor](), 0.0
    size = pictures_at_once(examples.x)
    for x, y in zip(torch.split(examples.x, size), torch.split(examples.y, size), strict=True):
        logits = module(x)
        loss += float(target.loss(logits, y)) * len(y) / len(examples)
        answers.append(target.answers(logits).cpu())
    masks, y = torch.cat(answers), examples.y.cpu()
    return Evaluation(loss, target.score(masks, y), None, masks)
