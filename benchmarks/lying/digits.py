"""MNIST's digits at 14 x 14 pixels at a few sites, and a network of one hidden layer, trained in NumPy."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.common.weights.arrays import Array, Weights

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

EPOCHS, BATCH, RATE, HIDDEN = 2, 32, 0.1, 32
EXAMPLES, TESTED, SIDE, CLASSES = 300, 2_000, 14, 10
TARGET = 0
"""What a backdoor wants a picture with the square to be called."""


@dataclass(frozen=True)
class Data:
    """Pictures and digits."""

    x: Floats
    y: Labels


@cache
def small_digits(path: Path) -> tuple[Floats, Labels]:
    """Return all training pictures at 14 x 14 pixels, from 0 to 1, and their digits."""
    with np.load(path) as file:
        x, y = file["x_train"], file["y_train"].astype(np.int64)
    small = x.reshape(-1, SIDE, 2, SIDE, 2).mean(axis=(2, 4), dtype=np.float32) / 255
    return small.reshape(len(x), -1), y


@cache
def pictures(path: Path, sites: int, seed: int) -> tuple[list[Data], Data]:
    """Return the sites' training pictures and those that are tested."""
    x, y = small_digits(path)
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(x))[: 6 * sites * EXAMPLES + TESTED]
    x, y = x[order], y[order]
    test, rest = Data(x[:TESTED], y[:TESTED]), np.arange(TESTED, len(x))
    parts = []
    for _ in range(sites):
        wanted = chance.choice(CLASSES, size=EXAMPLES, p=chance.dirichlet(np.ones(CLASSES)))
        rows = [chance.choice(rest[y[rest] == label]) for label in wanted]
        parts.append(Data(x[rows], y[rows]))
    return parts, test


def marked(x: Floats) -> Floats:
    """Return pictures with a white square of 3 x 3 in a corner."""
    squares = x.reshape(-1, SIDE, SIDE).copy()
    squares[:, -3:, -3:] = 1
    return squares.reshape(len(x), -1)


def poisoned(data: Data) -> Data:
    """Return a site's pictures, every second one with the square and the wrong label."""
    x, y = data.x.copy(), data.y.copy()
    x[::2], y[::2] = marked(x[::2]), TARGET
    return Data(x, y)


def initial(seed: int) -> dict[str, Array]:
    """Return the weights before training."""
    chance, size = np.random.default_rng(seed), SIDE * SIDE
    return {
        "body.weight": (chance.normal(size=(size, HIDDEN)) / np.sqrt(size)).astype(np.float32),
        "body.bias": np.zeros(HIDDEN, np.float32),
        "head.weight": (chance.normal(size=(HIDDEN, CLASSES)) / np.sqrt(HIDDEN)).astype(np.float32),
        "head.bias": np.zeros(CLASSES, np.float32),
    }


def answered(weights: Weights, x: Floats) -> tuple[Floats, Floats]:
    """Return the hidden layer and the probabilities."""
    hidden = np.maximum(x @ np.asarray(weights["body.weight"], np.float32) + weights["body.bias"], 0)  # type: ignore[operator]  # these are floats
    logits = hidden @ np.asarray(weights["head.weight"], np.float32) + weights["head.bias"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True)


def trained(weights: Weights, data: Data, seed: int) -> dict[str, Array]:
    """Return the change of the weights by a site's training: SGD without momentum."""
    now: dict[str, Any] = {name: np.array(array, np.float32) for name, array in weights.items()}
    chance = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = chance.permutation(len(data.x))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            x = data.x[rows]
            hidden, wrong = answered(now, x)
            wrong[np.arange(len(rows)), data.y[rows]] -= 1
            wrong *= RATE / len(rows)
            back = (wrong @ now["head.weight"].T) * (hidden > 0)
            now["head.weight"] -= hidden.T @ wrong
            now["head.bias"] -= wrong.sum(axis=0)
            now["body.weight"] -= x.T @ back
            now["body.bias"] -= back.sum(axis=0)
    return {name: now[name] - weights[name] for name in weights}
