"""Every metric of a site, computed from the events of its own log; `docs/coordinator/metrics.md` explains each.

As at the server, the values depend on the events alone, so that they are the same after a restart.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

import consilium.common
from consilium.common.errors import EXIT_CODES
from consilium.common.events.measures import validation_measures
from consilium.common.events.site import PlanAnswered, PlanFailed, SiteEvent

ERRORS = frozenset((*EXIT_CODES, "UpdateRejected"))

# A counter's time of creation means nothing here: at a restart the log is read again.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has no types


class SiteMetrics:
    """A site's metrics on a registry; `take` every event of its log, in order."""

    def __init__(self, registry: CollectorRegistry, *, site: str) -> None:
        self._runs: dict[str, str] = {}

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"consilium_node_{name}", meaning, labels, registry=registry)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"consilium_node_{name}", meaning, labels, registry=registry)

        gauge("info", "always 1", "site", "version").labels(site, consilium.common.__version__).set(1)
        self._examples = gauge("examples", "this site's examples", "study", "split")
        self._plans = counter("plans_total", "plans answered", "study", "kind")
        self._seconds = counter("work_seconds_total", "time spent answering them", "study", "kind")
        self._epochs = counter("epochs_total", "passes over the training examples in rounds", "study")
        self._loss = gauge("loss", "loss on this site's validation split", "study", "model")
        self._accuracy = gauge("accuracy_ratio", "accuracy on it", "study", "model")
        self._bytes = counter("transfer_bytes_total", "bytes of payloads", "study", "direction", "codec")
        self._round = gauge("round", "last round answered", "study")
        self._last_plan = gauge("last_plan_timestamp_seconds", "when a plan was last answered", "study")
        self._epsilon = gauge("privacy_epsilon_spent", "what a private study has spent here, by the ledger", "study")
        self._budget = gauge("privacy_epsilon_budget", "the most that the study may spend here", "study")
        self._errors = counter("errors_total", "plans that failed, by kind of error", "error")
        self._gpu = gauge("gpu_memory_bytes", "GPU memory in use, where there is a GPU", "gpu")
        self._disk_free = gauge("disk_free_bytes", "free space where this site keeps its state")
        self._disk_size = gauge("disk_size_bytes", "size of that file system")

    def see_gpus(self, used_bytes: Iterable[int | None]) -> None:
        """Set the memory in use per GPU, in order; None for a GPU that does not report it."""
        self._gpu.clear()
        for number, used in enumerate(used_bytes):
            if used is not None:
                self._gpu.labels(str(number)).set(used)

    def see_disk(self, *, free: int, size: int) -> None:
        """Set the space where this site keeps its state."""
        self._disk_free.set(free)
        self._disk_size.set(size)

    def take(self, event: SiteEvent) -> None:
        """Update the metrics from one event of the site's log."""
        match event:
            case PlanFailed():
                self._errors.labels(event.error if event.error in ERRORS else "other").inc()
            case PlanAnswered():
                self._answered(event)

    def _answered(self, event: PlanAnswered) -> None:
        study = event.study
        if self._runs.setdefault(study, event.run) != event.run:
            self._runs[study] = event.run
            for gauge in (self._loss, self._accuracy, self._round):
                gauge.remove_by_labels({"study": study})
        self._plans.labels(study, event.kind).inc()
        self._seconds.labels(study, event.kind).inc(event.seconds)
        self._bytes.labels(study, "up", event.codec).inc(event.bytes_up)
        self._bytes.labels(study, "down", event.codec).inc(event.bytes_down)
        self._last_plan.labels(study).set(event.time.timestamp())
        if event.card is not None:
            for split in ("train", "validation", "test"):
                self._examples.labels(study, split).set(event.card[f"num_{split}"])
        if event.privacy is not None:
            self._epsilon.labels(study).set(event.privacy["epsilon"])
            if (budget := event.privacy.get("budget")) is not None:
                self._budget.labels(study).set(budget)
        if event.metrics is not None and event.round is not None:  # a round: the test split stays out of a live view
            self._round.labels(study).set(event.round)
            self._epochs.labels(study).inc(event.epochs or 0)
            for model, what, value in validation_measures(event.metrics):
                (self._loss if what == "loss" else self._accuracy).labels(study, model).set(value)
