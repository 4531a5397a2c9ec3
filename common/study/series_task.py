"""Series of numbers over time as a task of a study: `[task]` with `kind = "series"`."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from consilium.common.study.names import ColumnName, without_duplicates
from consilium.common.study.task_base import LabelTask, labelled_by_time

MAX_STEPS = 10_000
"""Most steps of one example."""


class SeriesTask(LabelTask):
    """Learn from series of numbers over time: the label of each, or with `next_step` a later value of a channel.

    Series are an `.npz` file with `x` of shape (N, T, C), or (N, T) of one channel, or tables in long form: a row for
    each series and time. The label is one of `classes`, with `regression` a number, or with `survival` the time
    until an event, in two columns or arrays.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("series",)
    kind: Literal["series"] = "series"
    channels: tuple[ColumnName, ...] = Field(min_length=1, max_length=1000)
    """Names of the channels, in the order of the last axis of `x`; in a table, the columns with their values."""
    length: int = Field(ge=1, le=MAX_STEPS)
    """Steps that the model sees of a series."""
    short: Literal["refuse", "pad"] = "refuse"
    """What becomes of a series of fewer steps: `pad` puts zeros before its first step, after scaling."""
    long: Literal["refuse", "first", "last"] = "refuse"
    """Which steps of a series of more are taken; with `next_step` it is cut into windows instead."""
    series: ColumnName = "series"
    """In a table, the column that says which series a row is of."""
    time: ColumnName = "time"
    """In a table, the column with the time, by which a series is ordered: numbers, or dates such as 2024-05-31T12:00.
    """
    label: ColumnName = "label"
    """In a table, the column with the class or the number; it is the same in all rows of a series, or empty."""
    interval: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """In a table, the time from one step to the next (of dates in seconds): a series with a missing step is then
    refused. None: steps follow one another as they come.
    """
    next_step: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Learn the value this many steps after the last one that the model sees, in place of a label."""
    next_channel: ColumnName | None = None
    """With `next_step`: the channel whose value it is; None: the first one."""
    step: int | None = Field(default=None, ge=1)
    """With `next_step`: steps from one window of a series to the next; None: `length` + `next_step`, so that no two
    windows share a step.
    """
    scale: Literal["federation", "site"] | None = None
    """Whose training series the channels are standardised by; None: they stay as they are."""

    @model_validator(mode="before")
    @classmethod
    def _labelled_by_time(cls, values: Any) -> Any:
        return labelled_by_time(values)

    @model_validator(mode="after")
    def _check(self) -> "SeriesTask":
        if self.survival is not None and self.label != self.survival.time:
            raise ValueError(f"label '{self.label}': survival says where the label is, leave 'label' out")
        columns = (*self.channels, self.series, self.time, *(() if self.next_step else self.label_columns))
        without_duplicates(columns, what="channels, series, time and label")
        if self.next_step is None:
            given = [name for name in ("next_channel", "step") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]} is for 'next_step', where series are cut into windows: leave it out")
            return self
        if self.regression is None:
            raise ValueError("next_step learns a value, which is a number: give 'regression' in place of 'classes'")
        if self.next_channel is not None and self.next_channel not in self.channels:
            raise ValueError(f"next_channel '{self.next_channel}' is none of the channels")
        if self.short == "pad" or self.long != "refuse":
            raise ValueError("next_step cuts series into windows of 'length' steps: leave 'short' and 'long' out")
        return self

    @property
    def label_columns(self) -> dict[str, str]:
        """The columns of the label, and what each is for, in words."""
        return {self.label: " (task.label)"} if self.survival is None else self.survival.columns

    @property
    def target_channel(self) -> int:
        """The number of the channel that `next_step` learns, from 0."""
        return 0 if self.next_channel is None else self.channels.index(self.next_channel)

    @property
    def label_name(self) -> str:
        """What the label is called in the name of the score."""
        if self.next_step is not None:
            return f"'{self.channels[self.target_channel]}' {self.next_step} steps on"
        return super().label_name

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: `(length, C)`."""
        return (self.length, len(self.channels))

    @property
    def scaled_columns(self) -> tuple[str, ...]:
        """Names of the channels that a scale covers."""
        return () if self.scale is None else self.channels

    @property
    def scaled_values(self) -> str:
        """Which values of an example are scaled."""
        return f"{len(self.scaled_columns)} channels"

    @property
    def agrees_on_scale(self) -> bool:
        """Whether the scale is settled in the handshake."""
        return self.scale == "federation"
