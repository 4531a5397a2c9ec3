"""Runs a server until it is stopped: `Ctrl-C` and SIGTERM end it cleanly, slow clients do not hold it."""

import asyncio
import logging
import signal
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from consilium.serving.serve.answering import load_served
from consilium.serving.serve.app import build_app
from consilium.serving.serve.limits import HEADER_SECONDS, LONGEST_SECONDS, MAX_CONNECTIONS, STOP_SECONDS
from consilium.serving.serve.listening import Listening

_KEEP_ALIVE_SECONDS = 5


def serve(
    model: Path,
    opened: Listening,
    *,
    weights_dir: Path | None = None,
    announce: Callable[[str], None],
) -> None:
    """Answer with a model until a signal ends it.

    Args:
        opened: is closed at the end.
        announce: takes sentences for people: which model answers, and where.

    Raises:
        ModelError: the model cannot be used.
    """
    with opened.socket:
        served = load_served(model, weights_dir=weights_dir)
        app = build_app(served, hosts=opened.hosts, token=opened.token)
        announce(served.title)
        announce(f"model.json has sha256 {served.digest}; a changed folder is read at the next start")
        announce(f"answers at {opened.url}; Ctrl-C ends it")
        asyncio.run(_until_stopped(app, opened))
    announce("stopped")


async def _until_stopped(app: ASGIApp, opened: Listening) -> None:
    server = server_of(app, opened)

    def stop() -> None:
        server.force_exit, server.should_exit = server.should_exit, True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    await server.serve(sockets=[opened.socket])


def server_of(app: ASGIApp, opened: Listening) -> uvicorn.Server:
    """Return the server for an application, which listens once it is run."""
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return _Server(_config(app, opened.tls))


def _config(app: ASGIApp, tls: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs the server: the base class raises them again at the end."""
        yield


class TimedProtocol(H11Protocol):
    """Hangs up on clients that send their headers, or read their answer, too slowly."""

    _timer: asyncio.TimerHandle | None = None
    _seen: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base class
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._wait(HEADER_SECONDS)

    def handle_events(self) -> None:
        """Begin to wait for the answer's end where a request's headers are complete."""
        super().handle_events()
        if self.cycle is not self._seen:
            self._seen = self.cycle
            self._wait(LONGEST_SECONDS)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request's headers."""
        self._wait(HEADER_SECONDS)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _wait(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort)
