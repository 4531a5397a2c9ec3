"""The server's pages for monitoring: `/metrics`, `/healthz` (it runs) and `/readyz` (it can be worked with)."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryptography.x509 import load_pem_x509_certificate
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from common.errors import ConsiliumError
from common.events import EventLog, Follower
from common.exposition import Page, serving, text_page
from common.processes import repeating
from server.control import Control
from server.metrics import ServerMetrics
from server.superlink import ServerHome

FOLLOW_SECONDS, SITES_SECONDS = 0.5, 5.0
AWAY_SECONDS = 30.0
"""For how long the control API may be silent before its last answer counts for nothing."""


@contextmanager
def exporting(home: ServerHome, address: str, *, is_up: Callable[[], bool]) -> Iterator[str]:
    """Serve the pages of a server on `address` until the block ends; yields the URL without a path.

    Args:
        is_up: whether the SuperLink runs.

    Raises:
        ConfigError, PortInUse: the address cannot be used.
        StateError: the journal cannot be written.
    """
    exporter = _Exporter(home, is_up)
    routes = {"/metrics": exporter.metrics, "/healthz": exporter.healthz, "/readyz": exporter.readyz}
    with serving(address, routes) as url:
        EventLog(home.journal).log("server_started")
        with (
            repeating(exporter.follow, seconds=FOLLOW_SECONDS, name="metrics-journal"),
            repeating(exporter.watch_sites, seconds=FOLLOW_SECONDS, name="metrics-sites"),
        ):
            yield url


class _Exporter:
    """Keeps one registry up to date: the journal in one thread, the sites in another, the rest at each scrape."""

    def __init__(self, home: ServerHome, is_up: Callable[[], bool]) -> None:
        self._home, self._is_up = home, is_up
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._metrics = ServerMetrics(self._registry)
        # The certificate that this process serves, not one that was put in its place since.
        certificate = load_pem_x509_certificate((home.path / "server.pem").read_bytes())
        self._metrics.see_certificate(certificate.not_valid_after_utc.timestamp())
        self._journal = Follower(home.journal)
        self._lock = threading.Lock()  # no scrape sees half of an event
        self._asked_at = self._answered_at = -float("inf")

    def follow(self) -> None:
        """Take in what is new in the journal."""
        problem: Exception | None = None
        for event in self._journal.new():
            try:
                with self._lock:
                    self._metrics.take(event)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                problem = error  # an event of another release; those after it still count
        if problem is not None:
            raise problem

    def watch_sites(self) -> None:
        """Ask the control API who is connected: often until it answers first, then every few seconds."""
        now = time.monotonic()
        if now - self._asked_at < SITES_SECONDS and self._is_ready():
            return
        self._asked_at = now
        try:
            with Control(self._home) as control:  # anew each time: the SuperLink waits for open ones when it stops
                sites = control.connections()
        except (ConsiliumError, OSError):  # it starts, or is briefly away; /readyz says so
            if not self._is_ready():
                with self._lock:
                    self._metrics.lose_sites()
            return
        self._answered_at = time.monotonic()
        with self._lock:
            self._metrics.see_sites(sites)

    def _is_ready(self) -> bool:
        return time.monotonic() - self._answered_at < AWAY_SECONDS

    def metrics(self) -> Page:
        """Return all metrics in Prometheus' text format."""
        disk = shutil.disk_usage(self._home.path)
        with self._lock:
            self._metrics.see_disk(free=disk.free, size=disk.total)
            return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)

    def healthz(self) -> Page:
        """Say whether the server runs."""
        return text_page(200, "ok") if self._is_up() else text_page(503, "the SuperLink does not run")

    def readyz(self) -> Page:
        """Say whether the server can be worked with."""
        ready = self._is_up() and self._is_ready()
        return text_page(200, "ready") if ready else text_page(503, "the control API does not answer")
