"""The server's pages for monitoring: `/metrics`, `/healthz` (it runs) and `/readyz` (sites can connect)."""

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from cryptography.x509 import load_pem_x509_certificate
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from consilium.common.errors import StateError
from consilium.common.events.log import EventLog, Follower
from consilium.common.events.run import STUDY_EVENTS, ServerStarted
from consilium.common.host.background import repeating
from consilium.common.host.http_pages import Page, serving, text_page
from consilium.server.operations.home import ServerHome
from consilium.server.operations.metrics import JournalMetrics, LiveMetrics

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 0.5


class Connections(Protocol):
    """The part of the server's process that knows its sites."""

    def connections(self) -> Mapping[str, tuple[bool, float | None, float]]:
        """Return of each approved site: is it connected, when it last was, when its certificate ends (Unix seconds)."""
        ...

    def uploads(self) -> tuple[int, int]:
        """Return how many payloads are on their way, and how many wait for their turn."""
        ...

    def is_ready(self) -> bool:
        """Return whether sites can connect."""
        ...


@contextmanager
def exporting(home: ServerHome, address: str, *, state: Connections) -> Iterator[str]:
    """Serve the pages of a server on `address` until the block ends; yields the URL without a path.

    Raises:
        ConfigError, PortInUse: the address cannot be used.
    """
    exporter = _Exporter(home, state)
    routes = {"/metrics": exporter.metrics, "/healthz": exporter.healthz, "/readyz": exporter.readyz}
    with serving(address, routes) as url:
        try:
            EventLog(home.journal, endless=True).log(ServerStarted())
        except StateError as error:
            log.warning("%s; metrics lack what is not in the journal", error)
        with repeating(exporter.follow, seconds=FOLLOW_SECONDS, name="metrics-journal"):
            yield url


class _Exporter:
    """Keeps one registry up to date: the journal in a thread, the rest at each scrape."""

    def __init__(self, home: ServerHome, state: Connections) -> None:
        self._home, self._state = home, state
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._metrics, self._live = JournalMetrics(self._registry), LiveMetrics(self._registry)
        self._journal = Follower(home.journal, STUDY_EVENTS)
        self._lock = threading.Lock()  # no scrape sees half of an event

    def follow(self) -> None:
        """Take the new events of the journal.

        Raises:
            StateError: an event is of another release; those after it count all the same.
        """
        problems: list[StateError] = []
        for event in self._journal.new(problems.append):
            with self._lock:
                self._metrics.take(event)
        if problems:
            raise problems[-1]

    def metrics(self) -> Page:
        """Return all metrics in Prometheus' text format."""
        disk = shutil.disk_usage(self._home.path)
        sites, uploads = self._state.connections(), self._state.uploads()
        certificate = load_pem_x509_certificate(self._home.certificate.read_bytes())
        with self._lock:
            self._live.see_certificate(certificate.not_valid_after_utc.timestamp())
            self._live.see_sites(sites)
            self._live.see_uploads(*uploads)
            self._live.see_disk(free=disk.free, size=disk.total)
            return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)

    def healthz(self) -> Page:
        """Say that this process runs."""
        return text_page(200, "ok")

    def readyz(self) -> Page:
        """Say whether sites can connect."""
        return text_page(200, "ready") if self._state.is_ready() else text_page(503, "the server is starting")
