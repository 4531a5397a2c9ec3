"""Per-FedAvg in the paper's setting: MNIST, 50 users in two groups, against FedAvg with one step of adaptation.

    python benchmarks/per_fedavg.py --images mnist.npz [--jobs 2]     # goes on with benchmarks/results/per_fedavg.csv

Setting (Fallah 2020, https://arxiv.org/abs/2002.07948, section 5): half of the users have `a` images of each of the
first five digits; the others have a/2 images of one of the first five and 2a of one of the other five. Two hidden
layers of 80 and 60, a fifth of the users per round, one gradient step on a user's own data before it is served. Here
a = 30 (and as many images again to test on), 10 local steps of batches of 40, 100 rounds, ReLU where the paper has ELU;
the outer learning rate of every method is chosen among `RATES` by the users' validation rows of the same seed, and the
test rows are read once. `--images`: `x_train` (N, 28, 28) uint8 and `y_train`.
"""

import argparse
import json
import logging
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from consilium.common.host.parents import end_with_parent, follow_parent
from consilium.common.seeds import seed_for
from consilium.common.study.load import parse_study
from consilium.comparison.cells import make_cell, run_cell
from consilium.comparison.site_files import SiteFiles
from consilium.findings import over_splits

USERS, LEAST, ROUNDS, STEPS, SEEDS, RATES = 50, 30, 100, 10, range(1, 11), (0.003, 0.01, 0.03, 0.1)
INNER = 0.01
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg + one step": {"method": {"kind": "fine_tune", "steps": 1, "learning_rate": INNER}},
    "Per-FedAvg (FO)": {"method": {"kind": "per_fedavg", "inner_learning_rate": INNER}},
    "Per-FedAvg (HF)": {"method": {"kind": "per_fedavg", "inner_learning_rate": INNER, "variant": "hessian_free"}},
}
RESULTS = Path(__file__).parent / "results" / "per_fedavg.csv"


def write_users(images: Path, folder: Path, seed: int) -> dict[str, SiteFiles]:
    """Write every user's images, training and test rows together, and return where they lie."""
    with np.load(images, allow_pickle=False) as arrays:
        x, y = arrays["x_train"], arrays["y_train"].astype(np.int64)
    generator = np.random.default_rng(seed_for(seed, "per-fedavg"))
    left = {digit: list(generator.permutation(np.flatnonzero(y == digit))) for digit in range(10)}
    files = {}
    for number in range(USERS):
        wanted = dict.fromkeys(range(5), 2 * LEAST)
        if number >= USERS // 2:
            wanted = {int(generator.integers(5)): LEAST, 5 + int(generator.integers(5)): 4 * LEAST}
        rows = [left[digit].pop() for digit, count in wanted.items() for _ in range(count)]
        path = folder / f"user-{number:02}"
        path.mkdir(parents=True)
        np.savez(path / "data.npz", x=x[rows], y=y[rows])
        files[path.name] = SiteFiles("arrays", path)
    return files


def run(images: Path, name: str, rate: float, seed: int) -> dict[str, Any]:
    """Run one study and return its validation numbers and test accuracy, as means over the users."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="per-fedavg-") as where:
        files = write_users(images, Path(where) / "users", seed)
        kind = METHODS[name]["method"]["kind"]
        study = parse_study(
            {
                "name": "per-fedavg",
                "sites": sorted(files),
                "seed": seed,
                "rounds": ROUNDS,
                "cohort_fraction": 0.2,
                "evaluate_every": ROUNDS,
                "round_timeout_seconds": 100_000,
                "task": {
                    "kind": "images",
                    "classes": [str(digit) for digit in range(10)],
                    "size": 28,
                    "channels": 1,
                    "mean": [0.1307],
                    "std": [0.3081],
                },
                "model": {"name": "mlp", "hidden": [80, 60]},
                "training": {"steps": STEPS, "batch_size": 40, "learning_rate": rate, "momentum": 0.0},
                "split": {"test": 0.5, "validation": 0.2, "seed": seed},
                "strategy": {"kind": "per_fedavg" if kind == "per_fedavg" else "fedavg"},
                **METHODS[name],
            },
            source=name,
        )
        cell = make_cell(name, study, seed=0, split=0, local=False)
        result = run_cell(cell, files, Path(where) / "cells", cell.key(files))
        if result.error is not None:
            raise RuntimeError(result.error)
    means = result.rounds[-1].means
    accuracy = [facts.metrics["personal"]["accuracy"] or 0.0 for facts in result.sites.values()]
    return {
        "method": name,
        "rate": rate,
        "seed": seed,
        "validation_accuracy": means["personal.accuracy"],
        "validation_loss": means["personal.loss"],
        "test_accuracy": float(np.mean(accuracy)),
        "seconds": round(result.seconds, 1),
    }


def main() -> None:
    """Run all, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    follow_parent()
    rows = pd.read_csv(arguments.out) if arguments.out.exists() else pd.DataFrame(columns=["method", "rate", "seed"])
    done = set(rows[["method", "rate", "seed"]].itertuples(index=False, name=None))
    cells = [(name, rate, seed) for seed in SEEDS for name in METHODS for rate in RATES]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context, initializer=end_with_parent) as pool:
        for future in [pool.submit(run, arguments.images, *cell) for cell in cells if cell not in done]:
            rows = pd.concat([rows, pd.DataFrame([future.result()])], ignore_index=True)
            rows.to_csv(arguments.out, index=False, lineterminator="\n", float_format="%.6g")
    best = rows.loc[rows.groupby(["method", "seed"])["validation_accuracy"].idxmax()]
    chosen = best.pivot_table(index="seed", columns="method", values="test_accuracy")
    print(best[["method", "seed", "rate", "test_accuracy"]].to_string(index=False))
    for name in METHODS:
        one = over_splits((chosen[name] - chosen["FedAvg + one step"]).tolist(), test_to_train=0.0)
        print(json.dumps({"method": name, "mean": float(chosen[name].mean()), "minus FedAvg": vars(one)}))


if __name__ == "__main__":
    main()
