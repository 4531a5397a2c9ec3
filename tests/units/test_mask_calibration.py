"""One temperature for the pixels of a model of masks: what it does to probabilities, and on how many pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mask_models import ORGANS, mask_model, organs
from scipy import optimize

from consilium.client.data.inputs import pictures_inputs
from consilium.client.served.load import ServedModel, load_model
from consilium.common.errors import DataError
from consilium.serving.calibrate_masks import temperature_of_masks

PATIENTS = np.repeat(np.arange(12), 2)


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    """A model of three classes."""
    return load_model(mask_model(tmp_path / "model"))


@pytest.fixture
def validation(model: ServedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prepared pictures, two of each patient, and their masks."""
    pictures, masks = organs(24, seed=4)
    return model.prepared(pictures_inputs(pictures, ORGANS)).x, torch.from_numpy(masks)


def test_temperature_has_the_least_log_loss_of_all_pixels(
    model: ServedModel, validation: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Found again by another search; a model that is five times as sure gets five times the temperature."""
    x, y = validation
    logits = model.logits(x).double().numpy()

    def loss(temperature: float) -> float:
        z = logits / temperature
        true = np.take_along_axis(z, y.numpy()[:, None].astype(np.int64), axis=1)[:, 0]
        return float((np.log(np.exp(z).sum(axis=1)) - true).mean())

    best = optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x
    found, _ = temperature_of_masks(model, x, y, PATIENTS)
    assert float(best) == pytest.approx(found.temperature, rel=1e-2)
    assert 24 == found.num and loss(1.0) == pytest.approx(found.log_loss[0], rel=1e-6)
    with torch.no_grad():
        for part in model.module.get_submodule("head").parameters():
            part.mul_(5)
    surer, helps = temperature_of_masks(model, x, y, PATIENTS)
    assert helps and 5 * found.temperature == pytest.approx(surer.temperature, rel=1e-2)


def test_some_pixels_of_each_picture_say_nearly_the_same(
    model: ServedModel, validation: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """A third of them, the same ones at every call."""
    x, y = validation
    whole, part, again = (temperature_of_masks(model, x, y, PATIENTS, most=most)[0] for most in (24 * 64, 480, 480))
    assert part == again and part != whole
    assert whole.temperature == pytest.approx(part.temperature, rel=0.25)


def test_few_patients_are_refused(model: ServedModel, validation: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Many pixels make no patient."""
    x, y = validation
    with pytest.raises(DataError, match="4 validation patients are too few"):
        temperature_of_masks(model, x, y, PATIENTS % 4)
