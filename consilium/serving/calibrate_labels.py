"""Calibrates each of several labels: a temperature of its own, on the validation rows that know it.

As for two classes (`consilium.serving.temperature`): p_l = sigmoid(z_l / T_l), with the T_l > 0 of least log loss over
the rows of which label l is known. A label is calibrated only if that helps patients on whom T_l was not fitted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consilium.common.errors import DataError
from consilium.common.intervals.rare import patients_of
from consilium.common.model import LabelTemperatures, Temperature
from consilium.serving.temperature import FOLDS, LEAST_PATIENTS, Ints, temperature_of


@dataclass(frozen=True)
class FittedLabels:
    """What was found of each label.

    Args:
        tried: the temperatures that were fitted, by label.
        helps: the labels of which it helps.
        skipped: why the other labels have none.
    """

    tried: Mapping[str, Temperature]
    helps: frozenset[str]
    skipped: Mapping[str, str]

    @property
    def calibration(self) -> LabelTemperatures | None:
        """Return the temperatures that help; None where none does."""
        kept = {label: one for label, one in self.tried.items() if label in self.helps}
        return LabelTemperatures(labels=kept) if kept else None


def temperatures_of(logits: Tensor, y: Tensor, groups: Ints, names: tuple[str, ...]) -> FittedLabels:
    """Return the temperature of each label, given logits and labels `(N, L)`, of which NaN is not known.

    Args:
        groups: the patient of each row `(N,)`.

    Raises:
        DataError: too few patients know any label.
    """
    tried, helps, skipped = dict[str, Temperature](), set[str](), dict[str, str]()
    for place, label in enumerate(names):
        known = ~torch.isnan(y[:, place])
        rows, truth = known.numpy(), y[known, place].to(torch.int64)
        if why := _too_few(truth.numpy() == 1, groups[rows]):
            skipped[label] = why
            continue
        tried[label], better = temperature_of(logits[known][:, [place]], truth, groups[rows])
        helps |= {label} if better else set()
    if not tried:
        first = f"of '{names[0]}' there are {skipped[names[0]]}"
        raise DataError(f"too few validation patients know any label: {first}")
    return FittedLabels(tried, frozenset(helps), skipped)


def _too_few(there: np.ndarray[tuple[int], np.dtype[np.bool_]], groups: Ints) -> str:
    """Return why a label cannot be calibrated; "" where it can be."""
    if (patients := len(np.unique(groups))) < LEAST_PATIENTS:
        return f"{patients} validation patients who know it, expected at least {LEAST_PATIENTS}"
    kinds = [patients_of(rows, groups) for rows in (there, ~there)]
    if min(kinds) < FOLDS:
        return f"{kinds[0]} validation patients who have it and {kinds[1]} who have it not, expected {FOLDS} of each"
    return ""
