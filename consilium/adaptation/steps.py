"""Plain SGD steps from a start, measured at some of them."""

import math

import torch

from consilium.client.data import Examples
from consilium.client.models import Model, set_weights
from consilium.client.training.evaluation import Evaluation, evaluate
from consilium.client.training.loop import begin, own_randomness
from consilium.client.training.work import LocalWork, batches
from consilium.common.errors import ConfigError
from consilium.common.weights.arrays import Weights


def stops(steps: int) -> list[int]:
    """Return after how many steps accuracy is measured: 0, 1, 5, 20, 50, 100, 200, 500, ..., and `steps`."""
    usual, scale = [0, 1, 5, 20, 50], 100
    while scale < steps:
        usual += [scale, 2 * scale, 5 * scale]
        scale *= 10
    return [*(stop for stop in usual if stop < steps), steps]


def follow(model: Model, start: Weights, work: LocalWork, test: Examples, *, who: str) -> list[Evaluation]:
    """Train from `start` by plain SGD, one step per batch of `work`, and evaluate at each of `stops(work.steps)`.

    Law: evaluating changes nothing, and SGD without momentum remembers nothing, so the model at a stop is the one
    that `work` with so many steps leaves.

    Raises:
        ConfigError: the loss is no longer a finite number.
    """
    assert work.steps is not None
    wanted, evaluations = set(stops(work.steps)), []

    def measure(step: int) -> None:
        evaluation = evaluate(model.module, test)
        if not math.isfinite(evaluation.loss):
            raise ConfigError(
                f"the {who} start has no finite loss at step {step} with learning rate {work.learning_rate:g}: "
                "give a smaller --learning-rate"
            )
        evaluations.append(evaluation)

    set_weights(model.module, start)
    measure(0)
    optimiser = torch.optim.SGD(begin(model).values(), lr=work.learning_rate, weight_decay=work.weight_decay)
    with own_randomness(work):
        for step, (x, y) in enumerate(batches(work), start=1):
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(work.loss(model.module(x), y))
            optimiser.step()
            if step in wanted:
                measure(step)
                begin(model)  # out of inference mode again
    return evaluations
