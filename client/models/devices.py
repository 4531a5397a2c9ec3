"""The device that a site trains on."""

import torch

from consilium.common.errors import ModelError


def device_of(setting: str) -> torch.device:
    """Return the device that a site's settings name: `auto`, `cpu` or `cuda`.

    Raises:
        ModelError: the setting is a GPU and there is none.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ModelError("device is 'cuda', but torch finds no GPU on this machine; set device to 'auto' or 'cpu'")
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")
