"""A site's pages for monitoring: `/metrics`, `/healthz` (it runs) and `/readyz` (it can answer plans)."""

import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from consilium.client.operations.metrics import SiteMetrics
from consilium.common.errors import StateError
from consilium.common.events.log import Follower
from consilium.common.events.site import SITE_EVENTS
from consilium.common.host.background import repeating
from consilium.common.host.http_pages import Page, serving, text_page

log = logging.getLogger(__name__)

GPU_SECONDS = 15.0
GPU_QUERY = ("--query-gpu=memory.used", "--format=csv,noheader,nounits")


@contextmanager
def exporting(site: str, events: Path, address: str, *, is_ready: Callable[[], bool]) -> Iterator[str]:
    """Serve the pages of a site on `address` until the block ends; yields the URL without a path.

    Args:
        events: the site's event log.
        is_ready: whether the site has joined and can answer plans.

    Raises:
        ConfigError, PortInUse: the address cannot be used.
    """
    exporter = _Exporter(site, events, is_ready)
    routes = {"/metrics": exporter.metrics, "/healthz": exporter.healthz, "/readyz": exporter.readyz}
    with ExitStack() as stack:
        url = stack.enter_context(serving(address, routes))
        if shutil.which("nvidia-smi"):
            stack.enter_context(repeating(exporter.watch_gpus, seconds=GPU_SECONDS, name="metrics-gpu"))
        yield url


class _Exporter:
    """Keeps one registry up to date: the GPUs in a thread, the log and the disk at each scrape."""

    def __init__(self, site: str, events: Path, is_ready: Callable[[], bool]) -> None:
        self._folder, self._is_ready = events.parent, is_ready
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._metrics = SiteMetrics(self._registry, site=site)
        self._log = Follower(events, SITE_EVENTS)
        self._lock = threading.Lock()  # no scrape sees half of an event

    def _follow(self) -> None:
        """Take the new events of the log."""
        for event in self._log.new(_not_counted):
            self._metrics.take(event)

    def watch_gpus(self) -> None:
        """Ask the driver how much memory is in use; training itself is in another process."""
        done = subprocess.run(["nvidia-smi", *GPU_QUERY], capture_output=True, text=True, timeout=10, check=False)
        lines = done.stdout.splitlines() if done.returncode == 0 else []
        used = [int(line) * 2**20 if line.strip().isdecimal() else None for line in lines]
        with self._lock:
            self._metrics.see_gpus(used)

    def metrics(self) -> Page:
        """Return all metrics in Prometheus' text format."""
        folder = next(path for path in (self._folder, *self._folder.parents) if path.exists())
        disk = shutil.disk_usage(folder)
        with self._lock:
            self._follow()
            self._metrics.see_disk(free=disk.free, size=disk.total)
            return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)

    def healthz(self) -> Page:
        """Say that this process runs."""
        return text_page(200, "ok")

    def readyz(self) -> Page:
        """Say whether the site can answer plans."""
        ready = self._is_ready()
        return text_page(200, "ready") if ready else text_page(503, "not connected, or the worker does not run")


def _not_counted(problem: StateError) -> None:
    log.error("event not counted: %s", problem)  # of another release; those after it still count
