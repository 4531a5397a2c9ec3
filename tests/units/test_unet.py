"""Models that answer for every pixel: their size, their shape, and what a study of masks has by default."""

import pytest
import torch

from consilium.client.models import Model, build_model
from consilium.common.errors import ModelError
from consilium.common.study.models import PIXEL_MODELS
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import ModelConfig

MASKS = {"kind": "segmentation", "classes": ["background", "liver", "kidney"], "size": 32, "channels": 1}


def built(name: str, shape: tuple[int, ...] = (1, 32, 32), **settings: object) -> Model:
    """Return a model for three classes."""
    config = ModelConfig.model_validate({"name": name, **settings})
    return build_model(config, input_shape=shape, num_outputs=3, weights_dir=None, seed=1)


@pytest.mark.parametrize("name", PIXEL_MODELS)
def test_every_pixel_has_an_answer_of_its_own(name: str) -> None:
    """As many as the picture has, each picture by itself; fewer than half a million weights, with BatchNorm."""
    if "/" in name:
        pytest.importorskip("monai")
    model = built(name, (3, 32, 48))
    x = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    model.module.eval()
    with torch.no_grad():
        together, alone = model.module(x), torch.cat([model.module(one[None]) for one in x])
    assert (2, 3, 32, 48) == tuple(together.shape)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert sum(part.numel() for part in model.module.parameters()) < 500_000
    assert model.batch_norm and model.head < set(model.names)


def test_a_pixel_sees_what_is_far_away() -> None:
    """An answer hangs on a pixel ten places off, which the four layers at full size alone do not reach."""
    module = built("unet").module.double().eval()
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2)).double()
    changed = x.clone()
    changed[0, 0, 20, 20] += 5.0
    with torch.no_grad():
        moved = (module(x) - module(changed)).abs().amax(dim=1)[0]
    assert 1e-8 < moved[10, 10] < moved[20, 20]


def test_the_head_is_trained_alone_where_that_is_asked_for() -> None:
    """A 1 x 1 convolution; hidden layers go before it as before a classifier's."""
    assert {"head.weight", "head.bias"} == built("unet", trainable="head").trainable
    deeper = built("unet", head=[8])
    assert (3, 32, 32) == tuple(deeper.module(torch.zeros(1, 1, 32, 32))[0].shape)


def test_sides_that_cannot_be_halved_are_refused() -> None:
    """A picture of 20 pixels would come back with 16."""
    with pytest.raises(ModelError, match="sides are multiples of 8, got 20 x 32"):
        built("unet", (1, 20, 32))
    with pytest.raises(ModelError, match="unet"):
        built("unet", (5,))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("fedbn", "unet", "local")),
        ({"model": {"name": "monai/unet"}}, ("fedbn", "monai/unet", "local")),
        ({"method": {"kind": "fedavg"}}, ("fedavg", "unet", "average")),
        ({"model": {"batch_norm": "freeze"}}, ("fedavg", "unet", "freeze")),
        ({"model": {"name": "own:mine"}}, ("fedavg", "own:mine", "average")),
    ],
    ids=["nothing", "model", "method", "batch norm", "own"],
)
def test_masks_keep_batch_norm_at_the_sites_where_nothing_is_said(
    given: dict[str, object], expected: tuple[str, str, str]
) -> None:
    """FedBN is what a study of masks has; what is named is left as it is, and a study reads as it is written."""
    study = StudyConfig.model_validate({"name": "organs", "sites": ["rom"], "task": MASKS, **given})
    assert expected == (study.method.kind, study.model.name, study.model.batch_norm)
    assert study == StudyConfig.model_validate_json(study.model_dump_json())
    assert study == StudyConfig.model_validate(study.model_dump(mode="json", exclude_none=True))


def test_other_tasks_have_the_defaults_that_they_had() -> None:
    """Pictures with classes are averaged by FedAvg."""
    task = {"kind": "images", "classes": ["a", "b"]}
    study = StudyConfig.model_validate({"name": "organs", "sites": ["rom"], "task": task})
    assert ("fedavg", "small_cnn", "average") == (study.method.kind, study.model.name, study.model.batch_norm)
