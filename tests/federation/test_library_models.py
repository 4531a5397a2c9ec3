"""Studies with models of timm and MONAI, from a file as its training script left it, to a finished model's answers."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import consilium as cs
from consilium.client.models import build_model, get_weights
from consilium.client.served.load import load_model
from consilium.common.study.training import ModelConfig

pytestmark = pytest.mark.skipif(
    find_spec("timm") is None or find_spec("monai") is None, reason="the extras 'timm' and 'monai' are not installed"
)

CLASSES = ("dark", "light")


def pictures(channels: int) -> dict[str, Any]:
    """Return two sites' pictures `(N, C, 16, 16)`, of which the light ones are lighter."""
    made = {}
    for seed, (site, count) in enumerate({"berlin": 40, "lyon": 30}.items()):
        y = np.arange(count) % 2
        noise = np.random.default_rng(seed).integers(0, 120, size=(count, channels, 16, 16))
        made[site] = ((noise + 100 * y[:, None, None, None]).astype(np.uint8), y)
    return made


def weights_file(folder: Path, name: str, channels: int) -> dict[str, Any]:
    """Write a file of a model with seven classes as a training script does, and return what it began with."""
    config = ModelConfig(name=name)
    source = build_model(config, input_shape=(channels, 16, 16), num_outputs=7, weights_dir=None, seed=5)
    state = {f"module.{key}": value for key, value in source.module.state_dict().items()}
    torch.save({"epoch": 90, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, folder / "w.pth.tar")
    return get_weights(source.module, set(source.names) - source.head)


@pytest.mark.parametrize(
    ("name", "channels", "part"),
    [
        ("timm/test_resnet", 3, "head"),
        ("timm/test_resnet", 3, "all"),
        ("timm/test_vit", 3, "all"),
        ("monai/resnet10", 1, "head"),
    ],
)
def test_study_trains_a_library_model_from_a_file(
    name: str, channels: int, part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With `head` the backbone stays the file's to the bit, and only the head travels; with `all` it moves.

    The log says what was done to the file, and the model's folder answers without that file.
    """
    backbone = weights_file(tmp_path, name, channels)
    study = cs.Study(
        rounds=1,
        task={"size": 16, "channels": channels},
        model={"name": name, "trainable": part, "pretrained": {"file": "w.pth.tar"}},
        epochs=1,
        batch_size=8,
        learning_rate=0.05,
    )
    with caplog.at_level(logging.INFO):
        result = cs.simulate(study, pictures(channels), classes=CLASSES, weights_dir=tmp_path, folder=tmp_path / "out")
    assert {"berlin", "lyon"} == set(result.sites.index)
    notes = [record.getMessage() for record in caplog.records if "pretrained weights read" in record.getMessage()]
    assert any("its arrays were found in 'state_dict'" in note for note in notes)
    assert any("the prefix 'module.' was taken off their names" in note for note in notes)
    assert any("also in the file, and ignored: epoch, optimizer" in note for note in notes)
    assert any("7 outputs) was left out" in note for note in notes)
    (served,) = (tmp_path / "out").rglob("berlin/**/models/personal")
    arrays = load_file(served / "weights.safetensors")
    same = {key for key in backbone if np.array_equal(backbone[key], arrays[key])}
    if part == "head":
        assert backbone.keys() == same
        assert 2 == len(load_file(next((tmp_path / "out").rglob("model/weights.safetensors"))))
    else:
        assert len(same) < len(backbone) / 2
    model = load_model(served)
    assert (5, 1) == tuple(model.logits(torch.zeros(5, channels, 16, 16)).shape)
