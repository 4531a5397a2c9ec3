"""The names inside flwr that a site replaces, and how that is done.

Each replacement checks that the name still exists, so that another release of flwr fails at the start with a
sentence; `tests/test_flwr_contract.py` does the same in CI.
"""

import logging
from types import ModuleType
from typing import Any

import uvicorn.config

from common.errors import ConfigError


def replace(module: ModuleType, name: str, value: Any) -> None:
    """Put `value` in the place of `module.name`.

    Raises:
        ConfigError: this flwr release has no such name.
    """
    if not hasattr(module, name):
        raise ConfigError(f"flwr has no '{module.__name__}.{name}' any more; consilium needs flwr 1.39.0")
    module.__dict__[name] = value


def tame_logs(level: int) -> None:
    """Let flwr and its web server log one line per event in our form, from `level` up."""
    logging.getLogger("flwr").handlers.clear()
    for name in ("flwr", "alembic", "httpx", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(level)
    for logger in uvicorn.config.LOGGING_CONFIG["loggers"].values():
        logger["level"] = logging.getLevelName(level)
