"""Reads the folder of a comparison: its summary, or how far it came."""

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from consilium.common.errors import StateError, clean
from consilium.common.study.sentences import describe
from consilium.history.entry import Entry, Score, counted
from consilium.history.reading import read_object

SUMMARY, CELLS = "summary.json", "cells"
_MOST_CELLS = 100_000


class _Effect(BaseModel):
    effect: str


class _Numbers(BaseModel):
    over: dict[str, tuple[float, float | None, float | None] | None]


class _Line(BaseModel):
    row: str
    numbers: _Numbers | None = None


class _Summary(BaseModel):
    metric: str
    headlines: dict[str, _Effect]
    judged: tuple[str, str]
    lines: list[_Line]


def read_comparison(folder: Path, name: str) -> Entry:
    """Return what the folder of a comparison holds."""
    changed = datetime.fromtimestamp(folder.stat().st_mtime).astimezone()
    study = clean(folder.name.removeprefix("compare-"), 100)
    try:
        values = read_object(folder / SUMMARY)
        if values is None:
            return Entry(name, folder, "comparison", "unfinished", study, changed, detail=_cells(folder))
        summary = _Summary.model_validate(values)
    except ValidationError as error:
        problem = f"another version wrote it: {clean(describe(error, SUMMARY), 200)}"
        return Entry(name, folder, "comparison", "unreadable", study, changed, problems=(problem,))
    except StateError as error:
        return Entry(name, folder, "comparison", "unreadable", study, changed, problems=(str(error),))
    judged = clean(summary.judged[1], 60)
    over = next((line.numbers.over for line in summary.lines if line.row == summary.judged[1] and line.numbers), {})
    mean = over.get("mean")
    return Entry(
        name,
        folder,
        "comparison",
        "finished",
        study,
        changed,
        method=judged,
        sites=tuple(clean(site, 100) for site in summary.headlines),
        score=None if mean is None else Score(mean[0], judged, "test", clean(summary.metric, 40)),
        effects=counted(of.effect for of in summary.headlines.values()),
        detail=f"{len(summary.lines)} rows",
    )


def _cells(folder: Path) -> str:
    number = 0
    for _ in (folder / CELLS).glob("*.json") if (folder / CELLS).is_dir() else ():
        number += 1
        if number == _MOST_CELLS:
            break
    return f"{number} cells so far"
