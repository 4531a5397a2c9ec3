"""Load pretrained weights into a backbone, by torchvision's name or from a local file; nothing is unpickled."""

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from consilium.common.errors import ModelError, listed
from consilium.common.study.training import PretrainedConfig

_PICKLED = (".pt", ".pth", ".th")
_MAX_LISTED = 8


def load_pretrained(
    module: nn.Module, *, name: str, head: frozenset[str], config: PretrainedConfig, weights_dir: Path | None
) -> None:
    """Load the backbone's weights in place; the head stays freshly initialised, whatever the file holds.

    The file's classes are other classes, so its head is never used, not even where the shapes agree.
    All backbone names must be there with the model's shapes; only BatchNorm's `num_batches_tracked`,
    which old files lack, may be missing. Nothing is written unless everything fits.

    Args:
        name: the model's name in the study.
        weights_dir: where `config.file` is; not needed for torchvision's weights.

    Raises:
        ModelError: no such file or weights, no network, another sha256, not a plain weights file, or
            weights that do not fit.
    """
    if config.file is not None:
        who, path = f"weights file '{config.file}'", _local_file(config.file, weights_dir)
    else:
        who, path = f"torchvision weights '{config.weights}' of '{name}'", _downloaded(name, str(config.weights))
    weights = _read(path, who=who, sha256=config.sha256)
    _check_fits(weights, module, head, who=f"{who}: does not fit model '{name}'")
    state = module.state_dict()
    with torch.no_grad():
        for key in weights.keys() & (state.keys() - head):
            state[key].copy_(weights[key])


def _local_file(file: str, weights_dir: Path | None) -> Path:
    if weights_dir is None:
        raise ModelError(f"weights file '{file}': the study pins it, but site.toml has no weights_dir")
    path = weights_dir / file
    if not path.is_file():
        raise ModelError(f"weights file '{file}': not found in weights_dir '{weights_dir}'")
    return path


def check_weights_file(config: PretrainedConfig, *, weights_dir: Path | None) -> Path:
    """Return the local file that a study names, after reading it and comparing its sha256.

    Raises:
        ModelError: no weights folder or no such file, another sha256, or not a plain weights file.
    """
    path = _local_file(str(config.file), weights_dir)
    _read(path, who=f"weights file '{config.file}'", sha256=config.sha256)
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


def _read(path: Path, *, who: str, sha256: str | None) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{who}: cannot be read: {error.strerror or error}") from error
    seen = hashlib.sha256(content).hexdigest()
    if sha256 is not None and seen != sha256:
        raise ModelError(f"{who}: sha256 is {seen}, the study pins {sha256}")
    return _plain_names(_parse(content, path.suffix, who=who), who=who)


def _parse(content: bytes, suffix: str, *, who: str) -> object:
    if suffix != ".safetensors" and suffix not in _PICKLED:
        raise ModelError(f"{who}: must end in .safetensors, {', '.join(_PICKLED)}, got '{suffix}'")
    try:
        if suffix == ".safetensors":
            return safetensors.torch.load(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickles before refusing them; the error below says so
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes from outside the parsers raise many kinds of errors
        raise ModelError(
            f"{who}: is not a plain weights file ({type(error).__name__}): it is damaged, or pickled with code, "
            "which is never run; save the state_dict alone, best as .safetensors"
        ) from error


def _plain_names(content: object, *, who: str) -> dict[str, Tensor]:
    """Unwrap `{"state_dict": ...}`, strip a common `module.` prefix, and take the old names of densenet files."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{who}: holds {type(content).__name__}, expected named arrays")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelError(f"{who}: entry {key!r} is {type(value).__name__}, expected an array")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    # torchvision's densenet files say `denselayer1.norm.1.weight` where the model says `denselayer1.norm1.weight`.
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d+\.)")
    return {old.sub(r"\1\2", key.removeprefix(prefix)): value for key, value in content.items()}


def _check_fits(weights: Mapping[str, Tensor], module: nn.Module, head: frozenset[str], *, who: str) -> None:
    expected = {key: value for key, value in module.state_dict().items() if key not in head}
    optional = {key for key in expected if key.endswith(".num_batches_tracked")}
    problems = {
        "missing": [key for key in expected if key not in weights and key not in optional],
        "unexpected": [key for key in weights if key not in expected and key not in head],
        "wrong shape": [
            f"{key} {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
            for key, value in expected.items()
            if key in weights and weights[key].shape != value.shape
        ],
        "not finite": [key for key in expected if key in weights and not bool(torch.isfinite(weights[key]).all())],
    }
    found = [f"{what} {listed(items, _MAX_LISTED)}" for what, items in problems.items() if items]
    if found:
        raise ModelError(f"{who}: {'; '.join(found)}")
