"""The rows that a cohort trains on, in the order of each user's steps: the order in which a site would draw them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from consilium.client.training.stacked.by_rows import Drawn
from consilium.client.training.work import num_chunks
from consilium.common.seeds import seed_for
from consilium.devices.population import Array, Ints, Population


def user_name(user: int) -> str:
    """Return what a user would be called as a site; the user's chance follows from it."""
    return f"user-{user}"


def training_seed(seed: int, round_number: int, user: int) -> int:
    """Return the seed of a user's training in a round, that of a site of the user's name."""
    return seed_for(seed, "training", round_number, user_name(user))


@dataclass(frozen=True, eq=False)
class Amount:
    """How much a user trains in a round: exactly one of passes and steps is set, as in a study."""

    batch_size: int
    epochs: int | None
    steps: int | None

    def sizes(self, rows: int) -> tuple[int, ...]:
        """Return the number of rows of each step."""
        return _sizes(rows, self.batch_size, self.epochs, self.steps)


@lru_cache(maxsize=4096)
def _sizes(rows: int, batch_size: int, epochs: int | None, steps: int | None) -> tuple[int, ...]:
    whole = num_chunks(rows, batch_size)
    one = (*[batch_size] * (whole - 1), rows - batch_size * (whole - 1))
    if steps is None:
        assert epochs is not None
        return one * epochs
    return (one * -(-steps // whole))[:steps]


def held_out(counts: Ints, part: float) -> Ints:
    """Return how many of each user's rows, the last ones, are for measuring: at least one is left to train on."""
    kept: Ints = np.minimum(counts - 1, np.floor(counts * part + 1e-9).astype(np.int64))
    return kept


def drawn_rows(population: Population, begins: Ints, counts: Ints, seeds: Sequence[int], amount: Amount) -> Drawn:
    """Return the rows of some users in the order of their steps, filled up where users have different numbers.

    Args:
        begins: where each user's training rows begin.
        counts: how many there are.
        seeds: of each user's order.
    """
    sizes = [amount.sizes(count) for count in counts.tolist()]
    steps = max(map(len, sizes))
    widths = [max(own[step] for own in sizes if step < len(own)) for step in range(steps)]
    ends = np.cumsum(widths)
    index = np.repeat(begins[:, None], int(ends[-1]), axis=1)
    weights, generator = np.zeros(index.shape, dtype=np.float32), torch.Generator()
    places = dict[tuple[int, ...], tuple[Ints, Array]]()
    for row, (own, count, seed) in enumerate(zip(sizes, counts.tolist(), seeds, strict=True)):
        if own not in places:
            at = [np.arange(size) + end - width for size, end, width in zip(own, ends, widths, strict=False)]
            part = np.repeat(np.float32(1) / np.array(own, dtype=np.float32), own)
            places[own] = np.concatenate(at), part
        where, part = places[own]
        generator.manual_seed(seed)
        order = torch.randperm(count, generator=generator)
        while len(order) < len(where):
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        index[row, where] += order.numpy()[: len(where)]
        weights[row, where] = part
    return Drawn(
        x=population.inputs(index).flatten(2),
        y=population.labels(index),
        weights=torch.from_numpy(weights),
        ends=ends.tolist(),
        counts=torch.tensor([len(own) for own in sizes]),
    )
