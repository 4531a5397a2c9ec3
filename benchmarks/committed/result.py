"""What a committed result is: the data of its sites, its study, and how it is compared."""

import csv
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool

Changes = Mapping[str, Any]
STUDY, SITES = "study.toml", "sites"


@dataclass(frozen=True)
class Result:
    """One committed result.

    Args:
        about: what it is, in one line.
        make: `make(data, folder)` writes every site's data below `folder` and returns the study.
        options: of `consilium compare`, without the dashes; an empty value is an option that takes none.
        against: the row that every other is set against, split by split, in `minus-size.csv`; None for no such file.
    """

    about: str
    make: Callable[[Path, Path], StudyConfig]
    options: Mapping[str, str]
    against: str | None = None


@dataclass(frozen=True)
class Script:
    """A committed result that has a script of its own.

    Args:
        command: `command(data, work)` returns its arguments, the script's name in front.
        writes: the file below `benchmarks/results` that its `--out` is.
    """

    about: str
    command: Callable[[Path, Path], Sequence[str]]
    writes: str


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def changed(study: StudyConfig, changes: Changes) -> StudyConfig:
    """Return a study with some settings replaced, checked again; of a table in it only what is named."""
    values = study.model_dump(mode="json", exclude_none=True)
    for key, value in changes.items():
        values[key] = (
            values.get(key, {}) | value if isinstance(value, Mapping) and key not in ("task", "method") else value
        )
    return parse_study(values, source=study.name)


def divided(pool: Path, folder: Path, options: SplitOptions, changes: Changes) -> StudyConfig:
    """Divide a pool among sites, as `consilium data split` does, and return the study it writes with some changes."""
    for sentence in split_pool(pool, folder, options):
        say(f"note: {sentence}")
    study = parse_study(tomllib.loads((folder / STUDY).read_text(encoding="utf-8")), source=str(folder / STUDY))
    return changed(study, changes)


def put_weights(folder: Path, file: Path) -> Path:
    """Put a file of weights where `--weights-dir` finds it, and return it there."""
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(file, folder / "weights" / file.name))


def write_table(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    """Write rows as a `.csv` file, and return it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path
