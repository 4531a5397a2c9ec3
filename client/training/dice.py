"""The loss of masks: cross-entropy of the pixels, and soft Dice of the classes, each picture by itself.

Milletari, Navab, Ahmadi: V-Net, 3DV 2016, section 3, https://arxiv.org/abs/1606.04797; the sum of both as Isensee et
al.: nnU-Net, Nature Methods 2021, https://arxiv.org/abs/1809.10486. With probabilities p, truth t in {0, 1} and pixels
i of a picture, and classes c = 1 .. C - 1, those that are no background,

    D_c = (2 sum_i p_ci t_ci + s) / (sum_i p_ci + sum_i t_ci + s)
    L   = mean_i -log p_(y_i) i  +  1 - mean_c D_c

and the loss of a batch is the mean over its pictures. Two sums that the papers leave open: the denominator has no
squares, as in nnU-Net, and s = 1 pixel, so that a class that a picture lacks costs as much as is said of it, and
nothing where nothing is said.
"""

import torch
from torch import Tensor
from torch.nn import functional

SMOOTHING = 1.0
"""Pixels that are added to the overlap and to the regions of every class, s."""


def mask_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss `()` of a batch of pictures.

    Args:
        logits: `(B, C, H, W)`, C >= 2.
        y: numbers of classes `(B, H, W)`, of any whole type.
    """
    exact, truth = logits.float(), y.long()
    entropy = functional.cross_entropy(exact, truth)
    chances = exact.softmax(dim=1)[:, 1:]
    true = functional.one_hot(truth, logits.shape[1]).movedim(-1, 1)[:, 1:].to(chances.dtype)
    both, said, there = (one.sum(dim=(2, 3)) for one in (chances * true, chances, true))
    overlap = (2 * both + SMOOTHING) / (said + there + SMOOTHING)
    return entropy + torch.mean(1 - overlap)
