"""The usual tool for times until an event: Cox's model with a ridge penalty, chosen by cross-validation.

With the log partial likelihood l, ties by Efron, of N patients with standardised columns x,

    b = argmin of - l(b) / N + penalty / 2 * |b|^2

(Verweij and van Houwelingen, "Penalized likelihood in Cox regression", Statistics in Medicine 1994,
doi:10.1002/sim.4780132307). The penalty is the one with the largest cross-validated partial likelihood: over the folds
k, the sum of l(b_-k) - l_-k(b_-k), where b_-k and l_-k are of the rows outside of k (the same, "Cross-validation in
survival analysis", Statistics in Medicine 1993, doi:10.1002/sim.4780122407).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilium.client.training.cox import cox_loss

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""What is chosen from; the last one leaves nearly nothing of a model."""
_STEPS = 200


def coefficients(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Return the coefficients `(F,)` of columns `(N, F)`, both in float64.

    Args:
        y: times, with a minus sign where they are censored `(N,)`.
        penalty: greater than 0.
    """
    found = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [found], max_iter=_STEPS, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = cox_loss(x @ found, y) + penalty / 2 * (found**2).sum()
        torch.autograd.backward(value)
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call] # torch does not type it
    return found.detach()


def chosen_penalty(x: Tensor, y: Tensor, folds: NDArray[np.int64], penalties: Sequence[float] = PENALTIES) -> float:
    """Return the penalty with the largest cross-validated partial likelihood; the largest where there is one fold."""
    scores = [_cross_validated(x, y, folds, penalty) for penalty in penalties]
    return penalties[int(np.argmax(scores))] if folds.max() > 0 else max(penalties)


def _cross_validated(x: Tensor, y: Tensor, folds: NDArray[np.int64], penalty: float) -> float:
    total = 0.0
    for fold in range(int(folds.max()) + 1):
        rest = torch.from_numpy(folds != fold)
        if not bool(rest.any()):
            return 0.0
        own = coefficients(x[rest], y[rest], penalty)
        total += float(cox_loss(x[rest] @ own, y[rest])) * int(rest.sum()) - float(cox_loss(x @ own, y)) * len(y)
    return total
