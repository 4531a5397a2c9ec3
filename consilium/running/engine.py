"""How sites in one process train: one after the other, exactly as deployed, or those that are alike as one stack."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from consilium.client.training.loop import take
from consilium.client.training.request import Training, trained_by
from consilium.client.training.stacked.alike import stack_key, why_alone
from consilium.client.training.stacked.train import train_stack
from consilium.common.engines import EngineName
from consilium.common.results import EngineUse
from consilium.running.lockstep import Ask, Wrong, in_lockstep

R = TypeVar("R")

MOST_TOGETHER = 64
"""How many sites answer at the same time: each holds its model and what it received."""
NO_OTHER = "no other site trains the same then"
NOT_TAKEN = "torch.func does not take the model"


@dataclass(frozen=True, eq=False)
class Engine:
    """An engine, and the trainings that were done by themselves, by the reason; under None those in a stack."""

    name: EngineName = "exact"
    done: Counter[str | None] = field(default_factory=Counter)

    @property
    def at_once(self) -> int:
        """How many sites' answers are made at the same time."""
        return 1 if self.name == "exact" else MOST_TOGETHER

    def use(self) -> EngineUse | None:
        """Return what was done so far; None of the engine that is deployed."""
        if self.name == "exact":
            return None
        alone = {reason: count for reason, count in self.done.items() if reason is not None}
        return EngineUse(name=self.name, stacked=self.done[None], alone=dict(sorted(alone.items())))

    def answers(self, tasks: Sequence[Callable[[], R]]) -> list[R]:
        """Let sites answer, in the order given, and return their answers."""
        if self.name == "exact":
            return [task() for task in tasks]
        return in_lockstep([partial(_asking, task) for task in tasks], self._train)

    def _train(self, asked: Sequence[Training]) -> list[float | Wrong]:
        losses = dict[int, float | Wrong]()
        for places, reason in _groups(asked):
            trainings = [asked[place] for place in places]
            if reason is None:
                try:
                    losses |= dict(zip(places, train_stack(trainings), strict=True))
                except RuntimeError:  # in many words, for layers that it does not take
                    reason = NOT_TAKEN
            if reason is not None:
                losses |= {place: _by_itself(asked[place]) for place in places}
            self.done[reason] += len(places)
        return [losses[place] for place in range(len(asked))]


def _asking(task: Callable[[], R], ask: Ask[Training, float]) -> R:
    with trained_by(ask):
        return task()


def _groups(asked: Sequence[Training]) -> list[tuple[list[int], str | None]]:
    """Return the places of trainings that are one stack, with None, and of others with why they are not."""
    reasons = [why_alone(one) for one in asked]
    stacks = dict[object, list[int]]()
    for place, reason in enumerate(reasons):
        stacks.setdefault(stack_key(asked[place]) if reason is None else reason, []).append(place)
    found = list[tuple[list[int], str | None]]()
    for places in stacks.values():
        reason = reasons[places[0]]
        found.append((places, NO_OTHER if reason is None and len(places) == 1 else reason))
    return found


def _by_itself(asked: Training) -> float | Wrong:
    """Train as the site would; what goes wrong is the site's."""
    try:
        return take(asked)
    except Exception as error:
        return Wrong(error)
