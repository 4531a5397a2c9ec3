"""The summary of a site's training rows, by which later inputs that differ are noticed: `training-summary.json`.

It stays at the site. Of a number column it holds how many values lie below rounded deciles, of a category how often
each value stands; every patient counts once. A point is kept only if at least five patients' values lie on either side
of it, so that it is nobody's extreme value.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from consilium.client.data.base import Feature
from consilium.client.data.scale import UnscaledData
from consilium.common.errors import ModelError
from consilium.common.model import SUMMARY
from consilium.common.model.record import PlainText
from consilium.common.study.record import Record
from consilium.common.study.scale import Finite
from consilium.common.study.sentences import describe
from consilium.common.study.task import CategoryColumn, FeaturesTask, PictureTask, SeriesTask, TableTask, Task, TextTask

LEAST_BEYOND = 5
"""Fewest patients on either side of a point that is kept."""
SHARES = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
"""Where the points of a number column lie."""
_THERE = ("0", "1")
_AT_ONCE = 256
MAX_BYTES = 64_000_000

Floats = npt.NDArray[np.float64]
Count = Annotated[float, Field(ge=0, le=1e9)]
"""Patients: a patient with several rows counts by the share of them."""


class Numbers(Record):
    """Numbers of the training rows."""

    name: PlainText
    """What they are, as sentences begin: "column 'age'"."""
    known: Count
    """Patients with a value."""
    missing: Count
    """Patients without."""
    points: tuple[Finite, ...] = ()
    """Rounded quantiles in rising order: the deciles, and where there are enough patients the 1st and 99th of 100;
    none where there are too few for a decile. The one in the middle is the median."""
    below: tuple[Count, ...] = ()
    """Patients with a value below each point."""
    up_to: tuple[Count, ...] = ()
    """Patients with a value at or below each point."""

    @model_validator(mode="after")
    def _check(self) -> "Numbers":
        if len(self.points) not in (0, len(SHARES) - 2, len(SHARES)) or list(self.points) != sorted(self.points):
            raise ValueError(f"points must be {len(SHARES) - 2} or {len(SHARES)} numbers in rising order, or none")
        if not len(self.points) == len(self.below) == len(self.up_to):
            raise ValueError("below and up_to must have one count for each point")
        if self.points and not self.known:
            raise ValueError("points are of patients with a value, of whom there are none")
        return self


class Shares(Record):
    """Categories, or classes, of the training rows."""

    name: PlainText
    """What they are, as sentences begin: "column 'sex'"."""
    missing: Count
    """Patients without a value."""
    counts: dict[str, Count]
    """Patients with each value."""


class TrainingSummary(Record):
    """The content of `training-summary.json`."""

    task: Task
    """The study's task, by which inputs are read."""
    num: int = Field(ge=0)
    """Training rows."""
    patients: int = Field(ge=0)
    """Of how many patients."""
    numbers: tuple[Numbers, ...] = ()
    """Of each number column; of pictures, the brightness and the contrast of each channel."""
    shares: tuple[Shares, ...] = ()
    """Of each category."""
    label: Numbers | Shares | None = None
    """Of the labels; numbers in their own units."""
    labels: tuple[Shares, ...] = Field(default=(), exclude_if=lambda labels: not labels)
    """Of each of several labels, in place of `label`: how many patients have it (1), and how many have it not (0)."""

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True, eq=False)
class Observed:
    """One column of inputs, or a measure of pictures.

    Args:
        values: `(N,)`; NaN where a cell is missing, else a number, or the place of a category.
        categories: the values that places stand for; empty for numbers.
    """

    name: str
    values: Floats
    categories: tuple[str, ...] = ()


def observed(task: Task, x: Tensor, features: Sequence[Feature]) -> Iterator[Observed]:
    """Yield each column of inputs `(N, ...)` as they are read: not filled, not scaled."""
    if isinstance(task, PictureTask):
        yield from _of_pictures(task, x)
    elif isinstance(task, TextTask):
        yield Observed("texts' length in tokens", (x > 0).sum(dim=1).to(torch.float64).numpy())
    elif isinstance(task, SeriesTask):
        yield from _of_series(task, x)
    elif features:
        values = x.to(torch.float64).numpy()
        for feature in features:
            yield _of_feature(task, values[:, feature.start : feature.start + feature.width], feature)
    else:
        flat = x.flatten(1).to(torch.float64)
        yield Observed("the mean of an example's numbers", flat.mean(dim=1).numpy())
        yield Observed("the standard deviation of an example's numbers", flat.std(dim=1, correction=0).numpy())


def observed_labels(task: Task, y: Tensor) -> tuple[Observed, ...]:
    """Return the labels `(N,)` as a column, numbers in their own units, or each of several labels `(N, L)`."""
    if task.label_kind == "masks":
        drawn = (y > 0).flatten(1).to(torch.float64).mean(dim=1)
        return (Observed("the part of a picture that is no background", drawn.numpy()),)
    name = f"label '{task.label}'" if isinstance(task, TableTask) else "the label"
    values = y.to(torch.float64).numpy()
    if task.label_names:
        pairs = zip(task.label_names, values.T, strict=True)
        return tuple(Observed(f"label '{label}'", column, _THERE) for label, column in pairs)
    if task.survival_times is not None:
        return (Observed(name, np.abs(values)),)
    if task.number is not None:
        return (Observed(name, task.number.to_label(values)),)
    return (Observed(name, values, tuple(task.classes)),)


def weights_of(groups: npt.NDArray[np.int64] | None, count: int) -> Floats:
    """Return the weight of each row `(N,)`: one over the number of its patient's rows."""
    if groups is None:
        return np.ones(count)
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / sizes[number], dtype=np.float64)


def counts_at(values: Floats, weights: Floats, points: Sequence[float]) -> tuple[Floats, Floats]:
    """Return the weight of known values below each point, and of those at or below it."""
    known = ~np.isnan(values)
    order = np.argsort(values[known], kind="stable")
    rising, sums = values[known][order], np.concatenate([[0.0], np.cumsum(weights[known][order])])
    return sums[np.searchsorted(rising, points, side="left")], sums[np.searchsorted(rising, points, side="right")]


def counts_of(column: Observed, weights: Floats) -> Floats:
    """Return the weight of each category of a column."""
    known = ~np.isnan(column.values)
    counts = np.bincount(column.values[known].astype(np.int64), weights[known], minlength=len(column.categories))
    return counts.astype(np.float64)


def quantiles(values: Floats, weights: Floats, shares: Sequence[float]) -> list[float]:
    """Return the smallest known values at or below which at least these shares of the weight lie."""
    known = ~np.isnan(values)
    order = np.argsort(values[known], kind="stable")
    rising, sums = values[known][order], np.cumsum(weights[known][order])
    places = np.searchsorted(sums, np.asarray(shares) * sums[-1] * (1 - 1e-12), side="left")
    return [float(value) for value in rising[np.minimum(places, len(rising) - 1)]]


def summary_of(data: UnscaledData) -> TrainingSummary:
    """Return the summary of a site's training rows."""
    raw, rows = data.raw, data.parts.train
    weights = weights_of(None if raw.groups is None else raw.groups[rows], len(rows))
    found = observed(data.task, raw.x, raw.features)  # of all rows: pictures are too large for one copy more
    columns = [_summed(replace(column, values=column.values[rows]), weights) for column in found]
    labels = [_summed(one, weights) for one in observed_labels(data.task, raw.y[torch.from_numpy(rows)])]
    several = bool(data.task.label_names)
    return TrainingSummary(
        task=data.task,
        num=len(rows),
        patients=round(float(weights.sum())),
        numbers=tuple(column for column in columns if isinstance(column, Numbers)),
        shares=tuple(column for column in columns if isinstance(column, Shares)),
        label=None if several else labels[0],
        labels=tuple(one for one in labels if isinstance(one, Shares)) if several else (),
    )


def read_summary(folder: Path, task: Task | None = None) -> TrainingSummary | None:
    """Return the summary in a model's folder; None where there is none, as in a coordinator's.

    Args:
        task: the model's.

    Raises:
        ModelError: the file cannot be read, it is no summary, or it is of another task.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return None
    who = f"model '{folder}': {SUMMARY}"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ModelError(f"{who} has more than {MAX_BYTES} bytes")
        summary = TrainingSummary.model_validate(json.loads(content))
    except OSError as error:
        raise ModelError(f"{who} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise ModelError(describe(error, who)) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{who} is no JSON, or it is damaged") from error
    if task is not None and summary.task != task:
        raise ModelError(f"{who} is of another task than the model")
    return summary


def _of_pictures(task: PictureTask, x: Tensor) -> Iterator[Observed]:
    """Yield the mean and the standard deviation of each picture's pixels, black 0 and white 1, channel by channel."""
    for channel, name in enumerate(task.scaled_columns):
        mean, std = (values[channel if len(values) > 1 else 0] for values in (task.mean, task.std))
        parts = [part[:, channel].flatten(1).to(torch.float64) for part in torch.split(x, _AT_ONCE)]
        means = torch.cat([part.mean(dim=1) for part in parts]) if parts else torch.zeros(0, dtype=torch.float64)
        spreads = torch.cat([part.std(dim=1, correction=0) for part in parts]) if parts else means
        of = "" if task.channels == 1 else f" in {name}"
        yield Observed(f"pictures' brightness{of}", ((means * std + mean) / task.pixel_max).numpy())
        yield Observed(f"pictures' contrast{of}", (spreads * std / task.pixel_max).numpy())


def _of_series(task: SeriesTask, x: Tensor) -> Iterator[Observed]:
    """Yield the mean and the standard deviation of each channel over the steps of each series `(N, T, C)`."""
    steps = x.to(torch.float64)
    for channel, name in enumerate(task.channels):
        means = steps[:, :, channel].nanmean(dim=1)
        spreads = (steps[:, :, channel] - means[:, None]).square().nanmean(dim=1).sqrt()
        yield Observed(f"a series' mean of '{name}'", means.numpy())
        yield Observed(f"a series' standard deviation of '{name}'", spreads.numpy())


def _of_feature(task: Task, values: Floats, feature: Feature) -> Observed:
    name = f"{'feature' if isinstance(task, FeaturesTask) else 'column'} '{feature.name}'"
    column = task.columns.get(feature.name) if isinstance(task, TableTask) else None
    if not isinstance(column, CategoryColumn):
        return Observed(name, values[:, 0])
    places = values @ np.arange(1.0, feature.width + 1)  # one-hot less the first; NaN where missing
    return Observed(name, places, column.values)


def _summed(column: Observed, weights: Floats) -> Numbers | Shares:
    missing = _rounded(float(weights[np.isnan(column.values)].sum()))
    if column.categories:
        counts = counts_of(column, weights).tolist()
        rounded = dict(zip(column.categories, map(_rounded, counts), strict=True))
        return Shares(name=column.name, missing=missing, counts=rounded)
    known = float(weights[~np.isnan(column.values)].sum())
    points = _points(column.values, weights, known)
    below, up_to = (tuple(map(_rounded, part.tolist())) for part in counts_at(column.values, weights, points))
    return Numbers(name=column.name, known=_rounded(known), missing=missing, points=points, below=below, up_to=up_to)


def _points(values: Floats, weights: Floats, known: float) -> tuple[float, ...]:
    """Return rounded quantiles with enough patients on either side."""
    shares = [share for share in SHARES if min(share, 1 - share) * known >= LEAST_BEYOND - 1e-9]
    if len(shares) < len(SHARES) - 2:
        return ()
    found = quantiles(values, weights, shares)
    inner = found[-2] - found[1] if len(found) == len(SHARES) else found[-1] - found[0]
    if not inner > 0:
        return tuple(found)
    step = 10.0 ** (math.floor(math.log10(inner)) - 2)
    return tuple(float(f"{round(value / step) * step:.12g}") for value in found)


def _rounded(count: float) -> float:
    return round(count, 6)
