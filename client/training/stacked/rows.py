"""The batches of several sites side by side, in each site's own order; short ones are filled up with rows of no weight.

Sites are sorted by their number of steps, most first, so that those which still have a batch are always the first ones:
who is done is left out, and no step is computed in vain.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from consilium.client.data.target import Target
from consilium.client.training.work import LocalWork, rows_of_batches

_MOST_BYTES = 2**23
"""Most bytes of inputs that are gathered at a time."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some steps of the first S sites: inputs `(T, S, B, ...)`, labels `(T, S, B, ...)` and rows' weights `(T, S, B)`.

    A row weighs 1 / n in a batch of n rows, so that a weighted sum is the batch's mean; a row that fills up weighs 0.
    """

    x: Tensor
    y: Tensor
    weights: Tensor


def blocks(works: Sequence[LocalWork]) -> Iterator[Block]:
    """Yield all steps of some sites' works, which are sorted by their number of steps, most first."""
    orders, steps = [rows_of_batches(work) for work in works], [work.num_steps for work in works]
    most = max(1, _MOST_BYTES // sum(_bytes_of_batch(work) for work in works))
    done = 0
    while done < steps[0]:
        count = sum(own > done for own in steps)
        number = min(most, steps[count - 1] - done)
        yield _block(works[:count], [list(islice(order, number)) for order in orders[:count]])
        done += number


def summed_losses(aim: Target, answers: Sequence[Tensor], block: Block) -> Tensor:
    """Return the sum of the losses of each site's batches in a block, float64 `(S,)`, given each step's answers."""
    losses = aim.row_losses(torch.stack(list(answers)).flatten(0, 2), block.y.flatten(0, 2))
    assert losses is not None
    return (losses.view(block.weights.shape) * block.weights).sum(dim=2).double().sum(dim=0)


def of_first(stacks: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return views of the first `count` sites' part of stacks."""
    return {name: stack[:count] for name, stack in stacks.items()}


def _bytes_of_batch(work: LocalWork) -> int:
    x = work.examples.x
    return work.batch_size * max(1, x[:1].numel() * x.element_size())


def _block(works: Sequence[LocalWork], chosen: Sequence[Sequence[Tensor]]) -> Block:
    width = max(rows.shape[0] for own in chosen for rows in own)
    x, y, lengths = list[Tensor](), list[Tensor](), list[list[int]]()
    for work, own in zip(works, chosen, strict=True):
        rows = torch.stack([_filled(one, width) for one in own])
        x.append(work.examples.x[rows])
        y.append(work.examples.y[rows])
        lengths.append([one.shape[0] for one in own])
    sizes = torch.tensor(lengths, dtype=torch.float32).t()[..., None]
    weights = torch.where(torch.arange(width) < sizes, 1 / sizes, 0.0).to(x[0].device)
    return Block(torch.stack(x, dim=1), torch.stack(y, dim=1), weights)


def _filled(rows: Tensor, width: int) -> Tensor:
    """Return so many row numbers: a short batch goes on with its first row, which is as finite as the batch is."""
    missing = width - rows.shape[0]
    return torch.cat([rows, rows[:1].expand(missing)]) if missing else rows
