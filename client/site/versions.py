"""The versions that decide whether two sites compute the same numbers."""

import platform
from functools import cache
from importlib.metadata import version

import torch

import consilium.common
from consilium.common.protocol.cards import Versions
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.used import packages_of


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


def versions_in(study: StudyConfig, config: SiteConfig) -> Versions:
    """Return the versions here, with the packages of one's own that a study uses at a site.

    Raises:
        ConfigError: a package's files cannot be read.
    """
    return versions().model_copy(update={"parts": packages_of(study, reader=config.data.kind)})
