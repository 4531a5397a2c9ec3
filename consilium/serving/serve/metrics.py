"""What a server counts, on a registry of its own; no series holds a value of an input."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from consilium.client.served.drift import Drift
from consilium.serving.serve.answering import Served

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has no types


class ServeMetrics:
    """The series of one server."""

    def __init__(self, served: Served) -> None:
        self._registry = registry = CollectorRegistry()
        come = served.model.record.provenance
        info = Gauge(
            "consilium_serve_model_info",
            "always 1; the model that answers",
            ("study", "run", "round", "served", "digest"),
            registry=registry,
        )
        info.labels(come.study, come.run, str(come.round), come.served, served.digest).set(1)
        self._requests = Counter(
            "consilium_serve_requests_total", "requests by path and status", ("path", "status"), registry=registry
        )
        self._rows = Counter(
            "consilium_serve_rows_total", "rows and pictures by outcome", ("outcome",), registry=registry
        )
        self._seconds = Histogram(
            "consilium_serve_seconds", "from a body to its answer", buckets=BUCKETS, registry=registry
        )
        self._compared = Gauge(
            "consilium_serve_drift_rows", "last inputs that are compared with training", registry=registry
        )
        self._psi = Gauge(
            "consilium_serve_drift_psi",
            "population stability index of columns that clearly differ from training",
            ("column",),
            registry=registry,
        )

    def see_request(self, path: str, status: int) -> None:
        """Count a request; `path` is one of ours."""
        self._requests.labels(path, str(status)).inc()

    def see_rows(self, *, answered: int, unread: int, seconds: float) -> None:
        """Count what a request asked about."""
        self._rows.labels("answered").inc(answered)
        self._rows.labels("unread").inc(unread)
        self._seconds.observe(seconds)

    def see_drift(self, found: Drift | None, rows: int) -> None:
        """Take the comparison of the last inputs with training."""
        usable = found is not None and not found.unsaid
        self._compared.set(rows if usable else 0)
        self._psi.clear()
        for finding in () if found is None else found.findings:
            self._psi.labels(finding.column).set(finding.psi)

    def page(self) -> bytes:
        """Return all series in Prometheus' text format."""
        content: bytes = generate_latest(self._registry)
        return content
