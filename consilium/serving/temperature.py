"""Fits the temperature of least log loss, and measures what it gains on patients on whom it was not fitted.

Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, section 4.2,
https://arxiv.org/abs/1706.04599: probabilities of logits / T, T > 0. Patients are in 5 folds, and each fold is answered
with the T of the others.
"""

import math

import numpy as np
import scipy  # its optimize is loaded when it is used first
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilium.client.data.target import loss_of
from consilium.common.errors import DataError
from consilium.common.model import Temperature
from consilium.common.seeds import seed_for
from consilium.comparison.evaluation import ClassScores

FOLDS = 5
LEAST_PATIENTS = 2 * FOLDS
"""With fewer patients a fold says nothing."""
_COLDEST, _HOTTEST = math.log(0.05), math.log(20)

Ints = NDArray[np.int64]


def temperature_of(logits: Tensor, y: Tensor, groups: Ints) -> tuple[Temperature, bool]:
    """Return the temperature of logits `(N, outputs)` and classes `(N,)`, and whether it helps rows not fitted on.

    Args:
        groups: the patient of each row `(N,)`.

    Raises:
        DataError: too few patients.
    """
    if (patients := len(np.unique(groups))) < LEAST_PATIENTS:
        raise DataError(
            f"{patients} validation patients are too few to calibrate with, expected at least {LEAST_PATIENTS}"
        )
    fold = folds(groups)
    apart = torch.empty(logits.shape, dtype=torch.float64)
    for number in range(FOLDS):
        out = torch.from_numpy(fold == number)
        apart[out] = logits[out].double() / _fitted(logits[~out], y[~out])
    losses = tuple(float(loss_of(one, y)) for one in (logits.double(), apart))
    found = Temperature(
        temperature=_fitted(logits, y),
        num=len(y),
        log_loss=(losses[0], losses[1]),
        calibration_error=(_calibration_error(logits, y), _calibration_error(apart, y)),
    )
    return found, losses[1] < losses[0]


def _calibration_error(logits: Tensor, y: Tensor) -> float:
    error = ClassScores.of_logits(y.numpy(), logits.numpy()).measure("calibration_error")
    assert error is not None  # it is defined for any rows
    return error


def folds(groups: Ints) -> Ints:
    """Return a fold 0 to `FOLDS` - 1 for each row `(N,)`, the same for all rows of a patient."""
    names, member = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed_for(0, "calibration")).permutation(len(names))
    return np.asarray((order % FOLDS)[member], dtype=np.int64)


def _fitted(logits: Tensor, y: Tensor) -> float:
    exact = logits.double()
    found = scipy.optimize.minimize_scalar(
        lambda log: float(loss_of(exact / math.exp(log), y)), bounds=(_COLDEST, _HOTTEST), method="bounded"
    )
    return math.exp(float(found.x))
