"""Which part of a round's step is left without each site: against the steps themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.server.study.steps import left_without


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), st.integers(0, 10**6))
def test_part_that_is_left_is_that_of_the_steps_themselves(count: int, seed: int) -> None:
    """Any updates and shares; the step without a site is the mean of the others by their shares."""
    chance = np.random.default_rng(seed)
    updates = chance.normal(size=(count, 6)) * chance.uniform(0.1, 50, size=(count, 1)) + chance.normal(size=6)
    shares = chance.dirichlet(np.ones(count))
    lengths = np.linalg.norm(updates, axis=1)
    cosines = (updates / lengths[:, None]) @ (updates / lengths[:, None]).T
    step = shares @ updates
    expected = []
    for k in range(count):
        others = np.delete(np.arange(count), k)
        without = (shares[others] / shares[others].sum()) @ updates[others]
        expected.append(np.linalg.norm(without) / np.linalg.norm(step))
    assert left_without(cosines, lengths, shares) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_site_that_made_the_step_is_the_one_without_which_little_is_left() -> None:
    """Three sites of equal shares, one a hundred times as long: a fiftieth is left without it, all without another."""
    left = left_without(np.eye(3), np.array([1.0, 1.0, 100.0]), np.full(3, 1 / 3))
    assert pytest.approx([1.5, 1.5, np.sqrt(2) / 2 / (np.sqrt(10002) / 3)], rel=1e-3) == left


def test_site_with_all_of_the_weight_and_a_step_of_nothing_break_nothing() -> None:
    """Without the one there is no step, and of no step nothing can be left."""
    assert np.isfinite(left_without(np.eye(2), np.array([1.0, 2.0]), np.array([1.0, 0.0]))[1])
    assert [1.0, 1.0] == left_without(np.zeros((2, 2)), np.zeros(2), np.full(2, 0.5)).tolist()
