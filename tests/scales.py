"""What tests of scales share: studies, sites' tables, moments."""

import math
from pathlib import Path
from typing import Any

from conftest import MakeStudy

from consilium.client.data import UnscaledData, read_data
from consilium.common.study.load import load_site
from consilium.common.study.scale import Moments
from consilium.common.study.study import StudyConfig

TABLE = {"kind": "table", "classes": ["no", "yes"], "label": "ill"}

COLUMNS = {"a": {"kind": "number"}, "b": {"kind": "number"}}

STANDARD = {"mean": 0.0, "std": 1.0}

Rows = list[tuple[Any, ...]]


def study_of(make_study: MakeStudy, scale: Any = None, **changes: Any) -> StudyConfig:
    """Return a study of two columns with a scale."""
    task = TABLE | {"columns": COLUMNS} | ({} if scale is None else {"scale": scale})
    return make_study(**{"task": task, **changes})


def unscaled(path: Path, study: StudyConfig) -> UnscaledData:
    """Return a site's data before they are scaled."""
    config = load_site(path)
    return read_data(config.data, study.task, study.split, site=config.name, min_examples=2)


def write_rows(path: Path, header: str, rows: Rows) -> Path:
    """Write a table."""
    lines = [header, *(",".join("" if cell is None else str(cell) for cell in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def moments_of(values: list[float]) -> Moments:
    """Return the sums of one column."""
    return Moments(
        counts=(len(values),), sums=(math.fsum(values),), squares=(math.fsum(value * value for value in values),)
    )


def two(a: list[float], b: list[float]) -> Moments:
    """Return the sums of two columns; nothing of one without values."""
    told = [moments_of(of) if of else Moments(counts=(0,), sums=(0.0,), squares=(0.0,)) for of in (a, b)]
    return Moments(
        counts=tuple(one.counts[0] for one in told),
        sums=tuple(one.sums[0] for one in told),
        squares=tuple(one.squares[0] for one in told),
    )
