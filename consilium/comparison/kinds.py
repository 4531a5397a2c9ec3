"""Which class of `Scores` measures the answers to a kind of label."""

from collections.abc import Mapping

from consilium.common.study.task import Task
from consilium.common.study.task_base import LabelKind
from consilium.comparison.evaluation import ClassScores, Scores
from consilium.comparison.label_scores import LabelScores
from consilium.comparison.mask_scores import MaskScores
from consilium.comparison.number_scores import NumberScores
from consilium.comparison.time_scores import TimeScores, metrics_at

_KINDS: Mapping[LabelKind, type[Scores]] = {
    "classes": ClassScores,
    "numbers": NumberScores,
    "times until an event": TimeScores,
    "several labels": LabelScores,
    "masks": MaskScores,
}


def kind_of(task: Task) -> type[Scores]:
    """Return what a task's answers are."""
    return _KINDS[task.label_kind]


def metrics_of(task: Task) -> tuple[str, ...]:
    """Return what is measured of a task's answers, the metric that sentences are about first."""
    survival = task.survival_times
    return kind_of(task).METRICS if survival is None else metrics_at(survival.horizon)
