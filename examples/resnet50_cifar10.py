"""Train a new head on a frozen ResNet50 at five sites that share CIFAR-10 among them.

The backbone sees every image once: each site computes the features, keeps them, and trains the head on them.
Run: `python examples/resnet50_cifar10.py cifar10.npz [--weights resnet50.pth] [--images 1000]`, after
`consilium data fetch cifar10 --to .`, or with any `.npz` of that form: `x` (N, 3, 32, 32) and `y`. Without `--weights`
(a state_dict, as torchvision has it) the backbone is random: it shows how things work, and no more than that.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilium.common.study.load import parse_study
from consilium.running.in_process import run_in_process, write_local_site

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def make_sites(pool: Path, count: int, folder: Path, weights: Path | None) -> dict[str, Path]:
    """Divide the first images of a random order among five sites, and return their settings."""
    with np.load(pool, allow_pickle=False) as arrays:
        order = np.random.default_rng(1).permutation(len(arrays["y"]))[:count]
        x, y = arrays["x"][order], arrays["y"][order]
    settings = {}
    for number, rows in enumerate(np.array_split(np.arange(count), 5)):
        site = folder / f"client-{number}"
        site.mkdir()
        np.savez(site / "data.npz", x=x[rows], y=y[rows])
        own = {"weights_dir": weights.parent.resolve()} if weights else {}
        settings[site.name] = write_local_site(site, {"kind": "arrays", "path": "data.npz"}, **own)
    return settings


def main() -> None:
    """Run the study in this process and print what the global model gets right at every site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model: dict[str, Any] = {"name": "resnet50", "trainable": "head", "batch_norm": "freeze"}
    if options.weights:
        model["pretrained"] = {"file": options.weights.name}
    with tempfile.TemporaryDirectory() as name:
        sites = make_sites(options.pool, options.images, Path(name), options.weights)
        study = parse_study(
            {
                "name": "resnet50-cifar10",
                "sites": list(sites),
                "rounds": 20,
                "evaluate_every": 20,
                "local_baseline": False,
                "task": {"kind": "images", "classes": CLASSES, "size": 32, **IMAGENET},
                "model": model,
                "training": {"optimiser": "adam", "epochs": 10, "batch_size": 32, "learning_rate": 0.0003},
            },
            source="example",
        )
        result = run_in_process(study, sites, Path(name) / "run")
    print(f"backbone: ResNet50, {'pretrained' if options.weights else 'random weights'}, frozen")
    print(f"sent by each client in a round: {result.rounds[-1].bytes_up // len(sites):,} bytes, the head alone")
    tests = {site: facts.test for site, facts in result.sites.items() if facts.test is not None}
    for site, test in tests.items():
        print(f"{site}: {test.personal} of {test.num_test} test images right")
    right, tested = (sum(getattr(test, what) for test in tests.values()) for what in ("personal", "num_test"))
    print(f"together: {right} of {tested} right, chance is {tested // len(CLASSES)}")


if __name__ == "__main__":
    main()
