"""The patients who are attacked: heart disease, four hospitals, with a scale that the study fixes."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from consilium.data.sources import heart_disease_hospitals

SCALE = {
    **{"age": (53, 9.5), "sex": (0.75, 0.43), "trestbps": (132, 18), "chol": (220, 95), "fbs": (0.15, 0.36)},
    **{"thalach": (138, 26), "exang": (0.4, 0.49), "oldpeak": (0.9, 1.1)},
}
"""Round numbers for mean and standard deviation, as a study would fix them from what is published."""
HOSPITALS = ("cleveland", "hungarian", "va", "switzerland")


def heart_rows(data: Path, folder: Path) -> tuple[dict[str, Any], list[str], dict[str, list[list[str]]]]:
    """Return the task, the header, and the rows of each hospital.

    Args:
        data: the folder with the raw `heart_disease`.
        folder: for files in between.
    """
    federation = heart_disease_hospitals(data / "heart_disease", folder)
    task: dict[str, Any] = federation.task.model_dump(mode="json", exclude_none=True)
    task["scale"] = {name: {"mean": mean, "std": std} for name, (mean, std) in SCALE.items()}
    rows, header = {}, list[str]()
    for name in HOSPITALS:
        with (federation.folders[name] / "patients.csv").open(encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file))
        place = [header.index(column) for column in task["columns"]] + [len(header) - 1]
        rows[name] = [line for line in lines if all(line[at] for at in place)]
    return task, header, rows


def five_sites(rows: Mapping[str, list[list[str]]]) -> list[list[list[str]]]:
    """Return the rows of five sites: Cleveland, the victim, then Hungary in two halves, VA and Switzerland."""
    half = len(rows["hungarian"]) // 2
    return [
        rows["cleveland"],
        rows["hungarian"][:half],
        rows["hungarian"][half:],
        rows["va"],
        rows["switzerland"],
    ]


def write_tables(folder: Path, header: Sequence[str], sites: Sequence[Sequence[Sequence[str]]]) -> dict[str, Any]:
    """Write the rows of `site-1`, `site-2`, ..., and return the `[data]` of each."""
    data = {}
    for number, rows in enumerate(sites, start=1):
        path = folder / f"site-{number}" / "data" / "patients.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
        data[f"site-{number}"] = {"kind": "table", "path": "data/patients.csv"}
    return data


def drawn(rows: Sequence[list[str]], count: int, *, sick: float, seed: int) -> list[list[str]]:
    """Return so many different rows, of which a part `sick` has the disease."""
    generator = np.random.default_rng(seed)
    groups = [[row for row in rows if (row[-1] == "yes") is ill] for ill in (True, False)]
    counts = (round(count * sick), count - round(count * sick))
    return [
        group[at] for group, some in zip(groups, counts, strict=True) for at in generator.permutation(len(group))[:some]
    ]
