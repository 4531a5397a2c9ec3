"""The names inside flwr that a site replaces to be quick and to run its own code, all in one place.

flwr 1.39 polls every 3 s, waits 1 s for an object that is not there yet, starts a process per message and
runs the code that the server sends. Each replacement checks that the name still exists, so that another
release fails at the start with a sentence; `tests/test_flwr_contract.py` does the same in CI.
"""

import logging
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import uvicorn.config
from flwr.supercore.inflatable import inflatable_utils
from flwr.supernode import start_client_internal

from common.errors import ConfigError

BUSY_POLL_SECONDS, MOST_POLL_SECONDS, IDLE_POLL_SECONDS, IDLE_AFTER_SECONDS = 0.02, 0.2, 1.0, 20.0
POLITENESS = 3.0
"""The pause after a poll, in times that the poll took."""


def replace(module: ModuleType, name: str, value: Any) -> None:
    """Put `value` in the place of `module.name`.

    Raises:
        ConfigError: this flwr release has no such name.
    """
    if not hasattr(module, name):
        raise ConfigError(f"flwr has no '{module.__name__}.{name}' any more; consilium needs flwr 1.39.0")
    module.__dict__[name] = value


class Pace:
    """How long to pause between polls: short while work arrives, long after a while without any.

    A poll that took long was answered by somebody busy, so the pause is a multiple of it: many sites that poll one
    server leave it the time to work.
    """

    def __init__(self) -> None:
        self._last_work = self._paused = time.monotonic()

    def worked(self) -> None:
        """Note that there was work just now; it does not count as a poll."""
        self._last_work = self._paused = time.monotonic()

    def pause(self) -> None:
        """Sleep until the next poll."""
        now = time.monotonic()
        if now - self._last_work > IDLE_AFTER_SECONDS:
            seconds = IDLE_POLL_SECONDS
        else:
            seconds = min(max(BUSY_POLL_SECONDS, POLITENESS * (now - self._paused)), MOST_POLL_SECONDS)
        time.sleep(seconds)
        self._paused = time.monotonic()


class PacedTime:
    """Stands in for the `time` module inside flwr's SuperNode loop.

    flwr sleeps 3 s after an empty poll, and 0.5 s while it waits for the app's reply to a message.
    """

    def __init__(self) -> None:
        self._pace = Pace()
        self._polled: float | None = None

    def polled_within(self, seconds: float) -> bool:
        """Return whether the loop was here in the last `seconds`: it is when it has connected, between its polls."""
        return self._polled is not None and time.monotonic() - self._polled < seconds

    def sleep(self, seconds: float) -> None:
        """Pause as `Pace` says, whatever was asked for."""
        self._polled = time.monotonic()
        if seconds < 1:
            self._pace.worked()
        self._pace.pause()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def ring_on_messages(ring: Callable[[], None]) -> None:
    """Have the SuperNode call `ring` when it has a message with all its objects, so that a worker need not poll."""
    original = start_client_internal._pull_and_store_message

    def pull_and_ring(*arguments: Any, **named: Any) -> int | None:
        run_id = original(*arguments, **named)
        if run_id is not None:
            ring()
        return run_id

    replace(start_client_internal, "_pull_and_store_message", pull_and_ring)


def quicken_object_pulls() -> None:
    """Shorten the wait for an object that is not there yet from 1 s to 20 ms."""
    for function in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        defaults = function.__kwdefaults__ or {}
        defaults.update(initial_backoff=0.02, backoff_cap=0.05, max_tries_per_object=None)


def tame_logs(level: int) -> None:
    """Let flwr and its web server log one line per event in our form, from `level` up."""
    logging.getLogger("flwr").handlers.clear()
    for name in ("flwr", "alembic", "httpx", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(level)
    for logger in uvicorn.config.LOGGING_CONFIG["loggers"].values():
        logger["level"] = logging.getLevelName(level)
