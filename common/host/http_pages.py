"""A small HTTP server for long-lived processes: a few read-only pages (metrics, health) and nothing else."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from consilium.common.errors import ConfigError, PortInUse
from consilium.common.host.address import Address, parse_address

log = logging.getLogger(__name__)

Page = tuple[int, str, bytes]
"""Status, content type, content."""
Route = Callable[[], Page]

MAX_REQUESTS, TIMEOUT_SECONDS = 8, 5.0
"""How many requests are served at once (more are hung up on), and how long a silent client is waited for."""


def text_page(status: int, text: str) -> Page:
    """Return a page of plain text."""
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()


@contextmanager
def serving(address: str, routes: Mapping[str, Route]) -> Iterator[str]:
    """Serve `routes` (path -> page) on `address` in threads until the block ends; yields the URL without a path.

    Args:
        address: `host:port`. A name is resolved, and the server listens on that one address; port 0 takes a free one.

    Raises:
        ConfigError: the address is not `host:port`, or the name cannot be resolved.
        PortInUse: the port is taken, or the address is not one of this machine's.
    """
    server = _bound(address, routes)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name=f"pages-{address}", daemon=True)
    thread.start()
    host, port = server.server_address[:2]
    try:
        yield f"http://{Address(str(host), port)}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _bound(address: str, routes: Mapping[str, Route]) -> "_Server":
    wanted = parse_address(address, what="the metrics' address", free_port=True)
    try:
        found = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"the metrics' address '{address}' cannot be resolved: {error.strerror or error}") from error
    # IPv4 first: "localhost" resolves to both, and a scraper of 127.0.0.1 must reach it.
    family, _, _, _, place = min(found, key=lambda item: item[0] != socket.AF_INET)
    try:
        return _Server(family, place, routes)
    except OSError as error:
        raise PortInUse(
            f"the metrics' address: port {wanted.port} on {wanted.host} cannot be used "
            f"({error.strerror or error}); choose another, or stop what uses it"
        ) from error


class _Server(ThreadingHTTPServer):
    """Bounded in threads; says nothing on stderr."""

    allow_reuse_port = False  # two servers on one port would each get a part of the requests
    daemon_threads = True

    def __init__(self, family: socket.AddressFamily, place: Any, routes: Mapping[str, Route]) -> None:
        self.address_family = family
        self.routes = routes
        self._free = threading.BoundedSemaphore(MAX_REQUESTS)
        super().__init__(place, _Handler)

    def server_bind(self) -> None:
        # The base class looks up this machine's full name, which can take seconds where DNS does not answer.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that hangs up is not an event."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = TIMEOUT_SECONDS
    server_version, sys_version = "consilium", ""

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def _answer(self, *, with_content: bool) -> None:
        path = self.path.partition("?")[0]
        route = self.server.routes.get(path)
        try:
            status, kind, content = route() if route is not None else text_page(404, "not found")
        except Exception as error:  # the other pages are served even if one fails
            log.error("page failed path=%s error=%s message=%s", path, type(error).__name__, error)
            status, kind, content = text_page(500, "this page failed; the log says why")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log no requests: one every few seconds, for years."""
