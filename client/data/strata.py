"""What a split is stratified by where examples may have several labels."""

import torch
from torch import Tensor

LEAST_ROWS = 10
"""Fewest rows of a stratum that one of several labels makes, so that each part gets some."""


def rarest(there: Tensor) -> Tensor:
    """Return for each row the rarest of what it has `(N,)`, of a mask `(N, L)`; L for rows without any.

    What fewer than `LEAST_ROWS` rows would be named after makes no stratum.
    """
    count = there.shape[1]
    found = torch.full((len(there),), count)
    for label in there.sum(dim=0).argsort(stable=True).tolist():
        rows = there[:, label] & (found == count)
        if int(rows.sum()) >= LEAST_ROWS:
            found[rows] = label
    return found
