"""What a site's labels are like, in words for its own staff."""

import numpy as np
import numpy.typing as npt

from consilium.client.data import RawData
from consilium.common.errors import listed
from consilium.common.study.task import SeriesTask, TableTask, Task, TextTask
from consilium.common.survival.times import Times

MOST_LINES = 40
"""So many of several labels are written out."""


def label_lines(raw: RawData, task: Task) -> list[str]:
    """Return shares of classes, the range of numbers, or of times and how many events were seen; a line per label."""
    y = raw.y[: raw.num_own].numpy()
    if task.label_names:
        return [_several(name, column) for name, column in zip(task.label_names, y.T, strict=True)][:MOST_LINES]
    if task.label_kind == "masks":
        return [_masks(y, task)]
    name = f"label {task.label}" if isinstance(task, TableTask | TextTask | SeriesTask) else "labels"
    if task.survival_times is not None:
        of = Times.of_labels(y)
        seen = f"event '{task.survival_times.event}' seen in {of.events.mean():.1%}"
        return [f"label {task.survival_times.time}: {_range(of.times)}; {seen}"]
    if task.number is not None:
        return [f"{name}: {_range(task.number.to_label(y.astype(np.float64)))}"]
    counts = np.bincount(y, minlength=len(task.classes)).tolist()
    shares = [f"{name} {count / max(len(y), 1):.1%}" for name, count in zip(task.classes, counts, strict=True)]
    return [f"{name}: {listed(shares, 12, 'classes')}"]


def _several(name: str, column: npt.NDArray[np.float32]) -> str:
    there, known = int((column == 1).sum()), int((~np.isnan(column)).sum())
    share = f": {there} of {known} have it ({there / known:.1%})" if known else ""
    return f"label {name}: known of {known} of {len(column)} rows{share}"


def _masks(y: npt.NDArray[np.uint8], task: Task) -> str:
    """Return each class's part of all pixels of the masks `(N, H, W)`, and in how many pictures it is."""
    parts = []
    for place, name in enumerate(task.classes):
        there = y == place
        parts.append(f"{name} {there.mean():.1%} of the pixels, in {int(there.any(axis=(1, 2)).sum())} of {len(y)}")
    return f"masks: {listed(parts, 12, 'classes')}"


def odd_times(raw: RawData, task: Task) -> str:
    """Return what is wrong with labels that are times: no event among them; "" where nothing is."""
    if (survival := task.survival_times) is None:
        return ""
    events = Times.of_labels(raw.y[: raw.num_own].numpy()).events
    if not events.any():
        return f"the event '{survival.event}' was seen in no row: nothing can be learned, or measured, of these"
    return ""


def _range(values: npt.NDArray[np.float64]) -> str:
    low, middle, high = float(values.min()), float(np.median(values)), float(values.max())
    return f"{low:.4g} to {high:.4g}, median {middle:.4g}"
