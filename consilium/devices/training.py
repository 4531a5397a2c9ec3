"""The training of a cohort: users that are alike as one stack, or without a copy of the weights for any of them."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consilium.client.training.loop import begin
from consilium.client.training.schedule import of_round
from consilium.client.training.stacked.by_rows import pays, summed_by_rows
from consilium.client.training.stacked.gradients import ByFormula, stacked_gradient
from consilium.client.training.stacked.train import MOST_NUMBERS
from consilium.common.weights.arrays import Weights
from consilium.devices.learning import Learning
from consilium.devices.personal import Floats32, Personal
from consilium.devices.population import Floats, Ints
from consilium.devices.rows import Amount, drawn_rows, training_seed

MOST_ROW_BYTES = 2**23
"""So many bytes of inputs are trained on at a time, where no copy of the weights is needed."""
MOST_TOGETHER = 128


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of a cohort's training.

    Args:
        mean: the sum of the updates, each by its share, of every shared array; float64.
        loss: the mean over users of their mean loss.
        longest: the median of the lengths of the updates before they were shortened; None without a clip.
        shortened: the part of the updates that was longer than the clip.
        in_rows, in_stacks: how many users were trained which way.
    """

    mean: dict[str, Floats]
    loss: float
    median_norm: float | None
    shortened: float
    in_rows: int
    in_stacks: int


def train_cohort(
    learning: Learning,
    weights: Weights,
    users: Ints,
    shares: Floats,
    *,
    number: int,
    personal: Personal | None,
    clip: float | None,
) -> Trained:
    """Train users from the same weights, piece by piece, and return the sum of their updates, each by its share.

    Args:
        weights: the shared arrays.
        users: those whose updates count.
        shares: of each.
        personal: where users keep their own arrays; what they have after the round is written there.
        clip: the largest norm of one user's update.
    """
    begins, counts, _ = learning.split(users)
    order = np.lexsort((users, -counts))  # those with as many rows together, most first, as stacks want them
    total = {name: np.zeros(np.shape(weights[name])) for name in learning.beginning.shared}
    losses, norms, ways = list[float](), list[float](), Counter[str]()
    arrays = {**learning.beginning.initial, **weights}
    start = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    way = _way(learning, start, number)
    one_for_all = of_round(learning.study.training.schedule, number, learning.study.rounds)[1] is None
    place = 0
    while place < len(order):
        rows = int(learning.rows_trained(counts[order[place : place + 1]])[0])
        by_rows = way is not None and pays(way.layers, start, rows)
        some = order[place : place + (_together_by_rows(learning, rows) if by_rows else _together(learning))]
        if by_rows and not one_for_all:  # rates that hang on the number of steps are those of users with as many
            some = some[learning.steps_taken(counts[some]) == learning.steps_taken(counts[some[:1]])]
        place += len(some)
        piece = _Piece(learning, start, users[some], begins[some], counts[some], shares[some], number, clip)
        own = learning.personal_stacks(personal, piece.users)
        moved, own_losses, own_norms = piece.by_rows(way, own) if by_rows and way else piece.stacked(own)
        for name, change in moved.items():
            total[name] += change.double().numpy()
        if personal is not None:
            personal.write(piece.users, piece.flat(own), number)
        learning.population.let_go()
        losses += own_losses
        norms += own_norms
        ways["rows" if by_rows else "stacks"] += len(some)
    losses, norms = ([value for value in each if math.isfinite(value)] for each in (losses, norms))  # of all but these
    return Trained(
        mean=total,
        loss=float(np.mean(losses)) if losses else 0.0,
        median_norm=float(np.median(norms)) if norms else None,
        shortened=float(np.mean(np.array(norms) > (clip or np.inf))) if norms else 0.0,
        in_rows=ways["rows"],
        in_stacks=ways["stacks"],
    )


def _together(learning: Learning) -> int:
    numbers = sum(array.size for array in learning.beginning.initial.values())
    return min(MOST_TOGETHER, max(1, MOST_NUMBERS // numbers))


def _together_by_rows(learning: Learning, rows: int) -> int:
    size = 4 * rows * int(np.prod(learning.study.task.input_shape))
    return min(MOST_TOGETHER, max(1, MOST_ROW_BYTES // size))


def _way(learning: Learning, start: dict[str, Tensor], number: int) -> ByFormula | None:
    """Return the formula by which the study's training needs no copies of the weights; None where there is none."""
    work = learning.work(number, *learning.split(np.zeros(1, np.int64))[:2], user=0)
    asked = learning.asked(learning.trains, work)
    if len(asked) != 1 or asked[0].work is not work or asked[0].own is not None or asked[0].correction is not None:
        return None
    plain = work.optimiser == "sgd" and not work.weight_decay and work.clip_gradient is None
    if not plain or work.sampling != "shuffled":
        return None
    gradient = stacked_gradient(learning.beginning.model.module, work.aim, work.examples)
    trained = set(begin(learning.beginning.model, asked[0].names))
    return gradient if isinstance(gradient, ByFormula) and trained == set(start) else None


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some users of a cohort, sorted by their numbers of rows, most first."""

    learning: Learning
    start: dict[str, Tensor]
    users: Ints
    begins: Ints
    counts: Ints
    shares: Floats
    number: int
    clip: float | None

    def flat(self, own: dict[str, Tensor]) -> Floats32:
        """Return the users' own arrays one after the other."""
        return torch.cat([own[name].flatten(1) for name in self.learning.personal_names], dim=1).numpy()

    def by_rows(self, way: ByFormula, own: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[float], list[float]]:
        """Train without copies of the weights; `own` gets what users keep. Return their sum, losses and lengths."""
        study, seed = self.learning.study, self.learning.study.seed
        amount = Amount(study.training.batch_size, study.training.epochs, study.training.steps)
        seeds = [training_seed(seed, self.number, user) for user in self.users.tolist()]
        drawn = drawn_rows(self.learning.population, self.begins, self.counts, seeds, amount)
        work = self.learning.work(self.number, self.begins[:1], self.counts[:1], user=int(self.users[0]))
        rate = work.rate_of_steps()
        done = summed_by_rows(
            way,
            self.start | own,
            drawn,
            aim=work.aim,
            rates=[rate(step) for step in range(len(drawn.ends))],
            momentum=work.momentum,
            shares=torch.from_numpy(self.shares).float(),
            clip=self.clip,
        )
        own |= done.own
        return done.total, done.losses.tolist(), [] if done.norms is None else done.norms.tolist()

    def stacked(self, own: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[float], list[float]]:
        """Train a copy of the weights for each user; the rest as of `by_rows`."""
        stacks = {
            name: own[name] if name in own else array.expand(len(self.users), *array.shape).clone()
            for name, array in self.start.items()
        }
        losses = self.learning.train_stacks(stacks, self.users, self.begins, self.counts, self.number, self.start)
        own |= {name: stacks[name] for name in own}
        shared = self.learning.beginning.shared
        moved = {name: stacks[name] - self.start[name] for name in shared}
        factor, norms = torch.from_numpy(self.shares), list[float]()
        if self.clip is not None:
            squares = torch.stack([change.flatten(1).double().square().sum(dim=1) for change in moved.values()])
            length = squares.sum(dim=0).sqrt()
            usable = length.isfinite()  # who diverged counts as nothing: that a round fails would tell of this one user
            for change in moved.values():
                change[~usable] = 0
            factor = torch.where(usable, factor * (self.clip / length.clamp(min=1e-30)).clamp(max=1.0), 0)
            norms = length.tolist()
        summed = {name: torch.tensordot(factor, change.double(), dims=1) for name, change in moved.items()}
        return summed, losses, norms
