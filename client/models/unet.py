"""A small U-Net: an answer for every pixel, from what is near it and from what is far.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015,
https://arxiv.org/abs/1505.04597. Three times halved, with 16, 32, 64 and 128 channels (the paper: four times, 64 to
1024), BatchNorm after every convolution and padding at the edges, so that the answer is as large as the picture; 0.48
million weights.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from consilium.client.models.small import check_images
from consilium.common.errors import ModelError
from consilium.common.study.models import UNET_STEP

CHANNELS = (16, 32, 64, 128)
"""Channels of each level, the whole picture's first."""


class Unet(nn.Module):
    """The features `(B, 16, H, W)` of every pixel of pictures `(B, C, H, W)`; H and W are multiples of 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(_two_layers(*pair) for pair in pairwise((channels, *CHANNELS)))
        self.pool = nn.MaxPool2d(2)
        wide = list(pairwise(reversed(CHANNELS)))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(large, small, kernel_size=2, stride=2) for large, small in wide)
        self.up = nn.ModuleList(_two_layers(2 * small, small) for _, small in wide)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features of every pixel."""
        levels, x = list[Tensor](), inputs
        for number, layers in enumerate(self.down):
            x = layers(x if number == 0 else self.pool(x))
            levels.append(x)
        for level, widen, layers in zip(reversed(levels[:-1]), self.widen, self.up, strict=True):
            x = layers(torch.cat([level, widen(x)], dim=1))
        return x


def build_unet(input_shape: tuple[int, ...], num_outputs: int) -> tuple[nn.Module, frozenset[str]]:
    """Return a U-Net with a 1 x 1 convolution as its head, which answers `(B, num_outputs, H, W)`.

    Raises:
        ModelError: the inputs are no pictures, or their sides no multiples of 8.
    """
    check_images("unet", input_shape)
    if any(side % UNET_STEP for side in input_shape[1:]):
        seen = " x ".join(map(str, input_shape[1:]))
        raise ModelError(f"model 'unet' halves a picture three times, so its sides are multiples of 8, got {seen}")
    head = nn.Conv2d(CHANNELS[0], num_outputs, kernel_size=1)
    module = nn.Sequential(OrderedDict(backbone=Unet(input_shape[0]), head=head))
    return module, frozenset({"head.weight", "head.bias"})


def _two_layers(channels_in: int, channels_out: int) -> nn.Module:
    # No bias in a convolution: BatchNorm has its own.
    layers = OrderedDict[str, nn.Module]()
    for number, width in enumerate((channels_in, channels_out), start=1):
        layers[f"conv{number}"] = nn.Conv2d(width, channels_out, kernel_size=3, padding=1, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(channels_out)
        layers[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(layers)
