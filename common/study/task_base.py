"""What every task of a study has, and how a label that is a number is answered."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from consilium.common.study.names import ClassName, ColumnName, PlainName, without_duplicates
from consilium.common.study.record import Record
from consilium.common.study.scale import Scale
from consilium.common.study.summary import Summary

Numbers = TypeVar("Numbers", bound=Any)
"""A number, an array or a tensor: `common` knows no torch."""
_ROUNDING = 1e-5
"""Rounding error of a label in float32, in the model's units, with a margin; negligible next to a tolerance."""


LabelKind = Literal["classes", "numbers", "times until an event", "several labels", "masks"]
_ONE: Mapping[LabelKind, str] = {
    "classes": "a class",
    "numbers": "a number",
    "times until an event": "a time until an event",
    "several labels": "several labels at once",
    "masks": "a mask",
}


class TaskBase(Record):
    """Base of every task."""

    data_kinds: ClassVar[tuple[str, ...]]
    """Kinds of data in a site's settings that fit the task."""
    classes: tuple[ClassName, ...]
    test: PlainName | None = None
    """A file or folder in every site's data folder with one test set common to all; `split.test` is then not drawn."""
    summary: Summary | None = Field(default=None, exclude_if=lambda summary: summary is None)
    """What is expected of every site's data, roughly; `site check` warns where a site's are far from it. It changes no
    training.
    """

    @property
    def num_outputs(self) -> int:
        """How many numbers a model answers per example: 1 for two classes or a number, else one per class or label."""
        if self.label_names:
            return len(self.label_names)
        return 1 if len(self.classes) <= 2 else len(self.classes)

    @property
    def score(self) -> str:
        """Name of the share of correct answers."""
        return "accuracy"

    @property
    def label_kind(self) -> LabelKind:
        """What the labels are."""
        if self.survival_times is not None:
            return "times until an event"
        if self.label_names:
            return "several labels"
        return "classes" if self.number is None else "numbers"

    @property
    def counted(self) -> bool:
        """Whether an answer is right or wrong by itself, so that the score is a share of right answers."""
        return self.label_kind in ("classes", "numbers")

    @property
    def one_label(self) -> str:
        """What one label is, in words."""
        return _ONE[self.label_kind]

    @property
    def constant(self) -> str:
        """Name of the constant answer, from a site's own training labels, that every model must beat."""
        return "most frequent class"

    @property
    def number(self) -> "Regression | None":
        """How a label that is a number is answered; None where it is a class."""
        return None

    @property
    def survival_times(self) -> "Survival | None":
        """Where a label that is a time until an event is found; None where it is none."""
        return None

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels where an example may have several; none where it has one."""
        return ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example, as a model gets it."""
        raise NotImplementedError

    @property
    def scaled_columns(self) -> tuple[str, ...]:
        """Names of the number columns, or of the channels of images, that one scale for all sites covers."""
        raise NotImplementedError

    @property
    def scaled_values(self) -> str:
        """Which values of an example are scaled, in words for the site's staff."""
        raise NotImplementedError

    @property
    def agrees_on_scale(self) -> bool:
        """Whether the scale is settled in the handshake, from the sums that sites send."""
        raise NotImplementedError

    @property
    def fixed_scale(self) -> Scale | None:
        """The scale that the study itself gives for its columns; None where it gives none."""
        return None


class Regression(Record):
    """The label is a number. The model answers `(label - center) / scale`; the loss is its squared error.

    Center and scale are the same at every site, or the sites' models would answer in different units. An answer that
    is off by `tolerance` or less, in the label's units, counts as right: accuracy is the share of such answers.
    """

    center: float = Field(default=0.0, allow_inf_nan=False)
    """The model answers (label - `center`) / `scale`."""
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """About the label's standard deviation; the same at every site."""
    tolerance: float = Field(gt=0, allow_inf_nan=False)
    """An answer that is off by this or less, in the label's units, counts as correct."""

    @property
    def reach(self) -> float:
        """How far an answer may be off in the model's units: the tolerance and the rounding of float32."""
        return self.tolerance / self.scale + _ROUNDING

    def to_model(self, labels: Numbers) -> Numbers:
        """Return labels, a number or an array of any shape, in the model's units: less center, over scale."""
        found: Numbers = (labels - self.center) / self.scale
        return found

    def to_label(self, answers: Numbers) -> Numbers:
        """Return answers of a model, a number or an array of any shape, in the label's units."""
        found: Numbers = answers * self.scale + self.center
        return found


class Survival(Record):
    """The label is the time until an event, which of some patients is known only to be later than another time.

    The model answers the log of a patient's risk, relative to others of the site; the loss is Cox's partial likelihood.
    """

    time: ColumnName
    """The column, or the array, with the time until the event, or until the patient was last seen; at least 0, in any
    one unit.
    """
    event: ColumnName
    """The column, or the array, that says whether the event was seen at that time: 1 or true, and 0 or false where it
    was not.
    """
    horizon: float | None = Field(default=None, gt=0, allow_inf_nan=False, exclude_if=lambda horizon: horizon is None)
    """A time in the unit of `time`, such as 365 days, at which sites also tell the Brier score of each model; None: no
    Brier score.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.time == self.event:
            raise ValueError(f"time and event are both column '{self.time}', expected two")
        return self

    @property
    def columns(self) -> dict[str, str]:
        """The columns, the time first, and what each is for, in words."""
        return {self.time: " (task.survival.time)", self.event: " (task.survival.event)"}


LOG_RISK = Regression(tolerance=1.0)
"""How a log risk is answered: as it is. It has no unit, and no true value, so that its tolerance is never asked."""


class TimedTask(TaskBase):
    """A task whose label may be the time until an event."""

    survival: Survival | None = Field(default=None, exclude_if=lambda survival: survival is None)
    """The label is the time until an event, in place of `classes`: `{ time = "days", event = "died" }`."""

    @property
    def survival_times(self) -> Survival | None:
        """Where a label that is a time until an event is found; None where it is none."""
        return self.survival

    @property
    def score(self) -> str:
        """Name of the score: of correct answers, or of the order of risks."""
        return super().score if self.survival is None else "concordance index"

    @property
    def constant(self) -> str:
        """Name of the constant answer."""
        return super().constant if self.survival is None else "same risk for all"

    @property
    def number(self) -> Regression | None:
        """How an answer that is a number is told: of survival the log of a risk; None where it is a class."""
        return super().number if self.survival is None else LOG_RISK


class LabelTask(TimedTask):
    """A task whose label is one of `classes`, with `regression` a number, or with `survival` a time until an event."""

    classes: tuple[ClassName, ...] = ()
    """Names of the classes; two give one logit. Leave it out where the label is a number."""
    regression: Regression | None = None
    """The label is a number, in place of `classes`."""

    @model_validator(mode="after")
    def _check_label(self) -> Self:
        without_duplicates(self.classes, what="classes")
        if self.survival is not None:
            if self.label_names:
                raise ValueError("survival and labels both say what the label is: leave one of the two out")
            if self.classes or self.regression is not None:
                raise ValueError(
                    "survival says what the label is: leave 'classes' and 'regression' out (a number that is censored "
                    "in some rows cannot be learned as one)"
                )
        elif self.label_names:
            if self.classes or self.regression is not None:
                raise ValueError("labels says what is learned: leave 'classes' and 'regression' out")
        elif (self.regression is None) == (not self.classes) or len(self.classes) == 1:
            raise ValueError("give either 'classes', at least two, or 'regression' for a label that is a number")
        return self

    @property
    def label_name(self) -> str:
        """What the label is called in the name of the score."""
        return "number"

    @property
    def score(self) -> str:
        """Name of the share of correct answers."""
        if self.regression is None:
            return super().score
        return f"share within {self.regression.tolerance:g} of the true {self.label_name}"

    @property
    def constant(self) -> str:
        """Name of the constant answer."""
        return super().constant if self.regression is None else "training mean"

    @property
    def number(self) -> Regression | None:
        """How an answer that is a number is told; None where it is a class."""
        return super().number if self.regression is None else self.regression


def labelled_by_time(values: Any) -> Any:
    """Return a task's settings whose `label` is the column of `survival.time`, where they name that alone."""
    survival = values.get("survival") if isinstance(values, dict) else None
    time = survival.get("time") if isinstance(survival, dict) else getattr(survival, "time", None)
    return values if time is None else {"label": time} | values
