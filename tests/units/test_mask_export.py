"""A model of masks in other forms: the same answers without torch, and what int8 and pruning cost in Dice."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from mask_models import ORGANS, mask_model, organs, write_pairs

from consilium.client.data.inputs import pictures_inputs
from consilium.client.served.load import load_model
from consilium.common.errors import DataError
from consilium.common.model import Temperature, read_record, write_record
from consilium.serving.evaluate import evaluate
from consilium.serving.export.check import answered_by_torch
from consilium.serving.export.export import Wanted, export_model
from consilium.serving.export.measuring import judged
from consilium.serving.export.rows import of_data


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three classes, for pictures of 8 x 8."""
    return mask_model(tmp_path_factory.mktemp("organs") / "model")


def test_graph_answers_masks_and_probabilities_of_every_pixel(model: Path, tmp_path: Path) -> None:
    """Of pictures of another size too, which are resized inside; by the temperature of a calibration, if there is."""
    folder = mask_model(tmp_path / "warm")
    record = read_record(folder)
    warm = Temperature(temperature=2.5, num=10, log_loss=(1.0, 0.9), calibration_error=(0.1, 0.1))
    write_record(folder, record.model_copy(update={"calibration": warm}))
    pictures = organs(3, size=(12, 20), seed=3)[0][..., None]
    for path, temperature in ((model, 1.0), (folder, 2.5)):
        made = export_model(path, Wanted(form="onnx"))
        session = onnxruntime.InferenceSession(made.contents["model.onnx"], providers=["CPUExecutionProvider"])
        mask, shares = session.run(["mask", "probabilities"], {"pictures": pictures})
        served = load_model(path)
        x = served.prepared(pictures_inputs(pictures, ORGANS)).x
        wanted = (served.logits(x) / temperature).softmax(dim=1).numpy()
        np.testing.assert_allclose(wanted, shares, atol=1e-5)
        np.testing.assert_array_equal(served.masks(x).numpy(), mask)
        assert np.uint8 == mask.dtype and len(np.unique(mask)) > 1
        assert made.export.check.rows > 2 and made.export.check.difference <= made.export.check.tolerance
        assert "shape (N, 3, 8, 8)" in made.export.outputs["probabilities"]


def test_program_of_torch_answers_every_pixel(model: Path) -> None:
    """Its check has compared it with the model already; the shape is said."""
    made = export_model(model, Wanted(form="torch-export"))
    assert {"0": "probabilities, shape (N, 3, 8, 8)"} == made.export.outputs
    assert 0 <= made.export.check.difference <= made.export.check.tolerance


def test_int8_and_pruning_are_measured_by_dice(model: Path, tmp_path: Path) -> None:
    """In float32 to the last digit what `consilium evaluate` says of the same pictures; nothing is left without all."""
    x, y = organs(40, seed=2)
    np.savez(tmp_path / "new.npz", x=x, y=y)
    np.savez(tmp_path / "half.npz", x=x[::2], y=y[::2])
    made = export_model(model, Wanted(form="onnx", int8=True, curve=True, data=tmp_path / "new.npz"))
    small, dice = made.export.int8, evaluate(model, tmp_path / "half.npz").metrics[0].interval
    assert small is not None and small.before is not None and small.after is not None and dice is not None
    assert ("mean Dice", 20, dice.value) == (small.before.name, small.before.num, small.before.value)
    assert small.difference is not None and small.after.value - small.before.value == pytest.approx(
        small.difference.value
    )
    scores = [step.score.value for step in made.export.pruning if step.score is not None]
    assert dice.value == scores[0] and 10 == len(scores) and scores[-1] < scores[0]
    assert "pruning.svg" in made.contents


def test_pictures_without_any_class_cannot_measure(tmp_path: Path) -> None:
    """A model that answers background, and masks of background alone, have no Dice."""
    folder = mask_model(tmp_path / "model")
    served = load_model(folder)
    with torch.no_grad():
        served.module.get_submodule("head").bias.copy_(torch.tensor([99.0, 0, 0]))  # type: ignore[operator]  # a tensor
    x, _ = organs(8)
    write_pairs(tmp_path / "new", x, np.zeros_like(x))
    rows = of_data(served, tmp_path / "new").measured
    assert rows is not None
    with pytest.raises(DataError, match="no mask, neither true nor answered"):
        judged(answered_by_torch(served, rows), rows, ORGANS)
