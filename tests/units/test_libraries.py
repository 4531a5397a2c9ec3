"""Models of timm and MONAI by name: built without a download, divided as others, cut behind a frozen backbone."""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from consilium.client.models import Model, build_model, cut, features_of, get_weights, train_mode
from consilium.common.errors import ConfigError, ModelError
from consilium.common.study.training import ModelConfig

pytestmark = pytest.mark.skipif(
    find_spec("timm") is None or find_spec("monai") is None, reason="the extras 'timm' and 'monai' are not installed"
)

GREY, COLOUR, VOLUME, SIGNAL = (1, 32, 32), (3, 32, 32), (1, 16, 16, 16), (2, 64)

HEADS = [
    ("timm/test_resnet", COLOUR, "fc"),
    ("timm/test_resnet", GREY, "fc"),
    ("timm/resnet18", COLOUR, "fc"),
    ("timm/test_efficientnet", COLOUR, "classifier"),
    ("timm/test_convnext", COLOUR, "head.fc"),
    ("timm/resnetv2_50", COLOUR, "head.fc"),
    ("timm/vit_tiny_patch16_224", COLOUR, "head"),
    ("monai/resnet10", GREY, "fc"),
    ("monai/resnet10", VOLUME, "fc"),
    ("monai/densenet121", SIGNAL, "class_layers.out"),
    ("monai/seresnet50", COLOUR, "last_linear"),
    ("monai/efficientnet-b0", COLOUR, "_fc"),
]


@pytest.fixture(autouse=True)
def nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket can be connected in these tests: what needs the network fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("a model was to be built without the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def build(
    name: str, shape: tuple[int, ...] = COLOUR, *, seed: int = 1, folder: Path | None = None, **settings: Any
) -> Model:
    """Build a model with three outputs."""
    config = ModelConfig.model_validate({"name": name, **settings})
    return build_model(config, input_shape=shape, num_outputs=3, weights_dir=folder, seed=seed)


@pytest.mark.parametrize(("name", "shape", "head"), HEADS)
def test_model_of_a_library_has_a_head_for_the_task(name: str, shape: tuple[int, ...], head: str) -> None:
    """Its last layer, and only it, is the head; it answers three numbers per example of the task's shape."""
    model = build(name, shape, trainable="head")
    assert {f"{head}.weight", f"{head}.bias"} == model.head == model.trainable
    assert (3,) == tuple(model.module.state_dict()[f"{head}.bias"].shape)
    model.module.eval()
    with torch.no_grad():
        assert (2, 3) == tuple(model.module(torch.zeros(2, *shape)).shape)


@pytest.mark.parametrize(("name", "shape", "head"), HEADS)
def test_frozen_backbone_is_cut_where_its_features_do_not_change(name: str, shape: tuple[int, ...], head: str) -> None:
    """Cut off behind the backbone, the head on the features answers as the whole model, in training and outside.

    MONAI's efficientnet drops paths in training, so its features differ from pass to pass and are computed each time.
    """
    model = build(name, shape, trainable="head")
    parted = cut(model)
    if name == "monai/efficientnet-b0":
        assert parted is None
        return
    assert parted is not None
    assert model.head == set(parted.tail.names)
    with torch.no_grad():
        for layer in model.module.modules():  # running statistics as after training: batches would differ from them
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]  # torch types buffers as either
                layer.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]  # torch types buffers as either
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    features = features_of(parted.body, x, batch_size=3)
    with torch.no_grad():
        for training in (False, True):
            train_mode(model) if training else model.module.eval()
            torch.testing.assert_close(model.module(x), parted.tail.module(features), rtol=1e-4, atol=1e-5)


def test_batch_norm_of_timm_is_batch_norm() -> None:
    """timm derives its layers from torch's: all five arrays of each are found, kept, frozen or local as others are."""
    for name in ("timm/test_efficientnet", "timm/test_resnet", "monai/resnet10"):
        model = build(name)
        running = {key for key in model.names if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
        norms = {key.rpartition(".")[0] for key in running}
        assert model.batch_norm == {key for key in model.names if key.rpartition(".")[0] in norms}
        assert 5 * len(norms) == len(model.batch_norm) > 0
        frozen = build(name, batch_norm="freeze")
        assert model.trainable - model.batch_norm == frozen.trainable
        before = get_weights(frozen.module)
        train_mode(frozen)
        frozen.module(torch.ones(4, *COLOUR))
        np.testing.assert_equal(before, get_weights(frozen.module))


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("timm/resnet18", ("layer4.", "fc.")),
        ("timm/test_convnext", ("stages.3.", "head.")),
        ("timm/vit_tiny_patch16_224", ("blocks.11.", "norm.", "head.")),
        ("monai/densenet121", ("features.denseblock4.", "features.norm5.", "class_layers.")),
    ],
)
def test_last_block_of_libraries_is_the_end_of_the_backbone(name: str, prefixes: tuple[str, ...]) -> None:
    """All parameters of the last block, of what is behind it and of the head; no others."""
    model = build(name, trainable="last_block")
    assert {one for one, _ in model.module.named_parameters() if one.startswith(prefixes)} == model.trainable
    assert all(any(one.startswith(prefix) for one in model.trainable) for prefix in prefixes)


@pytest.mark.parametrize("name", ["timm/test_resnet", "monai/resnet10"])
def test_model_of_a_library_depends_on_the_seed_alone(name: str) -> None:
    """Equal seeds give equal weights, and another seed others."""
    first, again, other = (get_weights(build(name, seed=seed).module) for seed in (1, 1, 2))
    np.testing.assert_equal(first, again)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


def test_file_of_a_library_begins_the_backbone(tmp_path: Path) -> None:
    """A checkpoint of timm's own training script: `state_dict` beside `args`' plain values, `module.` before names."""
    source = build("timm/test_resnet", seed=5)
    state = {f"module.{key}": value for key, value in source.module.state_dict().items()}
    torch.save({"epoch": 3, "arch": "test_resnet", "state_dict": state, "version": 2}, tmp_path / "w.pth.tar")
    model = build("timm/test_resnet", folder=tmp_path, pretrained={"file": "w.pth.tar"})
    backbone = sorted(set(model.names) - model.head)
    np.testing.assert_equal(get_weights(source.module, backbone), get_weights(model.module, backbone))
    assert "also in the file, and ignored: epoch, arch, version" in model.notes


def test_head_of_several_layers_on_a_library_model() -> None:
    """`model.head` replaces the one layer, here a 1x1 convolution."""
    model = build("timm/resnetv2_50", head=(5,))
    assert {f"head.fc.{layer}.{kind}" for layer in ("hidden1", "output") for kind in ("weight", "bias")} == model.head


def refused(name: str, shape: tuple[int, ...] = COLOUR) -> str:
    """Return the sentence with which a model is refused."""
    with pytest.raises(ModelError) as caught:
        build(name, shape)
    return str(caught.value)


def test_unknown_models_of_a_library_are_answered_with_near_ones() -> None:
    """A misspelt name; and names by which timm would download, or read a folder, are no architectures."""
    assert "timm has no model 'timm/resnet_18' to classify with; did you mean 'timm/resnet18' or" in refused(
        "timm/resnet_18"
    )
    for name in ("timm/hf-hub:timm/resnet18", "timm/local-dir:/tmp", "timm/resnet18.a1_in1k", "timm/"):
        assert f"timm has no model '{name}' to classify with; " in refused(name)
    assert "monai has no model 'monai/vnet' to classify with" in refused("monai/vnet")


def test_inputs_that_a_library_model_cannot_take_are_refused() -> None:
    """A table, an image smaller than a patch, whatever the library says itself, and heads of two layers."""
    for name in ("timm/resnet18", "monai/resnet18"):
        assert f"'{name}' takes images, but the task is a table with 13 features" in refused(name, (13,))
    assert "'timm/vit_tiny_patch16_224' cannot take inputs of shape (3, 8, 8): " in refused(
        "timm/vit_tiny_patch16_224", (3, 8, 8)
    )
    with pytest.MonkeyPatch.context() as patch:  # a stand-in for what a library says of a shape
        patch.setattr("timm.create_model", lambda *_, **__: [][1])
        assert "'timm/resnet18' cannot be built for inputs of shape (3, 32, 32): IndexError: " in refused(
            "timm/resnet18"
        )
    assert "does not end in one linear layer" in refused("timm/deit_tiny_distilled_patch16_224")


@pytest.mark.parametrize("library", ["timm", "monai"])
def test_library_that_is_not_installed_is_named_with_its_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site without it is told what to install."""
    monkeypatch.setattr("consilium.client.models.libraries.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        build(f"{library}/resnet18")
    assert f"pip install 'consilium[{library}]'" in str(caught.value)
