"""Every metric of the server, made from the events of its journal; `docs/metrics.md` says what each means.

The law: the values depend on the events alone, so a restarted exporter that reads the journal from its
start arrives at the same values, counters too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from common.events import Event

IN_PROGRESS = ("waiting", "training", "finishing")
STATES = (*IN_PROGRESS, "finished", "failed", "stopped")
PHASES = ("waiting", "transfer", "aggregation", "total")
STAGES = ("asked", "answered", "accepted")
MODELS = ("global", "personal", "local", "train")
REASONS = frozenset(
    (
        *("timeout", "crash", "gone", "failure", "protocol", "run", "round"),
        *("num_examples", "metrics", "names", "shape", "dtype", "not_finite", "finish", "handshake"),
    )
)
"""Of `server.study.run.check_update`; `finish`: no test results at the end; `handshake`: a late site differs."""
BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 10800)

# When a counter began says nothing here: at a restart the journal is read again.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass
class _Run:
    """The last run of a study."""

    name: str
    state: str = "waiting"
    in_round: bool = False


class ServerMetrics:
    """The server's metrics on a registry; `take` every event of the journal, in order."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._runs: dict[str, _Run] = {}
        self._codecs: dict[tuple[str, str], str] = {}

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"consilium_{name}", meaning, labels, registry=registry)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"consilium_{name}", meaning, labels, registry=registry)

        self._info = gauge(
            "study_info", "always 1; the study of the last run", "study", "run", "method", "strategy", "codec"
        )
        self._rounds_planned = gauge("study_rounds", "rounds the study plans", "study")
        self._round = gauge("study_round", "last completed round", "study")
        self._state = gauge("study_state", "1 for the state the run is in", "study", "state")
        self._quorum = gauge("study_quorum", "usable updates a round needs", "study")
        self._rounds = counter("rounds_total", "rounds by outcome", "study", "outcome")
        self._seconds = Histogram(
            "consilium_round_seconds", "duration of rounds", ("study", "phase"), buckets=BUCKETS, registry=registry
        )
        self._round_started = gauge("round_started_timestamp_seconds", "when the round in progress was asked", "study")
        self._cohort = gauge("cohort_sites", "sites in the last round", "study", "stage")
        self._updates = counter("updates_total", "updates by outcome", "study", "site", "outcome")
        self._rejected = counter("updates_rejected_total", "rejected updates by reason", "study", "site", "reason")
        self._weight = gauge(
            "site_weight_ratio", "share of the site's update in the last round, of those accepted", "study", "site"
        )
        self._signal = gauge("site_weight_signal", "what that share was made from", "study", "site", "signal")
        self._fallbacks = counter("weighting_fallbacks_total", "rounds not weighted as the study says", "study")
        self._uplink_error = gauge(
            "site_uplink_error_ratio", "squared error of the coded update over its squared norm", "study", "site"
        )
        self._downlink_error = gauge(
            "downlink_error_ratio", "squared error of the coded weights over the squared norm of their change", "study"
        )
        self._loss = gauge("site_loss", "loss on the site's validation split", "study", "site", "model")
        self._accuracy = gauge(
            "site_accuracy_ratio", "accuracy on the site's validation split", "study", "site", "model"
        )
        self._examples = gauge("site_examples", "training examples behind the last update", "study", "site")
        self._site_round = gauge(
            "site_round", "last round with an accepted update of the site, 0 if none", "study", "site"
        )
        self._online = gauge("site_online", "1 if an approved site is connected", "site")
        self._last_seen = gauge("site_last_seen_timestamp_seconds", "when an approved site was last connected", "site")
        self._site_certificate = gauge(
            "site_certificate_expiry_timestamp_seconds", "when an approved site's newest certificate ends", "site"
        )
        self._uploads = gauge("uploads", "large payloads from sites: on their way, or waiting for their turn", "state")
        self._bytes = counter("transfer_bytes_total", "bytes of plans and payloads", "study", "direction", "codec")
        self._norm = gauge("update_norm", "Euclidean norm of the last change of the global weights", "study")
        self._checkpoint = gauge("checkpoint_timestamp_seconds", "when the last checkpoint was written", "study")
        self._certificate = gauge("certificate_expiry_timestamp_seconds", "when the server's certificate ends")
        self._disk_free = gauge("disk_free_bytes", "free space where the server writes")
        self._disk_size = gauge("disk_size_bytes", "size of that file system")
        self._of_one_run = (
            *(self._info, self._cohort, self._weight, self._loss, self._accuracy, self._examples, self._site_round),
            *(self._round_started, self._norm, self._checkpoint, self._signal),
            *(self._uplink_error, self._downlink_error),
        )

    # --- what is not in the journal ---------------------------------------------------------------

    def see_sites(self, sites: Mapping[str, tuple[bool, float | None, float]]) -> None:
        """Set who is approved: name -> (connected?, when last, when the certificate ends); others' series end."""
        for metric in (self._online, self._last_seen, self._site_certificate):
            metric.clear()
        for site, (online, last_seen, ends) in sites.items():
            self._online.labels(site).set(online)
            self._site_certificate.labels(site).set(ends)
            if last_seen is not None:
                self._last_seen.labels(site).set(last_seen)

    def see_uploads(self, active: int, waiting: int) -> None:
        """Set how many large payloads are on their way, and how many wait for their turn."""
        self._uploads.labels("active").set(active)
        self._uploads.labels("waiting").set(waiting)

    def see_certificate(self, expires: float) -> None:
        """Set when the server's certificate ends."""
        self._certificate.set(expires)

    def see_disk(self, *, free: int, size: int) -> None:
        """Set the space where the server writes."""
        self._disk_free.set(free)
        self._disk_size.set(size)

    # --- what is ----------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """Update the metrics from one event of the journal; events of other kinds change nothing.

        Raises:
            KeyError: the event lacks a field.
        """
        kind, study = event["event"], event.get("study")
        if kind == "server_started":
            self._end_what_was_running()
        elif study is not None and (handler := getattr(self, f"_on_{kind}", None)) is not None:
            handler(study, event)

    def _end_what_was_running(self) -> None:
        """Runs do not outlive their server: one without an end was cut off by the end of the server before."""
        for study, run in self._runs.items():
            if run.state in IN_PROGRESS:
                self._enter(study, "stopped")

    def _current(self, study: str, event: Event) -> _Run | None:
        """Return the run if the event is of the study's last one: an older run counts, but shows no state."""
        run = self._runs.get(study)
        return run if run is not None and run.name == event["run"] else None

    def _enter(self, study: str, state: str) -> None:
        run = self._runs[study]
        run.state = state
        for each in STATES:
            self._state.labels(study, each).set(each == state)
        if state != "training":
            run.in_round = False
            self._round_started.remove_by_labels({"study": study})

    def _on_started(self, study: str, event: Event) -> None:
        known = self._current(study, event)
        if known is None:  # a run that is resumed goes on from what it has
            for metric in self._of_one_run:
                metric.remove_by_labels({"study": study})
            self._round.labels(study).set(0)
            for site in event["sites"]:
                self._site_round.labels(study, site).set(0)
        self._runs[study] = known or _Run(event["run"])
        self._codecs[study, event["run"]] = event["codec"]
        self._info.labels(study, event["run"], event["method"], event["strategy"], event["codec"]).set(1)
        self._rounds_planned.labels(study).set(event["rounds"])
        self._quorum.labels(study).set(event["quorum"])
        # From 0 on: increase() does not see what a counter begins with.
        self._fallbacks.labels(study)
        for outcome in ("completed", "failed"):
            self._rounds.labels(study, outcome)
        for site in event["sites"]:
            for outcome in ("accepted", "rejected"):
                self._updates.labels(study, site, outcome)
        self._enter(study, "waiting")

    def _on_resumed(self, study: str, event: Event) -> None:
        if self._current(study, event):
            self._round.labels(study).set(event["round"])

    def _on_agreed(self, study: str, event: Event) -> None:
        if self._current(study, event):
            self._enter(study, "training")

    def _on_asked(self, study: str, event: Event) -> None:
        if "quorum" in event:
            self._quorum.labels(study).set(event["quorum"])
        if run := self._current(study, event):
            run.in_round = True
            self._round_started.labels(study).set(_timestamp(event))

    def _on_answered(self, study: str, event: Event) -> None:
        site = event["site"]
        self._updates.labels(study, site, "accepted").inc()
        if not self._current(study, event):
            return
        self._site_round.labels(study, site).set(event["round"])
        if (lost := event["metrics"].get("uplink.nmse")) is not None:
            self._uplink_error.labels(study, site).set(lost)
        for model, what, value in _measured(event["metrics"]):
            (self._loss if what == "loss" else self._accuracy).labels(study, site, model).set(value)

    def _on_rejected(self, study: str, event: Event) -> None:
        self._updates.labels(study, event["site"], "rejected").inc()
        reason = event["reason"] if event["reason"] in REASONS else "other"
        self._rejected.labels(study, event["site"], reason).inc()

    def _on_round(self, study: str, event: Event) -> None:
        self._rounds.labels(study, "completed").inc()
        self._count_round(study, event)
        if self._current(study, event):
            self._round.labels(study).set(event["round"])
            self._norm.labels(study).set(event["update_norm"])
            self._downlink_error.labels(study).set(event["downlink_nmse"])

    def _on_round_failed(self, study: str, event: Event) -> None:
        self._rounds.labels(study, "failed").inc()
        self._count_round(study, event)

    def _count_round(self, study: str, event: Event) -> None:
        total, transfer, aggregation = (event[f"{name}seconds"] for name in ("", "transfer_", "aggregation_"))
        waiting = max(0.0, total - transfer - aggregation)
        for phase, seconds in zip(PHASES, (waiting, transfer, aggregation, total), strict=True):
            self._seconds.labels(study, phase).observe(seconds)
        codec = self._codecs.get((study, event["run"]), "unknown")
        for direction in ("up", "down"):
            self._bytes.labels(study, direction, codec).inc(event[f"bytes_{direction}"])
        if run := self._current(study, event):
            run.in_round = False
            for stage in STAGES:
                self._cohort.labels(study, stage).set(len(event[stage]))
            self._weight.remove_by_labels({"study": study})
            self._signal.remove_by_labels({"study": study})
            for site, facts in event["sites"].items():
                self._examples.labels(study, site).set(facts["num_examples"])
                if "weight" in facts:
                    self._weight.labels(study, site).set(facts["weight"])
                for signal, value in facts.get("signals", {}).items():
                    self._signal.labels(study, site, signal).set(value)

    def _on_weighting(self, study: str, event: Event) -> None:
        self._fallbacks.labels(study).inc()

    def _on_checkpoint(self, study: str, event: Event) -> None:
        if self._current(study, event):
            self._checkpoint.labels(study).set(_timestamp(event))

    def _on_finishing(self, study: str, event: Event) -> None:
        if self._current(study, event):
            self._enter(study, "finishing")

    def _on_finished(self, study: str, event: Event) -> None:
        if self._current(study, event):
            self._enter(study, "finished")

    def _on_failed(self, study: str, event: Event) -> None:
        run = self._current(study, event)
        if run is None or run.state not in IN_PROGRESS:  # a run that is stopped fails while it ends
            return
        if run.in_round:  # neither completed nor ended by its quorum: the server itself failed in it
            self._rounds.labels(study, "failed").inc()
        self._enter(study, "failed")

    def _on_stopped(self, study: str, event: Event) -> None:
        run = self._current(study, event)
        if run is not None and run.state in IN_PROGRESS:
            self._enter(study, "stopped")


def _timestamp(event: Event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _measured(metrics: Mapping[str, Any]) -> Iterable[tuple[str, str, float]]:
    """Yield (model, `loss` or `accuracy`, value); names come from sites, and become labels only if known."""
    for name, value in metrics.items():
        model, _, what = name.partition(".")
        if model in MODELS and what in ("loss", "accuracy"):
            yield model, what, float(value)
