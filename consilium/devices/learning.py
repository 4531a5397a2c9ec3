"""What users learn with: the study's method and model, their rows, and the trainings that a method asks for."""

import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from consilium.client.data.base import Examples
from consilium.client.data.target import Target
from consilium.client.data.targets import target_of
from consilium.client.methods import Method, Outcome, build_method
from consilium.client.models import set_weights
from consilium.client.site.beginnings import Beginning, beginning_of
from consilium.client.training.loop import begin
from consilium.client.training.planned import planned
from consilium.client.training.request import Training, trained_by
from consilium.client.training.stacked.alike import stack_key, why_alone
from consilium.client.training.stacked.train import train_arrays
from consilium.client.training.work import LocalWork
from consilium.common.errors import ModelError
from consilium.common.study.study import StudyConfig
from consilium.devices.personal import Floats32, Personal
from consilium.devices.population import Ints, Population
from consilium.devices.rows import Amount, held_out, training_seed


@dataclass(frozen=True, eq=False)
class Learning:
    """What users learn with: the study's method and model, and their rows."""

    study: StudyConfig
    population: Population
    method: Method
    beginning: Beginning
    target: Target
    counted: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, study: StudyConfig, population: Population) -> "Learning":
        """Build the model that the study begins with.

        Raises:
            ModelError: it does not fit, or has layers that no stack of users can train.
        """
        method = build_method(study.method)
        made = beginning_of(study, method, study.task.input_shape, weights_dir=None, device=torch.device("cpu"))
        learning = cls(study, population, method, made, target_of(study.task))
        learning.check()
        return learning

    def check(self) -> None:
        """Refuse what users cannot train as one stack.

        Raises:
            ModelError: names what it is.
        """
        for asked in self.asked(self.trains, self.work(1, *self.population.spans(np.zeros(1, np.int64)), user=0)):
            if (reason := why_alone(asked)) is not None:
                raise ModelError(
                    f"users of a simulation train as one stack, which this study's training cannot be part of: {reason}"
                )

    @cached_property
    def personal_names(self) -> tuple[str, ...]:
        """The arrays that each user keeps, in order."""
        return tuple(sorted(self.beginning.names.personal))

    @cached_property
    def personal_start(self) -> Floats32:
        """What a user who has never taken part has in them, one after the other."""
        flat = [np.asarray(self.beginning.initial[name], np.float32).reshape(-1) for name in self.personal_names]
        return np.concatenate(flat) if flat else np.empty(0, np.float32)

    def personal_stacks(self, personal: Personal | None, users: Ints) -> dict[str, Tensor]:
        """Return some users' own arrays as stacks; none where nothing is personal."""
        if personal is None:
            return {}
        flat = torch.from_numpy(personal.read(users, self.personal_start)[0])
        shapes = [self.beginning.initial[name].shape for name in self.personal_names]
        parts = torch.split(flat, [math.prod(shape) for shape in shapes], dim=1)
        return {
            name: part.reshape(len(flat), *shape).contiguous()
            for name, part, shape in zip(self.personal_names, parts, shapes, strict=True)
        }

    def trains(self, work: LocalWork) -> Outcome:
        """Train for a round, as the method has it."""
        return self.method.train(self.beginning.model, {}, work)

    def split(self, users: Ints) -> tuple[Ints, Ints, Ints]:
        """Return where each user's rows begin, how many are trained on, and how many after these are measured on."""
        begins, counts = self.population.spans(users)
        kept = held_out(counts, self.study.split.test)
        return begins, counts - kept, kept

    def work(self, number: int, begins: Ints, counts: Ints, *, user: int) -> LocalWork:
        """Return the training of one user in a round, on the rows from `begins` on."""
        rows = np.arange(int(begins[0]), int(begins[0] + counts[0]))
        return self._planned(number, user, self.population.inputs(rows), self.population.labels(rows))

    def works(self, number: int, users: Ints, begins: Ints, counts: Ints) -> list[LocalWork]:
        """Return the training of several users in a round."""
        rows = np.concatenate(
            [np.arange(begin, begin + count) for begin, count in zip(begins.tolist(), counts.tolist(), strict=True)]
        )
        x, y = (torch.split(of, counts.tolist()) for of in (self.population.inputs(rows), self.population.labels(rows)))
        return [self._planned(number, *own) for own in zip(users.tolist(), x, y, strict=True)]

    def _planned(self, number: int, user: int, x: Tensor, y: Tensor) -> LocalWork:
        examples, nothing = Examples(x, y, self.target), Examples(x[:0], y[:0], self.target)
        seed = training_seed(self.study.seed, number, user)
        return planned(
            self.study, number, examples=examples, validation=nothing, seed=seed, scale=self.population.scale
        )

    def asked(self, doing: Callable[[LocalWork], object], work: LocalWork) -> list[Training]:
        """Return the trainings that a method asks for, without doing them.

        Raises:
            ModelError: the method keeps something at a user.
        """
        found = list[Training]()

        def note(training: Training) -> float:
            found.append(training)
            return 0.0

        with trained_by(note):
            outcome = doing(work)
        if isinstance(outcome, Outcome) and (outcome.memory or outcome.control):
            raise ModelError(
                f"method '{self.study.method.kind}' keeps something at each user besides personal weights, which a "
                "simulation of devices does not"
            )
        return found

    def train_stacks(
        self,
        stacks: dict[str, Tensor],
        users: Ints,
        begins: Ints,
        counts: Ints,
        number: int,
        held: dict[str, Tensor],
        doing: Callable[[LocalWork], object] | None = None,
    ) -> list[float]:
        """Train a stack of all arrays in place, and return each user's mean loss in the first training.

        Args:
            users: sorted by their numbers of rows, most first.
            held: what the model holds while the method says what to train.
            doing: what asks for training; None: the method's training of a round.

        Raises:
            ModelError: the method keeps something, or torch.func does not take the model.
        """
        set_weights(self.beginning.model.module, {name: array.numpy() for name, array in held.items()})
        asked = [self.asked(doing or self.trains, work) for work in self.works(number, users, begins, counts)]
        alike = dict[Hashable, list[int]]()
        for place, own in enumerate(asked):
            alike.setdefault(tuple(stack_key(one) for one in own), []).append(place)
        losses = [0.0] * len(asked)
        for places in alike.values():
            part = stacks if len(places) == len(asked) else {name: stack[places] for name, stack in stacks.items()}
            for phase, together in enumerate(zip(*(asked[place] for place in places), strict=True)):
                names = list(begin(together[0].model, together[0].names))
                try:
                    found = train_arrays(together, part, names)
                except RuntimeError as error:
                    raise ModelError(f"torch.func does not take the model, so no stack trains it: {error}") from error
                if phase == 0:
                    losses = [dict(zip(places, found, strict=True)).get(at, loss) for at, loss in enumerate(losses)]
            if part is not stacks:
                for name, stack in stacks.items():
                    stack[places] = part[name]
        return losses

    def rows_trained(self, counts: Ints) -> Ints:
        """Return how many rows users with so many training rows pass through in a round."""
        return self._of_sizes(counts, sum)

    def steps_taken(self, counts: Ints) -> Ints:
        """Return how many steps users with so many training rows take in a round."""
        return self._of_sizes(counts, len)

    def _of_sizes(self, counts: Ints, what: Callable[[tuple[int, ...]], int]) -> Ints:
        training = self.study.training
        amount = Amount(training.batch_size, training.epochs, training.steps)
        known = {count: what(amount.sizes(count)) for count in np.unique(counts).tolist()}
        return np.array([known[count] for count in counts.tolist()], dtype=np.int64)
