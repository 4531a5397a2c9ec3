"""my_part: a small network of convolutions for grey or colour images of any size from 8 x 8 on."""

from collections import OrderedDict

from pydantic import Field
from torch import nn

from consilium.common.errors import ModelError
from consilium.parts import ModelSettings, Part


class MyPartSettings(ModelSettings):
    """Settings in `[model.settings]` of a study."""

    width: int = Field(default=8, ge=1, le=1024)
    """Channels of the first convolution; the second has twice as many."""


def build(
    settings: MyPartSettings, *, input_shape: tuple[int, ...], num_outputs: int
) -> tuple[nn.Module, frozenset[str]]:
    """Return the module, drawn from torch's own generator, and the state_dict names of its head."""
    if len(input_shape) != 3:
        raise ModelError(f"model 'my_part' takes images, got inputs of shape {input_shape}")
    channels, width = input_shape[0], settings.width
    backbone = nn.Sequential(
        *(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    module = nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(2 * width, num_outputs)))
    return module, frozenset({"head.weight", "head.bias"})


PART = Part(MyPartSettings, build)
