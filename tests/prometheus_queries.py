"""Put every query of every dashboard to a Prometheus: a fake one in the tests, or that of a real federation."""

import math
import time
from typing import Any, NamedTuple

from paths import ROOT

from dashboards import queries

GRAFANA = ROOT / "docker" / "grafana"


EMPTY_IS_FINE = (
    "consilium_node_gpu_memory_bytes",  # no GPU
    "consilium_updates_rejected_total",  # no rejected update
    "ALERTS",  # no alert
    "consilium_round_started_timestamp_seconds",  # no round in progress
)
"""Metrics that a healthy federation may lack: a query on one of them may have no series."""


class Outcome(NamedTuple):
    """How many series with at least one finite value a query has."""

    dashboard: str
    panel: str
    expr: str
    num_series: int

    @property
    def must_have_series(self) -> bool:
        """Tell whether an empty answer is an error."""
        return not any(name in self.expr for name in EMPTY_IS_FINE)


def run_all(base_url: str, *, study: str, site: str) -> list[Outcome]:
    """Run every query of every dashboard as Grafana would: curves over the last five minutes, the rest now.

    Raises:
        ValueError: Prometheus refused a query.
    """
    outcomes = []
    for name in queries.NAMES:
        for target in queries.targets_of(name):
            found = result_of(base_url, target, study=study, site=site)
            finite = sum(any(math.isfinite(float(value)) for _, value in one["values"]) for one in found)
            outcomes.append(Outcome(name, target.panel, target.expr, finite))
    return outcomes


def result_of(base_url: str, target: Any, *, study: str, site: str) -> list[dict[str, Any]]:
    """Run one query; per series its labels (`metric`) and `values`."""
    expr = queries.fill(target.expr, {"study": study, "site": site})
    if target.kind in ("timeseries", "state-timeline"):
        now = time.time()
        return list(queries.history(base_url, expr, start=now - 300, end=now, step=1))
    return [{**one, "values": [one["value"]]} for one in queries.series(base_url, expr)]
