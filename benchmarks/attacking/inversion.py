"""Gradient inversion: images that would have given the update that was sent.

Geiping, Bauermeister, Droege, Moeller: Inverting Gradients, NeurIPS 2020, equation 4,
https://arxiv.org/abs/2003.14053: with u the update and x the images that are looked for,

    minimise over x   1 - <grad L(x, y), u> / (|grad L(x, y)| |u|)  +  a TV(x)

by Adam, inside the range of pixels; the classes y are found along with x (Zhu 2019, https://arxiv.org/abs/1906.08935).
The attacker knows the model, the batch size and the pixels' scale; of a sum over K sites it looks for K batches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacking.victims import Seen

TOTAL_VARIATION, STEP = 1e-1, 0.1


@dataclass(frozen=True)
class Budget:
    """The same for every defence.

    Args:
        steps: of Adam, from each of `starts` random images; that with the least cost is kept.
    """

    steps: int = 400
    starts: int = 1


def inverted(
    module: nn.Module,
    seen: Seen,
    *,
    batch: int,
    sites: int,
    shape: tuple[int, ...],
    low: float,
    high: float,
    seed: int,
    budget: Budget,
) -> Tensor:
    """Return `sites * batch` images for the update of one step, in the model's scale.

    Args:
        module: with the weights that the step began with, in the mode that the sites train in.
        low, high: the smallest and the largest value of a pixel.
    """
    parameters = [one for one in module.parameters() if one.requires_grad]
    named = [name for name, one in module.named_parameters() if one.requires_grad]
    wanted = [-torch.from_numpy(seen.delta[name].copy()) for name in named]
    best, least = torch.empty(0), float("inf")
    for start in range(budget.starts):
        generator = torch.Generator().manual_seed(seed + start)
        x = torch.empty(sites, batch, *shape).uniform_(low, high, generator=generator).requires_grad_()
        classes = next(reversed(parameters)).shape[0]
        y = torch.zeros(sites, batch, classes).normal_(generator=generator).requires_grad_()
        adam = torch.optim.Adam([x, y], lr=STEP)
        cost = torch.tensor(float("inf"))
        for number in range(budget.steps):
            if number in (budget.steps // 2, budget.steps * 3 // 4):
                adam.param_groups[0]["lr"] *= 0.3
            cost = _cost(module, parameters, wanted, x, y)
            x.grad, y.grad = torch.autograd.grad(cost, [x, y])
            adam.step()
            with torch.no_grad():
                x.clamp_(low, high)
        if float(cost.detach()) < least:
            best, least = x.detach().flatten(0, 1), float(cost.detach())
    return best


def _cost(module: nn.Module, parameters: list[nn.Parameter], wanted: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    loss = torch.stack(
        [-(module(one).log_softmax(dim=1) * of.softmax(dim=1)).sum(dim=1).mean() for one, of in zip(x, y, strict=True)]
    ).mean()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    product = sum((one * other).sum() for one, other in zip(gradients, wanted, strict=True))
    norms = [torch.stack([(one**2).sum() for one in some]).sum().sqrt() for some in (gradients, wanted)]
    variation = (x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()) / 2
    return 1 - product / (norms[0] * norms[1] + 1e-20) + TOTAL_VARIATION * variation


def signal_to_noise(images: Tensor, rows: Tensor, *, low: float, high: float) -> float:
    """Return the mean over the images of the peak signal-to-noise ratio to the nearest row, in decibels."""
    squares = torch.cdist(images.flatten(1).double(), rows.flatten(1).double()) ** 2 / rows[0].numel()
    return float((10 * torch.log10((high - low) ** 2 / squares.min(dim=1).values.clamp_min(1e-12))).mean())
