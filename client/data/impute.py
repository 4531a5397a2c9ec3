"""Fills missing numbers by the mean, and missing categories by the mode, of a site's own training rows.

Single imputation by mean and mode, as in Little and Rubin: Statistical Analysis with Missing Data, 3rd ed., 2019,
section 4.2.1. With T the training rows in which column j is known:

    number:    x_ij = mean of x_tj over t in T
    category:  x_ij = the value that is most frequent among x_tj over t in T, at a tie the first in `values`

A number column that is known in no training row takes its mean over all sites, where the study has one scale for all.
Validation and test rows are filled, but never enter a mean or a mode. None of this leaves the site. Mean imputation
shrinks the column's variance, so where much is missing, a row with many missing cells says little.

In a private study the values are fixed instead: a mean would tell of every row that enters it.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from consilium.client.data.base import Feature
from consilium.client.data.split import Indices
from consilium.common.errors import DataError

NOTHING: Mapping[str, float] = MappingProxyType({})


def fill_values(
    x: Tensor, features: Sequence[Feature], train: Indices, *, site: str, usual: Mapping[str, float] = NOTHING
) -> Tensor:
    """Return what a missing feature becomes, float64 `(F,)`; NaN where nothing is known and nothing is missing.

    Args:
        x: float64 of shape `(N, F)`; a missing number is NaN, a missing category is NaN in all its features.
        features: the columns of the table.
        train: numbers of the training rows.
        usual: means of number columns over all sites, for a column without a value in any training row.

    Raises:
        DataError: a value is missing in a column that has none in any training row, and `usual` has none either.
    """
    fill = torch.full((x.shape[1],), torch.nan, dtype=torch.float64)
    rows = x[torch.from_numpy(train)]
    for feature in features:
        place = slice(feature.start, feature.start + feature.width)
        known = rows[:, place]
        known = known[~torch.isnan(known[:, 0])]
        if len(known):
            fill[place] = _most_frequent(known) if feature.category else known.mean(dim=0)
        elif feature.name in usual:
            fill[place] = usual[feature.name]
        elif bool(torch.isnan(x[:, feature.start]).any()):
            raise DataError(
                f"site '{site}': column '{feature.name}' has no value in any of the {len(train)} training rows, so "
                'there is nothing to fill missing ones with (task.missing = "impute")'
            )
    return fill


def fixed_values(features: Sequence[Feature], mean: Mapping[str, float]) -> Tensor:
    """Return what a missing feature becomes in a private study, float64 `(F,)`: the same whatever the rows hold.

    A number takes the mean that the study scales by, so that it becomes 0; a category takes the first of its `values`.
    """
    fill = torch.zeros(sum(feature.width for feature in features), dtype=torch.float64)
    for feature in features:
        if not feature.category:
            fill[feature.start] = mean[feature.name]
    return fill


def _most_frequent(known: Tensor) -> Tensor:
    """Return the one-hot features, without those of the first value, of the value that most rows have."""
    others = known.sum(dim=0)
    counts = torch.cat([len(known) - others.sum(dim=0, keepdim=True), others]).tolist()
    usual = torch.zeros_like(others)
    if (place := counts.index(max(counts))) > 0:
        usual[place - 1] = 1.0
    return usual
