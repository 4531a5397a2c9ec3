"""Every metric of the server; `docs/coordinator/metrics.md` explains each.

Those of studies are computed from the events of the journal. Their law: the values depend on the events alone, so an
exporter that is restarted and reads the journal from its start arrives at the same values, counters too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from consilium.common.events.measures import validation_measures
from consilium.common.events.run import (
    AnswerRejected,
    CheckpointSaved,
    FinishAsked,
    RoundAsked,
    RoundFailed,
    RoundFinished,
    RoundUndone,
    RunEvent,
    RunFailure,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    RunStopped,
    RunWentOn,
    ServerStarted,
    SitesAgreed,
    SiteSetAside,
    StoppedEarly,
    UpdateAccepted,
    WeightingFallback,
)
from consilium.common.protocol.replies import PrivacySpent
from consilium.server.operations.series import LiveSeries, RunSeries, SiteSeries

IN_PROGRESS = ("waiting", "training", "paused", "finishing")
STATES = (*IN_PROGRESS, "finished", "failed", "stopped")
REASONS = frozenset(
    (
        *("timeout", "crash", "gone", "cut_off", "failure", "protocol", "run", "round"),
        *("num_examples", "metrics", "names", "shape", "dtype", "not_finite", "norm", "finish", "handshake"),
        *("stale", "against"),
    )
)
"""Reasons of `check_update`, `norm`: longer than the bound, `against`: going against the others again and again,
`stale`: from weights that are too old, `finish`: no test results at the end, `handshake`: a late site differs.
"""


class LiveMetrics:
    """Metrics that no journal has: set at each scrape, from the state of the server's process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._series = LiveSeries(registry)

    def see_sites(self, sites: Mapping[str, tuple[bool, float | None, float]]) -> None:
        """Set the approved sites: name -> (connected?, when last, end of the certificate); other sites' series end."""
        series = self._series
        for metric in (series.online, series.last_seen, series.site_certificate):
            metric.clear()
        for site, (online, last_seen, ends) in sites.items():
            series.online.labels(site).set(online)
            series.site_certificate.labels(site).set(ends)
            if last_seen is not None:
                series.last_seen.labels(site).set(last_seen)

    def see_uploads(self, active: int, waiting: int) -> None:
        """Set how many large payloads are on their way, and how many wait for their turn."""
        self._series.uploads.labels("active").set(active)
        self._series.uploads.labels("waiting").set(waiting)

    def see_certificate(self, expires: float) -> None:
        """Set when the server's certificate ends."""
        self._series.certificate.set(expires)

    def see_disk(self, *, free: int, size: int) -> None:
        """Set the space where the server writes."""
        self._series.disk_free.set(free)
        self._series.disk_size.set(size)


@dataclass
class _Run:
    """The last run of a study."""

    name: str | None
    state: str = "waiting"
    before_pause: str = "waiting"
    in_round: bool = False
    metrics: tuple[str, ...] = ()


class JournalMetrics:
    """The metrics of studies on a registry; `take` every event of the journal, in order."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._run, self._site = RunSeries(registry), SiteSeries(registry)
        self._runs: dict[str, _Run] = {}
        self._codecs: dict[tuple[str, str | None], str] = {}

    def take(self, event: RunEvent) -> None:
        """Update the metrics from one event of the journal: counters always, gauges if it is of a study's last run."""
        if isinstance(event, ServerStarted):
            self._end_what_was_running()
        elif event.study is not None:
            self._count(event.study, event)
            if isinstance(event, RunStarted):
                self._begin(event.study, event)
            elif (run := self._runs.get(event.study)) is not None and run.name == event.run:
                self._show(event.study, run, event)

    def _end_what_was_running(self) -> None:
        """Runs do not outlive their server: one without an end was cut off by the end of the server before."""
        for study, run in self._runs.items():
            if run.state in IN_PROGRESS:
                self._enter(study, "stopped")

    def _count(self, study: str, event: RunEvent) -> None:
        match event:
            case UpdateAccepted():
                self._run.updates.labels(study, event.site, "accepted").inc()
            case AnswerRejected():
                self._run.updates.labels(study, event.site, "rejected").inc()
                reason = event.reason if event.reason in REASONS else "other"
                self._run.rejected.labels(study, event.site, reason).inc()
            case WeightingFallback():
                self._run.fallbacks.labels(study).inc()
            case RoundFinished():
                for site in event.shortened:
                    self._run.shortened.labels(study, site).inc()
                self._run.rounds.labels(study, "completed").inc()
                self._count_round(study, event)
            case RoundFailed():
                self._run.rounds.labels(study, "failed").inc()
                self._count_round(study, event)

    def _count_round(self, study: str, event: RoundFinished | RoundFailed) -> None:
        phases = {"transfer": event.transfer_seconds, "aggregation": event.aggregation_seconds, "total": event.seconds}
        waiting = max(0.0, event.seconds - event.transfer_seconds - event.aggregation_seconds)
        for phase, seconds in ({"waiting": waiting} | phases).items():
            self._run.seconds.labels(study, phase).observe(seconds)
        codec = self._codecs.get((study, event.run), "unknown")
        self._run.bytes.labels(study, "up", codec).inc(event.bytes_up)
        self._run.bytes.labels(study, "down", codec).inc(event.bytes_down)

    def _begin(self, study: str, event: RunStarted) -> None:
        known = self._runs.get(study)
        if known is None or known.name != event.run:  # a run that is resumed goes on from what it has
            for metric in (*self._run.of_one_run, *self._site.of_one_run):
                metric.remove_by_labels({"study": study})
            self._run.round.labels(study).set(0)
            self._run.stopped.labels(study).set(0)
            for site in event.sites:
                self._site.round.labels(study, site).set(0)
                self._site.set_aside.labels(study, site).set(0)
            self._runs[study] = _Run(event.run, metrics=event.metrics)
        self._codecs[study, event.run] = event.codec
        self._run.info.labels(study, event.run, event.method, event.strategy, event.codec).set(1)
        self._run.rounds_planned.labels(study).set(event.rounds)
        self._run.quorum.labels(study).set(event.quorum)
        # Start at 0: increase() ignores the first value of a counter.
        self._run.fallbacks.labels(study)
        for outcome in ("completed", "failed"):
            self._run.rounds.labels(study, outcome)
        for site in event.sites:
            self._run.shortened.labels(study, site)
            for outcome in ("accepted", "rejected"):
                self._run.updates.labels(study, site, outcome)
        self._enter(study, "waiting")

    def _show(self, study: str, run: _Run, event: RunEvent) -> None:
        match event:
            case RoundUndone():
                self._run.round.labels(study).set(event.round - 1)
            case RunResumed():
                self._run.round.labels(study).set(event.round)
            case SitesAgreed():
                self._enter(study, "training")
            case RoundAsked():
                run.in_round = True
                self._run.quorum.labels(study).set(event.quorum)
                self._run.round_started.labels(study).set(event.time.timestamp())
            case UpdateAccepted():
                self._show_update(study, event)
            case SiteSetAside():
                self._site.set_aside.labels(study, event.site).set(1)
            case RoundFinished() | RoundFailed():
                run.in_round = False
                self._show_round(study, event)
            case CheckpointSaved():
                self._run.checkpoint.labels(study).set(event.time.timestamp())
            case RunPaused():
                run.before_pause = run.state
                self._enter(study, "paused")
            case RunWentOn():
                self._enter(study, run.before_pause)
            case StoppedEarly():
                self._run.stopped.labels(study).set(event.round)
            case FinishAsked():
                self._enter(study, "finishing")
            case RunFinished():
                for site, spent in event.privacy.items():
                    self._show_privacy(study, site, spent)
                self._enter(study, "finished")
            case RunFailure() if run.state in IN_PROGRESS:  # a run that is stopped fails while it ends
                if run.in_round:  # neither completed nor ended by its quorum: the server itself failed in it
                    self._run.rounds.labels(study, "failed").inc()
                self._enter(study, "failed")
            case RunStopped() if run.state in IN_PROGRESS:
                self._enter(study, "stopped")

    def _show_update(self, study: str, event: UpdateAccepted) -> None:
        self._site.round.labels(study, event.site).set(event.round)
        if (lost := event.metrics.get("uplink.nmse")) is not None:
            self._site.uplink_error.labels(study, event.site).set(lost)
        for model, what, value in validation_measures(event.metrics, self._runs[study].metrics):
            if what in ("loss", "accuracy"):
                gauge = self._site.loss if what == "loss" else self._site.accuracy
                gauge.labels(study, event.site, model).set(value)
            else:
                self._site.metric.labels(study, event.site, model, what).set(value)

    def _show_round(self, study: str, event: RoundFinished | RoundFailed) -> None:
        for stage, sites in {"asked": event.asked, "answered": event.answered, "accepted": event.accepted}.items():
            self._run.cohort.labels(study, stage).set(len(sites))
        self._site.weight.remove_by_labels({"study": study})
        self._site.signal.remove_by_labels({"study": study})
        for site, facts in event.sites.items():
            self._site.examples.labels(study, site).set(facts.num_examples)
            if facts.weight is not None:
                self._site.weight.labels(study, site).set(facts.weight)
            for signal, value in facts.signals.items():
                self._site.signal.labels(study, site, signal).set(value)
            if facts.privacy is not None:
                self._show_privacy(study, site, facts.privacy)
        if isinstance(event, RoundFinished):
            self._run.round.labels(study).set(event.round)
            self._run.norm.labels(study).set(event.update_norm)
            self._run.downlink_error.labels(study).set(event.downlink_nmse)

    def _show_privacy(self, study: str, site: str, spent: PrivacySpent) -> None:
        self._site.epsilon.labels(study, site).set(spent.epsilon)
        if spent.budget is not None:
            self._site.budget.labels(study, site).set(spent.budget)

    def _enter(self, study: str, state: str) -> None:
        run = self._runs[study]
        run.state = state
        for each in STATES:
            self._run.state.labels(study, each).set(each == state)
        if state != "training":
            run.in_round = False
            self._run.round_started.remove_by_labels({"study": study})
