"""Models of timm and MONAI by name, with random weights and a head for the task; nothing is downloaded.

Both are extras. A name is `timm/resnet18` or `monai/densenet121`: the library, and its name of the architecture.
"""

import difflib
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from consilium.client.models.small import check_images
from consilium.common.errors import ModelError, clean
from consilium.common.host.extras import missing
from consilium.common.study.models import library_of

MONAI = (
    *("densenet121", "densenet169", "densenet201", "densenet264"),
    *("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200"),
    *("seresnet50", "seresnet101", "seresnet152", "seresnext50", "seresnext101", "senet154"),
    *(f"efficientnet-b{size}" for size in range(9)),
)
"""MONAI's networks that answer one row of logits per example, for images of any number of channels and for volumes."""
MONAI_PIXELS = ("unet", "basicunet")
"""MONAI's networks that answer for every pixel."""
_UNET = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2, "norm": "batch"}
_BASIC_UNET = {"features": (16, 16, 32, 64, 128, 16), "norm": "batch"}
"""Sizes as those of our own U-Net, and BatchNorm in place of MONAI's instance normalisation, which FedBN is not of."""


def library_names(library: str) -> list[str]:
    """Return the names of a library's models.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec(library) is None:
        raise missing(f"a model '{library}/...'", library)
    from consilium.client.models import vision  # noqa: F401  # both import torchvision, which this makes possible

    if library == "monai":
        return [f"monai/{name}" for name in (*MONAI, *MONAI_PIXELS)]
    timm: Any = import_module("timm")  # Any: its types do not say what its models take, and whether it is here
    return [f"timm/{name}" for name in timm.list_models()]


def build_of_library(name: str, *, input_shape: tuple[int, ...], num_outputs: int) -> tuple[nn.Module, frozenset[str]]:
    """Build a model of timm or MONAI and return it with the state_dict names of its last layer, its head.

    Args:
        input_shape: `(C, H, W)`; for MONAI also `(C, L)` or `(C, D, H, W)`.

    Raises:
        ConfigError: the library is not installed.
        ModelError: it has no such model, or not one with a single last layer, or not for such inputs.
    """
    library = str(library_of(name))
    known = library_names(library)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {len(known)} others"
        raise ModelError(f"model.name: {library} has no model '{clean(name, 100)}' to classify with; {hint}")
    make = _timm if library == "timm" else _monai
    try:
        module, head = make(name.partition("/")[2], input_shape, num_outputs)
    except ModelError:
        raise
    except Exception as error:  # whatever the library says of a shape that an architecture does not take
        why = clean(f"{type(error).__name__}: {error}", 300)
        raise ModelError(f"model '{name}' cannot be built for inputs of shape {input_shape}: {why}") from error
    paths = [path for path, layer in module.named_modules() if layer is head]
    if not paths or not isinstance(head, nn.Linear | nn.Conv2d):
        raise ModelError(
            f"model '{name}' does not end in one linear layer, which would be its head: choose another one"
        )
    return module, frozenset(f"{paths[0]}.{one}" for one in head.state_dict())


def _timm(name: str, input_shape: tuple[int, ...], num_outputs: int) -> tuple[nn.Module, object]:
    check_images(f"timm/{name}", input_shape)
    timm: Any = import_module("timm")  # Any: as above
    facts = timm.get_pretrained_cfg(name)
    size = {"img_size": input_shape[1:]} if facts is not None and facts.fixed_input_size else {}
    module = timm.create_model(name, pretrained=False, num_classes=num_outputs, in_chans=input_shape[0], **size)
    return module, _only_layer(module.get_classifier())


def _only_layer(head: object) -> object:
    """Return the one layer with weights in a head that holds more than it: pooling, dropout."""
    layers = (
        [one for one in head.modules() if list(one.parameters(recurse=False))] if isinstance(head, nn.Module) else []
    )
    return layers[0] if len(layers) == 1 else head


def _monai(name: str, input_shape: tuple[int, ...], num_outputs: int) -> tuple[nn.Module, object]:
    if not 2 <= len(input_shape) <= 4:
        check_images(f"monai/{name}", input_shape)
    nets: Any = import_module("monai.networks.nets")  # Any: as of timm
    channels, dimensions = input_shape[0], len(input_shape) - 1
    if name.startswith("efficientnet"):
        module = nets.EfficientNetBN(
            name, pretrained=False, spatial_dims=dimensions, in_channels=channels, num_classes=num_outputs
        )
    elif name in MONAI_PIXELS:
        return _monai_pixels(nets, name, channels, dimensions, num_outputs)
    elif name.startswith("densenet"):
        module = getattr(nets, name)(spatial_dims=dimensions, in_channels=channels, out_channels=num_outputs)
    elif name.startswith("resnet"):
        module = getattr(nets, name)(spatial_dims=dimensions, n_input_channels=channels, num_classes=num_outputs)
    else:
        module = getattr(nets, name)(spatial_dims=dimensions, in_channels=channels, num_classes=num_outputs)
    return module, [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]


def _monai_pixels(nets: Any, name: str, channels: int, dimensions: int, num_outputs: int) -> tuple[nn.Module, object]:
    """Return a network that answers for every pixel, and its last layer with weights."""
    make, sizes = (nets.UNet, _UNET) if name == "unet" else (nets.BasicUNet, _BASIC_UNET)
    module = make(spatial_dims=dimensions, in_channels=channels, out_channels=num_outputs, **sizes)
    return module, [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)][-1]
