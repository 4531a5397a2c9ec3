"""Settings of models of one's own, and which settings of `[model]` a built-in model reads."""

from collections.abc import Mapping
from typing import Any

from consilium.common.errors import ConfigError
from consilium.common.study.parts import check_not_shadowed, own_settings
from consilium.common.study.record import Record
from consilium.common.study.text_models import TEXT_SETTINGS

SERIES_NAMES = ("cnn1d", "gru")
"""Models of our own that read series."""
SMALL_NAMES = ("small_cnn", "resnet20", "mlp", "mlp_bn", "linear", *SERIES_NAMES)
"""Models of our own; all others that are built in are torchvision's, or of a library that the name begins with."""
OWN = "own:"
"""How the names of torch modules that somebody gave along begin."""
UNET, UNET_STEP = "unet", 8
"""Our own model that answers for every pixel, and what the sides of its pictures are multiples of."""
PIXEL_MODELS = (UNET, "monai/unet", "monai/basicunet")
"""Models that answer for every pixel."""
LIBRARIES = {"timm": "timm/resnet18", "monai": "monai/densenet121"}
"""Libraries whose models are named `LIBRARY/MODEL`, each with an example, and an extra of its name."""


def of_somebody(name: str) -> bool:
    """Return whether a model's name is one of a torch module that was given along in Python."""
    return name.startswith(OWN)


def library_of(name: str) -> str | None:
    """Return the library that a model's name begins with; None where it is of none."""
    library, slash, _ = name.partition("/")
    return library if slash and library in LIBRARIES else None


class ModelSettings(Record):
    """Base of the settings of a model of one's own: what a study says of it in `[model.settings]`."""


def model_settings(name: str, values: Mapping[str, Any]) -> Record | None:
    """Return the settings of a model of one's own; None where the name is a built-in model's, or nobody's.

    Raises:
        ConfigError: its package may not be used, or it shadows a built-in name.
        ValidationError: the values do not fit its settings.
    """
    if name in (*SMALL_NAMES, UNET):
        check_not_shadowed("models", name)
        return None
    if name in TEXT_SETTINGS:
        check_not_shadowed("models", name)
        return TEXT_SETTINGS[name].model_validate(dict(values))
    settings = own_settings("models", name, ModelSettings)
    return None if settings is None else settings.model_validate(dict(values))


def checked_settings(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return `model.settings`; refuse those that the model does not read."""
    try:
        own = model_settings(name, values)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    if own is None and values:
        raise ValueError(f"model '{name}' reads no settings of its own: leave them out")
    return values
