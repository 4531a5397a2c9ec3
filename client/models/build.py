"""Build a model by name, say which of its arrays are head, BatchNorm and trainable, and move weights in and out."""

import copy
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from consilium.client.models.given import given_as
from consilium.client.models.heads import with_hidden_layers
from consilium.client.models.libraries import build_of_library
from consilium.client.models.lora import trained_of, with_adapters
from consilium.client.models.own import build_own
from consilium.client.models.pretrained import load_pretrained
from consilium.client.models.small import SMALL_NAMES, build_small, check_images
from consilium.client.models.text import HEAD, build_text
from consilium.client.models.text_folder import load_folder
from consilium.client.models.unet import build_unet
from consilium.common.errors import ModelError, clean
from consilium.common.seeds import seed_for
from consilium.common.study.models import LIBRARIES, UNET, library_of, model_settings, of_somebody
from consilium.common.study.text_models import TEXT_SETTINGS, TransformerSettings
from consilium.common.study.training import ModelConfig
from consilium.common.weights.arrays import Array, Weights

# torch exports BatchNorm1d to 3d and SyncBatchNorm, but their common base only under this name.
_BatchNorm = nn.modules.batchnorm._BatchNorm

# Where models keep the sequence of their blocks; looked for from the outside in.
_CONTAINERS = ("features", "backbone", "encoder", "layers", "blocks", "stages", "trunk_output")


@dataclass(frozen=True)
class Model:
    """A module and what its arrays are; all names are those of its state_dict.

    Args:
        head: the task part; all other names are the backbone.
        batch_norm: everything that belongs to BatchNorm layers, running statistics included.
        trainable: the parameters that training may change; only these have `requires_grad`.
        names: all names, in the module's order.
        batch_norm_policy: the study's `model.batch_norm`.
        extra: buffers that the study's method added; they leave the site, and no gradient moves them.
        notes: a sentence for each thing that was done to make pretrained weights fit.
    """

    module: nn.Module
    head: frozenset[str]
    batch_norm: frozenset[str]
    trainable: frozenset[str]
    names: tuple[str, ...]
    batch_norm_policy: Literal["average", "local", "freeze"]
    extra: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def own_batch_norm(self) -> frozenset[str]:
        """The arrays of BatchNorm that never leave the site: all of them under the policy "local", else none."""
        return self.batch_norm if self.batch_norm_policy == "local" else frozenset()

    @property
    def moving(self) -> frozenset[str]:
        """Arrays that training may change: trainable parameters, buffers of BatchNorm in training mode, and `extra`."""
        buffers = self.batch_norm - frozenset(name for name, _ in self.module.named_parameters())
        live = frozenset(name for name in buffers if f"{name.rpartition('.')[0]}.weight" in self.trainable)
        return self.trainable | self.extra | (live if self.batch_norm_policy != "freeze" else frozenset())


def build_model(
    config: ModelConfig, *, input_shape: tuple[int, ...], num_outputs: int, weights_dir: Path | None, seed: int
) -> Model:
    """Build the study's model, load its pretrained backbone, and mark what may be trained.

    Law: equal arguments give equal weights, and no global generator is read or moved. The head is
    always freshly initialised from the seed, also when the pretrained file holds one.

    Args:
        input_shape: `(C, H, W)` for images or `(D,)` for rows of a table.
        num_outputs: 1 for two classes (one logit), otherwise the number of classes.
        weights_dir: the site's folder of weights files; needed when the study pins a file.
        seed: of the random initialisation.

    Raises:
        ModelError: an unknown name, an input the model cannot take, or pretrained weights that do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # modules are built on the CPU: other devices stay untouched
        module, head = _build(config, input_shape, num_outputs)
    _check_input(config.name, module, input_shape)
    notes: tuple[str, ...] = ()
    if config.pretrained is not None and config.pretrained.folder is not None:
        load_folder(module, _transformer(config), config.pretrained, weights_dir=weights_dir)
    elif config.pretrained is not None:
        notes = load_pretrained(module, name=config.name, head=head, config=config.pretrained, weights_dir=weights_dir)
    if config.head is not None:  # after the weights: a file's names are those of the model with one linear layer
        head = with_hidden_layers(module, head, config.head, name=config.name, seed=seed_for(seed, "head"))
    if config.adapter is None:
        return replace(marked(module, head, config.trainable, config.batch_norm), notes=notes)
    with_adapters(module, head, config.adapter, name=config.name, seed=seed_for(seed, "adapter"))
    adapted = head | frozenset(trained_of(module, config.adapter))
    return replace(marked(module, head, adapted, config.batch_norm), notes=notes)


def _transformer(config: ModelConfig) -> TransformerSettings:
    settings = model_settings(config.name, config.settings)
    if not isinstance(settings, TransformerSettings):
        raise ModelError(f"model '{clean(config.name, 100)}' takes no folder of weights: give pretrained.file")
    return settings


def marked(
    module: nn.Module,
    head: frozenset[str],
    part: Literal["all", "head", "last_block"] | frozenset[str] = "all",
    policy: Literal["average", "local", "freeze"] = "average",
) -> Model:
    """Return a module with what its arrays are; only the part that is trained gets gradients.

    Args:
        head: the state_dict names of its head.
        part: what is trained, as `model.trainable`, or the names of the parameters themselves.
        policy: what becomes of BatchNorm, as `model.batch_norm`.
    """
    batch_norm = _batch_norm_names(module)
    trainable = _trainable(module, head, part) - (batch_norm if policy == "freeze" else set())
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trainable)
    return Model(module, head, batch_norm, trainable, tuple(module.state_dict()), policy)


def _build(config: ModelConfig, input_shape: tuple[int, ...], num_outputs: int) -> tuple[nn.Module, frozenset[str]]:
    name = config.name
    if of_somebody(name):
        return _copied(config)
    if name in SMALL_NAMES:
        return build_small(name, input_shape=input_shape, num_outputs=num_outputs, hidden=config.hidden)
    if name == UNET:
        return build_unet(input_shape, num_outputs)
    if name in TEXT_SETTINGS:
        settings = model_settings(name, config.settings)
        return build_text(settings, name=name, input_shape=input_shape, num_outputs=num_outputs), HEAD
    if library_of(name) is not None:
        return build_of_library(name, input_shape=input_shape, num_outputs=num_outputs)
    if (own := build_own(config, input_shape=input_shape, num_outputs=num_outputs)) is not None:
        return own
    from consilium.client.models import vision  # here, because a table study needs no torchvision

    known = [*SMALL_NAMES, UNET, *TEXT_SETTINGS, *vision.vision_names()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        all_of_them = f"known: {', '.join(known)}; those of a library are called {' or '.join(LIBRARIES.values())}"
        hint = f"did you mean {' or '.join(repr(match) for match in close)}?" if close else all_of_them
        raise ModelError(f"model.name: there is no model '{name}'; {hint}")
    check_images(name, input_shape)
    if input_shape[0] != 3:
        raise ModelError(f"model '{name}' needs images of 3 channels, got {input_shape[0]}: set task.channels = 3")
    return vision.build_vision(name, num_outputs=num_outputs)


def _copied(config: ModelConfig) -> tuple[nn.Module, frozenset[str]]:
    """Return a copy of a module that was given along, and its head."""
    if (given := given_as(config.name)) is None:
        raise ModelError(
            f"model '{clean(config.name)}' is a torch module of somebody's own, which is not in any file: give it "
            "along in Python (model=...)"
        )
    for setting in ("pretrained", "head"):
        if getattr(config, setting) is not None:
            raise ModelError(f"model '{config.name}' begins with its own weights: leave model.{setting} out")
    return copy.deepcopy(given.module), given.head


def _check_input(name: str, module: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Run one blank example: some models need a fixed or a minimum image size, and raise an error only here."""
    module.eval()
    try:
        with torch.no_grad():
            module(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(f"model '{name}' cannot take inputs of shape {input_shape}: {error}") from error
    module.train()


def _batch_norm_names(module: nn.Module) -> frozenset[str]:
    layers = ((path, layer) for path, layer in module.named_modules() if isinstance(layer, _BatchNorm))
    return frozenset(f"{path}.{name}" for path, layer in layers for name in layer.state_dict())


def _trainable(
    module: nn.Module, head: frozenset[str], part: Literal["all", "head", "last_block"] | frozenset[str]
) -> frozenset[str]:
    parameters = frozenset(name for name, _ in module.named_parameters())
    if isinstance(part, frozenset):
        return parameters & part
    if part == "all":
        return parameters
    return parameters & (head | (_last_block(module, head) if part == "last_block" else frozenset()))


def _last_block(module: nn.Module, head: frozenset[str]) -> frozenset[str]:
    """Return the names of the backbone's last block and of everything behind it.

    The blocks are the children of the innermost of `_CONTAINERS`, or of the module itself. The last one
    is the last that holds a matrix or a convolution outside the head: a lone norm is no block. So:
    resnet18 `layer4`, squeezenet1_0 `features.12` (the last Fire), mobilenet_v3_small `features.12` and
    the `classifier.0` behind it. A model without blocks (`linear`) is one block.
    """
    prefix, node = "", module
    while inner := next((name for name in _CONTAINERS if name in node._modules), None):
        prefix, node = f"{prefix}{inner}.", node.get_submodule(inner)
    blocks = [
        f"{prefix}{name}." for name, child in node.named_children() if _has_matrix(child, f"{prefix}{name}.", head)
    ]
    names = list(module.state_dict())
    start = next((i for i, name in enumerate(names) if blocks and name.startswith(blocks[-1])), 0)
    return frozenset(names[start:])


def _has_matrix(child: nn.Module, prefix: str, head: frozenset[str]) -> bool:
    return any(value.ndim >= 2 and prefix + name not in head for name, value in child.named_parameters())


def get_weights(module: nn.Module, names: Iterable[str] | None = None) -> dict[str, Array]:
    """Return copies of the module's arrays (or those in `names`) on the CPU, each with its shape and dtype.

    Raises:
        ModelError: a name that the module does not have.
    """
    state = module.state_dict(keep_vars=True)
    chosen = list(state) if names is None else list(names)
    if unknown := [name for name in chosen if name not in state]:
        raise ModelError(f"array '{unknown[0]}' is not in the model, expected one of its {len(state)} names")
    return {name: np.array(state[name].detach().cpu().numpy(), copy=True) for name in chosen}


def set_weights(module: nn.Module, weights: Weights) -> None:
    """Write arrays into the module, in place; names that `weights` lacks are kept as they are.

    Nothing is written unless every name and shape fits.

    Raises:
        ModelError: a name that the module does not have, or a shape that differs.
    """
    state = module.state_dict(keep_vars=True)
    for name, array in weights.items():
        if name not in state:
            raise ModelError(f"array '{name}' is not in the model, expected one of its {len(state)} names")
        if array.shape != tuple(state[name].shape):
            raise ModelError(f"array '{name}' has shape {array.shape}, expected {tuple(state[name].shape)}")
    with torch.no_grad():
        for name, array in weights.items():
            if state[name].device.type == "cpu":
                np.copyto(state[name].detach().numpy(), array, casting="unsafe")
            else:
                state[name].copy_(torch.from_numpy(np.array(array)))


def train_mode(model: Model) -> None:
    """Put the module in training mode, except BatchNorm layers that training may not change.

    A BatchNorm layer stays in evaluation mode under the policy "freeze", and where its own weights are
    not trainable: running statistics that move under a frozen layer would change what it computes.
    """
    model.module.train()
    for path, layer in model.module.named_modules():
        if isinstance(layer, _BatchNorm) and f"{path}.weight" not in model.trainable:
            layer.eval()
