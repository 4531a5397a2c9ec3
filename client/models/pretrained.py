"""Load pretrained weights into a backbone, by torchvision's name or from a local file; nothing is unpickled."""

import re
from pathlib import Path

import torch
from torch import nn

from consilium.client.models.fit import Wanted, fitted
from consilium.client.models.weights_file import read_weights
from consilium.common.errors import ModelError
from consilium.common.study.training import PretrainedConfig


def load_pretrained(
    module: nn.Module, *, name: str, head: frozenset[str], config: PretrainedConfig, weights_dir: Path | None
) -> tuple[str, ...]:
    """Load the backbone's weights in place; the head stays freshly initialised, whatever the file holds.

    The file's classes are other classes, so its head is never used, not even where the shapes agree.
    All backbone names must be there with the model's shapes; only BatchNorm's `num_batches_tracked`,
    which old files lack, may be missing. Wrappers are opened, and one prefix is taken off where that makes
    all names fit. Nothing is written unless everything fits.

    Args:
        name: the model's name in the study.
        weights_dir: where `config.file` is; not needed for torchvision's weights.

    Returns:
        A sentence for each thing that was done to make the file fit.

    Raises:
        ModelError: no such file or weights, no network, another sha256, not a plain weights file, or
            weights that do not fit.
    """
    if config.file is not None:
        who, path = f"weights file '{config.file}'", _local_file(config.file, weights_dir)
    else:
        who, path = f"torchvision weights '{config.weights}' of '{name}'", _downloaded(name, str(config.weights))
    opened = read_weights(path, who=who, sha256=config.sha256)
    fit = fitted(opened.arrays, Wanted.of(module, head), who=f"{who}: does not fit model '{name}'")
    state = module.state_dict()
    with torch.no_grad():
        for key, value in fit.arrays.items():
            state[key].copy_(value)
    return (*opened.notes(), *fit.notes())


def _local_file(file: str, weights_dir: Path | None) -> Path:
    if weights_dir is None:
        raise ModelError(f"weights file '{file}': the study pins it, but site.toml has no weights_dir")
    path = weights_dir / file
    if not path.is_file():
        raise ModelError(f"weights file '{file}': not found in weights_dir '{weights_dir}'")
    return path


def cached_weights(name: str, weights: str) -> tuple[Path, str]:
    """Return where torch hub keeps torchvision's weights and their address; nothing is fetched.

    Raises:
        ModelError: torchvision has no such model or weights.
    """
    from consilium.client.models import vision  # here, because only these models need torchvision

    if name not in vision.vision_names():
        raise ModelError(
            f"model '{name}' is not one of torchvision's, so it has no weights '{weights}': use pretrained.file"
        )
    url = vision.weights_url(name, weights)
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2], url


def _downloaded(name: str, weights: str) -> Path:
    """Return torch hub's cached copy, fetched and checked against the hash in its file name when missing."""
    path, url = cached_weights(name, weights)
    if not path.is_file():
        prefix = re.search(r"-([0-9a-f]{8,})\.", path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), prefix and prefix.group(1), progress=False)
        except (OSError, RuntimeError) as error:
            why = getattr(error, "reason", None) or type(error).__name__  # not its text: that can hold a path
            raise ModelError(
                f"torchvision weights '{weights}' of '{name}': cannot fetch {url}: {why}; "
                "put the file in weights_dir and use pretrained.file"
            ) from error
    return path
