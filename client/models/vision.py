"""torchvision's classification models by name, with a new last layer; the only module that imports torchvision.

A torchvision wheel built for another torch or CUDA than the one installed cannot load its compiled
operators, and a plain `import torchvision` then ends with `operator torchvision::nms does not exist`.
Classification models need none of those operators. So, only when the import fails in that way, the two
schemas that torchvision registers fake kernels for (`nms`, `qnms`) are declared, and it is imported again.
Where the operators load, nothing is changed.
"""

from typing import Any

import torch
from torch import nn

from consilium.common.errors import ModelError

_DETECTION_SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)
_LIBRARIES: list[Any] = []  # a schema is gone when its Library object is


def _import_models() -> Any:
    try:
        import torchvision.models as models
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        make_library: Any = torch.library.Library  # Any: torch leaves it untyped
        library = make_library("torchvision", "DEF")
        for schema in _DETECTION_SCHEMAS:
            library.define(schema)
        _LIBRARIES.append(library)
        import torchvision.models as models
    return models


models = _import_models()

# These return extra outputs in training and, with pretrained weights, expect another input scale.
_AUXILIARY = frozenset({"googlenet", "inception_v3"})
_NUM_IMAGENET_CLASSES = 1000


def vision_names() -> list[str]:
    """Return the names of torchvision's classification models."""
    return list(models.list_models(module=models))


def build_vision(name: str, *, num_outputs: int) -> tuple[nn.Module, frozenset[str]]:
    """Build a model of `vision_names()` with a new last layer; return it with that layer's state_dict names.

    The head is the last linear layer with one output per ImageNet class (squeezenet: the last 1x1
    convolution). A ReLU right after it goes: logits may be negative.

    Raises:
        ModelError: a model with auxiliary outputs.
    """
    if name in _AUXILIARY:
        raise ModelError(f"model '{name}' has auxiliary outputs, which consilium does not train: choose another model")
    module: nn.Module = models.get_model(name, weights=None)
    path, last = _last_layer(module)
    parent = module.get_submodule(path.rpartition(".")[0])
    position = path.rpartition(".")[2]
    setattr(parent, position, _new_layer(last, num_outputs))
    if isinstance(parent, nn.Sequential):
        _drop_relu_after(parent, position)
        _average_first(parent)
    return module, frozenset({f"{path}.weight", f"{path}.bias"})


def _last_layer(module: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    layers = [(path, m) for path, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    path, last = layers[-1]
    outputs = last.out_features if isinstance(last, nn.Linear) else last.out_channels
    if outputs != _NUM_IMAGENET_CLASSES:
        raise ModelError(
            f"the last layer '{path}' has {outputs} outputs, expected {_NUM_IMAGENET_CLASSES}: not a known model"
        )
    return path, last


def _new_layer(last: nn.Linear | nn.Conv2d, num_outputs: int) -> nn.Module:
    if isinstance(last, nn.Linear):
        return nn.Linear(last.in_features, num_outputs)
    return nn.Conv2d(last.in_channels, num_outputs, kernel_size=1)


def _drop_relu_after(parent: nn.Sequential, position: str) -> None:
    names = [name for name, _ in parent.named_children()]
    following = names[names.index(position) + 1 :]
    if following and isinstance(getattr(parent, following[0]), nn.ReLU):
        setattr(parent, following[0], nn.Identity())


def _average_first(parent: nn.Sequential) -> None:
    """Average a map before the 1x1 convolution that ends a classifier instead of after it; names stay.

    Both are linear, so the model computes the same; a head on cached features then sees `(D, 1, 1)` per image
    instead of `(D, H, W)`, and dropout draws per feature, not per place.
    """
    layers = dict(parent.named_children())
    kinds = [type(layer) for layer in layers.values()]
    if kinds != [nn.Dropout, nn.Conv2d, nn.Identity, nn.AdaptiveAvgPool2d]:
        return
    for name in layers:
        delattr(parent, name)
    first = list(layers)[-1]
    for name in [first, *(name for name in layers if name != first)]:
        parent.add_module(name, layers[name])


def weights_url(name: str, weights: str) -> str:
    """Return the address of a model's pretrained weights, such as `IMAGENET1K_V1` or `DEFAULT`.

    Raises:
        ModelError: torchvision has no such weights; the sentence lists those that exist.
    """
    known = models.get_model_weights(name).__members__
    if weights not in known:
        raise ModelError(f"model '{name}' has no weights '{weights}': torchvision has {', '.join(known)}")
    return str(known[weights].url)
