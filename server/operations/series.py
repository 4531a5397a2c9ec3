"""The series that the server exports: names, meanings and labels, each on a registry."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 10800)

# A counter's time of creation means nothing here: at a restart the journal is read again.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has no types


class RunSeries:
    """The series of the last run of each study."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge, counter = partial(_gauge, registry), partial(_counter, registry)
        self.info = gauge(
            "study_info", "always 1; the study of the last run", "study", "run", "method", "strategy", "codec"
        )
        self.rounds_planned = gauge("study_rounds", "rounds the study plans", "study")
        self.round = gauge("study_round", "last completed round", "study")
        self.stopped = gauge(
            "study_stopped_round", "round after which the study stopped early, 0 if it has not", "study"
        )
        self.state = gauge("study_state", "1 for the state the run is in", "study", "state")
        self.quorum = gauge("study_quorum", "usable updates a round needs", "study")
        self.rounds = counter("rounds_total", "rounds by outcome", "study", "outcome")
        self.seconds = Histogram(
            "consilium_round_seconds", "duration of rounds", ("study", "phase"), buckets=BUCKETS, registry=registry
        )
        self.round_started = gauge("round_started_timestamp_seconds", "when the round in progress was asked", "study")
        self.cohort = gauge("cohort_sites", "sites in the last round", "study", "stage")
        self.updates = counter("updates_total", "updates by outcome", "study", "site", "outcome")
        self.rejected = counter("updates_rejected_total", "rejected updates by reason", "study", "site", "reason")
        self.shortened = counter(
            "updates_shortened_total",
            "updates that were shortened, since they were much longer than others'",
            "study",
            "site",
        )
        self.fallbacks = counter("weighting_fallbacks_total", "rounds not weighted as the study says", "study")
        self.downlink_error = gauge(
            "downlink_error_ratio", "squared error of the coded weights over the squared norm of their change", "study"
        )
        self.bytes = counter("transfer_bytes_total", "bytes of plans and payloads", "study", "direction", "codec")
        self.norm = gauge("update_norm", "Euclidean norm of the last change of the global weights", "study")
        self.checkpoint = gauge("checkpoint_timestamp_seconds", "when the last checkpoint was written", "study")
        self.of_one_run = (
            *(self.info, self.cohort, self.round_started, self.norm, self.checkpoint),
            self.downlink_error,
        )


class SiteSeries:
    """The series of each site in the last run of each study."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge = partial(_gauge, registry)
        self.weight = gauge(
            "site_weight_ratio", "share of the site's update in the last round, of those accepted", "study", "site"
        )
        self.signal = gauge("site_weight_signal", "what that share was made from", "study", "site", "signal")
        self.uplink_error = gauge(
            "site_uplink_error_ratio", "squared error of the coded update over its squared norm", "study", "site"
        )
        self.loss = gauge("site_loss", "loss on the site's validation split", "study", "site", "model")
        self.accuracy = gauge(
            "site_accuracy_ratio", "accuracy on the site's validation split", "study", "site", "model"
        )
        self.metric = gauge(
            "site_metric", "a metric of the study on the site's validation split", "study", "site", "model", "metric"
        )
        self.examples = gauge("site_examples", "training examples behind the last update", "study", "site")
        self.round = gauge("site_round", "last round with an accepted update of the site, 0 if none", "study", "site")
        self.epsilon = gauge(
            "site_privacy_epsilon_spent", "what a private study has spent at the site, by its ledger", "study", "site"
        )
        self.budget = gauge("site_privacy_epsilon_budget", "the most that the study may spend there", "study", "site")
        self.set_aside = gauge(
            "site_set_aside",
            "1 if no round asks the site any more, since its answers were rejected again and again",
            "study",
            "site",
        )
        self.of_one_run = (
            self.set_aside,
            *(self.weight, self.signal, self.uplink_error, self.loss, self.accuracy, self.metric),
            *(self.examples, self.round, self.epsilon, self.budget),
        )


class LiveSeries:
    """The series of the server's process: connected sites, payloads on their way, certificates and disk."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge = partial(_gauge, registry)
        self.online = gauge("site_online", "1 if an approved site is connected", "site")
        self.last_seen = gauge("site_last_seen_timestamp_seconds", "when an approved site was last connected", "site")
        self.site_certificate = gauge(
            "site_certificate_expiry_timestamp_seconds", "when an approved site's newest certificate ends", "site"
        )
        self.uploads = gauge("uploads", "large payloads from sites: on their way, or waiting for their turn", "state")
        self.certificate = gauge("certificate_expiry_timestamp_seconds", "when the server's certificate ends")
        self.disk_free = gauge("disk_free_bytes", "free space where the server writes")
        self.disk_size = gauge("disk_size_bytes", "size of that file system")


def _gauge(registry: CollectorRegistry, name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(f"consilium_{name}", meaning, labels, registry=registry)


def _counter(registry: CollectorRegistry, name: str, meaning: str, *labels: str) -> Counter:
    return Counter(f"consilium_{name}", meaning, labels, registry=registry)
