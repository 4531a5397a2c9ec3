"""The dashboards' queries outside Grafana: read them, fill in their variables, put them to a Prometheus."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parents[1] / "docker" / "grafana" / "dashboards"
NAMES = ("federation", "sites", "learning", "operations")
WINDOWS = {"__rate_interval": "30s", "__interval": "5s", "__range": "5m"}
"""What Grafana makes from the time range, here fixed."""


@dataclass(frozen=True)
class Target:
    """One query of one panel."""

    dashboard: str
    panel: str
    kind: str
    expr: str
    legend: str


def read_dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard as Grafana gets it."""
    content: dict[str, Any] = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def panels_of(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the panels, not the headings."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def targets_of(name: str) -> list[Target]:
    """Return the queries of a dashboard in the order of its panels."""
    return [
        Target(name, panel["title"], panel["type"], target["expr"], target["legendFormat"])
        for panel in panels_of(read_dashboard(name))
        for target in panel["targets"]
    ]


def fill(expr: str, values: Mapping[str, str]) -> str:
    """Replace `$name` and `${name}`.

    Raises:
        KeyError: a variable without a value.
    """
    known = {**WINDOWS, **values}
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: known[match[1] or match[2]], expr)


def ask(base_url: str, path: str, **parameters: str) -> Any:
    """Return the `data` of an answer of Prometheus' HTTP API.

    Raises:
        ValueError: Prometheus refused the query.
    """
    url = f"{base_url.rstrip('/')}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            content = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise ValueError(f"{parameters.get('query')}: {error.read().decode()}") from error
    if content["status"] != "success":
        raise ValueError(f"{parameters.get('query')}: {content}")
    return content["data"]


def series(base_url: str, expr: str) -> list[dict[str, Any]]:
    """Return what an expression has now: per series its labels (`metric`) and `value`."""
    result: list[dict[str, Any]] = ask(base_url, "query", query=expr)["result"]
    return result


def history(base_url: str, expr: str, *, start: float, end: float, step: float) -> list[dict[str, Any]]:
    """Return what an expression had from start to end (Unix seconds): per series its labels and `values`."""
    times = {"start": str(start), "end": str(end), "step": str(step)}
    result: list[dict[str, Any]] = ask(base_url, "query_range", query=expr, **times)["result"]
    return result
