"""A server and three sites that only export metrics: all of docs/coordinator/metrics.md, with values that change.

`python tests/fake_exporters.py PORT` serves `/server`, `/berlin`, `/lyon` and `/porto`.
"""

import itertools
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from paths import ROOT

DOCUMENT = ROOT / "docs" / "coordinator" / "metrics.md"
STUDY, SITES = "heart", ("berlin", "lyon", "porto")
ROUND_SECONDS = {"waiting": 1.2, "transfer": 0.3, "aggregation": 0.05, "total": 1.55}
BUCKETS = (0.01, 0.1, 0.5, 1, 5, 60)
START = time.time()

Labels = dict[str, str]


class Metric(NamedTuple):
    """One line of the document."""

    side: str
    name: str
    kind: str
    labels: tuple[str, ...]


def documented() -> list[Metric]:
    """Every metric of docs/coordinator/metrics.md."""
    found, side = [], ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            side = line[3:].strip().lower()
        elif match := re.match(r"\| `(\w+)` \| (\w+) \| ([\w, ]*)\|", line):
            labels = tuple(label.strip() for label in match[3].split(",") if label.strip())
            found.append(Metric(side, match[1], match[2], labels))
    return found


LABEL_VALUES = {
    "study": (STUDY,),
    "site": SITES,
    "state": ("waiting", "training", "paused", "finishing", "finished", "failed", "stopped"),
    "outcome": ("accepted", "rejected"),
    "phase": tuple(ROUND_SECONDS),
    "stage": ("asked", "answered", "accepted"),
    "model": ("global", "personal", "local", "train"),
    "reason": ("timeout",),
    "direction": ("up", "down"),
    "split": ("train", "validation", "test"),
    "kind": ("handshake", "round"),
    "error": ("StateError",),
    "gpu": ("0",),
    "signal": ("size.factor",),
    "metric": ("auroc",),
    **{"run": ("r1",), "method": ("fine_tune",), "strategy": ("fedavg",), "codec": ("identity",), "version": ("1",)},
}


OWN_VALUES = {
    "consilium_rounds_total": {"outcome": ("completed", "failed")},
    "consilium_uploads": {"state": ("active", "waiting")},
}
"""Metrics whose label has other values than elsewhere."""


@dataclass(frozen=True)
class Now:
    """What the values depend on: the seconds since the start, and whose they are."""

    seconds: float
    owner: str

    @property
    def round(self) -> int:
        """Return the round, one each two seconds."""
        return int(self.seconds / 2)


def _accuracy(now: Now, labels: Labels) -> float:
    best = {"global": 0.75, "personal": 0.9, "local": 0.8, "train": 0.95}[labels["model"]]
    shift = 0.04 * SITES.index(labels.get("site", now.owner))
    return (best - shift) * (1 - 0.5 * math.exp(-now.round / 8))


VALUES: dict[str, Callable[[Now, Labels], float]] = {
    "consilium_study_info": lambda now, labels: 1,
    "consilium_study_rounds": lambda now, labels: 500,
    "consilium_study_round": lambda now, labels: now.round,
    "consilium_study_stopped_round": lambda now, labels: 0,
    "consilium_study_state": lambda now, labels: labels["state"] == ("training" if now.seconds > 4 else "waiting"),
    "consilium_study_quorum": lambda now, labels: 2,
    "consilium_rounds_total": lambda now, labels: now.round if labels["outcome"] == "completed" else 0,
    "consilium_round_started_timestamp_seconds": lambda now, labels: START + 2 * now.round,
    "consilium_cohort_sites": lambda now, labels: 2 if labels["stage"] == "accepted" else 3,
    "consilium_updates_total": lambda now, labels: now.round if labels["outcome"] == "accepted" else now.round // 5,
    "consilium_updates_rejected_total": lambda now, labels: now.round // 5 if labels["site"] == "lyon" else 0,
    "consilium_site_weight_ratio": lambda now, labels: (0.5, 0.3, 0.2)[(SITES.index(labels["site"]) + now.round) % 3],
    "consilium_site_weight_signal": lambda now, labels: 100 + 50 * SITES.index(labels["site"]),
    "consilium_updates_shortened_total": lambda now, labels: now.round // 10 if labels["site"] == "lyon" else 0,
    "consilium_site_set_aside": lambda now, labels: 0,
    "consilium_weighting_fallbacks_total": lambda now, labels: now.round // 20,
    "consilium_site_uplink_error_ratio": lambda now, labels: 0.005,
    "consilium_downlink_error_ratio": lambda now, labels: 0.002,
    "consilium_site_loss": lambda now, labels: 1.2 - _accuracy(now, labels),
    "consilium_site_accuracy_ratio": _accuracy,
    "consilium_site_metric": _accuracy,
    "consilium_site_examples": lambda now, labels: 100 + 50 * SITES.index(labels["site"]),
    "consilium_site_round": lambda now, labels: now.round - (labels["site"] == "lyon"),
    "consilium_site_privacy_epsilon_spent": lambda now, labels: min(3.0, 0.1 * now.round),
    "consilium_site_privacy_epsilon_budget": lambda now, labels: 3,
    "consilium_site_online": lambda now, labels: labels["site"] != "porto" or now.seconds % 8 < 6,
    "consilium_site_last_seen_timestamp_seconds": lambda now, labels: START + now.seconds - 1,
    "consilium_transfer_bytes_total": lambda now, labels: 250_000 * now.round,
    "consilium_update_norm": lambda now, labels: 2 * math.exp(-now.round / 10),
    "consilium_checkpoint_timestamp_seconds": lambda now, labels: START + 2 * now.round,
    "consilium_site_certificate_expiry_timestamp_seconds": lambda now, labels: START + 60 * 86400,
    "consilium_uploads": lambda now, labels: 4 if labels["state"] == "active" else now.seconds % 8 // 2,
    "consilium_certificate_expiry_timestamp_seconds": lambda now, labels: START + 90 * 86400,
    "consilium_disk_free_bytes": lambda now, labels: 6e10 - 1e6 * now.seconds,
    "consilium_disk_size_bytes": lambda now, labels: 1e11,
    "consilium_node_info": lambda now, labels: 1,
    "consilium_node_examples": lambda now, labels: {"train": 100, "validation": 20, "test": 30}[labels["split"]],
    "consilium_node_plans_total": lambda now, labels: now.round if labels["kind"] == "round" else 1,
    "consilium_node_work_seconds_total": lambda now, labels: now.seconds / 2 if labels["kind"] == "round" else 0.1,
    "consilium_node_epochs_total": lambda now, labels: 2 * now.round,
    "consilium_node_loss": lambda now, labels: 1.2 - _accuracy(now, labels),
    "consilium_node_accuracy_ratio": _accuracy,
    "consilium_node_transfer_bytes_total": lambda now, labels: 80_000 * now.round,
    "consilium_node_round": lambda now, labels: now.round,
    "consilium_node_last_plan_timestamp_seconds": lambda now, labels: START + 2 * now.round,
    "consilium_node_privacy_epsilon_spent": lambda now, labels: min(3.0, 0.1 * now.round),
    "consilium_node_privacy_epsilon_budget": lambda now, labels: 3,
    "consilium_node_errors_total": lambda now, labels: now.owner == "lyon",
    "consilium_node_gpu_memory_bytes": lambda now, labels: 2e9,
    "consilium_node_disk_free_bytes": lambda now, labels: 3e10,
    "consilium_node_disk_size_bytes": lambda now, labels: 1e11,
}
PROCESS: dict[str, Callable[[Now], float]] = {
    "process_resident_memory_bytes": lambda now: 2e8 + 1e5 * now.seconds,
    "process_cpu_seconds_total": lambda now: 0.3 * now.seconds,
    "process_open_fds": lambda now: 40,
    "process_max_fds": lambda now: 1024,
}


def _line(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{name}{{{inside}}} {float(value)}"


def _lines(metric: Metric, now: Now) -> Iterator[str]:
    yield f"# TYPE {metric.name} {metric.kind}"
    values = LABEL_VALUES | OWN_VALUES.get(metric.name, {})
    if metric.name == "consilium_node_info":
        values["site"] = (now.owner,)
    for chosen in itertools.product(*(values[label] for label in metric.labels)):
        labels = dict(zip(metric.labels, chosen, strict=True))
        if metric.kind != "histogram":
            yield _line(metric.name, labels, VALUES[metric.name](now, labels))
            continue
        took = ROUND_SECONDS[labels["phase"]]
        for bound in (*BUCKETS, math.inf):
            edge = "+Inf" if bound == math.inf else str(bound)
            yield _line(f"{metric.name}_bucket", {**labels, "le": edge}, now.round if took <= bound else 0)
        yield _line(f"{metric.name}_sum", labels, now.round * took)
        yield _line(f"{metric.name}_count", labels, now.round)


def page(owner: str) -> str:
    """What the exporter of `server` or of a site answers now."""
    now = Now(time.time() - START, owner)
    side = "server" if owner == "server" else "site"
    lines = [line for metric in documented() if metric.side == side for line in _lines(metric, now)]
    lines += [_line(name, {}, value(now)) for name, value in PROCESS.items()]
    return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    """Serves one page per owner."""

    def do_GET(self) -> None:
        """Serve a page of metrics."""
        body = page(self.path.strip("/")).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
