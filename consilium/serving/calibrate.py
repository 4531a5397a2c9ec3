"""Calibrates a model on its site's validation rows: how sure it may be of a class, how far off a number can be.

Classes: temperature scaling (Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, section
4.2, https://arxiv.org/abs/1706.04599): probabilities of logits / T, with the T > 0 of least log loss. What it gains is
measured on rows on which T was not fitted: patients are in 5 folds, and each fold is answered with the T of the others.

Numbers: split conformal prediction (Lei, G'Sell, Rinaldo, Tibshirani, Wasserman: Distribution-Free Predictive Inference
for Regression, JASA 2018, algorithm 2, https://arxiv.org/abs/1604.04173): with |r|_(k) the k-th smallest absolute
residual of n patients and k = ceil((n + 1) level), the true value of a new patient lies within |r|_(k) of the answer
with a probability of at least `level`, if it comes from where these come from. Of a patient with several rows the
first one counts.

Nothing is trained, and the most probable class stays the same. The validation rows may have chosen the model's round or
mix, so that both are a little too good.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from consilium.client.data.target import loss_of
from consilium.client.served import ServedModel, load_model
from consilium.common.errors import ConfigError, DataError
from consilium.common.model import ModelRecord, Residuals, Temperature, write_record
from consilium.common.seeds import seed_for
from consilium.comparison.evaluation import ClassScores
from consilium.serving.masks import refuse_masks
from consilium.serving.own_rows import own_rows_of, parts_of

FOLDS = 5
LEAST_PATIENTS = 2 * FOLDS
"""With fewer patients a fold says nothing."""
_COLDEST, _HOTTEST = math.log(0.05), math.log(20)

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Calibrated:
    """A model's record after the calibration, and whether the calibration was taken.

    Args:
        helps: whether the log loss of rows that it was not fitted on is smaller; True for numbers.
    """

    record: ModelRecord
    calibration: Temperature | Residuals
    helps: bool


def calibrate(folder: Path, settings: Path, *, level: float = 0.9) -> Calibrated:
    """Calibrate the model in a folder on its site's validation rows, and write that into the folder if it helps.

    Args:
        folder: a model that a site wrote.
        settings: the `site.toml` of that site.
        level: share of new patients whose true value is to lie inside the interval; for numbers.

    Raises:
        ConfigError: the settings are of another site than the model, or a level that cannot be.
        DataError: the data is no longer that of the run, or has too few validation rows.
        ModelError: the model cannot be loaded.
    """
    if not 0 < level < 1:
        raise ConfigError(f"--level: must be a number between 0 and 1, got {level:g}")
    with parts_of(settings):
        model = load_model(folder)
    refuse_masks(model.record, "calibrating")
    if model.record.task.survival_times is not None:
        raise ConfigError("a model of task.survival answers relative risks, which have no true value to calibrate by")
    if model.record.task.label_names:
        raise ConfigError(
            "calibrating a model of several labels is not there yet: each label would have a temperature of its own, "
            "by the rows that know it"
        )
    rows = own_rows_of(settings, model.record, part="validation", option="--site").inputs
    prepared = model.prepared(rows)
    assert prepared.y is not None
    groups = np.arange(len(prepared)) if prepared.groups is None else prepared.groups.numpy()
    logits = model.logits(prepared.x)
    if model.record.task.number is not None:
        found: Temperature | Residuals = _residuals(model, logits, prepared.y, groups, level)
        helps = True
    else:
        found, helps = temperature_of(logits, prepared.y, groups)
    record = model.record.model_copy(update={"calibration": found}) if helps else model.record
    return Calibrated(write_record(folder, record) if helps else record, found, helps)


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
    found = optimize.minimize_scalar(
        lambda log: float(loss_of(exact / math.exp(log), y)), bounds=(_COLDEST, _HOTTEST), method="bounded"
    )
    return math.exp(float(found.x))


def _residuals(model: ServedModel, logits: Tensor, y: Tensor, groups: Ints, level: float) -> Residuals:
    number = model.record.task.number
    assert number is not None
    errors = (logits[:, 0].double() - y.double()).abs().numpy() * number.scale
    _, first = np.unique(groups, return_index=True)
    rank = math.ceil(round((len(first) + 1) * level, 9))
    if rank > len(first):
        least = math.ceil(round(level / (1 - level), 9))
        raise DataError(
            f"{len(first)} validation patients are too few for an interval that holds {level:.0%} of new ones, "
            f"expected at least {least}; or give a smaller --level"
        )
    return Residuals(level=level, width=float(np.sort(errors[first])[rank - 1]), num=len(first))
