"""How much a site trains, on what and how, and the batches that follow from it; seeded."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from consilium.client.data import Examples
from consilium.client.data.target import Target
from consilium.client.training.augment import Augmentation
from consilium.client.training.randomness import Entropy
from consilium.client.training.sampling import balanced, shuffled, spread
from consilium.client.training.schedule import RateOfSteps
from consilium.common.errors import ModelError
from consilium.common.seeds import seed_for
from consilium.common.weights.arrays import Weights

Optimiser = Literal["sgd", "adam", "adamw"]


@dataclass(frozen=True, eq=False)
class Noise:
    """How a site's training is made differentially private; see `consilium.client.training.private`.

    Args:
        multiplier: standard deviation of the noise on a step's sum of clipped gradients, in units of `clip`.
        clip: largest Euclidean norm of one unit's gradient.
        rate: probability with which a unit takes part in a step, each by itself.
        units: for how many units the sum is divided: the announced number, not the true one.
        groups: the patient of each training row `(N,)`; None where every row is a unit.
        adaptive: the part of the gradients that the clip should leave as they are; None: it stays as it is.
        entropy: where all that is random comes from; tests alone give another source than the operating system.
    """

    multiplier: float
    clip: float
    rate: float
    units: float
    groups: Tensor | None = None
    adaptive: float | None = None
    entropy: Entropy = os.urandom


@dataclass(frozen=True)
class LocalWork:
    """How much to train, on what, and how.

    Args:
        seed: fixes the order of examples; a generator of its own, never the global one.
        learning_rate: of all steps, or what `rates` multiplies.
        epochs, steps: exactly one is set: passes over the examples, or batches.
        validation: the site's validation examples, for selection only; may be empty.
        control: the control variate that the server sent along (SCAFFOLD); empty otherwise.
        precision: of the forward and backward pass; weights, gradients and steps are float32.
        micro_batch_size: most examples at a time; a batch's gradient is the sum over its pieces.
        noise: of training that leaves the site in a private study; None for training that does not, or elsewhere.
        clip_gradient: largest norm of a step's gradient over all trained arrays; None: any.
        sampling: how examples are drawn; `balanced` needs classes.
        rates: how the learning rate changes from step to step; None: not at all.
        augment: random changes of the pictures of a batch; None: none.
        target: whose loss training minimises, in place of that of the examples, by which models are measured.
    """

    examples: Examples
    batch_size: int
    seed: int
    optimiser: Optimiser
    learning_rate: float
    momentum: float
    weight_decay: float
    epochs: int | None
    steps: int | None
    validation: Examples
    control: Weights = field(default_factory=dict)
    precision: Literal["float32", "bfloat16"] = "float32"
    micro_batch_size: int | None = None
    noise: Noise | None = None
    clip_gradient: float | None = None
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    rates: RateOfSteps | None = None
    augment: Augmentation | None = None
    target: Target | None = None

    def tuned(
        self,
        *,
        epochs: int,
        seed: int,
        learning_rate: float | None = None,
        steps: int | None = None,
        optimiser: Optimiser | None = None,
    ) -> "LocalWork":
        """Return the same work with another amount and order, and another rate and optimiser if these are named.

        Tuned SGD keeps the momentum only of work that is SGD itself: Adam's settings say nothing of it.

        Args:
            learning_rate: of all steps, whatever the study's schedule says; None: the study's, with its schedule.
            steps: batches in place of `epochs`.
        """
        momentum = self.momentum if optimiser is None or (optimiser, self.optimiser) == ("sgd", "sgd") else 0.0
        return replace(
            self,
            epochs=None if steps is not None else epochs,
            steps=steps,
            learning_rate=self.learning_rate if learning_rate is None else learning_rate,
            rates=self.rates if learning_rate is None else None,
            seed=seed,
            optimiser=optimiser or self.optimiser,
            momentum=momentum,
        )

    def rate_of_steps(self) -> Callable[[int], float]:
        """Return the function that gives the learning rate of a step, from 0."""
        rates, steps = self.rates, 0 if self.rates is None else self.num_steps
        if rates is None:
            return lambda _: self.learning_rate
        return lambda step: self.learning_rate * rates.at(step, steps=steps)

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return what training minimises: the mean loss `()` of a batch's answers `(B, outputs)`."""
        return self.aim.loss(logits, y)

    @property
    def aim(self) -> Target:
        """What training minimises the loss of: `target`, or what the labels are without it."""
        return self.examples.target if self.target is None else self.target

    @property
    def free(self) -> "LocalWork":
        """As many steps without noise: for training of which nothing leaves the site, and nothing feeds back."""
        return self if self.noise is None else replace(self, noise=None, epochs=None, steps=self.num_steps)

    @property
    def num_steps(self) -> int:
        """How many steps are taken: batches that `batches` yields, or private steps.

        Private epochs are so many steps as the announced number of units makes, which others know already.
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        if self.noise is not None:
            return self.epochs * max(1, math.ceil(self.noise.units / self.batch_size))
        return self.epochs * num_chunks(len(self.examples), self.batch_size)

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

    (BatchNorm cannot train on a single example, so a lone last one joins the batch before it.) With `sampling` balanced
    the batches are as large and as many, and their examples drawn anew. With `augment` their pictures are changed, each
    batch by a generator of its own, seeded by the work's seed and the number of the step.

    Raises:
        ModelError: the work has noise, which batches would go around.
    """
    refuse_noise(work)
    for number, chunk in enumerate(rows_of_batches(work), start=1):
        x, y = work.examples.x[chunk], work.examples.y[chunk]
        if work.augment is not None:
            x, y = work.augment.pair(x, y, torch.Generator().manual_seed(seed_for(work.seed, "augment", number)))
        yield x, y


def rows_of_batches(work: LocalWork) -> Iterator[Tensor]:
    """Yield the numbers of each batch's rows, int64 `(B,)` where the examples lie: `work.num_steps` times, in order."""
    generator, done = torch.Generator().manual_seed(work.seed), 0
    while True:
        chunks = chunks_of(_order(work, generator).to(work.examples.y.device), work.batch_size)
        for chunk in chunks:
            if work.steps is not None and done == work.steps:
                return
            done += 1
            yield chunk
        if work.steps is None:
            assert work.epochs is not None
            if done >= work.epochs * len(chunks):
                return


def _order(work: LocalWork, generator: torch.Generator) -> Tensor:
    if work.sampling == "balanced":
        return balanced(work.examples.y, generator)
    if not work.examples.target.by_rows:
        return spread(work.examples.target.strata(work.examples.y), generator)
    return shuffled(len(work.examples), generator)


def chunks_of(order: Tensor, batch_size: int) -> list[Tensor]:
    """Return pieces of `batch_size` rows; a lone last row joins the piece before it, as BatchNorm needs two."""
    chunks = list(torch.split(order, batch_size))
    if len(chunks) > 1 and len(chunks[-1]) == 1 and batch_size > 1:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return chunks


def num_chunks(rows: int, batch_size: int) -> int:
    """Return into how many pieces `chunks_of` divides so many rows."""
    whole = max(1, math.ceil(rows / batch_size))
    return whole - (whole > 1 and batch_size > 1 and rows % batch_size == 1)


def refuse_noise(work: LocalWork) -> None:
    """Refuse to go around the noise of private training.

    Raises:
        ModelError: the work has some.
    """
    if work.noise is not None:
        raise ModelError(
            "a method asked for batches, or their gradient, without the noise that this study's privacy needs: it "
            "trains by 'train' alone, or says why it is not private"
        )
