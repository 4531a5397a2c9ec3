"""The results of other tables: chronic kidney disease, and exam scores at schools."""

import csv
import tempfile
from functools import partial
from pathlib import Path

from committed.result import Changes, Result, changed, divided, write_table
from consilium.common.study.study import StudyConfig
from consilium.data.options import SplitOptions


def kidney(data: Path, folder: Path, *, scale: str) -> StudyConfig:
    """Return chronic kidney disease at three sites by Dirichlet over the label, without the column `id`."""
    with (data / "public" / "kidney_disease.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    place = header.index("id")
    table = [[cell for at, cell in enumerate(row) if at != place] for row in (header, *rows)]
    with tempfile.TemporaryDirectory(prefix="kidney-") as name:
        options = SplitOptions("dirichlet", sites=3, label="classification")
        study = divided(write_table(Path(name) / "kidney_disease.csv", table), folder, options, {})
    return changed(study, {"task": study.task.model_dump(mode="json", exclude_none=True) | {"scale": scale}})


def school(data: Path, folder: Path, *, scale: str, changes: Changes | None = None) -> StudyConfig:
    """Return the exam scores of 15,362 pupils at 139 schools, from 28 columns (the last is 1 everywhere)."""
    from scipy.io import loadmat

    held = loadmat(data / "school" / "school.mat")
    names = [f"x{number:02}" for number in range(1, 29)]
    rows = [["school", *names, "score"]]
    for number, (x, y) in enumerate(zip(held["X"].ravel(), held["Y"].ravel(), strict=True), start=1):
        rows += [
            [f"school {number:03}", *map(str, map(int, row)), str(int(score[0]))]
            for row, score in zip(x, y, strict=True)
        ]
    with tempfile.TemporaryDirectory(prefix="school-") as name:
        options = SplitOptions("column", column="school", label="score", tolerance=5.0)
        study = divided(write_table(Path(name) / "school.csv", rows), folder, options, {})
    task = study.task.model_dump(mode="json", exclude_none=True) | {"scale": scale}
    task["columns"] = {name: {"kind": "number"} for name in names}
    fixed = {
        "rounds": 10,
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.003},
        "split": {"test": 0.3, "validation": 0.15},
    }
    return changed(study, {**fixed, "task": task, **(changes or {})})


_SCHOOL_OPTIONS = {"methods": "fine_tune,fedper,ditto,apfl,mr_mtl", "learning-rates": "0.001,0.003"}
TABLES: dict[str, Result] = {
    **{
        f"kidney-{scale}": Result(
            f"chronic kidney disease, three sites by Dirichlet(0.5), scale = {scale}, 5 seeds",
            partial(kidney, scale=scale),
            {"methods": "fine_tune,fedper,ditto", "seeds": "5"},
        )
        for scale in ("federation", "site")
    },
    **{
        f"school-{scale}": Result(
            f"exam scores at 139 schools, a linear model of 28 columns, scale = {scale}, 5 splits",
            partial(school, scale=scale),
            {**_SCHOOL_OPTIONS, "seeds": "1", "splits": "5"},
        )
        for scale in ("federation", "site")
    },
}
