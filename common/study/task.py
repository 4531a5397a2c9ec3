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

from consilium.common.data.words import same_value
from consilium.common.study.features_task import FeaturesTask
from consilium.common.study.image_task import ImageTask, PictureTask
from consilium.common.study.labels_task import SeveralLabelsTask, check_no_label, labelled_by_first
from consilium.common.study.missing import MissingValues, codes_for, joined_codes, without_column
from consilium.common.study.names import ClassName, ColumnName, PlainName, without_duplicates
from consilium.common.study.parts import OwnKinds
from consilium.common.study.record import Record
from consilium.common.study.scale import ColumnScale, Scale, joined
from consilium.common.study.segmentation_task import SegmentationTask
from consilium.common.study.series_task import SeriesTask
from consilium.common.study.task_base import LabelTask, Regression, Survival, TaskBase, labelled_by_time
from consilium.common.study.text_task import TextTask

__all__ = [
    "CategoryColumn",
    "Column",
    "FeaturesTask",
    "ImageTask",
    "NumberColumn",
    "PictureTask",
    "Regression",
    "SegmentationTask",
    "SeriesTask",
    "Survival",
    "TableTask",
    "Task",
    "TextTask",
]


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


def _no_pattern(value: Any) -> Any:
    keys = value if isinstance(value, dict) else ()
    names = [value] if isinstance(value, str) else [name for name in keys if "*" in str(name)]
    if names:
        raise ValueError(
            f"'{names[0]}' stands for several columns, whose names are known only where the study is read from a file "
            "with a table next to it: name the columns"
        )
    return value


Column = Annotated[NumberColumn | CategoryColumn, Field(discriminator="kind")]

Columns = Annotated[
    dict[ColumnName, Column],
    BeforeValidator(_no_pattern, json_schema_input_type=dict[ColumnName, Column] | Literal["all others"]),
]

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


class TableTask(LabelTask, SeveralLabelsTask):
    """Learn from rows of a table: `.csv` files with a header, or `.parquet` files, in a site's data folder.

    The label is one of `classes`, or with `regression` a number, or with `survival` the time until an event, in two
    columns; or there are several `labels`, each in a column of its name. `scale` says how number columns are
    standardised: by the training rows of all sites, by a site's own, or by fixed numbers; None: by those of all sites
    if every site shares its sums, else by each site's own.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("table",)
    kind: Literal["table"] = "table"
    label: ColumnName = Field(default="", validate_default=True)
    """The column with the class or the number; needed, but for `survival` and `labels`, which name their columns."""
    columns: Columns = Field(min_length=1)
    """The feature columns by name; other columns of a file are ignored. A name with a `*` stands for every column that
    fits, and `columns = "all others"` for every other column as a number; both become the names of the columns of a
    table where the study is read from its file.
    """
    columns_from: PlainName | None = Field(default=None, exclude_if=lambda name: name is None)
    """Only with such patterns: a table next to the study whose header has the names, its header line is enough; none:
    the first site's data next to the study.
    """
    columns_without: tuple[ColumnName, ...] = Field(default=(), exclude_if=lambda names: not names)
    """Only with such patterns: columns, or patterns of columns, that no pattern takes; the label, what `split` names
    and columns whose names say that they identify patients are never taken.
    """
    missing: Literal["refuse", "drop_row", "impute"] = "refuse"
    """Treatment of a row with a missing cell; `impute` fills it from the site's own training rows."""
    missing_values: MissingValues = Field(default_factory=dict, exclude_if=lambda codes: not codes)
    """Codes that mean a missing value, by column or by a pattern of columns: `{ age = [-9, 999], "lab_*" = [-1] }`; the
    usual words (an empty cell, `NA`, `N/A`, `NULL`, `?`, ...) need not be listed.
    """
    scale: Annotated[TableScale | None, BeforeValidator(_known_scale)] = None
    """How number columns are scaled: `federation`, `site`, or mean and std of every one. None: `federation` if every
    site allows it, else `site`.
    """

    @model_validator(mode="before")
    @classmethod
    def _labelled_by_time(cls, values: Any) -> Any:
        return labelled_by_time(labelled_by_first(values))

    @model_validator(mode="after")
    def _check(self) -> "TableTask":
        if not self.label:
            raise ValueError("label: name the column with the class or the number")
        if self.survival is not None and self.label != self.survival.time:
            raise ValueError(f"label '{self.label}': survival says where the label is, leave 'label' out")
        check_no_label(self.label, self.labels)
        if shared := [name for name in self.label_columns if name in self.columns]:
            raise ValueError(f"label '{shared[0]}' is also a feature column")
        if isinstance(self.scale, dict) and (differing := sorted(self.scale.keys() ^ set(self.scaled_columns))):
            what = "a scale, but is no number column" if differing[0] in self.scale else "no scale, expected one"
            raise ValueError(f"column '{differing[0]}' has {what}: give mean and std of every number column")
        if self.columns_from is not None or self.columns_without:
            raise ValueError("columns_from and columns_without go with a pattern in columns: remove them")
        if unknown := without_column(self.missing_values, (*self.columns, *self.label_columns)):
            raise ValueError(f"missing_values: '{unknown[0]}' is no column of the task, and fits none as a pattern")
        known = {name: of.values for name, of in self.columns.items() if isinstance(of, CategoryColumn)}
        for name, values in (known | {self.label: self.classes}).items():
            codes = codes_for(self.missing_values, name)
            if both := [code for code in codes for value in values if same_value(code, value)]:
                raise ValueError(f"column '{name}': '{both[0]}' is among its values and among missing_values")
        return self

    def codes_of(self, column: str) -> tuple[str, ...]:
        """Return the codes that mean a missing value in a column."""
        return codes_for(self.missing_values, column)

    def with_missing_values(self, more: MissingValues) -> "TableTask":
        """Return the task with a site's own codes too.

        Raises:
            ValueError: they fit no column, or a code is a value of its column.
        """
        if not more:
            return self
        codes = joined_codes(self.missing_values, more)
        return TableTask.model_validate(self.model_dump() | {"missing_values": codes})

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
    def label_columns(self) -> dict[str, str]:
        """The columns of the label, and what each is for, in words."""
        if self.labels:
            return self.columns_of_labels
        if self.survival is None:
            return {self.label: " (task.label)"}
        return self.survival.columns

    @property
    def label_name(self) -> str:
        """The label's column."""
        return f"'{self.label}'"


def equal_but_for_codes(one: TaskBase, other: TaskBase) -> bool:
    """Return whether two tasks are the same but for codes of missing values, to which a site may add its own."""
    if not (isinstance(one, TableTask) and isinstance(other, TableTask)):
        return one == other
    return one.model_copy(update={"missing_values": {}}) == other.model_copy(update={"missing_values": {}})


Task = Annotated[
    ImageTask | TableTask | FeaturesTask | SeriesTask | TextTask | SegmentationTask,
    Field(discriminator="kind"),
    OwnKinds("tasks", TaskBase),
]
