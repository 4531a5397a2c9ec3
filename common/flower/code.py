"""The code of a Flower app, loaded into this process."""

import importlib
import sys
from pathlib import Path
from typing import Any

from consilium.common.errors import ConfigError


def load_component(folder: Path, reference: str) -> Any:
    """Import an app's module from its folder and return the attribute.

    The folder stands last on the import path, so that nothing in it takes the place of a module of ours, of Python
    or of an installed package. Nothing is written into it.

    Args:
        reference: `module:attribute`.

    Raises:
        ConfigError: another module of this name is installed, or the attribute is missing.
        Exception: whatever the module itself raises.
    """
    name, _, attributes = reference.partition(":")
    sys.dont_write_bytecode = True
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    found = importlib.import_module(name)
    if not _lies_in(found, folder):
        raise ConfigError(f"the app's module '{name}' is hidden by an installed one of that name; call it otherwise")
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise ConfigError(f"the app's module '{name}' has no '{attributes}'")
        found = getattr(found, attribute)
    return found


def unload(folder: Path) -> None:
    """Forget all modules that were imported from a folder, so that another app's can have their names."""
    sys.path[:] = [place for place in sys.path if place != str(folder)]
    for name, module in list(sys.modules.items()):
        if _lies_in(module, folder):
            del sys.modules[name]


def _lies_in(module: Any, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    places = [file] if isinstance(file, str) else [str(place) for place in getattr(module, "__path__", [])]
    return any(Path(place).is_relative_to(folder) for place in places)
