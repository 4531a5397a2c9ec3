"""Describes example data for `[task.summary]` of a study: ranges, gaps and shares, of many rows only, and rounded."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tomli_w

from consilium.client.data import READERS
from consilium.client.operations.doctor.differences import Floats
from consilium.client.operations.doctor.expected import Own, own_of
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.summary import ColumnSummary, PixelSummary, Summary
from consilium.common.study.summary_rules import numbers_of
from consilium.common.study.task import PictureTask, TableTask, Task

LEAST_ROWS, LEAST_TAILS = 50, 200
"""Of fewer values a column has no summary, and none with `low` and `high`: they would be single patients'."""


def describe_data(paths: Sequence[Path], study: StudyConfig) -> Summary:
    """Return what is to be expected of a site's data, as these examples of a study's data are.

    `low` and `high` are the 1st and the 99th percentile, of 200 known values or more, rounded outwards to two digits;
    mean and standard deviation have three digits of the latter, shares two decimals.

    Args:
        paths: files or folders as sites have them in `data.path`.

    Raises:
        ConfigError: the study's task is one of a package of one's own.
        DataError: data cannot be read, or there are too few.
    """
    task = study.task
    found = [_own(path, study) for path in paths]
    columns = {name: np.concatenate([one.columns[name] for one in found]) for name in found[0].columns}
    described = {name: summed for name, values in columns.items() if (summed := _column(name, values, task))}
    counts = {name: sum(one.labels[name][1] for one in found) for name in found[0].labels}
    labels = {
        name: round(sum(one.labels[name][0] * one.labels[name][1] for one in found) / count, 2)
        for name, count in counts.items()
        if count >= LEAST_ROWS
    }
    pixels = [one.pixels for one in found if one.pixels is not None]
    if not (described or labels or pixels):
        raise DataError(f"the examples are too few to describe, expected at least {LEAST_ROWS} of them")
    return Summary(columns=described, labels=labels, pixels=_levels(pixels) if pixels else None)


def summary_text(summary: Summary) -> str:
    """Return the summary as it stands in a study.toml."""
    return tomli_w.dumps(
        {"task": {"summary": summary.model_dump(mode="json", exclude_none=True, exclude_defaults=True)}}
    )


def _own(path: Path, study: StudyConfig) -> Own:
    task = study.task
    kind = _kind(path, task)
    keys = {"name": "example", "server": "localhost:1", "ca_certificate": "-", "private_key": "-", "state_dir": "-"}
    config = SiteConfig.model_validate(keys | {"data": {"kind": kind, "path": path}})
    whole = study.split.model_copy(update={"group": None, "parts": None})
    return own_of(READERS[kind](config.data, task, whole, site=str(path)), task)


def _kind(path: Path, task: Task) -> str:
    """Return `data.kind` of data of a task."""
    if isinstance(task, PictureTask) and task.kind == "images":
        arrays = path.suffix.lower() == ".npz" or (path.is_dir() and any(path.glob("*.npz")))
        return "arrays" if arrays else "images"
    (kind, *_) = task.data_kinds
    if kind not in READERS:
        raise ConfigError(f"tasks of kind '{task.kind}' are read by a package of one's own and are not described")
    return kind


def _column(name: str, values: Floats, task: Task) -> ColumnSummary | None:
    known = values[~np.isnan(values)]
    if len(known) < LEAST_ROWS:
        return None
    may_miss = isinstance(task, TableTask) and name in task.columns
    missing = round(1 - len(known) / len(values), 2) if may_miss else None
    if name not in numbers_of(task) or not known.std() > 0:
        return None if missing is None else ColumnSummary(missing=missing)
    std = float(f"{known.std():.3g}")
    mean = round(float(known.mean()), 2 - math.floor(math.log10(std)))
    low, high = None, None
    if len(known) >= LEAST_TAILS:
        first, last = (float(value) for value in np.percentile(known, (1, 99)))
        low, high = _outwards(first, math.floor), _outwards(last, math.ceil)
        if not low <= mean <= high or low == high:
            low = high = None
    return ColumnSummary(low=low, high=high, mean=mean, std=std, missing=missing)


def _outwards(value: float, rounded: Callable[[float], int]) -> float:
    """Return a value of two digits, rounded up or down."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return float(f"{rounded(value / step) * step:.12g}")


def _levels(pixels: Sequence[tuple[float, float]]) -> PixelSummary:
    means = np.array([mean for mean, _ in pixels])
    spread = math.sqrt(float(np.mean([std**2 for _, std in pixels]) + means.var()))
    return PixelSummary(mean=round(float(means.mean()), 2), std=max(round(min(spread, 1.0), 2), 0.01))
