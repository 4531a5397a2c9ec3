"""The versions that decide whether two sites compute the same numbers."""

import platform
from functools import cache
from importlib.metadata import version

import torch

import consilium.common
from consilium.common.protocol.cards import Versions


@cache
def versions() -> Versions:
    """Return the versions that must be equal at every site."""
    return Versions(
        consilium=consilium.common.__version__,
        flwr=version("flwr"),
        torch=torch.__version__.partition("+")[0],
        torchvision=version("torchvision"),
        python=".".join(platform.python_version_tuple()[:2]),
    )
