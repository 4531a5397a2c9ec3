"""What happened round by round: validation curves, costs to a target, weights, and all of it as one long table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from consilium.comparison.cells import Cell
from consilium.comparison.comparison import Comparison
from consilium.comparison.rows import Row


@dataclass(frozen=True)
class Curve:
    """Validation accuracy and loss over the rounds, as means over cells; None where a cell has none."""

    rounds: list[int]
    accuracy: list[float | None]
    loss: list[float | None]


def curve_of(comparison: Comparison, row: Row) -> Curve:
    """Return the curve of the row's model.

    Rounds in which nothing was measured are left out. A row in which each site has its own has no curve. Where a cell
    stopped early, the curve ends with the rounds that all cells have.
    """
    runs = []
    for split, cells in row.cells().items():
        model = row.model(split)
        for cell in cells:
            measured = [each for each in comparison.results[cell].rounds if f"{model}.loss" in each.means]
            if measured:
                runs.append((model, measured))

    def means(number: str) -> list[float | None]:
        values = [[each.means.get(f"{model}.{number}") for each in rounds] for model, rounds in runs]
        return [None if None in column else float(np.mean(column)) for column in zip(*values, strict=False)]

    rounds = min(([each.round for each in measured] for _, measured in runs), key=len, default=[])
    return Curve(rounds, means("accuracy"), means("loss"))


def to_target(comparison: Comparison, row: Row, target: float) -> dict[str, float] | None:
    """Return rounds, bytes and seconds until the mean validation accuracy first reaches a target, as means over cells.

    None where a cell never does, or there is nothing to reach (baselines that do not travel, no validation rows).
    """
    costs = []
    for split, cells in ({} if row.among else row.cells()).items():
        if row.model(split) != "personal":
            return None
        for cell in cells:
            cost = _cost(comparison, cell, target)
            if cost is None:
                return None
            costs.append(cost)
    if not costs:
        return None
    rounds, total, seconds = (float(np.mean(column)) for column in zip(*costs, strict=True))
    return {"rounds": rounds, "bytes": total, "seconds": seconds}


def _cost(comparison: Comparison, cell: Cell, target: float) -> tuple[int, int, float] | None:
    result, total = comparison.results[cell], 0
    for each in result.rounds:
        total += each.bytes_up + each.bytes_down
        if each.means.get("personal.accuracy", -math.inf) >= target:
            share = each.round / len(result.rounds)
            return each.round, total, share * result.seconds
    return None


def rounds_table(comparison: Comparison) -> pd.DataFrame:
    """Return one line per cell and round: bytes and validation numbers, what `rounds.csv` holds."""
    lines = [
        {
            "label": cell.label,
            "split": cell.split,
            "seed": cell.seed,
            "round": each.round,
            "bytes_up": each.bytes_up,
            "bytes_down": each.bytes_down,
            **each.means,
        }
        for cell, result in comparison.results.items()
        for each in result.rounds
    ]
    return pd.DataFrame(lines)


def weights_of(comparison: Comparison, cells: Sequence[Cell]) -> dict[str, list[float]]:
    """Return per site its weight in each round that all cells have, as a mean over cells."""
    weights: dict[str, list[list[float]]] = {site: [] for site in comparison.sites}
    for cell in cells:
        for site in comparison.sites:
            weights[site].append([each.weights.get(site, 0.0) for each in comparison.results[cell].rounds])
    return {site: [sum(column) / len(column) for column in zip(*runs, strict=False)] for site, runs in weights.items()}
