"""Whether a site's data are about what the study expects of them (`task.summary`); none of this leaves the site."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from consilium.client.data import read_site
from consilium.client.data.base import RawData
from consilium.client.operations.doctor.differences import Floats, column_facts, label_facts, pixel_facts
from consilium.client.operations.doctor.finding import Finding, passed, warned
from consilium.client.served.summary import observed
from consilium.common.errors import ConsiliumError, listed
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.summary_rules import number_labels
from consilium.common.study.task import ImageTask, SegmentationTask, SeriesTask, TableTask, Task

_MOST_LISTED = 10


@dataclass(frozen=True, eq=False)
class Own:
    """What a summary can speak of, as a site has it.

    Args:
        columns: values of each column, NaN where one is missing; of a category which value it is. Of series, those of
            all steps of a channel. A label that is a number, or a time, under its column's name.
        labels: the share of each class, or label, and of how many examples.
        pixels: mean and standard deviation of all pixels' levels, black 0 and white 1; None where there are none.
    """

    columns: dict[str, Floats] = field(default_factory=dict)
    labels: dict[str, tuple[float, int]] = field(default_factory=dict)
    pixels: tuple[float, float] | None = None


def own_of(raw: RawData, task: Task) -> Own:
    """Return what a summary can speak of, of a site's own examples."""
    x, y = raw.x[: raw.num_own], raw.y[: raw.num_own]
    columns = dict[str, Floats]()
    if isinstance(task, TableTask):
        seen = list(observed(task, x, raw.features))
        columns = {feature.name: one.values for feature, one in zip(raw.features, seen, strict=True)}
    elif isinstance(task, SeriesTask):
        steps = x.to(torch.float64).numpy().reshape(-1, len(task.channels))
        steps = steps[~np.isnan(steps).all(axis=1)]
        columns = {name: steps[:, place] for place, name in enumerate(task.channels)}
    values = y.to(torch.float64).numpy() if task.label_kind != "masks" else np.zeros(0)
    for name in number_labels(task):
        number = task.number if task.survival_times is None else None
        columns[name] = np.abs(values) if number is None else number.to_label(values)
    pixels = _pixels(x, task) if isinstance(task, ImageTask | SegmentationTask) else None
    return Own(columns, _labels(values, task), pixels)


def _labels(values: Floats, task: Task) -> dict[str, tuple[float, int]]:
    if task.label_names:
        pairs = zip(task.label_names, values.T, strict=True)
        known = {name: column[~np.isnan(column)] for name, column in pairs}
        return {name: (float(column.mean()) if len(column) else 0.0, len(column)) for name, column in known.items()}
    if task.label_kind != "classes":
        return {}
    return {name: (float((values == place).mean()), len(values)) for place, name in enumerate(task.classes)}


def _pixels(x: torch.Tensor, task: ImageTask | SegmentationTask) -> tuple[float, float] | None:
    """Return mean and standard deviation of all pixels: variance within pictures, and between their means."""
    if not len(x):
        return None
    parts = [one.values for one in observed(task, x, ())]
    means, spreads = np.concatenate(parts[::2]), np.concatenate(parts[1::2])
    return float(means.mean()), math.sqrt(float((spreads**2).mean() + means.var()))


def check_summary(config: SiteConfig, study: StudyConfig | None) -> list[Finding]:
    """Warn where this site's data are far from what the study expects; nothing where it says nothing of that.

    Data that cannot be read are for the check of the data to name.
    """
    if study is None or study.task.summary is None:
        return []
    try:
        raw = read_site(config, study).raw
    except ConsiliumError:
        return []
    if not (odd := list(_odd(own_of(raw, study.task), study.task))):
        return [passed("summary", "the data are about what the study expects (task.summary); shown here only")]
    fix = (
        "see whether this is so at this hospital; a column in another unit has to be converted before the study, or it "
        "spoils what all learn"
    )
    return [warned("summary", f"{listed(odd, _MOST_LISTED, 'differences')}; shown here only", fix)]


def _odd(own: Own, task: Task) -> Iterator[str]:
    summary = task.summary
    assert summary is not None
    for name, expected in summary.columns.items():
        if name in own.columns and (facts := list(column_facts(own.columns[name], expected))):
            yield f"column '{name}' {'; '.join(facts)}"
    yield from label_facts(own.labels, summary.labels)
    if summary.pixels is not None and own.pixels is not None:
        yield from pixel_facts(*own.pixels, summary.pixels)
