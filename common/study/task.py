"""What is predicted, and from what: `[task]` of a study."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from consilium.common.study.features_task import FeaturesTask
from consilium.common.study.names import ClassName, ColumnName, without_duplicates
from consilium.common.study.parts import OwnKinds
from consilium.common.study.record import Record
from consilium.common.study.scale import ColumnScale, Scale, joined
from consilium.common.study.task_base import LabelTask, Regression, TaskBase

__all__ = [
    "CategoryColumn",
    "Column",
    "FeaturesTask",
    "ImageTask",
    "NumberColumn",
    "Regression",
    "TableTask",
    "Task",
]


class ImageTask(TaskBase):
    """Classify images: files in one sub-folder per class, or arrays in an `.npz` file, as each site has them."""

    data_kinds: ClassVar[tuple[str, ...]] = ("images", "arrays")
    kind: Literal["images"] = "images"
    classes: tuple[ClassName, ...] = Field(min_length=2)
    """Names of the classes; two give one logit."""
    size: int = Field(default=32, ge=4, le=1024)
    """Images are resized to `size` x `size` pixels."""
    channels: Literal[1, 3] = 3
    """1 (grey) or 3 (colour)."""
    pixel_max: float = Field(default=1.0, gt=0)
    """Pixel values are scaled to 0..`pixel_max`."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted after that; one value or one per channel."""
    std: tuple[float, ...] = (1.0,)
    """Divided by after that; one value or one per channel."""
    scale: Literal["federation", "site"] | None = None
    """Whose images the channels' scale is computed from, in place of `mean` and `std`; None: `mean` and `std` hold."""

    @model_validator(mode="after")
    def _check(self) -> "ImageTask":
        without_duplicates(self.classes, what="classes")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                known = "1 value" if self.channels == 1 else f"1 or {self.channels} values"
                raise ValueError(f"{name} must have {known}, got {len(values)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be greater than 0, got {min(self.std)}")
        if self.scale is not None and (self.mean, self.std) != ((0.0,), (1.0,)):
            raise ValueError(f"scale = '{self.scale}' takes mean and std from the images: remove 'mean' and 'std'")
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: `(C, H, W)`."""
        return (self.channels, self.size, self.size)

    @property
    def scaled_columns(self) -> tuple[str, ...]:
        """Names of the channels."""
        return ("grey",) if self.channels == 1 else ("red", "green", "blue")

    @property
    def scaled_values(self) -> str:
        """Which values of an example are scaled."""
        return "images' pixels, per channel"

    @property
    def agrees_on_scale(self) -> bool:
        """Whether the scale is settled in the handshake; without `scale` it is `mean` and `std`."""
        return self.scale == "federation"


class NumberColumn(Record):
    """A numeric feature, standardised as `task.scale` says."""

    kind: Literal["number"] = "number"


class CategoryColumn(Record):
    """A categorical feature, one-hot without its first value."""

    kind: Literal["category"] = "category"
    values: tuple[ClassName, ...] = Field(min_length=2)
    """The categories; one-hot without the first."""

    @field_validator("values")
    @classmethod
    def _check(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return without_duplicates(values)


Column = Annotated[NumberColumn | CategoryColumn, Field(discriminator="kind")]

TableScale = Annotated[
    Annotated[Literal["federation", "site"], Tag("word")] | Annotated[dict[str, ColumnScale], Tag("columns")],
    Discriminator(lambda value: "columns" if isinstance(value, dict) else "word"),
]
"""Whose numbers a table's columns are scaled by, or the numbers; tagged, so that an error names one number alone."""


def _known_scale(value: Any) -> Any:
    if value is not None and not isinstance(value, dict) and value not in ("federation", "site"):
        got = repr(value)[:50]
        raise ValueError(f"must be 'federation', 'site', or mean and std for every number column, got {got}")
    return value


class TableTask(LabelTask):
    """Learn from rows of a table: `.csv` files with a header, or `.parquet` files, in a site's data folder.

    The label is one of `classes`, or with `regression` a number. `scale` says how number columns are standardised: by
    the training rows of all sites, by a site's own, or by fixed numbers; None: by those of all sites if every site
    shares its sums, else by each site's own.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("table",)
    kind: Literal["table"] = "table"
    label: ColumnName
    """The column with the class or the number."""
    columns: dict[ColumnName, Column] = Field(min_length=1)
    """The feature columns by name; other columns of a file are ignored."""
    missing: Literal["refuse", "drop_row", "impute"] = "refuse"
    """Treatment of a row with a missing cell; `impute` fills it from the site's own training rows."""
    scale: Annotated[TableScale | None, BeforeValidator(_known_scale)] = None
    """How number columns are scaled: `federation`, `site`, or mean and std of every one. None: `federation` if every
    site allows it, else `site`.
    """

    @model_validator(mode="after")
    def _check(self) -> "TableTask":
        if self.label in self.columns:
            raise ValueError(f"label '{self.label}' is also a feature column")
        if isinstance(self.scale, dict) and (differing := sorted(self.scale.keys() ^ set(self.scaled_columns))):
            what = "a scale, but is no number column" if differing[0] in self.scale else "no scale, expected one"
            raise ValueError(f"column '{differing[0]}' has {what}: give mean and std of every number column")
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: a number is one feature, a category is one less than its values."""
        values = (len(column.values) if isinstance(column, CategoryColumn) else 2 for column in self.columns.values())
        return (sum(values) - len(self.columns),)

    @property
    def scaled_columns(self) -> tuple[str, ...]:
        """Names of the number columns."""
        return tuple(name for name, column in self.columns.items() if isinstance(column, NumberColumn))

    @property
    def scaled_values(self) -> str:
        """Which values of an example are scaled."""
        return f"{len(self.scaled_columns)} number columns"

    @property
    def agrees_on_scale(self) -> bool:
        """Whether the scale is settled in the handshake, from the sums that sites send."""
        return bool(self.scaled_columns) and self.scale in (None, "federation")

    @property
    def fixed_scale(self) -> Scale | None:
        """The scale that is known from the study alone, in the order of its number columns; None where it is not."""
        given = self.scale if isinstance(self.scale, dict) else {}
        if self.scale == "site" or not given.keys() >= set(self.scaled_columns):
            return None
        return joined([given[name] for name in self.scaled_columns])

    @property
    def label_name(self) -> str:
        """The label's column."""
        return f"'{self.label}'"


Task = Annotated[ImageTask | TableTask | FeaturesTask, Field(discriminator="kind"), OwnKinds("tasks", TaskBase)]
