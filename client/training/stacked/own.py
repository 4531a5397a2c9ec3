"""Steps of a method's own, for a stack of sites: all gradients of a step at once, wherever the method asks for them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from consilium.client.training.request import Arrays, GradientAt, Training
from consilium.client.training.stacked.gradients import StackedGradient, stacked_gradient
from consilium.client.training.stacked.rows import blocks, of_first, summed_losses


def take_own_steps(sites: Sequence[Training], trained: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> Tensor:
    """Move the stacks `trained`, and each site's own arrays, by all steps; return each site's sum of the losses."""
    work, owns, number = sites[0].work, [one.own for one in sites if one.own is not None], 0
    first, gradient = owns[0], stacked_gradient(sites[0].model.module, work.aim, work.examples)
    assert first.step is not None
    arrays = {name: torch.stack([own.arrays[name] for own in owns]) for name in first.arrays}
    totals = torch.zeros(len(sites), dtype=torch.float64, device=work.examples.x.device)
    for parts in zip(*(blocks(stream) for stream in zip(*(own.streams for own in owns), strict=True)), strict=True):
        count, answers = parts[0].weights.shape[1], list[Tensor]()
        moving, beside, still = (of_first(stacks, count) for stacks in (trained, arrays, fixed))
        for drawn in zip(*(zip(*gradient.prepared(part), strict=True) for part in parts), strict=True):
            seen = dict[int, Tensor]()
            first.step(moving, beside, _gradients(gradient, still, drawn, seen), number)
            answers.append(seen[first.loss_of])
            number += 1
        totals[:count] += summed_losses(work.aim, answers, parts[first.loss_of])
    for name, stack in arrays.items():
        for own, moved in zip(owns, stack, strict=True):
            own.arrays[name].copy_(moved)
    return totals


def _gradients(
    gradient: StackedGradient, fixed: Arrays, drawn: Sequence[tuple[Tensor, ...]], seen: dict[int, Tensor]
) -> GradientAt:
    """Return what gives a step's gradients; `seen` gets the answers of the first one of each stream."""

    def at(point: Arrays, stream: int) -> dict[str, Tensor]:
        x, truths, weights = drawn[stream]
        answers, found = gradient.at(point, fixed)(x, truths, weights)
        seen.setdefault(stream, answers)
        whole = (torch.zeros_like(a) if one is None else one for a, one in zip(point.values(), found, strict=True))
        return dict(zip(point, whole, strict=True))

    return at
