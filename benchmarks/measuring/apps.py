"""Apps written for Flower, unmodified, on our wire and on flwr's runtime."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from consilium.client.flower.approved import approve
from consilium.common.flower.app import read_app
from consilium.running.flower_app import follow_app, submit_app
from consilium.running.options import AppOptions
from measuring.deployments import Deployment, deployment, run_ours, study
from measuring.peers import Peers
from measuring.stock import ROOT, STOCK_APP, stock_deployment
from measuring.table import Row


def flower_apps(peers: Peers) -> list[Row]:
    """Apps written for Flower, unmodified, two sites, on our wire and on flwr's runtime."""
    rows: list[Row] = []
    with deployment(2) as where, ExitStack() as stack:
        run_ours(where, study(where, "warm-up", rounds=2))
        stock = stack.enter_context(stock_deployment(peers.stock, 2, tuned=False)) if peers.stock else None
        for name, app, key in APPS:
            for site in where.sites:
                approve(where.folder / "sites" / site, read_app(app))
            row: Row = {"work": f"Flower app, empty round, 2 sites: {name}", "unit": "s", "limit": 0.005}
            row["ours"] = seconds_of_a_round(partial(run_app, where, app), where, key, rounds=62)
            if stock is not None:
                row["stock"] = seconds_of_a_round(partial(stock.run, app), where, key, rounds=4, times=1)
            rows.append(row)
    return rows


def run_app(where: Deployment, app: Path, settings: str) -> float:
    """Run an app at our server and sites; return the seconds."""
    began = time.monotonic()
    begun = submit_app(AppOptions(app, where.folder / "runs", run_config=settings), where.home)
    follow_app(begun.folder, where.home, lambda _: None)
    return time.monotonic() - began


def seconds_of_a_round(
    run: Callable[[str], float], where: Deployment, key: str, *, rounds: int, times: int = 3
) -> float:
    """Return the median seconds of a round where the app notes them, else what a round more takes.

    Args:
        times: how often a run is timed; the shortest counts. With more than one, sites have imported the app before.
    """
    if key == "rounds":
        notes = Path(tempfile.mkdtemp(dir=where.folder)) / "times"
        run(f"rounds={rounds} times='{notes}'")
        stamps = [float(line.split()[1]) for line in notes.read_text().splitlines()]
        return statistics.median(after - before for before, after in itertools.pairwise(stamps[1:]))
    few, many = (min(run(f"{key}={number}") for _ in range(times)) for number in (2, rounds))
    return (many - few) / (rounds - 2)


APPS = (
    ("benchmarks/stock_app", STOCK_APP, "rounds"),
    ("examples/flower_torch", ROOT / "examples" / "flower_torch", "num-server-rounds"),
    ("examples/flower_sklearn", ROOT / "examples" / "flower_sklearn", "num-server-rounds"),
)
"""Name, folder, and the setting that says how many rounds."""
