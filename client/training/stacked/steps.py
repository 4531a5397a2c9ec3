"""The optimisers' steps on stacks: element by element those of one site, since no site's numbers touch another's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from consilium.client.training.loop import sgd
from consilium.client.training.work import LocalWork

Gradients = Sequence[Tensor | None]


@dataclass(frozen=True, eq=False)
class Moments:
    """What an optimiser remembers of each stacked parameter, in their order; None before its first step.

    Args:
        first: SGD's velocity, or Adam's mean of gradients.
        second: Adam's mean of their squares.
        counts: Adam's number of steps `()`.
    """

    first: list[Tensor | None]
    second: list[Tensor | None]
    counts: list[Tensor]

    @classmethod
    def none(cls, number: int) -> "Moments":
        """Return those of so many parameters before the first step."""
        return cls([None] * number, [None] * number, [torch.zeros(()) for _ in range(number)])

    def of_first(self, count: int) -> "Moments":
        """Return views of the first `count` sites'."""
        first, second = ([None if one is None else one[:count] for one in part] for part in (self.first, self.second))
        return Moments(first, second, self.counts)

    def velocities(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return SGD's velocities of stacks by their names, 0 before the first step."""
        for place, array in enumerate(trained.values()):
            if self.first[place] is None:
                self.first[place] = torch.zeros_like(array)
        return dict(zip(trained, (one for one in self.first if one is not None), strict=True))


def step(work: LocalWork, parameters: Sequence[Tensor], moments: Moments, gradients: Gradients, rate: float) -> None:
    """Move stacked parameters in place by one step of the work's optimiser at a learning rate."""
    if work.optimiser == "sgd":
        sgd(parameters, moments.first, work, gradients, rate)
        return
    places = [place for place, gradient in enumerate(gradients) if gradient is not None]
    first, second = (_begun(part, parameters, places) for part in (moments.first, moments.second))
    adam(
        [parameters[place] for place in places],
        [gradient for gradient in gradients if gradient is not None],
        first,
        second,
        max_exp_avg_sqs=[],
        state_steps=[moments.counts[place] for place in places],
        foreach=False,
        decoupled_weight_decay=work.optimiser == "adamw",
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=rate,
        weight_decay=work.weight_decay,
        eps=1e-8,
        maximize=False,
    )


def _begun(part: list[Tensor | None], parameters: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
    """Return the moments at some places, which are 0 before the first step."""
    for place in places:
        if part[place] is None:
            part[place] = torch.zeros_like(parameters[place])
    return [one for place in places if (one := part[place]) is not None]


def shortened_each(gradients: Gradients, most: float) -> list[Tensor | None]:
    """Return the gradients with each site's norm, over all of them together, at most `most`: `loop.shortened`."""
    known = [gradient for gradient in gradients if gradient is not None]
    if not known:
        return list(gradients)
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in known])
    factors = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    return [None if one is None else one * factors.view(-1, *[1] * (one.ndim - 1)) for one in gradients]
