"""The one training loop and the one evaluation loop of a site; seeded, changing nothing but the model."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.data import Examples
from client.models import Model, train_mode
from client.training.closed_form import is_linear, linear_gradient
from common.weights.arrays import Weights

EVALUATION_BATCH = 512

Correction = Callable[[str, nn.Parameter], Tensor]
"""`correction(name, parameter)` is added to the parameter's gradient before each step."""
Forward = Callable[[Tensor], Any]
"""`forward(x)` answers a batch: with logits `(B, outputs)`, or with what a loss of its own is made for."""
Loss = Callable[[Any, Tensor], Tensor]
"""`loss(answer, y)` is the mean loss of a batch, given what `forward` answered."""


@dataclass(frozen=True)
class LocalWork:
    """How much to train, on what, and how.

    Args:
        seed: fixes the order of examples; a generator of its own, never the global one.
        epochs, steps: exactly one is set: passes over the examples, or batches.
        validation: the site's validation examples, for selection only; may be empty.
        control: the control variate that the server sent along (SCAFFOLD); empty otherwise.
        precision: of the forward and backward pass; weights, gradients and steps are float32.
        micro_batch_size: at most so many examples at a time; a batch's gradient is the sum over its pieces.
    """

    examples: Examples
    batch_size: int
    seed: int
    optimiser: Literal["sgd", "adam"]
    learning_rate: float
    momentum: float
    weight_decay: float
    epochs: int | None
    steps: int | None
    validation: Examples
    control: Weights = field(default_factory=dict)
    precision: Literal["float32", "bfloat16"] = "float32"
    micro_batch_size: int | None = None

    def tuned(
        self,
        *,
        epochs: int,
        learning_rate: float,
        seed: int,
        steps: int | None = None,
        optimiser: Literal["sgd", "adam"] | None = None,
    ) -> "LocalWork":
        """Return the same work with another amount, rate and order, and another optimiser if one is named.

        SGD keeps the momentum of a work that is SGD and has none otherwise: the rate of one is none of the other.

        Args:
            steps: batches in place of `epochs`.
        """
        momentum = self.momentum if optimiser is None or (optimiser, self.optimiser) == ("sgd", "sgd") else 0.0
        return replace(
            self,
            epochs=None if steps is not None else epochs,
            steps=steps,
            learning_rate=learning_rate,
            seed=seed,
            optimiser=optimiser or self.optimiser,
            momentum=momentum,
        )

    @property
    def num_steps(self) -> int:
        """How many batches `batches` yields."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * len(_chunks(torch.arange(len(self.examples)), self.batch_size))

    @property
    def effective_steps(self) -> float:
        """The sum of how often each step's gradient enters the update (Wang 2020, FedNova, section 4): SGD only.

        Without momentum the number of steps; with momentum m the gradient of step i of n enters
        `(1 - m**(n - i)) / (1 - m)` times, i = 0 .. n - 1.
        """
        count, momentum = self.num_steps, self.momentum
        return sum((1 - momentum ** (count - i)) / (1 - momentum) for i in range(count))


def batches(work: LocalWork) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches; no example is dropped, and no batch but an only one has a single example.

    (BatchNorm cannot train on a single example, so a lone last one joins the batch before it.)
    """
    generator = torch.Generator().manual_seed(work.seed)
    done = 0
    while True:
        order = torch.randperm(len(work.examples), generator=generator).to(work.examples.y.device)
        chunks = _chunks(order, work.batch_size)
        for chunk in chunks:
            if work.steps is not None and done == work.steps:
                return
            done += 1
            yield work.examples.x[chunk], work.examples.y[chunk]
        if work.steps is None:
            assert work.epochs is not None
            if done >= work.epochs * len(chunks):
                return


def _chunks(order: Tensor, batch_size: int) -> list[Tensor]:
    """Return pieces of `batch_size` rows; a lone last row joins the piece before it, as BatchNorm needs two."""
    chunks = list(torch.split(order, batch_size))
    if len(chunks) > 1 and len(chunks[-1]) == 1 and batch_size > 1:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return chunks


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


def train(
    model: Model,
    work: LocalWork,
    *,
    names: Collection[str] | None = None,
    correction: Correction | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    beside: Mapping[str, nn.Parameter] | None = None,
) -> float:
    """Train in place and return the mean loss over the batches.

    Args:
        names: parameters that may change, default `model.trainable`.
        correction: what is added to each parameter's gradient (a proximal term, a control variate).
        forward: what is asked in place of the module itself.
        loss: what is minimised in place of `loss_of`, given what `forward` answers.
        beside: parameters outside the module that are trained with it, by names that it does not have.

    A site that trains nothing (no such parameter) gets NaN-free 0.0 and an unchanged model. BatchNorm layers
    that may not change stay in evaluation mode; dropout draws from a generator seeded by `work.seed`.
    """
    parameters = begin(model, names) | dict(beside or {})
    if not parameters:
        return 0.0
    step, ask = _step(list(parameters.values()), work), forward or model.module
    total, count = 0.0, 0
    with own_randomness(work):
        for x, y in batches(work):
            found, gradients = gradient(ask, x, y, list(parameters.values()), work, loss=loss)
            if correction is not None:
                gradients = correct(parameters, gradients, correction)
            step(gradients)
            total, count = total + found, count + 1
    return total / count


def gradient(
    forward: Forward, x: Tensor, y: Tensor, at: Sequence[Tensor], work: LocalWork, *, loss: Loss | None = None
) -> tuple[float, list[Tensor | None]]:
    """Return the mean loss of a batch and its gradient with respect to `at`, computed as `work` says.

    One gradient per tensor, of its shape; None where the loss (`loss_of`, if no other is given) does not depend on
    it. In pieces of `work.micro_batch_size` examples the result is the same up to rounding, except that BatchNorm
    normalises each piece by itself.
    """
    if work.micro_batch_size is None or work.micro_batch_size >= len(y):
        if loss is None and work.precision == "float32" and is_linear(forward, at):
            known, by_parameter = linear_gradient(forward, x, y)
            return known, [by_parameter[to] for to in at]
        whole = _loss_in(work.precision, forward, x, y, loss or loss_of)
        return float(whole.detach()), list(torch.autograd.grad(whole, at, allow_unused=True))
    total, sums = 0.0, list[Tensor | None]([None] * len(at))
    for part_x, part_y in zip(_chunks(x, work.micro_batch_size), _chunks(y, work.micro_batch_size), strict=True):
        part = _loss_in(work.precision, forward, part_x, part_y, loss or loss_of) * (len(part_y) / len(y))
        found = torch.autograd.grad(part, at, allow_unused=True)
        sums = [_sum(*pair) for pair in zip(sums, found, strict=True)]
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
    """Return what `gradient` does, with zeros where the loss does not depend on a tensor."""
    loss, found = gradient(forward, x, y, at, work)
    return loss, [torch.zeros_like(to) if one is None else one for to, one in zip(at, found, strict=True)]


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
    parameters: dict[str, nn.Parameter], gradients: Sequence[Tensor | None], correction: Correction
) -> list[Tensor | None]:
    """Return the gradients with `correction(name, parameter)` added to each."""
    return [
        None if found is None else found + correction(name, parameter)
        for (name, parameter), found in zip(parameters.items(), gradients, strict=True)
    ]


def proximal(model: Model, strength: float) -> Correction:
    """Return the gradient of `strength / 2 * |parameter - anchor|**2`; the anchor is what the model holds now."""
    anchor = anchor_of(model)
    return lambda name, parameter: strength * (parameter - anchor[name])


def anchor_of(model: Model) -> dict[str, Tensor]:
    """Return copies of the trainable parameters as the model holds them now."""
    return {name: value.detach().clone() for name, value in model.module.named_parameters() if name in model.trainable}


@contextmanager
def own_randomness(work: LocalWork) -> Iterator[None]:
    """Seed what layers draw from (dropout knows only the global generators), and put it back afterwards."""
    device = work.examples.x.device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.default_generator.manual_seed(work.seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(work.seed)
        yield


def _step(parameters: list[nn.Parameter], work: LocalWork) -> Callable[[Sequence[Tensor | None]], None]:
    """Return what moves the parameters, in place, by one step of the optimiser."""
    if work.optimiser == "sgd":
        return partial(_sgd, parameters, [None] * len(parameters), work)
    adam = torch.optim.Adam(parameters, lr=work.learning_rate, weight_decay=work.weight_decay)

    def step(gradients: Sequence[Tensor | None]) -> None:
        for parameter, found in zip(parameters, gradients, strict=True):
            parameter.grad = found
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def _sgd(
    parameters: list[nn.Parameter],
    moving: list[Tensor | None],
    work: LocalWork,
    gradients: Sequence[Tensor | None],
) -> None:
    """Take torch.optim.SGD's step, to the last bit, without what that does around it (half of a small step's time)."""
    for place, (parameter, found) in enumerate(zip(parameters, gradients, strict=True)):
        if found is None:
            continue
        if work.weight_decay:
            found = found.add(parameter, alpha=work.weight_decay)
        if work.momentum:
            before = moving[place]
            found = found.clone() if before is None else before.mul_(work.momentum).add_(found)
            moving[place] = found
        parameter.add_(found, alpha=-work.learning_rate)


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, accuracy in [0, 1], which examples were right `(N,)`, and the outputs `(N, outputs)`; on the CPU."""

    loss: float
    accuracy: float
    right: Tensor
    logits: Tensor


@torch.no_grad()
def evaluate(module: nn.Module, examples: Examples) -> Evaluation:
    """Evaluate in inference mode on all examples (at least one)."""
    module.eval()
    total, seen = 0.0, []
    for x, y in zip(torch.split(examples.x, EVALUATION_BATCH), torch.split(examples.y, EVALUATION_BATCH), strict=True):
        seen.append(module(x))
        total += float(loss_of(seen[-1], y, reduction="sum"))
    logits = torch.cat(seen)
    answers = predictions(logits) if examples.tolerance is None else logits[:, 0]
    right = examples.right(answers).cpu()
    return Evaluation(total / len(right), float(right.double().mean()), right, logits.cpu())
