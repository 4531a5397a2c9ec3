"""The engines `exact` and `batched` side by side: processor seconds of a round in one process, on one core.

    python benchmarks/engines.py --heart DIR --mnist mnist.npz     # writes benchmarks/results/engines.csv

Heart: the four hospitals of UCI Heart Disease (`--heart`, a folder with their files), a linear model, 100 steps a
round. MNIST (`--mnist`, the file that Keras has): 10,000 pictures divided over 20 sites by a Dirichlet draw (alpha
0.1), one pass in batches of 10 by plain SGD, with a perceptron of 100 hidden units and with a small network of
convolutions. Many: the sites of `many_sites.py`, 50 of 1,000 asked in each round, and the same 50 in each.

A round is everything that the server and the sites do in it: plans, training, evaluation, state on the disk. Both
engines run in turn, several times; a row has the least median of a run's rounds, the first two left out, since other
programs on the machine only ever add to it. `difference` is the largest one of the final weights.
"""

import argparse
import csv
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heart_disease import site_files
from heart_disease import study as heart_study
from many_sites import COHORT, federation
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file
from torch import nn

import consilium as cs
from consilium.client.app import forget_sites
from consilium.common.engines import EngineName
from consilium.common.host.files import scratch
from consilium.common.results import RunResult
from consilium.common.study.methods import FedAvgMethod
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Weights
from consilium.data.partition import by_dirichlet
from consilium.data.sources import heart_disease_hospitals
from consilium.running.in_process import steps_in_process

ENGINES: tuple[EngineName, ...] = ("exact", "batched")
RESULTS = Path(__file__).parent / "results" / "engines.csv"
FIELDS = ("work", "exact_s", "batched_s", "part", "difference", "alone")
LEFT_OUT = 2
"""Rounds at the beginning that are not counted: files are read and models built in them."""


@dataclass(frozen=True)
class Run:
    """What one run took: processor seconds of each round, its final weights, and the trainings outside of stacks."""

    rounds: list[float]
    weights: Weights
    alone: int

    @property
    def seconds(self) -> float:
        """The median round."""
        return statistics.median(self.rounds[LEFT_OUT:])


def timed(steps: Iterable[Any]) -> list[float]:
    """Return the processor seconds of each step."""
    found, began = list[float](), time.process_time()
    for _ in steps:
        found.append(time.process_time() - began)
        began = time.process_time()
    return found


def of_files(config: StudyConfig, sites: dict[str, Path], folder: Path, engine: EngineName) -> Run:
    """Run a study on sites that are files."""
    with scratch():
        rounds = timed(steps_in_process(config, sites, folder, engine=engine))[1:]  # the first step is the handshake
    forget_sites()
    used = RunResult.model_validate_json((folder / "result.json").read_bytes()).engine
    weights = load_file(folder / "model/weights.safetensors")
    return Run(rounds, weights, 0 if used is None else sum(used.alone.values()))


def measured(work: str, run: Callable[[EngineName, int], Run], *, times: int) -> dict[str, Any]:
    """Run both engines in turn and return their row."""
    runs: dict[EngineName, list[Run]] = {engine: [] for engine in ENGINES}
    for number in range(times):
        for engine in ENGINES:
            runs[engine].append(run(engine, number))
    exact, batched = (min(one.seconds for one in runs[engine]) for engine in ENGINES)
    first, second = (runs[engine][0].weights for engine in ENGINES)
    return {
        "work": work,
        "exact_s": exact,
        "batched_s": batched,
        "part": batched / exact,
        "difference": max(
            float(np.abs(np.asarray(array) - np.asarray(second[name])).max()) for name, array in first.items()
        ),
        "alone": runs["batched"][0].alone,
    }


def heart(data: Path, place: Path) -> Iterable[dict[str, Any]]:
    """Yield the rows of the four hospitals, without and with the local-only baseline."""
    hospitals = heart_disease_hospitals(data, place / "hospitals")
    for baseline in (False, True):
        config = heart_study(hospitals, FedAvgMethod(), 42)
        config = config.model_copy(update={"rounds": 30, "local_baseline": baseline})

        def run(engine: EngineName, number: int, config: StudyConfig = config) -> Run:
            where = place / f"{engine}-{config.local_baseline}-{number}"
            return of_files(config, site_files(hospitals, where), where / "run", engine)

        work = "heart disease, 4 sites, 100 steps a round"
        yield measured(work + (", with local-only baseline" if baseline else ""), run, times=3)


def perceptron() -> nn.Module:
    """Return 784-100-10."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def convolutions() -> nn.Module:
    """Return two layers of convolutions with pooling, and a linear one (5,994 weights)."""
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))


def mnist(file: Path, _: Path) -> Iterable[dict[str, Any]]:
    """Yield the rows of the perceptron and of the convolutions."""
    with np.load(file) as arrays:
        x, y = arrays["x_train"][:10_000, None].astype(np.float32) / 255, arrays["y_train"][:10_000].astype(np.int64)
    parts = by_dirichlet(y, sites=20, alpha=0.1, min_examples=20, seed=0)
    clients = {f"site-{number:02}": (x[rows], y[rows]) for number, rows in enumerate(parts)}
    study = cs.Study(name="mnist", rounds=5, batch_size=10, learning_rate=0.05, momentum=0.0, local_baseline=False)
    for name, model in (("perceptron 784-100-10", perceptron()), ("small network of convolutions", convolutions())):

        def run(engine: EngineName, _: int, model: nn.Module = model) -> Run:
            rounds = cs.rounds(study, clients, model, engine=engine, progress=False)
            found, used = timed(rounds), rounds.result.run.engine
            weights = load_file(rounds.folder / "model/weights.safetensors")
            return Run(found, weights, 0 if used is None else sum(used.alone.values()))

        yield measured(f"MNIST, 20 sites, Dirichlet(0.1), batches of 10: {name}", run, times=2)


def many(_: Path, place: Path) -> Iterable[dict[str, Any]]:
    """Yield the rows of many sites, of which 50 are asked in a round."""
    for num_sites in (COHORT, 1000):

        def run(engine: EngineName, number: int, num_sites: int = num_sites) -> Run:
            where = place / f"{engine}-{num_sites}-{number}"
            config, sites = federation(where / "sites", num_sites)
            return of_files(config, sites, where / "run", engine)

        what = "the same in each round" if num_sites == COHORT else f"{COHORT} of {num_sites:,} in each round"
        yield measured(
            f"{COHORT} sites with 41 rows, perceptron 2-256-256-1: {what}", run, times=2 if num_sites == COHORT else 1
        )


def main() -> None:
    """Measure what there are data for, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heart", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--no-many", dest="many", action="store_const", const=None, default=Path())
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    rows = list[dict[str, Any]]()
    for data, measure in ((arguments.heart, heart), (arguments.mnist, mnist), (arguments.many, many)):
        with tempfile.TemporaryDirectory(prefix="engines-") as name:
            for row in measure(data, Path(name)) if data is not None else ():
                rows.append(row)
                _show(rows)
                _write(rows)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(*FIELDS)
    for row in rows:
        table.add_row(*(f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in FIELDS))
    Console(width=150).print(table)


def _write(rows: list[dict[str, Any]]) -> None:
    before: dict[str, dict[str, Any]] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            before = {row["work"]: row for row in csv.DictReader(file)}
    rounded = [{k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows((before | {row["work"]: row for row in rounded}).values())


if __name__ == "__main__":
    main()
