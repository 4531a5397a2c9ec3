"""How good models are at a fixed panel of users, on rows that nobody trains on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from consilium.client.data.target import CountedTarget
from consilium.client.methods import serves_as_held
from consilium.client.models import set_weights
from consilium.client.training.work import LocalWork
from consilium.common.errors import ModelError, RunFailed
from consilium.common.seeds import seed_for
from consilium.common.weights.arrays import Weights
from consilium.devices.cohort import draw_cohort
from consilium.devices.learning import Learning
from consilium.devices.personal import Personal
from consilium.devices.population import Floats, Ints
from consilium.devices.result import QUANTILES, Measured

Bools = npt.NDArray[np.bool_]

_TOGETHER = 32


@dataclass(frozen=True, eq=False)
class Panel:
    """The users that models are measured at: those of a draw that have rows for it.

    Args:
        groups: the number of each one's group.
        left_out: how many of the draw have no rows for it.
    """

    users: Ints
    begins: Ints
    trained: Ints
    kept: Ints
    groups: Ints
    left_out: int

    @classmethod
    def of(cls, learning: Learning) -> "Panel":
        """Draw the panel: the same whatever the rounds."""
        study, population = learning.study, learning.population
        assert study.devices is not None
        size = min(study.devices.measured, population.users)
        users = draw_cohort(population.users, size, seed=seed_for(study.seed, "panel"), round_number=0, each=False)
        begins, trained, kept = learning.split(users)
        order = np.lexsort((users, -trained))
        order = order[kept[order] > 0]
        chosen = users[order]
        groups = population.groups_of(chosen)
        return cls(chosen, begins[order], trained[order], kept[order], groups, len(users) - len(chosen))


@dataclass(frozen=True, eq=False)
class Scores:
    """One model at each user of the panel: the number of rows, the sum of their losses, and how many it has right.

    Args:
        counts: the users at whom the model is told of; None: all.
    """

    rows: Ints
    losses: Floats
    right: Floats
    counts: Bools | None = None

    def told(self, of: Bools | None = None) -> Measured | None:
        """Return the numbers over all users, or some; None where there are none."""
        chosen = np.ones(len(self.rows), dtype=bool) if of is None else of
        chosen = chosen if self.counts is None else chosen & self.counts
        rows, losses, right = self.rows[chosen], self.losses[chosen], self.right[chosen]
        if not len(rows):
            return None
        quantiles = np.quantile(right / rows, QUANTILES)
        total = int(rows.sum())
        if not np.isfinite(losses.sum()):
            raise RunFailed("users' rows give a loss that is no number: the model diverged, or inputs are too large")
        return Measured(
            users=len(rows),
            rows=total,
            loss=float(losses.sum() / total),
            score=float(right.sum() / total),
            quantiles=tuple(float(one) for one in quantiles),
        )


def measure(
    learning: Learning, panel: Panel, weights: Weights, personal: Personal | None, *, number: int
) -> dict[str, Scores]:
    """Measure the global model, where there is one, and what users serve, where that is another.

    Where users keep weights of their own, those who have taken part are told of alone: others have none yet.

    Raises:
        ModelError: the method serves something else than the model.
    """
    found = dict[str, Scores]()
    plain = serves_as_held(learning.method) and personal is None
    if personal is None:
        found["global"] = _scores(learning, panel, weights, None, number=number, tuned=False)
    if not plain:
        found["personal"] = _scores(learning, panel, weights, personal, number=number, tuned=True)
    return found


def measure_constant(learning: Learning, panel: Panel) -> Scores:
    """Measure the constant answer of each user's own training rows: what every model must beat."""
    losses, right = np.zeros(len(panel.users)), np.zeros(len(panel.users))
    target = learning.target
    assert isinstance(target, CountedTarget)
    for place in range(len(panel.users)):
        begin, trained, kept = (int(one[place]) for one in (panel.begins, panel.trained, panel.kept))
        seen = learning.population.labels(np.arange(begin, begin + trained))
        asked = learning.population.labels(np.arange(begin + trained, begin + trained + kept))
        right[place] = float(target.right(target.constant(seen), asked).sum())
    return Scores(panel.kept, losses, right)


def _scores(
    learning: Learning, panel: Panel, weights: Weights, personal: Personal | None, *, number: int, tuned: bool
) -> Scores:
    losses, right = np.zeros(len(panel.users)), np.zeros(len(panel.users))
    arrays = {**learning.beginning.initial, **weights}
    start = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    for begin in range(0, len(panel.users), _TOGETHER):
        some = slice(begin, begin + _TOGETHER)
        x, y, there = _rows_of(learning, panel, some)
        if not tuned:
            answers = _answers_of_one(learning, start, x)
        else:
            stacks = _served(learning, panel, some, start, personal, number)
            answers = _answers(learning, stacks, x)
        losses[some], right[some] = _compared(learning, answers, y, there)
        learning.population.let_go()
    counts = None if personal is None else personal.known(panel.users)
    return Scores(panel.kept, losses, right, counts)


def _rows_of(learning: Learning, panel: Panel, some: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows to measure on `(S, B, ...)`, their labels, and which of them there are: others fill up."""
    kept, first = panel.kept[some], panel.begins[some] + panel.trained[some]
    column = np.arange(int(kept.max()))
    there = column < kept[:, None]
    rows = first[:, None] + np.where(there, column, 0)
    return learning.population.inputs(rows), learning.population.labels(rows), torch.from_numpy(there)


@torch.no_grad()
def _answers_of_one(learning: Learning, start: dict[str, Tensor], x: Tensor) -> Tensor:
    module = learning.beginning.model.module
    set_weights(module, {name: array.numpy() for name, array in start.items()})
    module.eval()
    answers: Tensor = module(x.flatten(0, 1))
    return answers


@torch.no_grad()
def _answers(learning: Learning, stacks: dict[str, Tensor], x: Tensor) -> Tensor:
    module = learning.beginning.model.module
    module.eval()

    def of_one(arrays: dict[str, Tensor], rows: Tensor) -> Tensor:
        found: Tensor = functional_call(module, arrays, (rows,))
        return found

    answers: Tensor = vmap(of_one)(stacks, x)
    return answers.flatten(0, 1)


def _served(
    learning: Learning,
    panel: Panel,
    some: slice,
    start: dict[str, Tensor],
    personal: Personal | None,
    number: int,
) -> dict[str, Tensor]:
    """Return what each user serves, as stacks."""
    users, begins, trained = panel.users[some], panel.begins[some], panel.trained[some]
    own = learning.personal_stacks(personal, users)
    stacks = {
        name: own[name] if name in own else array.expand(len(users), *array.shape).clone()
        for name, array in start.items()
    }
    if serves_as_held(learning.method):
        return stacks
    model = learning.beginning.model

    def serve(work: LocalWork) -> None:
        if learning.method.personalise(model, {}, work) is not model.module:
            raise ModelError(f"method '{learning.study.method.kind}' serves more than the model, which no stack can")

    learning.train_stacks(stacks, users, begins, trained, number, start, serve)
    return stacks


def _compared(learning: Learning, answers: Tensor, y: Tensor, there: Tensor) -> tuple[Floats, Floats]:
    target = learning.target
    losses = target.row_losses(answers, y.flatten(0, 1))
    assert losses is not None
    assert isinstance(target, CountedTarget)
    right = target.right(target.answers(answers), y.flatten(0, 1))
    summed: list[Floats] = [(one.view(there.shape).double() * there).sum(dim=1).numpy() for one in (losses, right)]
    return summed[0], summed[1]
