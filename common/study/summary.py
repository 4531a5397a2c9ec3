"""What a coordinator expects of every site's data, roughly: `[task.summary]`, which changes no training."""

from typing import Annotated

from pydantic import Field, model_validator

from consilium.common.study.names import ClassName, ColumnName
from consilium.common.study.record import Record
from consilium.common.study.scale import Finite, Positive

MOST_COLUMNS = 10_000
"""Most columns, or classes, of a summary."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ColumnSummary(Record):
    """What a column usually holds, in its own units: any of these."""

    low: Finite | None = None
    """Nearly all values are at least this."""
    high: Finite | None = None
    """Nearly all values are at most this."""
    mean: Finite | None = None
    """The mean; it comes with `std`."""
    std: Positive | None = None
    """The standard deviation."""
    missing: Share | None = None
    """Part of the rows without a value, 0 to 1."""

    @model_validator(mode="after")
    def _check(self) -> "ColumnSummary":
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both, or none")
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high go together: give both, or none")
        if self.low is not None and self.high is not None:
            if self.low >= self.high:
                raise ValueError(f"low must be less than high, got {self.low:g} and {self.high:g}")
            if self.mean is not None and not self.low <= self.mean <= self.high:
                raise ValueError(f"mean {self.mean:g} is not between low {self.low:g} and high {self.high:g}")
        if not self.of_numbers and self.missing is None:
            raise ValueError("says nothing: give low and high, mean and std, or missing")
        return self

    @property
    def of_numbers(self) -> bool:
        """Whether it says something of numbers."""
        return self.low is not None or self.mean is not None


class PixelSummary(Record):
    """Levels of all pixels of all pictures, black 0 and white 1."""

    mean: Share
    """Their mean."""
    std: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    """Their standard deviation."""


class Summary(Record):
    """What is expected of every site's data, roughly, so that a site sees where its own are in other units."""

    columns: dict[ColumnName, ColumnSummary] = Field(default_factory=dict, max_length=MOST_COLUMNS)
    """By column of a table, or channel of a series; a label that is a number, or a time, by the name of its column."""
    labels: dict[ClassName, Share] = Field(default_factory=dict, max_length=MOST_COLUMNS)
    """Part of the examples of each class, or of those with each of several labels, 0 to 1."""
    pixels: PixelSummary | None = None
    """Of pictures: the levels of their pixels."""

    @model_validator(mode="after")
    def _check(self) -> "Summary":
        if not (self.columns or self.labels or self.pixels):
            raise ValueError("says nothing: give columns, labels or pixels, or leave it out")
        return self
