"""The table of speeds: rows by the name of the work, printed and kept in results/speed.csv."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results" / "speed.csv"
FIELDS = ("work", "unit", "ours", "ours_p95", "before", "stock", "stock_tuned", "limit")


def write(rows: list[Row]) -> None:
    """Write rows to the results, in place of those of the same work."""
    before: dict[str, Row] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            before = {row["work"]: row for row in csv.DictReader(file)}
    rounded = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    merged = before | {row["work"]: row for row in rounded}
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())


def show(rows: list[Row]) -> None:
    """Print the table so far."""
    table = Table(*FIELDS)
    for row in rows:
        cells = (row.get(name, "") for name in FIELDS)
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=150).print(table)


def of(seconds: list[float]) -> dict[str, float]:
    """Return median and 95th percentile."""
    return {"ours": float(np.median(seconds)), "ours_p95": float(np.quantile(seconds, 0.95))}
