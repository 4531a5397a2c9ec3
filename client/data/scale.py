"""Scales a site's inputs: by one scale for all sites, by fixed numbers, or by the site's own training rows.

With a scale given, each number column, or each channel of the images, becomes `(x - mean) / std`, and the 0 and 1 of
categories stay as they are. A site that scales by itself takes mean and population standard deviation (0 -> 1) of its
training rows; in a table it scales every feature, those of categories too, after filling missing cells, in the
order of FLamby's Fed-Heart-Disease (du Terrail et al., "FLamby", 2022, https://arxiv.org/abs/2210.04620).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from consilium.client.data.base import Examples, Feature, RawData, SiteData
from consilium.client.data.impute import fill_values, fixed_values
from consilium.client.data.preparation import Preparation
from consilium.client.data.split import Indices, Split
from consilium.client.data.targets import target_of
from consilium.common.errors import DataError
from consilium.common.protocol.cards import DataCard
from consilium.common.study.scale import LEAST_ROWS, MOST_ALONE, ColumnScale, Moments, Scale, combine, joined
from consilium.common.study.task import FeaturesTask, PictureTask, SeriesTask, TableTask, Task
from consilium.common.weights.arrays import digest

_IMAGES_AT_ONCE = 256

Told = tuple[int, float, float]
"""Count, sum and sum of squares of one column."""

FARTHEST = 1e6
"""In a private study an input that no 32-bit number holds, in standard deviations."""


@dataclass(frozen=True, eq=False)
class UnscaledData:
    """A site's examples, divided but not scaled yet, and their data card, which may leave the site.

    Args:
        card: what the data say exactly; see `consilium.client.site.handshake` for what leaves the site of it.
        private: missing cells are filled by fixed values, not by what other rows have.
    """

    site: str
    task: Task
    raw: RawData
    parts: Split
    card: DataCard
    private: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one example, without the batch dimension."""
        return tuple(self.raw.x.shape[1:])

    @property
    def digest(self) -> str:
        """Return the sha256 of all examples and of how they are divided: one more row is another split of all."""
        arrays = {"x": self.raw.x.numpy(), "y": self.raw.y.numpy()}
        return digest(arrays | {name: getattr(self.parts, name) for name in ("train", "validation", "test")})

    def moments(self, *, least: int = LEAST_ROWS) -> Moments:
        """Return count, sum and sum of squares of each number column or channel over the training rows.

        Args:
            least: >= 1; a column with fewer known values has a count of 0, and so has one whose sums reveal single
                values, unless `least` is 1, which is for sums that stay at the site.
        """
        rows = self.raw.x[torch.from_numpy(self.parts.train)]
        if isinstance(self.task, PictureTask):
            told = _of_images(rows)
        elif isinstance(self.task, SeriesTask):
            told = _of_series(rows)
        else:
            told = _of_columns(rows, self.raw.features, leaving=least > 1)
        columns = [one if one[0] >= least else (0, 0.0, 0.0) for one in told]
        return Moments(
            counts=tuple(count for count, _, _ in columns),
            sums=tuple(total for _, total, _ in columns),
            squares=tuple(squares for _, _, squares in columns),
        )

    def scaled(self, scale: Scale | None) -> SiteData:
        """Return the examples, filled and scaled; images of a study without `task.scale` are scaled already.

        Args:
            scale: of each number column or channel, in the task's order; None for the site's own.

        Raises:
            DataError: a column has no value in any training row, and no scale to take one from, or a number is too
                far from what it is scaled by.
        """
        if isinstance(self.task, TableTask) or (isinstance(self.task, FeaturesTask) and self.task.scale is not None):
            return self._scaled_table(scale)
        if isinstance(self.task, SeriesTask):
            return self._scaled_series(self.task, scale)
        if self.task.scale is None:
            return self._divided(self.raw.x, None)
        return self._scaled_images(scale or _known(combine([self.moments(least=1)])))

    def _scaled_table(self, scale: Scale | None) -> SiteData:
        features = self.raw.features
        usual = {} if scale is None else dict(zip(_names_of_numbers(features), scale.mean, strict=True))
        fill = None
        if self.private and scale is None:
            raise DataError(f"site '{self.site}': a private study scales its inputs by fixed numbers, there are none")
        if isinstance(self.task, TableTask) and self.task.missing == "impute" and self.private:
            fill = fixed_values(features, usual)
        elif isinstance(self.task, TableTask) and self.task.missing == "impute":
            fill = fill_values(self.raw.x, features, self.parts.train, site=self.site, usual=usual)
        x = Preparation(fill=fill).applied(self.raw.x)
        used = scale or _own(x[torch.from_numpy(self.parts.train)])
        mean, std = _tensors(used if scale is None else _widened(scale, features))
        prepared = Preparation(mean, std, fill)
        return replace(self._finite(self._divided(prepared.applied(self.raw.x), used)), preparation=prepared)

    def _scaled_series(self, task: SeriesTask, scale: Scale | None) -> SiteData:
        """Return series `(N, T, C)` with their channels scaled; steps that short ones lack become 0 after that."""
        used = None if task.scale is None else scale or _known(combine([self.moments(least=1)]))
        mean, std = (None, None) if used is None else _tensors(used)
        fill = torch.zeros(len(task.channels), dtype=torch.float64) if mean is None else mean
        prepared = Preparation(mean, std, fill if task.short == "pad" else None)
        return replace(self._finite(self._divided(prepared.applied(self.raw.x), used)), preparation=prepared)

    def _scaled_images(self, scale: Scale) -> SiteData:
        mean, std = (part.to(torch.float32).reshape(-1, 1, 1) for part in _tensors(scale))
        data = replace(self._divided(self.raw.x, scale), preparation=Preparation(mean, std))
        for part in (data.train, data.validation, data.test):
            part.x.sub_(mean).div_(std)  # in place: images are large, and these are copies
        return self._finite(data)

    def _finite(self, data: SiteData) -> SiteData:
        if self.private:  # a refusal would tell whoever made the scale that there is such a row
            for part in (data.train, data.validation, data.test):
                part.x.nan_to_num_(nan=0.0, posinf=FARTHEST, neginf=-FARTHEST)
            return data
        if not all(bool(torch.isfinite(part.x).all()) for part in (data.train, data.validation, data.test)):
            raise DataError(f"site '{self.site}': a number is too far from the training rows to be standardised")
        return data

    def _divided(self, x: Tensor, scale: Scale | None) -> SiteData:
        parts = (self.parts.train, self.parts.validation, self.parts.test)
        train, validation, test = (self._examples(x, rows) for rows in parts)
        notes, reading = self.raw.notes, self.raw.reading
        return SiteData(train, validation, test, self.card, scale, notes, reading=reading, task=self.task)

    def _examples(self, x: Tensor, rows: Indices) -> Examples:
        chosen = torch.from_numpy(rows)
        target = target_of(self.task)
        groups = None if self.raw.groups is None else torch.from_numpy(self.raw.groups[rows])
        return Examples(x[chosen].to(torch.float32), self.raw.y[chosen], target, groups)


def _of_columns(rows: Tensor, features: Sequence[Feature], *, leaving: bool) -> Iterator[Told]:
    for feature in features:
        if not feature.category:
            column = rows[:, feature.start]
            known = column[~torch.isnan(column)]
            if leaving and _gives_away(known):
                known = known[:0]
            yield len(known), math.fsum(known.tolist()), math.fsum(known.square().tolist())


def _gives_away(values: Tensor) -> bool:
    """Return whether all values `(N,)` but one or two are equal: the two sums are then two equations for these two.

    A column of 0 and 1 is exempt: its sums reveal no more than how many are 1.
    """
    different, times = torch.unique(values, return_counts=True)
    others = len(values) - int(times.max()) if len(values) else 0
    return 0 < others <= MOST_ALONE and not set(different.tolist()) <= {0.0, 1.0}


def _of_images(rows: Tensor) -> Iterator[Told]:
    """Yield each channel's sums over images `(N, C, H, W)`: of the mean of an image's pixels, and of their squares."""
    for channel in range(rows.shape[1]):
        means, squares = list[float](), list[float]()
        for images in torch.split(rows[:, channel], _IMAGES_AT_ONCE):
            exact = images.to(torch.float64)
            means += exact.mean(dim=(1, 2)).tolist()
            squares += exact.square().mean(dim=(1, 2)).tolist()
        yield len(rows), math.fsum(means), math.fsum(squares)


def _of_series(rows: Tensor) -> Iterator[Told]:
    """Yield each channel's sums over series `(N, T, C)`: of the mean of a series' steps, and of their squares."""
    for channel in range(rows.shape[2]):
        steps = rows[:, :, channel].to(torch.float64)
        means, squares = steps.nanmean(dim=1), steps.square().nanmean(dim=1)
        yield len(rows), math.fsum(means.tolist()), math.fsum(squares.tolist())


def _known(columns: Sequence[ColumnScale | None]) -> Scale:
    return joined([column for column in columns if column is not None])


def _names_of_numbers(features: Sequence[Feature]) -> list[str]:
    return [feature.name for feature in features if not feature.category]


def _own(rows: Tensor) -> Scale:
    """Return the mean and the population standard deviation of every feature of rows `(N, F)`, std 0 -> 1."""
    mean, std = rows.mean(dim=0), rows.std(dim=0, correction=0)
    # A constant column's std is not always 0 in floating point, so compare with its size.
    constant = std <= 1e-12 * mean.abs()
    std = torch.where(constant, torch.ones_like(std), std)
    return Scale(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _widened(scale: Scale, features: Sequence[Feature]) -> Scale:
    """Return the number columns' scale as one of all features, in which those of categories stay as they are."""
    numbers, mean, std = iter(zip(scale.mean, scale.std, strict=True)), list[float](), list[float]()
    for feature in features:
        of_mean, of_std = (0.0, 1.0) if feature.category else next(numbers)
        mean += [of_mean] * feature.width
        std += [of_std] * feature.width
    return Scale(mean=tuple(mean), std=tuple(std))


def _tensors(scale: Scale) -> tuple[Tensor, Tensor]:
    return torch.tensor(scale.mean, dtype=torch.float64), torch.tensor(scale.std, dtype=torch.float64)
