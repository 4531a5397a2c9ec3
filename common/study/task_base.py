"""What every task of a study has, and how a label that is a number is answered."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from consilium.common.study.names import ClassName, PlainName, without_duplicates
from consilium.common.study.record import Record
from consilium.common.study.scale import Scale

_ROUNDING = 1e-5
"""Rounding error of a label in float32, in the model's units, with a margin; negligible next to a tolerance."""


class TaskBase(Record):
    """Base of every task."""

    data_kinds: ClassVar[tuple[str, ...]]
    """Kinds of data in a site's settings that fit the task."""
    classes: tuple[ClassName, ...]
    test: PlainName | None = None
    """A file or folder in every site's data folder with one test set common to all; `split.test` is then not drawn."""

    @property
    def num_outputs(self) -> int:
        """How many numbers a model answers per example: one for two classes or a number, else one per class."""
        return 1 if len(self.classes) <= 2 else len(self.classes)

    @property
    def score(self) -> str:
        """Name of the share of correct answers."""
        return "accuracy"

    @property
    def constant(self) -> str:
        """Name of the constant answer, from a site's own training labels, that every model must beat."""
        return "most frequent class"

    @property
    def number(self) -> "Regression | None":
        """How a label that is a number is answered; None where it is a class."""
        return None

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


class LabelTask(TaskBase):
    """A task whose label is one of `classes`, or with `regression` a number."""

    classes: tuple[ClassName, ...] = ()
    """Names of the classes; two give one logit. Leave it out where the label is a number."""
    regression: Regression | None = None
    """The label is a number, in place of `classes`."""

    @model_validator(mode="after")
    def _check_label(self) -> Self:
        without_duplicates(self.classes, what="classes")
        if (self.regression is None) == (not self.classes) or len(self.classes) == 1:
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
        """How a label that is a number is answered; None where it is a class."""
        return self.regression
