"""The work that every peer does: sites' rows, a network and its initial weights, in one file that all of them can read.

No part of consilium and none of torch is imported here: each peer runs in an environment of its own.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Work:
    """What is trained, on what, and how.

    Args:
        x, y: training rows of all sites, one after the other, (N, inputs) and (N,).
        test_x, test_y: rows of all sites that nobody trains on.
        ends, test_ends: (sites + 1,), where each site's rows begin and end.
        layers: of a perceptron, (outputs, inputs) and (outputs,) in turn; ReLU between them. One output: two classes.
        batch, rate, rounds, cohort: plain SGD, one pass a round; `cohort` of the sites are asked in each round.
    """

    x: Floats
    y: Whole
    ends: Whole
    test_x: Floats
    test_y: Whole
    test_ends: Whole
    layers: list[Floats]
    batch: int
    rate: float
    rounds: int
    cohort: int

    @property
    def num_sites(self) -> int:
        """How many there are."""
        return len(self.ends) - 1

    def of_site(self, number: int) -> tuple[Floats, Whole]:
        """Return a site's training rows."""
        rows = slice(self.ends[number], self.ends[number + 1])
        return self.x[rows], self.y[rows]


def save(work: Work, file: Path) -> None:
    """Write the work."""
    arrays: dict[str, Any] = {name: value for name, value in vars(work).items() if name != "layers"}
    arrays |= {f"layer-{number}": value for number, value in enumerate(work.layers)}
    np.savez(file, **arrays)


def load(file: Path) -> Work:
    """Read the work."""
    with np.load(file, allow_pickle=False) as arrays:
        found: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    layers = [found.pop(f"layer-{number}") for number in range(sum(name.startswith("layer-") for name in found))]
    numbers: dict[str, Any] = {name: int(found.pop(name)) for name in ("batch", "rounds", "cohort")}
    rate = float(found.pop("rate"))
    return Work(**found, **numbers, layers=layers, rate=rate)


def save_pools(pools: dict[str, tuple[Floats, Whole]], file: Path) -> None:
    """Write all rows of every site beside the work."""
    flat = {f"{site}/{name}": array for site, pair in pools.items() for name, array in zip("xy", pair, strict=True)}
    np.savez(file.with_suffix(".pools.npz"), **cast(dict[str, Any], flat))


def load_pools(file: Path) -> dict[str, tuple[Floats, Whole]]:
    """Read what `save_pools` wrote."""
    with np.load(file.with_suffix(".pools.npz"), allow_pickle=False) as arrays:
        names = sorted({name.split("/")[0] for name in arrays.files})
        return {name: (arrays[f"{name}/x"], arrays[f"{name}/y"]) for name in names}


def logits(layers: list[Floats], x: Floats) -> Floats:
    """Return the network's answers, (rows, outputs)."""
    for number in range(0, len(layers), 2):
        x = np.maximum(x, 0) if number else x
        x = x @ layers[number].T + layers[number + 1]
    return x


def accuracy(work: Work, served: list[list[Floats]]) -> float:
    """Return the mean over sites of the accuracy on their test rows.

    Args:
        served: the weights that each site serves; one for all where there is one.
    """
    found = []
    for number in range(work.num_sites):
        rows = slice(work.test_ends[number], work.test_ends[number + 1])
        answers = logits(served[number] if len(served) > 1 else served[0], work.test_x[rows])
        classes = answers.argmax(1) if answers.shape[1] > 1 else (answers[:, 0] > 0).astype(np.int64)
        found.append(float((classes == work.test_y[rows]).mean()))
    return float(np.mean(found))


class Rounds:
    """Tells the program that started this one, by a line, that a round has ended."""

    def __init__(self) -> None:
        self.note()

    def note(self) -> None:
        """A round has ended, or the first begins; waits a moment, so that what it took is read before the next."""
        print("round", flush=True)
        time.sleep(0.05)


def done(file: Path, served: list[list[Floats]]) -> None:
    """Write what each site serves, for `accuracy`."""
    flat: dict[str, Any] = {
        f"{site}/{number}": np.asarray(layer, dtype=np.float32)
        for site, layers in enumerate(served)
        for number, layer in enumerate(layers)
    }
    np.savez(file, **flat)


def read_served(file: Path) -> list[list[Floats]]:
    """Read what `done` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        sites = 1 + max(int(name.split("/")[0]) for name in arrays.files)
        layers = 1 + max(int(name.split("/")[1]) for name in arrays.files)
        return [[arrays[f"{site}/{number}"] for number in range(layers)] for site in range(sites)]
