"""A pretrained model of texts from a local folder: its settings, the digests of its files, and its weights.

`python -m consilium.pretrained FOLDER` prints what a study says of such a folder.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from consilium.common.errors import ModelError, clean, listed
from consilium.common.study.text_models import TRANSFORMER, TRANSFORMER_WEIGHTS, TransformerSettings
from consilium.common.study.training import PretrainedConfig

WEIGHTS, CONFIG, TOKENIZER = TRANSFORMER_WEIGHTS, "config.json", "tokenizer.json"
"""Files of a pretrained model's folder."""
MOST_BYTES, MOST_CONFIG_BYTES = 2**36, 2**20
"""Size of the largest file that is read, and of the largest `config.json`."""
BASE = "backbone.base."
"""How the names of the base's arrays begin in our model."""
_PREFIXES = ("bert.", "roberta.", "transformer.")
_NOT_OF_THE_BASE = ("pooler.", "cls.", "lm_head.", "classifier.", "score.", "qa_outputs.")
_BUFFERS = (".attn.bias", ".attn.masked_bias", "embeddings.position_ids", "embeddings.token_type_ids")
_MOST_NAMED = 8

_KEYS: Mapping[str, tuple[str, ...]] = {
    "type": ("model_type",),
    "vocabulary": ("vocab_size",),
    "width": ("hidden_size", "n_embd"),
    "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "inner": ("intermediate_size", "n_inner"),
    "positions": ("max_position_embeddings", "n_positions"),
    "types": ("type_vocab_size",),
    "padding": ("pad_token_id",),
    "activation": ("hidden_act", "activation_function"),
    "epsilon": ("layer_norm_eps", "layer_norm_epsilon"),
}
"""Our settings, and what they are called in `config.json`: by BERT and RoBERTa, by GPT-2."""


def check_folder(config: PretrainedConfig, *, weights_dir: Path | None) -> Path:
    """Return the folder that a study names, after comparing the SHA-256 of every file that it lists.

    Raises:
        ModelError: no weights folder or no such file, or a file that differs by as little as a byte.
    """
    who = f"weights folder '{config.folder}'"
    if weights_dir is None:
        raise ModelError(f"{who}: the study names it, but site.toml has no weights_dir")
    folder = weights_dir / str(config.folder)
    for name, sha256 in config.files.items():
        if not (folder / name).is_file():
            raise ModelError(f"{who}: '{name}' not found in '{folder}'")
        if (seen := _sha256(folder / name, who)) != sha256:
            raise ModelError(f"{who}: '{name}': sha256 is {seen}, the study pins {sha256}")
    return folder


def load_folder(
    module: nn.Module, settings: TransformerSettings, config: PretrainedConfig, *, weights_dir: Path | None
) -> None:
    """Put a folder's weights into the base of a model of texts, in place; its head stays as it was drawn.

    What the folder holds apart from the base (a pooler, the heads of other tasks) is left out.

    Raises:
        ModelError: a file that is missing or differs from the study's digest, settings that are not those of the
            folder's `config.json`, or weights that do not fit.
    """
    folder = check_folder(config, weights_dir=weights_dir)
    who = f"weights folder '{config.folder}'"
    if CONFIG in config.files:
        _check_settings(settings, folder / CONFIG, who)
    found = _base_arrays(folder / WEIGHTS, who)
    state = {name: value for name, value in module.state_dict().items() if name.startswith(BASE)}
    _check_fits({f"{BASE}{name}": value for name, value in found.items()}, state, who)
    with torch.no_grad():
        for name, value in found.items():
            state[f"{BASE}{name}"].copy_(value)


def described(folder: Path) -> dict[str, Any]:
    """Return `task.tokens`, `model.settings` and `model.pretrained` of a folder, as a study holds them.

    Raises:
        ModelError: it has no `config.json` or `model.safetensors`, or is of another kind of model.
    """
    who = f"weights folder '{clean(folder.name)}'"
    names = [name for name in (CONFIG, WEIGHTS, TOKENIZER) if (folder / name).is_file()]
    if absent := sorted({CONFIG, WEIGHTS} - set(names)):
        raise ModelError(f"{who}: has no '{absent[0]}'")
    settings = _settings_in(folder / CONFIG, who)
    kept = {name: value for name, value in settings.model_dump(exclude_defaults=True).items() if value is not None}
    digests = {name: _sha256(folder / name, who) for name in names}
    model = {
        "name": TRANSFORMER,
        "settings": {"type": settings.type, **kept},
        "pretrained": {"folder": folder.name, "files": digests},
    }
    if TOKENIZER not in digests:
        return {"model": model}
    file = {"kind": "file", "file": f"{folder.name}/{TOKENIZER}", "sha256": digests[TOKENIZER]}
    return {"task": {"tokens": {**file, "size": settings.vocabulary}}, "model": model}


def _settings_in(path: Path, who: str) -> TransformerSettings:
    """Return the settings that a `config.json` holds; what it says beyond that changes nothing that we compute."""
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise ModelError(f"{who}: {CONFIG} has more than {MOST_CONFIG_BYTES} bytes, which no model's settings take")
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{who}: {CONFIG} is no JSON, or it is damaged") from error
    if not isinstance(values, dict) or values.get("model_type") not in ("bert", "roberta", "gpt2"):
        raise ModelError(f"{who}: {CONFIG} is of another kind of model, expected model_type bert, roberta or gpt2")
    given = {name: values[key] for name, keys in _KEYS.items() for key in keys if values.get(key) is not None}
    if values["model_type"] == "gpt2":
        given = {"pooling": "last", "activation": "gelu_new", "epsilon": 1e-5, "positions": 1024} | given
    try:
        return TransformerSettings.model_validate(given)
    except ValueError as error:
        raise ModelError(f"{who}: {CONFIG} holds settings that are not supported: {clean(str(error), 300)}") from error


def _check_settings(settings: TransformerSettings, path: Path, who: str) -> None:
    there = _settings_in(path, who)
    for name, keys in _KEYS.items():
        ours, theirs = getattr(settings, name), getattr(there, name)
        if name == "inner":
            ours, theirs = ours or 4 * settings.width, theirs or 4 * there.width
        if ours != theirs and not (settings.type == "gpt2" and name in ("types", "padding")):
            raise ModelError(
                f"{who}: {CONFIG} says {' or '.join(keys)} = {theirs}, the study says model.settings.{name} = {ours}"
            )


def _base_arrays(path: Path, who: str) -> dict[str, Tensor]:
    try:
        arrays = safetensors.torch.load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{who}: '{path.name}' is no safetensors file, or it is damaged") from error
    prefix = next((one for one in _PREFIXES if any(name.startswith(one) for name in arrays)), "")
    plain = {name.removeprefix(prefix): value for name, value in arrays.items()}
    return {
        name: value
        for name, value in plain.items()
        if not name.startswith(_NOT_OF_THE_BASE) and not name.endswith(_BUFFERS)
    }


def _check_fits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], who: str) -> None:
    short = len(BASE)
    problems = {
        "missing": [name[short:] for name in expected if name not in weights],
        "unexpected": [clean(name[short:], 100) for name in weights if name not in expected],
        "wrong shape": [
            f"{name[short:]} {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
            for name, value in expected.items()
            if name in weights and weights[name].shape != value.shape
        ],
        "not finite": [
            name[short:]
            for name in expected
            if name in weights and not bool(torch.isfinite(weights[name].float()).all())
        ],
    }
    if found := [f"{what} {listed(names, _MOST_NAMED)}" for what, names in problems.items() if names]:
        raise ModelError(f"{who}: does not fit model '{TRANSFORMER}' with the study's settings: {'; '.join(found)}")


def _sha256(path: Path, who: str) -> str:
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ModelError(f"{who}: '{path.name}' has {size} bytes, at most {MOST_BYTES} are read")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{who}: '{path.name}' cannot be read: {error.strerror or error}") from error
