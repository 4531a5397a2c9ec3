"""Calibrates a model on its site's validation rows: how sure it may be of a class, how far off a number can be.

Classes: temperature scaling (`consilium.serving.temperature`), of several labels one for each, of masks one for all
pixels.

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
from torch import Tensor

from consilium.client.served import ServedModel, load_model
from consilium.common.errors import ConfigError, DataError
from consilium.common.model import LabelTemperatures, ModelRecord, Residuals, Temperature, write_record
from consilium.serving.calibrate_labels import FittedLabels, temperatures_of
from consilium.serving.calibrate_masks import temperature_of_masks
from consilium.serving.own_rows import own_rows_of, parts_of
from consilium.serving.temperature import Ints, temperature_of

Found = Temperature | LabelTemperatures | Residuals


@dataclass(frozen=True)
class Calibrated:
    """A model's record after the calibration, and whether the calibration was taken.

    Args:
        calibration: of several labels, of those that it helps; None where it helps none.
        helps: whether the log loss of rows that it was not fitted on is smaller; True for numbers.
        labels: what was found of each of several labels; None where an example has one.
    """

    record: ModelRecord
    calibration: Found | None
    helps: bool
    labels: FittedLabels | None = None


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
    if model.record.task.survival_times is not None:
        raise ConfigError("a model of task.survival answers relative risks, which have no true value to calibrate by")
    rows = own_rows_of(settings, model.record, part="validation", option="--site").inputs
    prepared = model.prepared(rows)
    assert prepared.y is not None
    groups = np.arange(len(prepared)) if prepared.groups is None else prepared.groups.numpy()
    labels: FittedLabels | None = None
    found: Found | None
    if model.record.task.label_kind == "masks":
        found, helps = temperature_of_masks(model, prepared.x, prepared.y, groups)
    elif names := model.record.task.label_names:
        labels = temperatures_of(model.logits(prepared.x), prepared.y, groups, names)
        found, helps = labels.calibration, bool(labels.helps)
    elif model.record.task.number is not None:
        found, helps = _residuals(model, model.logits(prepared.x), prepared.y, groups, level), True
    else:
        found, helps = temperature_of(model.logits(prepared.x), prepared.y, groups)
    record = model.record.model_copy(update={"calibration": found}) if helps else model.record
    return Calibrated(write_record(folder, record) if helps else record, found, helps, labels)


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
