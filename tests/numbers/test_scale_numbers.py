"""The mean and deviation of all sites' rows from sums that each of them tells."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scales import moments_of
from scripted import CARD

from consilium.common.protocol.cards import DataCard
from consilium.common.study.scale import LARGEST_VALUE, Moments, combine

COLUMN = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@given(st.lists(COLUMN, min_size=1, max_size=5))
def test_combined_sums_are_mean_and_deviation_of_all_rows(sites: list[list[float]]) -> None:
    """NumPy's mean and population std over the rows in one place, however they are divided, in whatever order."""
    values = np.concatenate([np.asarray(site) for site in sites])
    (found,) = combine([moments_of(site) for site in sites])
    assert found is not None
    assert found.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
    if values.std() > 1e-5 * abs(values).max():
        assert found.std == pytest.approx(values.std(), rel=1e-4)
    assert [found] == combine([moments_of(site) for site in reversed(sites)])


def test_combined_scale_of_plain_numbers() -> None:
    """1, 2, 3 at one site and 6 at another: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5."""
    (found,) = combine([moments_of([1.0, 2.0, 3.0]), moments_of([6.0])])
    assert found is not None
    assert 3.0 == found.mean
    assert pytest.approx(math.sqrt(3.5)) == found.std


def test_constant_column_is_divided_by_one_and_an_unknown_one_has_no_scale() -> None:
    """0.1 three times sums to no exact number; a column that no site knows is not given a default."""
    assert [1.0] == [one.std for one in combine([moments_of([0.1] * 3), moments_of([0.1] * 7)]) if one is not None]
    nothing = Moments(counts=(0,), sums=(0.0,), squares=(0.0,))
    assert [None] == combine([nothing, nothing])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sums": (1.0, 2.0)}, "of as many columns"),
        ({"squares": (0.1,)}, "too small for the sum of 10 values"),
        ({"squares": (-1.0,)}, "greater than or equal to 0"),
        ({"counts": (-1,)}, "greater than or equal to 0"),
        ({"counts": (0,)}, "larger than 0 values can give"),
        ({"sums": (math.inf,)}, "finite"),
        ({"squares": (11 * LARGEST_VALUE**2,)}, "larger than 10 values can give"),
    ],
)
def test_sums_that_no_rows_can_have_are_refused(changes: dict[str, Any], said: str) -> None:
    """As many of each, finite, a sum of squares that fits the sum (Cauchy), and nothing of no values."""
    with pytest.raises(ValidationError, match=said):
        Moments(**{"counts": (10,), "sums": (5.0,), "squares": (4.0,), **changes})


def test_sums_of_more_values_than_training_examples_are_refused() -> None:
    """A card says how many training examples there are."""
    told = Moments(counts=(CARD.num_train + 1,), sums=(0.0,), squares=(1.0,))
    with pytest.raises(ValidationError, match=f"moments are of {CARD.num_train + 1} values, of {CARD.num_train}"):
        DataCard(**CARD.model_dump() | {"moments": told})
