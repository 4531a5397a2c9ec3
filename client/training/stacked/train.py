"""Trainings of sites that are alike, as one stack."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from consilium.client.training.loop import begin, correct
from consilium.client.training.request import Pull, Training
from consilium.client.training.stacked.alike import arrays_of
from consilium.client.training.stacked.gradients import ByFormula, ByTorchFunc, StepDown, stacked_gradient
from consilium.client.training.stacked.own import take_own_steps
from consilium.client.training.stacked.rows import blocks, of_first, summed_losses
from consilium.client.training.stacked.steps import Moments, shortened_each, step
from consilium.client.training.work import LocalWork

MOST_NUMBERS = 2**19
"""Most trained numbers of one stack on a processor: with their velocities they stay in its cache from step to step."""


@torch.no_grad()
def train_stack(asked: Sequence[Training]) -> list[float]:
    """Train the models in place, as `train` does with each, and return each one's mean loss over its batches.

    Law: weights and losses are those of one training at a time but for rounding. Models change at the end alone.

    Args:
        asked: trainings with equal `stack_key`, for which `why_alone` has no reason.

    Raises:
        RuntimeError: torch.func does not take the model; no model has changed.
    """
    order = sorted(range(len(asked)), key=lambda place: -asked[place].work.num_steps)
    names, losses = list(begin(asked[0].model, asked[0].names)), dict[int, float]()
    size = len(asked)
    if names and asked[0].work.examples.x.device.type == "cpu":
        numbers = sum(asked[0].model.module.get_parameter(name).numel() for name in names)
        size = max(1, MOST_NUMBERS // numbers)
    for start in range(0, len(order), size):
        places = order[start : start + size]
        losses |= dict(zip(places, _train_piece([asked[place] for place in places], names), strict=True))
    return [losses[place] for place in range(len(asked))]


def _train_piece(sites: Sequence[Training], names: Sequence[str]) -> list[float]:
    """Train sites that are sorted by their number of steps, most first."""
    begin(sites[0].model, sites[0].names)  # the others' modules lend their arrays alone
    own = [arrays_of(one.model.module) for one in sites]
    stacks = {name: torch.stack([arrays[name] for arrays in own]) for name in own[0]}
    losses = train_arrays(sites, stacks, names)
    for name in names:
        for arrays, moved in zip(own, stacks[name], strict=True):
            arrays[name].copy_(moved)
    return losses


@torch.no_grad()
def train_arrays(sites: Sequence[Training], stacks: Mapping[str, Tensor], names: Sequence[str]) -> list[float]:
    """Train stacks of arrays in place, and return each site's mean loss over its batches.

    Args:
        sites: as of `train_stack`, sorted by their number of steps, most first; what their models hold is not read.
        stacks: every array of the model, with the sites in front.
        names: the arrays that change, as `begin` gives them for the first site.

    Raises:
        RuntimeError: torch.func does not take the model.
    """
    trained = {name: stacks[name] for name in names}
    fixed = {name: stack for name, stack in stacks.items() if name not in trained}
    take_steps = _take_steps if sites[0].own is None else take_own_steps
    totals = take_steps(sites, trained, fixed) if trained else torch.zeros(len(sites))
    return [total / one.work.num_steps for total, one in zip(totals.tolist(), sites, strict=True)]


def _take_steps(sites: Sequence[Training], trained: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> Tensor:
    """Move the stacks `trained`, in place, by all steps of all sites; return each site's sum of its batches' losses."""
    work = sites[0].work
    pull, moments, rate, number = _stacked_pull(sites), Moments.none(len(trained)), work.rate_of_steps(), 0
    gradient = stacked_gradient(sites[0].model.module, work.aim, work.examples)
    totals = torch.zeros(len(sites), dtype=torch.float64, device=work.examples.x.device)
    for block in blocks([one.work for one in sites]):
        count, answers = block.weights.shape[1], list[Tensor]()
        moments = moments.of_first(count)
        take_step = _stepping(work, gradient, of_first(trained, count), of_first(fixed, count), pull, moments)
        for x, truths, weights in zip(*gradient.prepared(block), strict=True):
            answers.append(take_step(x, truths, weights, rate(number)))
            number += 1
        totals[:count] += summed_losses(work.aim, answers, block)
    return totals


def _stepping(
    work: LocalWork,
    gradient: ByFormula | ByTorchFunc,
    trained: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    pull: Pull | None,
    moments: Moments,
) -> StepDown:
    """Return what takes one step of the optimiser; in one go where nothing comes between gradient and step."""
    plain = work.optimiser == "sgd" and not work.weight_decay and pull is None and work.clip_gradient is None
    if plain and isinstance(gradient, ByFormula):
        return gradient.step_down(trained, fixed, moments.velocities(trained) if work.momentum else {}, work.momentum)
    near = None if pull is None else _near(pull, len(next(iter(trained.values()))))
    of_batch, parameters = gradient.at(trained, fixed), list(trained.values())

    def take_step(x: Tensor, truths: Tensor, weights: Tensor, rate: float) -> Tensor:
        answers, gradients = of_batch(x, truths, weights)
        if near is not None:
            gradients = correct(trained, gradients, near)
        if work.clip_gradient is not None:
            gradients = shortened_each(gradients, work.clip_gradient)
        step(work, parameters, moments, gradients, rate)
        return answers

    return take_step


def _stacked_pull(sites: Sequence[Training]) -> Pull | None:
    """Return the sites' corrections as one of stacks; None where they have none."""
    pulls = [one.correction for one in sites if isinstance(one.correction, Pull)]
    if not pulls:
        return None
    anchor = {name: torch.stack([one.anchor[name] for one in pulls]) for name in pulls[0].anchor}
    shift = {name: torch.stack([one.shift[name] for one in pulls]) for name in pulls[0].shift}
    return Pull(pulls[0].strength, anchor, shift)


def _near(pull: Pull, count: int) -> Pull:
    return Pull(pull.strength, of_first(pull.anchor, count), of_first(pull.shift, count))
