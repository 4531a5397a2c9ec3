"""Heads of several layers: hidden layers with a ReLU after each, in the place of a model's one linear layer."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from consilium.common.errors import ModelError, clean


def with_hidden_layers(
    module: nn.Module, head: frozenset[str], sizes: Sequence[int], *, name: str, seed: int
) -> frozenset[str]:
    """Replace a model's head, one linear layer or 1x1 convolution, by hidden layers and such a layer; in place.

    The head's layers are `hidden1`, `relu1`, ..., `output` under the path of the layer that they replace.

    Args:
        head: state_dict names of the layer.
        sizes: of the hidden layers, from the features on.
        name: the model's, for sentences.
        seed: of the random initialisation.

    Returns:
        The state_dict names of the new head.

    Raises:
        ModelError: the head is no such layer.
    """
    paths = {one.rpartition(".")[0] for one in head}
    path = next(iter(paths), "")
    last = module.get_submodule(path) if path and len(paths) == 1 else None
    if not isinstance(last, nn.Linear) and not (isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1)):
        raise ModelError(
            f"model.head: the head of model '{clean(name, 100)}' is not one linear layer behind features, so it takes "
            "no hidden layers: leave model.head out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers = _layers(last, sizes)
    module.get_submodule(path.rpartition(".")[0]).add_module(path.rpartition(".")[2], layers)
    return frozenset(f"{path}.{one}" for one in layers.state_dict())


def _layers(last: nn.Linear | nn.Conv2d, sizes: Sequence[int]) -> nn.Sequential:
    features, outputs = (
        (last.in_features, last.out_features) if isinstance(last, nn.Linear) else (last.in_channels, last.out_channels)
    )
    widths = (features, *sizes)
    layers = OrderedDict[str, nn.Module]()
    for number, (width, following) in enumerate(pairwise(widths), start=1):
        layers[f"hidden{number}"] = _layer(last, width, following)
        layers[f"relu{number}"] = nn.ReLU()
    layers["output"] = _layer(last, widths[-1], outputs)
    return nn.Sequential(layers)


def _layer(last: nn.Module, width: int, outputs: int) -> nn.Module:
    return nn.Linear(width, outputs) if isinstance(last, nn.Linear) else nn.Conv2d(width, outputs, kernel_size=1)
