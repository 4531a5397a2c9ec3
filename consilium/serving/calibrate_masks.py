"""Calibrates a model of masks: one temperature for the probabilities of all pixels, by some of each picture's.

Pixels of a picture are alike, so a part of them says as much: `MOST_PIXELS` in all, as many of each validation picture,
drawn the same at every call. Patients stay together, as everywhere in `consilium.serving.temperature`. Masks stay as
they are, for the most probable class does; the probabilities change that `consilium export` answers.
"""

import numpy as np
import torch
from torch import Tensor

from consilium.client.served import ServedModel
from consilium.client.training.evaluation import pictures_at_once
from consilium.common.model import Temperature
from consilium.common.seeds import seed_for
from consilium.serving.temperature import Ints, temperature_of

MOST_PIXELS = 2**18


def temperature_of_masks(
    model: ServedModel, x: Tensor, y: Tensor, groups: Ints, *, most: int = MOST_PIXELS
) -> tuple[Temperature, bool]:
    """Return the temperature of a model on pictures, and whether it helps patients on whom it was not fitted.

    Args:
        x: prepared pictures `(N, C, H, W)`.
        y: their masks `(N, H, W)`.
        groups: the patient of each `(N,)`.
        most: of how many pixels in all, at least one of each picture.

    Raises:
        DataError: too few patients.
    """
    each, size = max(1, min(most // len(y), y[0].numel())), pictures_at_once(x)
    drawn = torch.Generator().manual_seed(seed_for(0, "calibration pixels"))
    logits, labels = list[Tensor](), list[Tensor]()
    for part, masks in zip(torch.split(x, size), torch.split(y, size), strict=True):
        for answer, mask in zip(model.logits(part).flatten(2), masks.flatten(1), strict=True):
            places = torch.randperm(len(mask), generator=drawn)[:each]
            logits.append(answer[:, places].T)
            labels.append(mask[places].long())
    found, helps = temperature_of(torch.cat(logits), torch.cat(labels), np.repeat(groups, each))
    return found.model_copy(update={"num": len(y)}), helps
