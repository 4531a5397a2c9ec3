"""The rule on `[task.summary]`: what it speaks of is there in the task."""

from consilium.common.errors import listed
from consilium.common.study.reading_rules import Settings
from consilium.common.study.summary import Summary
from consilium.common.study.task import PictureTask, SeriesTask, TableTask, Task
from consilium.common.study.task_base import LabelTask

_ROUNDING = 0.02
"""Shares that add up to 1 do so but for their rounding."""


def numbers_of(task: Task) -> tuple[str, ...]:
    """Return the names of columns, channels and labels that are numbers."""
    columns = task.scaled_columns if isinstance(task, TableTask) else ()
    channels = task.channels if isinstance(task, SeriesTask) else ()
    return (*columns, *channels, *number_labels(task))


def number_labels(task: Task) -> tuple[str, ...]:
    """Return the name of the column of a label that is a number, or a time."""
    if task.survival_times is not None:
        return (task.survival_times.time,)
    label = getattr(task, "label", "")
    ahead = isinstance(task, SeriesTask) and task.next_step is not None
    return (label,) if isinstance(task, LabelTask) and task.number is not None and label and not ahead else ()


def summary_is_of_this_task(study: Settings) -> str | None:
    """A summary speaks of columns, classes and pixels that the task has."""
    task, summary = study.task, study.task.summary
    if summary is None:
        return None
    if summary.pixels is not None and not isinstance(task, PictureTask):
        return f"task.summary.pixels: is for pictures, but task.kind is '{task.kind}': leave it out"
    return _columns(task, summary) or _labels(task, summary)


def _columns(task: Task, summary: Summary) -> str | None:
    numbers = numbers_of(task)
    others = tuple(task.columns) if isinstance(task, TableTask) else ()
    if unknown := [f"'{name}'" for name in summary.columns if name not in (*numbers, *others)]:
        known = listed([f"'{name}'" for name in dict.fromkeys((*numbers, *others))], 10) or "none"
        return f"task.summary.columns: the task has no column {listed(unknown, 5)} to summarise, it has {known}"
    for name, column in summary.columns.items():
        if column.of_numbers and name not in numbers:
            return f"task.summary.columns.{name}: low, high, mean and std are of numbers: a category has 'missing'"
        if column.missing is not None and name not in others:
            return f"task.summary.columns.{name}.missing: only a feature of a table may be missing: leave it out"
    return None


def _labels(task: Task, summary: Summary) -> str | None:
    known = task.label_names or (task.classes if task.label_kind == "classes" else ())
    if unknown := [f"'{name}'" for name in summary.labels if name not in known]:
        have = listed([f"'{name}'" for name in known], 10) or f"none, its label is {task.one_label}"
        return f"task.summary.labels: the task has no class {listed(unknown, 5)}, it has {have}"
    total = sum(summary.labels.values())
    whole = bool(summary.labels) and set(summary.labels) == set(known)
    if not task.label_names and (total > 1 + _ROUNDING or (whole and total < 1 - _ROUNDING)):
        expected = "1" if whole else "at most 1"
        return f"task.summary.labels: the parts of the classes add up to {total:.4g}, expected {expected}"
    return None
