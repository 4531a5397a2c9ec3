"""Which target a task's labels are."""

from consilium.client.data.labels_target import LabelsTarget
from consilium.client.data.mask_target import MaskTarget
from consilium.client.data.target import CLASSES, NumberTarget, Target, TimeTarget
from consilium.common.study.task_base import TaskBase


def target_of(task: TaskBase) -> Target:
    """Return what a task's labels are."""
    if task.label_kind == "masks":
        return MaskTarget(len(task.classes))
    if task.label_names:
        return LabelsTarget()
    if task.survival_times is not None:
        return TimeTarget()
    return CLASSES if task.number is None else NumberTarget(task.number.reach)
