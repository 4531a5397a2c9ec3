"""Learn a convolutional model for 28 x 28 images that adapts to a new site in a few steps (Per-FedAvg).

Five sites have two of the ten digits each. What they learn together is a starting point; each serves it after a few
gradient steps on its own images, and is measured on test images that nobody trained on.

Run: `python examples/meta_learning.py [--images mnist.npz]`. Without a file the images are scikit-learn's digits,
enlarged from 8 x 8; with it they are 1,000 of its arrays `x_train` (N, 28, 28) and `y_train`.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.datasets import load_digits

import consilium as cs

Images = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
MOST = 1000
STUDY = cs.Study(
    name="meta-learning",
    rounds=6,
    evaluate_every=6,
    local_baseline=False,
    task={"mean": [0.5], "std": [0.25]},
    method={"kind": "per_fedavg", "inner_learning_rate": 0.01, "adapt_steps": 5},
    strategy="per_fedavg",
    steps=5,
    batch_size=16,
    learning_rate=0.05,
    momentum=0.0,
)


def images_of(file: Path | None) -> Images:
    """Return images `(N, 28, 28)` with their digits."""
    if file is not None:
        with np.load(file, allow_pickle=False) as arrays:
            rows = np.random.default_rng(1).permutation(len(arrays["y_train"]))[:MOST]
            return arrays["x_train"][rows], arrays["y_train"][rows].astype(np.int64)
    x, y = load_digits(return_X_y=True)
    small = [Image.fromarray((image * 255 / 16).astype(np.uint8)) for image in x[:MOST].reshape(-1, 8, 8)]
    return np.stack([np.asarray(image.resize((28, 28), Image.Resampling.BILINEAR)) for image in small]), y[:MOST]


def main() -> None:
    """Run the study in this process and print what each site serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="an .npz file with x_train and y_train, such as mnist.npz")
    x, y = images_of(parser.parse_args().images)
    torch.set_num_threads(1)
    parts = {f"site-{number}": np.isin(y, (2 * number, 2 * number + 1)) for number in range(5)}
    result = cs.simulate(STUDY, {site: (x[rows], y[rows]) for site, rows in parts.items()}, classes=list("0123456789"))
    for site, row in result.sites.iterrows():
        print(f"{site}: {row['global']:.3f} of the test images right as received, {row['personal']:.3f} adapted")


if __name__ == "__main__":
    main()
