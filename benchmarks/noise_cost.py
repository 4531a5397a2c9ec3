"""What noise costs where all sites have the same test rows: accuracy of each budget, and points lost, by answers.

    python benchmarks/noise_cost.py runs/results/cifar10-private/out

reads the finished cells of a comparison with `--epsilons`. An interval is over seeds and test rows.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from committed.result import say

from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.means import Kind, interval_of
from consilium.comparison.finished import read_answers, read_cell

MODEL = "personal"
POINTS = 100
Floats = npt.NDArray[np.float64]


def rights(cells: Path) -> dict[str, Floats]:
    """Return how right each row of the comparison is on each test row `(seeds, n)`: the mean over its sites."""
    found: dict[str, dict[int, Floats]] = {}
    for file in sorted(cells.glob("*.json")):
        cell = read_cell(file.stem, cells)
        if cell is None or cell.kind != "federated":
            continue
        sites = [of for of in read_answers(file.stem, cells).values() if MODEL in of]
        right = [of[MODEL].argmax(axis=1) == of["labels"] for of in sites]
        found.setdefault(cell.label, {})[cell.seed] = np.mean(np.array(right, dtype=np.float64), axis=0)
    return {label: np.stack([of[seed] for seed in sorted(of)]) for label, of in found.items()}


def told(right: Floats, *, kind: Kind, sign: str = "") -> str:
    """Return a mean in points with its interval and the standard deviation over seeds."""
    found = interval_of(Evidence.of_rows(right), kind=kind)
    limits = "" if found.low is None or found.high is None else f" [{_points(found.low)}, {_points(found.high)}]"
    return f"{POINTS * found.value:{sign}.2f}{limits} ({POINTS * right.mean(axis=1).std(ddof=1):.2f})"


def _points(share: float) -> str:
    return f"{POINTS * share:.2f}"


def main() -> None:
    """Print a line for each row of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of the comparison, with its cells")
    found = rights(parser.parse_args().out / "cells")
    for label, right in sorted(found.items()):
        plain = found.get(label.partition(" + eps ")[0])
        lost = "" if plain is None or plain is right else f"   lost {told(plain - right, kind='difference', sign='+')}"
        say(f"{label:28} {told(right, kind='number')}{lost}")


if __name__ == "__main__":
    main()
