"""Train a new head on a frozen ResNet50 at five sites that share CIFAR-10 among them.

The backbone sees every image once: each site computes the features, keeps them, and trains the head on them.
Run: `python examples/resnet50_cifar10.py cifar10.npz [--weights resnet50.pth] [--images 1000]`, after
`consilium data fetch cifar10 --to .`, or with any `.npz` of that form: `x` (N, 3, 32, 32) and `y`. Without `--weights`
(a state_dict, as torchvision has it) the backbone is random: it shows how things work, and no more than that.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import consilium as cs

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def clients(pool: Path, count: int) -> dict[str, Any]:
    """Divide the first images of a random order among five sites."""
    with np.load(pool, allow_pickle=False) as arrays:
        order = np.random.default_rng(1).permutation(len(arrays["y"]))[:count]
        x, y = arrays["x"][order], arrays["y"][order]
    return {f"client-{number}": (x[rows], y[rows]) for number, rows in enumerate(np.array_split(np.arange(count), 5))}


def main() -> None:
    """Run the study in this process and print what the global model gets right at every site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pretrained = {"pretrained": {"file": options.weights.name}} if options.weights else {}
    study = cs.Study(
        name="resnet50-cifar10",
        rounds=20,
        evaluate_every=20,
        local_baseline=False,
        task=IMAGENET,
        model={"name": "resnet50", "trainable": "head", "batch_norm": "freeze", **pretrained},
        optimiser="adam",
        epochs=10,
        batch_size=32,
        learning_rate=0.0003,
    )
    folder = options.weights.parent.resolve() if options.weights else None
    result = cs.simulate(study, clients(options.pool, options.images), classes=CLASSES, weights_dir=folder)
    sites = result.sites
    print(f"backbone: ResNet50, {'pretrained' if options.weights else 'random weights'}, frozen")
    print(f"sent by each client in a round: {result.run.rounds[-1].bytes_up // len(sites):,} bytes, the head alone")
    right = (sites["personal"] * sites["n_test"]).round().astype(int)
    for site, tested in sites["n_test"].items():
        print(f"{site}: {right[site]} of {tested} test images right")
    tested = sites["n_test"].sum()
    print(f"together: {right.sum()} of {tested} right, chance is {tested // len(CLASSES)}")


if __name__ == "__main__":
    main()
