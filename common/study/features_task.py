"""Arrays of any shape as a task of a study: `[task]` with `kind = "features"`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from consilium.common.study.labels_task import SeveralLabelsTask
from consilium.common.study.task_base import LabelTask

MAX_SCALED = 10_000
"""Most features that a scale covers: each has its name in results and messages."""


class FeaturesTask(LabelTask, SeveralLabelsTask):
    """Learn from arrays as they are: an `.npz` file with numbers `x` of any shape per example, and labels `y`.

    The label is one of `classes`, or with `regression` a number.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("features",)
    kind: Literal["features"] = "features"
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, max_length=6)
    """Shape of one example, without the number of examples."""
    scale: Literal["federation", "site"] | None = None
    """Whose training examples the features are standardised by, one by one, where an example is a row of them; None:
    they stay as they are.
    """

    @model_validator(mode="after")
    def _check(self) -> "FeaturesTask":
        if self.scale is not None and (len(self.shape) > 1 or self.shape[0] > MAX_SCALED):
            raise ValueError(
                f"scale = '{self.scale}' standardises the features of a row, at most {MAX_SCALED}, but shape is "
                f"{list(self.shape)}: scale the arrays yourself and leave 'scale' out"
            )
        return self

    @property
    def label_columns(self) -> dict[str, str]:
        """The arrays of a label that is a time, and what each is for, in words; others are the array `y`."""
        return {} if self.survival is None else self.survival.columns

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.shape

    @property
    def scaled_columns(self) -> tuple[str, ...]:
        """Names of the features that a scale covers: their numbers, from 0."""
        return () if self.scale is None else tuple(f"feature {number}" for number in range(self.shape[0]))

    @property
    def scaled_values(self) -> str:
        """Which values of an example are scaled."""
        return f"{len(self.scaled_columns)} features"

    @property
    def agrees_on_scale(self) -> bool:
        """Whether the scale is settled in the handshake."""
        return self.scale == "federation"
