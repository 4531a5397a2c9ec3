"""One scale of a study's inputs for all sites, computed from sums that reveal no single row.

With n, s and q the number, the sum and the sum of squares of a column's known values in a site's training rows, over
the sites k::

    mean = sum_k s_k / sum_k n_k        std = sqrt(sum_k q_k / sum_k n_k - mean^2)

which are the mean and the population standard deviation over all these rows, however the rows are divided over sites,
since sums add up. An image counts as one row per channel, with the mean of its pixels and of their
squares.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import Annotated

from pydantic import Field, model_validator

from consilium.common.study.record import Record

MAX_COLUMNS = 100_000
"""Most columns or channels of a scale."""
LEAST_ROWS = 10
"""A site sends no sums of a column with fewer known values among its training rows."""
MOST_ALONE = 2
"""A site sends no sums of a column in which all values but this many or fewer are equal."""
LARGEST_VALUE = 3.5e38
"""No value of a column is larger: float32 holds none."""
_ROUNDING = 1e-9
"""Rounding error of sums of many rows, relative to their size."""
_CONSTANT = 1e-14
"""A variance below this part of the squared mean is rounding error: the column counts as constant."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ColumnScale(Record):
    """The mean and standard deviation by which a column is standardised, in its own units."""

    mean: Finite
    """Subtracted from the column, in its own units."""
    std: Positive
    """The divisor after that."""


class Scale(Record):
    """A mean and a standard deviation for each number column, in the order of the task's, or for each channel."""

    mean: tuple[Finite, ...] = Field(max_length=MAX_COLUMNS)
    std: tuple[Positive, ...] = Field(max_length=MAX_COLUMNS)

    @model_validator(mode="after")
    def _check(self) -> "Scale":
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means came with {len(self.std)} standard deviations, expected as many")
        return self


class Moments(Record):
    """How many values of each column a site's training rows hold, their sum, and the sum of their squares."""

    counts: tuple[Annotated[int, Field(ge=0, le=2**53)], ...] = Field(max_length=MAX_COLUMNS)
    sums: tuple[Finite, ...] = Field(max_length=MAX_COLUMNS)
    squares: tuple[Annotated[Finite, Field(ge=0)], ...] = Field(max_length=MAX_COLUMNS)

    @model_validator(mode="after")
    def _check(self) -> "Moments":
        lengths = {len(self.counts), len(self.sums), len(self.squares)}
        if len(lengths) != 1:
            raise ValueError(f"counts, sums and squares must be of as many columns, got {sorted(lengths)}")
        for place, (count, total, squares) in enumerate(zip(self.counts, self.sums, self.squares, strict=True)):
            if not (abs(total) <= count * LARGEST_VALUE and squares <= count * LARGEST_VALUE**2):
                raise ValueError(f"column {place}: the sums are larger than {count} values can give")
            if squares * count < total * total * (1 - _ROUNDING):
                raise ValueError(f"column {place}: the sum of squares is too small for the sum of {count} values")
        return self


def combine(moments: Sequence[Moments]) -> list[ColumnScale | None]:
    """Return each column's scale over all sites, whatever their order; None for a column without a value at any site.

    A column whose values are all equal has a standard deviation of 1.

    Args:
        moments: of at least one site, all of as many columns.
    """
    columns = zip(*(zip(one.counts, one.sums, one.squares, strict=True) for one in moments), strict=True)
    return [_scale_of(column) for column in columns]


def _scale_of(told: Sequence[tuple[int, float, float]]) -> ColumnScale | None:
    counts, sums, squares = zip(*told, strict=True)
    if (count := sum(counts)) == 0:
        return None
    mean, variance = _mean_and_variance(count, math.fsum(sums), math.fsum(squares))
    return ColumnScale(mean=mean, std=math.sqrt(variance) or 1.0)


def _mean_and_variance(count: int, total: float, squares: float) -> tuple[float, float]:
    mean = total / count
    variance = squares / count - mean * mean
    return mean, variance if variance > _CONSTANT * mean * mean else 0.0


def distances(told: Sequence[tuple[int, float, float]]) -> list[float]:
    """Return how far each site's values of a column lie from the usual ones, in units of the usual distance.

    The centre is the median of the sites' means, and a site's distance from it is the root mean square over its values.
    The unit is the median of these distances: a minority of sites can move neither out of the others' range. With two
    sites, each is measured from the other's mean, by the other's standard deviation. 0 where the unit is 0.

    Args:
        told: per site, count (at least 1), sum and sum of squares.
    """
    columns = [_mean_and_variance(*one) for one in told]
    centres = [mean for mean, _ in columns[::-1]]
    units = [math.sqrt(variance) for _, variance in columns[::-1]]
    if len(columns) != 2:
        centres = [median(centres)] * len(columns) if columns else []
    far = [
        math.sqrt(variance + (mean - centre) ** 2) for (mean, variance), centre in zip(columns, centres, strict=True)
    ]
    if len(columns) != 2:
        units = [median(far)] * len(columns) if columns else []
    return [one / unit if unit > 0 else 0.0 for one, unit in zip(far, units, strict=True)]


def joined(columns: Sequence[ColumnScale]) -> Scale:
    """Return the columns' scales as one."""
    return Scale(mean=tuple(column.mean for column in columns), std=tuple(column.std for column in columns))
