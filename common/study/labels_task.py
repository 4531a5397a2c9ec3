"""Several labels of one example, each there or not: a task's setting `labels`."""

from typing import Any, Self

from pydantic import Field, model_validator

from consilium.common.study.names import ColumnName, without_duplicates
from consilium.common.study.task_base import TaskBase

MOST_LABELS = 1_000
"""Most labels of one example."""


class SeveralLabelsTask(TaskBase):
    """A task whose examples may have several labels, each there, not there or not known."""

    labels: tuple[ColumnName, ...] = Field(default=(), max_length=MOST_LABELS, exclude_if=lambda labels: not labels)
    """In place of `classes`: names of at least two findings, of which an example may have several or none. Each is 1
    or 0, true or false, yes or no, and left empty where it is not known: sites may label different findings.
    """

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        without_duplicates(self.labels, what="labels")
        if len(self.labels) == 1:
            raise ValueError(f"labels has one name, '{self.labels[0]}', expected at least two: one label is 'classes'")
        if "" in self.labels:
            raise ValueError("labels: a name is empty")
        return self

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels; none where an example has one label."""
        return self.labels

    @property
    def score(self) -> str:
        """Name of the score: of correct answers, or of the order in which each label's examples are put."""
        return "mean AUROC" if self.labels else super().score

    @property
    def constant(self) -> str:
        """Name of the constant answer."""
        return "each label's share" if self.labels else super().constant

    @property
    def columns_of_labels(self) -> dict[str, str]:
        """The columns of the labels, and what each is for, in words."""
        return dict.fromkeys(self.labels, " (task.labels)")


def labelled_by_first(values: Any) -> Any:
    """Return a task's settings whose `label` is the first of its `labels`, where they name these alone."""
    labels = values.get("labels") if isinstance(values, dict) else None
    return {"label": labels[0]} | values if isinstance(labels, list | tuple) and labels else values


def check_no_label(label: str, labels: tuple[str, ...]) -> None:
    """Refuse one label besides several.

    Raises:
        ValueError: there is one.
    """
    if labels and label != labels[0]:
        raise ValueError(f"label '{label}': labels says where the labels are, leave 'label' out")
