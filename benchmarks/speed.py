"""Rounds of ours and of a stock Flower deployment side by side, on this machine; writes results/speed.csv.

    python benchmarks/speed.py [--only NAME ...] [--stock PYTHON] [--before DIR] [--data DIR]

Ours: `consilium server start` and one `consilium site start` per site, gRPC with certificates on both sides, a round
as it is (evaluate what was received, train, evaluate what is served, the local-only baseline, personal state on disk).
Stock (`--stock`, the python of an environment with flwr 1.39.0, the last release with gRPC at both ends): flwr's
SuperLink and SuperNodes without TLS and keys (to its advantage), `benchmarks/stock_app`, one train and one evaluate
message per round; "tuned" sets the one polling interval that flwr takes from outside. Before (`--before`, a checkout of
an earlier commit with its own .venv): the same function of that commit's own `benchmarks/speed.py`, in the same run.
Where nothing is to be trained, `echo_site.py` answers in place of the worker with torch, as the stock app does.
"""

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measuring.apps import flower_apps
from measuring.deployments import deployment, run_ours, study
from measuring.peers import Peers
from measuring.processes import cpu_seconds, memory_of, processes_with
from measuring.rounds import MEGABYTES, empty_rounds, large_rounds, memory
from measuring.simulation import simulation
from measuring.table import Row, show, write

from consilium.common.weights.arithmetic import weighted_mean


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--stock", type=Path, help="python of an environment with flwr 1.39.0")
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit, with its .venv")
    parser.add_argument("--data", type=Path, help="folder of UCI Heart Disease, for the rows of the simulation")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    peers = Peers(arguments.stock, arguments.before, arguments.data)
    for name, measure in MEASURES.items():
        if not arguments.only or name in arguments.only:
            rows = measure(peers)
            show(rows)
            write(rows)


def aggregation(peers: Peers) -> list[Row]:
    """The weighted mean of eight updates of 100 MB, on one core; stock: flwr's own over the same arrays."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    rng = np.random.default_rng(0)
    shape = (1000, 1000)
    updates = [{f"w{i}": rng.standard_normal(shape, dtype=np.float32) for i in range(25)} for _ in range(8)]
    size = 8 * MEGABYTES / 1000
    row: Row = {"work": "aggregation of 8 x 100 MB, float64 sums, one core", "unit": "GB/s"}
    row["ours"] = size / shortest(lambda: weighted_mean(updates, [1.0] * 8))
    into = np.empty(shape, np.float32)

    def copy() -> None:
        for update in updates:
            for array in update.values():
                np.copyto(into, array)

    row["limit"] = size / shortest(copy)
    if peers.stock:
        metrics: dict[str, int | float | list[int] | list[float]] = {"num-examples": 1.0}

        def as_record(update: dict[str, Any]) -> ArrayRecord:
            return ArrayRecord({name: Array(array) for name, array in update.items()})

        records = [RecordDict({"arrays": as_record(update), "metrics": MetricRecord(metrics)}) for update in updates]
        row["stock"] = size / shortest(lambda: aggregate_arrayrecords(records, "num-examples"))
    return [row]


def shortest(work: Callable[[], Any]) -> float:
    """Return the least seconds of five runs."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def idle(peers: Peers) -> list[Row]:
    """One site that waits for studies, a minute after its start."""
    with deployment(1) as where:
        run_ours(where, study(where, "warm-up", rounds=2))
        time.sleep(90)  # its worker has given memory back
        workers = processes_with(b"consilium.client.worker", str(where.folder).encode())
        sites = [int(Path(f"/proc/{worker}/stat").read_text().rpartition(") ")[2].split()[1]) for worker in workers]
        before, began = cpu_seconds(sites + workers), time.monotonic()
        time.sleep(60)
        used = 100 * (cpu_seconds(sites + workers) - before) / (time.monotonic() - began)
        own = [sum((memory_of(pid) or (0.0, 0.0))[1] for pid in pids) for pids in (sites, workers)]
    rows: list[Row] = [
        {"work": "idle site, processor (site and worker)", "unit": "% of a core", "ours": used, "limit": 0.0},
        {"work": "idle site, memory of the site without torch", "unit": "MB", "ours": own[0]},
        {"work": "idle site, memory of its worker with torch", "unit": "MB", "ours": own[1]},
    ]
    return peers.beside("idle", rows)


MEASURES: Mapping[str, Callable[[Peers], list[Row]]] = {
    "empty": empty_rounds,
    "flower": flower_apps,
    "large": large_rounds,
    "memory": memory,
    "aggregation": aggregation,
    "idle": idle,
    "simulation": simulation,
}

if __name__ == "__main__":
    main()
