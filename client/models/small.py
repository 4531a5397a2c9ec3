"""Small networks of our own: quick on one CPU core, split into backbone and head by their names."""

import math
from collections import OrderedDict

from torch import Tensor, nn

from consilium.client.models.resnet20 import ResNet20
from consilium.client.models.series import build_series
from consilium.common.errors import ModelError
from consilium.common.study.models import SERIES_NAMES, SMALL_NAMES

__all__ = ["SMALL_NAMES", "FlatLinear", "build_small", "check_images", "mlp", "small_cnn"]

HIDDEN = (32,)
"""Sizes of the hidden layers of `mlp` and `mlp_bn` where the study names none."""


def build_small(
    name: str, *, input_shape: tuple[int, ...], num_outputs: int, hidden: tuple[int, ...] | None = None
) -> tuple[nn.Module, frozenset[str]]:
    """Build one of `SMALL_NAMES` and return it with the state_dict names of its head.

    Args:
        input_shape: `(C, H, W)` for images, `(T, C)` for series or `(D,)` for rows of a table.
        hidden: sizes of the hidden layers, None for `HIDDEN`; only `mlp` and `mlp_bn` read it.

    Raises:
        ModelError: `small_cnn` or `resnet20` for what is no image, `cnn1d` or `gru` for what is no series, or `mlp` or
            `mlp_bn` without a hidden layer.
    """
    if name == "linear":
        return FlatLinear(math.prod(input_shape), num_outputs), frozenset({"bias"})
    if name == "resnet20":
        check_images(name, input_shape)
        return ResNet20(input_shape[0], num_outputs), frozenset({"linear.weight", "linear.bias"})
    if name in SERIES_NAMES:
        module = build_series(name, input_shape=input_shape, num_outputs=num_outputs)
    elif name in ("mlp", "mlp_bn"):
        sizes = HIDDEN if hidden is None else hidden
        module = mlp(math.prod(input_shape), num_outputs, sizes, batch_norm=name == "mlp_bn")
    else:
        check_images(name, input_shape)
        module = small_cnn(input_shape[0], num_outputs)
    return module, frozenset({"head.weight", "head.bias"})


def check_images(name: str, input_shape: tuple[int, ...]) -> None:
    """Check that a vision model is given images.

    Raises:
        ModelError: the task is a table, or of series.
    """
    if len(input_shape) == 2:
        raise ModelError(
            f"model '{name}' takes images, but the task has examples of shape {list(input_shape)}: choose "
            f"{', '.join(repr(one) for one in SERIES_NAMES)}, 'mlp' or 'linear'"
        )
    if len(input_shape) != 3:
        raise ModelError(
            f"model '{name}' takes images, but the task is a table with {math.prod(input_shape)} features: "
            "choose 'mlp', 'mlp_bn' or 'linear'"
        )


class FlatLinear(nn.Linear):
    """Logistic regression on the flattened input: the backbone is `weight`, the head is the intercept `bias`.

    A personal head is therefore a personal intercept: sites share how features count and keep their own
    base rate.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits `(B, num_outputs)`."""
        return super().forward(inputs.flatten(1))


def mlp(num_inputs: int, num_outputs: int, hidden: tuple[int, ...], *, batch_norm: bool = False) -> nn.Module:
    """Return a multi-layer perceptron, with BatchNorm before every ReLU if asked; its head is the last linear layer.

    Raises:
        ModelError: no hidden layer, or one smaller than 1.
    """
    if not hidden or min(hidden) < 1:
        raise ModelError(
            f"model.hidden: '{'mlp_bn' if batch_norm else 'mlp'}' needs one or more sizes of at least 1, "
            f"got {list(hidden)}; without hidden layers choose 'linear'"
        )
    sizes, layer = (num_inputs, *hidden), _normed_layer if batch_norm else _layer
    layers = {f"layer{i}": layer(sizes[i - 1], sizes[i]) for i in range(1, len(sizes))}
    backbone = nn.Sequential(OrderedDict([("flatten", nn.Flatten()), *layers.items()]))
    return nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(sizes[-1], num_outputs)))


def _layer(num_inputs: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(num_inputs, num_outputs), nn.ReLU())


def _normed_layer(num_inputs: int, num_outputs: int) -> nn.Module:
    # No bias in the linear layer: BatchNorm has its own.
    linear = nn.Linear(num_inputs, num_outputs, bias=False)
    return nn.Sequential(OrderedDict(linear=linear, norm=nn.BatchNorm1d(num_outputs), relu=nn.ReLU()))


def small_cnn(channels: int, num_outputs: int) -> nn.Module:
    """Return two convolution blocks with BatchNorm, a layer of 64 features, and a linear head (about 38,000 weights).

    Images of any size from 4 x 4 on: the maps are averaged to 4 x 4 before the features.
    """
    # The norm keeps features of one scale, however long the backbone was trained: without it, one learning
    # rate could not serve fresh and pretrained weights (digits after pretraining: 14 % without, 90 % with).
    norm = nn.LayerNorm(64, elementwise_affine=False)
    project = nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(4),
            flatten=nn.Flatten(),
            linear=nn.Linear(32 * 4 * 4, 64),
            norm=norm,
            relu=nn.ReLU(),
        )
    )
    backbone = OrderedDict(block1=_block(channels, 16), block2=_block(16, 32), project=project)
    return nn.Sequential(OrderedDict(backbone=nn.Sequential(backbone), head=nn.Linear(64, num_outputs)))


def _block(channels_in: int, channels_out: int) -> nn.Module:
    # No bias in the convolution: BatchNorm has its own.
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(
        OrderedDict(conv=convolution, norm=nn.BatchNorm2d(channels_out), relu=nn.ReLU(), pool=nn.MaxPool2d(2))
    )
