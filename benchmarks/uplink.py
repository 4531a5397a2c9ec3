"""What an uplink codec costs in accuracy: CIFAR-10 at five sites, ResNet-20 from random weights, per codec and seed.

    python benchmarks/uplink.py --images cifar10.npz [--jobs 2]      # writes benchmarks/results/uplink.csv

`--images`: arrays `x` (N, 3, 32, 32) uint8, `y` and `is_test`. Every seed draws which training images each site has;
all codecs of a seed have the same. Accuracy is that of the last round's global model on all test images of the file.
Bytes are those of the updates alone, as the server counts them, per site and round.
"""

import argparse
import csv
import io
import logging
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from consilium.client.data import Examples
from consilium.client.models import build_model, set_weights
from consilium.client.training.evaluation import evaluate
from consilium.common.host.files import scratch
from consilium.common.seeds import seed_for
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.running.in_process import run_in_process, write_local_site

SITES, PER_SITE, ROUNDS, SEEDS = ("a", "b", "c", "d", "e"), 800, 12, (1, 2, 3)
CODECS: dict[str, list[dict[str, Any]]] = {
    "identity": [],
    "int4+zstd": [{"kind": "int4", "error_feedback": True}, {"kind": "zstd"}],
    "top_k 5 %+int8+zstd": [{"kind": "top_k", "fraction": 0.05}, {"kind": "int8"}, {"kind": "zstd"}],
}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
RESULTS = Path(__file__).parent / "results" / "uplink.csv"


def study(codec: str, seed: int) -> StudyConfig:
    """Return the study of one codec and seed."""
    classes = [str(number) for number in range(10)]
    return parse_study(
        {
            "name": "uplink",
            "sites": SITES,
            "seed": seed,
            "rounds": ROUNDS,
            "task": {"kind": "images", "classes": classes, "size": 32, "channels": 3, "mean": MEAN, "std": STD},
            "model": {"name": "resnet20"},
            "training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.05, "precision": "bfloat16"},
            "split": {"test": 0.05, "validation": 0.0},
            "uplink": CODECS[codec],
            "round_timeout_seconds": 100_000,
        },
        source="uplink",
    )


def run(images: Path, codec: str, seed: int) -> dict[str, Any]:
    """Run one study in this process and return its row."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with np.load(images, allow_pickle=False) as arrays:
        x, y, is_test = arrays["x"], arrays["y"].astype(np.int64), arrays["is_test"]
    order = np.random.default_rng(seed_for(seed, "uplink")).permutation(np.flatnonzero(~is_test))
    config = study(codec, seed)
    with scratch(), tempfile.TemporaryDirectory(prefix="uplink-") as name:
        folder, settings = Path(name), {}
        for number, site in enumerate(SITES):
            rows = order[number * PER_SITE : (number + 1) * PER_SITE]
            (folder / site).mkdir()
            np.savez(folder / site / "data.npz", x=x[rows], y=y[rows])
            settings[site] = write_local_site(folder / site, {"kind": "arrays", "path": "data.npz"})
        rounds = run_in_process(config, settings, folder / "run").rounds
        weights = load_file(folder / "run" / "model/weights.safetensors")
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    test = Examples((torch.from_numpy(x[is_test]) / 255 - shift) / scale, torch.from_numpy(y[is_test]))
    model = build_model(config.model, input_shape=(3, 32, 32), num_outputs=10, weights_dir=None, seed=0)
    set_weights(model.module, weights)
    up = sum(each.bytes_up for each in rounds) / ROUNDS / len(SITES)
    return {"codec": codec, "seed": seed, "accuracy": evaluate(model.module, test).accuracy, "bytes_up": round(up)}


def main() -> None:
    """Run all, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        cells = [(codec, seed) for seed in SEEDS for codec in CODECS]
        rows = list(pool.map(run, [arguments.images] * len(cells), *zip(*cells, strict=True)))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    RESULTS.write_text(text.getvalue(), encoding="utf-8")
    base = {row["seed"]: row for row in rows if row["codec"] == "identity"}
    for codec in CODECS:
        mine = [row for row in rows if row["codec"] == codec]
        lost = [100 * (base[row["seed"]]["accuracy"] - row["accuracy"]) for row in mine]
        fewer = np.mean([base[row["seed"]]["bytes_up"] / row["bytes_up"] for row in mine])
        accuracy = 100 * np.mean([row["accuracy"] for row in mine])
        print(
            f"{codec}: accuracy {accuracy:.2f} %, {np.mean(lost):+.2f} points lost "
            f"({', '.join(f'{one:+.2f}' for one in lost)})"
            f", {fewer:.1f} x fewer bytes"
        )


if __name__ == "__main__":
    main()
