"""What the tests of `consilium compare` share: two sites' tables, a study of them, and options."""

from pathlib import Path
from typing import Any

from conftest import write_table
from rich.console import Console

from consilium.common.study.load import study_text
from consilium.common.study.study import StudyConfig
from consilium.comparison.options import CompareOptions

SIZES = {"berlin": 60, "lyon": 40}
TRAINING = {"epochs": 1, "learning_rate": 0.1}
SETTINGS: dict[str, Any] = {
    "sites": list(SIZES),
    "rounds": 2,
    "split": {"test": 0.3, "validation": 0.2},
    "training": TRAINING,
}


def write_sites(where: Path) -> Path:
    """Write a folder with both sites' tables."""
    for number, (name, rows) in enumerate(SIZES.items()):
        (where / name / "data").mkdir(parents=True)
        write_table(where / name / "data" / "data.csv", rows=rows, seed=number)
    return where


def console() -> Console:
    """Return a console that shows nothing."""
    return Console(width=130, quiet=True)


def write_study(folder: Path, study: StudyConfig) -> Path:
    """Write a study's `study.toml` beside its sites."""
    path = folder / "study.toml"
    path.write_text(study_text(study), encoding="utf-8")
    return path


def options(folder: Path, study: StudyConfig, out: Path, **settings: Any) -> CompareOptions:
    """Return options for one seed; the study is written into the folder."""
    return CompareOptions(
        study=write_study(folder, study), sites=folder, out=out, **{"seeds": 1, "jobs": 1, **settings}
    )
