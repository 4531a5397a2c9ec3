"""The order in which a site's training examples are drawn: each once in a pass, or every class as often as the others.

Balanced draws are with replacement, each by itself: a class that the site has with equal probability, then an example
of it. A row of a class of n_c rows, of C classes that occur, is drawn with probability 1 / (C n_c), so that a pass
sees every class about as often as another, and the rows of a small class several times.
"""

import torch
from torch import Tensor


def shuffled(count: int, generator: torch.Generator) -> Tensor:
    """Return a permutation of so many rows: int64 `(count,)`, on the CPU."""
    return torch.randperm(count, generator=generator)


def spread(strata: Tensor, generator: torch.Generator) -> Tensor:
    """Return a permutation in which the rows of each stratum lie at equal distances: int64 `(N,)`, on the CPU.

    So every batch has its share of each: of events too, without which a batch says nothing of times. Which row of a
    stratum comes where, and where the first one lies, is drawn.

    Args:
        strata: numbers `(N,)`.
    """
    _, of = torch.unique(strata.cpu(), return_inverse=True)
    place = torch.empty(len(of), dtype=torch.float64)
    for stratum in range(int(of.max()) + 1):
        rows = (of == stratum).nonzero().flatten()
        order = torch.randperm(len(rows), generator=generator)
        place[rows[order]] = (torch.arange(len(rows)) + torch.rand(1, generator=generator).double()) / len(rows)
    return place.argsort()


def balanced(y: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many rows as there are, drawn so that each class that occurs is as likely as another.

    Args:
        y: class numbers `(N,)`, N >= 1.

    Returns:
        int64 `(N,)`, on the CPU.
    """
    return torch.multinomial(chances(y), len(y), replacement=True, generator=generator)


def chances(y: Tensor) -> Tensor:
    """Return the probability of every row in a balanced draw: float64 `(N,)`, on the CPU, summing to 1."""
    known, rows = torch.unique(y.cpu(), return_inverse=True)
    counts = torch.bincount(rows, minlength=len(known)).double()
    return (1 / (len(known) * counts))[rows]


def balanced_weights(y: Tensor, num_classes: int) -> tuple[float, ...]:
    """Return the weight of every class's rows in a loss with which all classes that occur count the same.

    A class of n_c rows, of N in all and C classes that occur, weighs N / (C n_c): the mean over the rows is 1. A class
    that does not occur weighs 0.

    Args:
        y: class numbers `(N,)`, N >= 1.
    """
    counts = torch.bincount(y.cpu(), minlength=num_classes).double()
    present = counts > 0
    weights = torch.where(present, len(y) / (present.sum() * counts.clamp(min=1)), torch.zeros_like(counts))
    return tuple(float(weight) for weight in weights)
