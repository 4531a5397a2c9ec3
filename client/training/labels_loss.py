"""The loss of several labels of an example, some of which are not known.

With the logits z and the labels y of a batch `(B, L)`, of which the cells K are known,

    loss = sum over (i, l) in K of BCE(z_il, y_il) / (B L)

Every known cell counts alike, and the loss of a batch is the mean of its rows' own losses, of which a row without a
known label has 0.
"""

import torch
from torch import Tensor
from torch.nn import functional


def labels_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss `()` of logits `(B, L)` and labels `(B, L)`: 1, 0, or NaN where one is not known."""
    return cell_losses(logits, y).mean()


def cell_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each cell `(B, L)`, 0 where the label is not known."""
    known = ~torch.isnan(y)
    truth = torch.where(known, y, 0.0).to(logits.dtype)
    cells = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return torch.where(known, cells, 0.0)
