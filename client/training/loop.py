"""The one training loop of a site: seeded, or private, and changing nothing but the model."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from consilium.client.models import Model, train_mode
from consilium.client.training.closed_form import is_linear, linear_gradient
from consilium.client.training.private import private_gradients
from consilium.client.training.request import Correction, Forward, Loss, OwnSteps, Pull, Training, trainer_here
from consilium.client.training.work import LocalWork, batches, chunks_of, refuse_noise


def train(
    model: Model,
    work: LocalWork,
    *,
    names: Collection[str] | None = None,
    correction: Correction | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    extra: Mapping[str, nn.Parameter] | None = None,
) -> float:
    """Train in place and return the mean loss over the batches.

    Args:
        names: parameters that may change, default `model.trainable`.
        correction: a term added to each parameter's gradient (proximal, a control variate), before it is clipped.
        forward: answers a batch in place of the module itself.
        loss: is minimised in place of `work.loss`, given what `forward` answers.
        extra: parameters outside the module that are trained with it, by names that it does not have.

    Without a parameter that may change the loss is 0.0 and the model stays as it is. BatchNorm layers
    that may not change stay in evaluation mode; dropout draws from a generator seeded by `work.seed`.

    Where `work` has noise, every step's gradient is that of `private_gradients`, and a correction is added after the
    noise: it has to be made of what is private already. The loss is then this site's own number, which must not leave.

    Raises:
        ModelError: the work has noise, and the model, a forward pass or a loss of the method's own do not go with it.
    """
    return (trainer_here() or take)(Training(model, work, names, correction, forward, loss, extra))


def train_by(own: OwnSteps, model: Model, work: LocalWork) -> float:
    """Train in place by steps of a method's own, and return the mean loss over the batches."""
    return (trainer_here() or take)(Training(model, work, own=own))


def take(asked: Training) -> float:
    """Take the steps of a training, one model by itself, as `train` says.

    Raises:
        ModelError: as `train`.
    """
    if asked.own is not None:
        return asked.own.alone()
    model, work, correction, forward, loss = asked.model, asked.work, asked.correction, asked.forward, asked.loss
    parameters = begin(model, asked.names) | dict(asked.extra or {})
    if not parameters:
        return 0.0
    if work.noise is not None and (forward is not None or loss is not None or asked.extra):
        refuse_noise(work)
    step, total, count = _step(list(parameters.values()), work), 0.0, 0
    rate = work.rate_of_steps()
    with own_randomness(work):
        steps = gradients_of(model, parameters, work, forward=forward, loss=loss)
        for number, (batch_loss, gradients) in enumerate(steps):
            if correction is not None:
                gradients = correct(parameters, gradients, correction)
            if work.clip_gradient is not None:
                gradients = shortened(gradients, work.clip_gradient)
            step(gradients, rate(number))
            if batch_loss is not None:
                total, count = total + batch_loss, count + 1
    return total / count if count else 0.0


def gradients_of(
    model: Model,
    parameters: Mapping[str, nn.Parameter],
    work: LocalWork,
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
) -> Iterator[tuple[float | None, Sequence[Tensor | None]]]:
    """Yield each step's loss and gradients, with noise where the work has some; the parameters move in between.

    The loss is None in a private step in which no row took part; a gradient where the loss does not depend on it.
    """
    if work.noise is not None:
        yield from private_gradients(model, parameters, work)
        return
    for x, y in batches(work):
        yield gradient(forward or model.module, x, y, list(parameters.values()), work, loss=loss)


def gradient(
    forward: Forward, x: Tensor, y: Tensor, at: Sequence[Tensor], work: LocalWork, *, loss: Loss | None = None
) -> tuple[float, list[Tensor | None]]:
    """Return the mean loss of a batch and its gradient with respect to `at`, computed as `work` says.

    One gradient per tensor, of its shape; None where the loss (`work.loss`, if no other is given) does not depend on
    it. In pieces of `work.micro_batch_size` examples the result is the same up to rounding, except that BatchNorm
    normalises each piece by itself. Where the loss is of a batch as a whole (survival), there are no pieces.

    Raises:
        ModelError: the work has noise, which this gradient is without.
    """
    refuse_noise(work)
    by_rows = work.examples.target.by_rows
    if work.micro_batch_size is None or work.micro_batch_size >= len(y) or not by_rows:
        if loss is None and work.aim.plain and work.precision == "float32" and is_linear(forward, at):
            exact, by_parameter = linear_gradient(forward, x, y)
            return exact, [by_parameter[to] for to in at]
        whole = _loss_in(work.precision, forward, x, y, loss or work.loss)
        return float(whole.detach()), list(torch.autograd.grad(whole, at, allow_unused=True))
    total, sums = 0.0, list[Tensor | None]([None] * len(at))
    for part_x, part_y in zip(chunks_of(x, work.micro_batch_size), chunks_of(y, work.micro_batch_size), strict=True):
        part = _loss_in(work.precision, forward, part_x, part_y, loss or work.loss) * (len(part_y) / len(y))
        gradients = torch.autograd.grad(part, at, allow_unused=True)
        sums = [_sum(*pair) for pair in zip(sums, gradients, strict=True)]
        total += float(part.detach())
    return total, sums


def _loss_in(precision: str, forward: Forward, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    if precision == "float32":  # a disabled autocast costs as much as a small layer
        return loss(forward(x), y)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        return loss(forward(x), y)


def full_gradient(
    forward: Forward, x: Tensor, y: Tensor, at: Sequence[Tensor], work: LocalWork
) -> tuple[float, list[Tensor]]:
    """Return the loss and gradient as `gradient` does, with zeros where the loss does not depend on a tensor."""
    loss, gradients = gradient(forward, x, y, at, work)
    return loss, [torch.zeros_like(to) if one is None else one for to, one in zip(at, gradients, strict=True)]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def begin(model: Model, names: Collection[str] | None = None) -> dict[str, nn.Parameter]:
    """Prepare a model for training and return the parameters that may change, in the module's order.

    Only these get gradients; layers are in training mode, but for BatchNorm that may not change.
    """
    chosen = model.trainable if names is None else model.trainable & frozenset(names)
    parameters = dict(model.module.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    if chosen:
        train_mode(replace(model, trainable=chosen))
    return {name: parameter for name, parameter in parameters.items() if name in chosen}


@torch.no_grad()
def correct(
    parameters: Mapping[str, Tensor], gradients: Sequence[Tensor | None], correction: Correction
) -> list[Tensor | None]:
    """Return the gradients with `correction(name, parameter)` added to each."""
    return [
        None if gradient is None else gradient + correction(name, parameter)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    ]


@torch.no_grad()
def shortened(gradients: Sequence[Tensor | None], most: float) -> list[Tensor | None]:
    """Return the gradients with a Euclidean norm, over all of them together, of at most `most` > 0.

    As `torch.nn.utils.clip_grad_norm_` does it: a longer one is multiplied by `most / (norm + 1e-6)`.
    """
    known = [gradient for gradient in gradients if gradient is not None]
    if not known:
        return list(gradients)
    factor = (most / (torch.nn.utils.get_total_norm(known) + 1e-6)).clamp(max=1.0)
    return [None if gradient is None else gradient * factor.to(gradient.device) for gradient in gradients]


def proximal(model: Model, strength: float) -> Correction:
    """Return the gradient of `strength / 2 * |parameter - anchor|**2`; the anchor is what the model holds now."""
    anchor = anchor_of(model)
    return Pull(dict.fromkeys(anchor, strength), anchor)


def anchor_of(model: Model) -> dict[str, Tensor]:
    """Return copies of the trainable parameters as the model holds them now."""
    return {name: value.detach().clone() for name, value in model.module.named_parameters() if name in model.trainable}


@contextmanager
def own_randomness(work: LocalWork) -> Iterator[None]:
    """Seed what layers draw from (dropout knows only the global generators), and put it back afterwards.

    In private training the seed is one that nobody else knows; see `consilium.client.training.private`.
    """
    device = work.examples.x.device
    seed = work.seed if work.noise is None else int.from_bytes(work.noise.entropy(8), "big") >> 1
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


Step = Callable[[Sequence[Tensor | None], float], None]
"""`step(gradients, rate)` moves the parameters, in place, by one step of the optimiser."""


def _step(parameters: list[nn.Parameter], work: LocalWork) -> Step:
    """Return the function that moves the parameters."""
    if work.optimiser == "sgd":
        return torch.no_grad()(partial(sgd, parameters, [None] * len(parameters), work))
    make = torch.optim.Adam if work.optimiser == "adam" else torch.optim.AdamW
    adam = make(parameters, lr=work.learning_rate, weight_decay=work.weight_decay)

    def step(gradients: Sequence[Tensor | None], rate: float) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step


def sgd(
    parameters: Sequence[Tensor],
    velocities: list[Tensor | None],
    work: LocalWork,
    gradients: Sequence[Tensor | None],
    rate: float,
) -> None:
    """Take torch.optim.SGD's step, to the last bit, without its overhead (half of a small step's time)."""
    for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if gradient is None:
            continue
        if work.weight_decay:
            gradient = gradient.add(parameter, alpha=work.weight_decay)
        if work.momentum:
            before = velocities[place]
            gradient = gradient.clone() if before is None else before.mul_(work.momentum).add_(gradient)
            velocities[place] = gradient
        parameter.add_(gradient, alpha=-rate)
