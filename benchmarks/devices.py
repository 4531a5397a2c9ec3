"""Simulated devices: processor seconds of a round, memory, and the same work one user at a time.

    python benchmarks/devices.py          # merges its rows into benchmarks/results/devices.csv
    python benchmarks/devices.py --pfl PYTHON SCRIPT   # also runs pfl-research's script with that interpreter

Every row is a process of its own, on one thread. A round is the median of all but the first; models are measured in the
last alone, which is left out. `one_by_one` is what the engine `exact` does to train the same users, and nothing else:
set the weights, take the steps, take the difference, add it up. Memory is the peak of the process above what it had
when the data were written. Users are made up: rows of random numbers, as their content changes no time.
"""

import argparse
import csv
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from consilium.client.models import get_weights, set_weights
from consilium.client.training.loop import train
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arithmetic import add_scaled, subtract
from consilium.devices.cohort import draw_cohort
from consilium.devices.learning import Learning
from consilium.devices.population import checked
from consilium.devices.simulate import simulation_steps, with_users

RESULTS = Path(__file__).parent / "results" / "devices.csv"
FIELDS = ("work", "users", "cohort", "round_s", "one_by_one_s", "part", "megabytes", "pfl_s")
ROUNDS = 7
WORKS: dict[str, dict[str, Any]] = {
    "perceptron 784-84-10, 20 rows": {"shape": (784,), "rows": 25, "hidden": [84], "classes": 10, "batch": 10},
    "perceptron 784-84-10, 20 rows, with noise": {
        "shape": (784,), "rows": 25, "hidden": [84], "classes": 10, "batch": 10, "private": True
    },
    "perceptron 784-84-10, 20 rows, personal heads": {
        "shape": (784,), "rows": 25, "hidden": [84], "classes": 10, "batch": 10, "method": "fedper"
    },
    "perceptron 2-256-256-1, 41 rows (pfl-research's)": {
        "shape": (2,), "rows": 51, "hidden": [256, 256], "classes": 2, "batch": 32
    },
    "perceptron 8-32-1, 4 rows": {"shape": (8,), "rows": 5, "hidden": [32], "classes": 2, "batch": 4},
}  # fmt: skip
"""Of each: rows of a user, of which a fifth is kept for measuring."""
ASKED = (
    ("perceptron 784-84-10, 20 rows", 100_000, 1000),
    ("perceptron 784-84-10, 20 rows", 10_000, 1000),
    ("perceptron 784-84-10, 20 rows, with noise", 10_000, 1000),
    ("perceptron 784-84-10, 20 rows, personal heads", 10_000, 1000),
    *(("perceptron 2-256-256-1, 41 rows (pfl-research's)", users, 50) for users in (100, 1000, 10_000, 100_000)),
    *(("perceptron 8-32-1, 4 rows", users, 100) for users in (1000, 1_000_000)),
)


def megabytes(name: str) -> float:
    """Return a size of this process from Linux's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def write(folder: Path, work: dict[str, Any], users: int) -> None:
    """Write so many users, a thousand at a time."""
    folder.mkdir()
    rows, shape, generator = work["rows"], work["shape"], np.random.default_rng(0)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.dtype(np.uint8), (users * rows, *shape))
    for start in range(0, len(x), 1000 * rows):
        x[start : start + 1000 * rows] = generator.integers(0, 2, x[start : start + 1000 * rows].shape, np.uint8)
    x.flush()
    np.save(folder / "y.npy", generator.integers(0, work["classes"], users * rows))
    np.save(folder / "offsets.npy", np.arange(users + 1, dtype=np.int64) * rows)


def study_of(work: dict[str, Any], cohort: int) -> StudyConfig:
    """Return a study of a work."""
    classes = [f"class {number}" for number in range(work["classes"])]
    return parse_study(
        {
            "name": "devices",
            "rounds": ROUNDS,
            "evaluate_every": ROUNDS,
            "task": {"kind": "features", "shape": list(work["shape"]), "classes": classes},
            "model": {"name": "mlp", "hidden": work["hidden"]},
            "method": {"kind": work.get("method", "fedavg")},
            "training": {"epochs": 1, "batch_size": work["batch"], "learning_rate": 0.05, "momentum": 0.0},
            "split": {"test": 0.2, "validation": 0.0},
            "devices": {"cohort": cohort, "private": work.get("private", False), "measured": 50},
        },
        source="benchmark",
    )


def run(name: str, users: int, cohort: int) -> dict[str, float]:
    """Simulate in this process."""
    torch.set_num_threads(1)
    work = WORKS[name]
    with tempfile.TemporaryDirectory(prefix="devices-") as place:
        write(Path(place) / "users", work, users)
        study = study_of(work, cohort)
        before = megabytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        *_, last = simulation_steps(study, Path(place) / "users", Path(place) / "run")
        peak = megabytes("VmHWM") - before
        assert last.result is not None
        seconds = median(record.processor for record in last.result.rounds[1:-1])
        return {"round_s": seconds, "megabytes": peak, "one_by_one_s": one_by_one(study, Path(place) / "users")}


def one_by_one(study: StudyConfig, data: Path) -> float:
    """Return the processor seconds of training a round's users one after the other, as the engine `exact` does."""
    population = checked(data, study)
    learning = Learning.of(with_users(study, population), population)
    assert study.devices is not None
    users = draw_cohort(population.users, min(study.devices.cohort, 200), seed=1, round_number=1, each=False)
    begins, counts, _ = learning.split(users)
    works = learning.works(1, users, begins, counts)
    model, made = learning.beginning.model, learning.beginning
    total, found = {name: np.zeros_like(array) for name, array in made.shared.items()}, list[float]()
    for _ in range(2):
        began = time.process_time()
        for work in works:
            set_weights(model.module, made.initial)
            train(model, work)
            delta = subtract(get_weights(model.module, sorted(made.shared)), made.shared)
            total = add_scaled(total, delta, 1 / len(users))
        found.append((time.process_time() - began) / len(users) * study.devices.cohort)
    return min(found)


def pfl(python: str, script: str, users: int) -> float:
    """Return what pfl-research's own script says of a round, in processor seconds."""
    done = subprocess.run([python, script, str(users)], capture_output=True, text=True, check=True)
    return float(done.stdout.rpartition("CPU per round ")[2].split()[0])


def main() -> None:
    """Run all in processes of their own, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="the works with this in their name")
    parser.add_argument("--pfl", nargs=2, metavar=("PYTHON", "SCRIPT"))
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        logging.disable(logging.INFO)
        name, users, cohort = arguments.run
        sys.stdout.write(json.dumps(run(name, int(users), int(cohort))) + "\n")
        return
    for name, users, cohort in ASKED:
        if arguments.only and arguments.only not in name:
            continue
        command = [sys.executable, __file__, "--run", name, str(users), str(cohort)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        row = {
            "work": name,
            "users": users,
            "cohort": cohort,
            **found,
            "part": found["round_s"] / found["one_by_one_s"],
        }
        if arguments.pfl and "pfl" in name and users == 1000:
            row["pfl_s"] = pfl(arguments.pfl[0], arguments.pfl[1], users)
        merge(row)


def merge(row: dict[str, Any]) -> None:
    """Put a row in the place of the one of the same work."""
    held: dict[tuple[str, ...], dict[str, Any]] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            held = {(one["work"], one["users"], one["cohort"]): one for one in csv.DictReader(file)}
    key = (row["work"], str(row["users"]), str(row["cohort"]))
    held[key] = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in row.items()}
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(held.values())
    sys.stdout.write(f"{held[key]}\n")


if __name__ == "__main__":
    main()
