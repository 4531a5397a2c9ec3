"""What an update of an earlier round counts: the factors of FedBuff, and statistics that stay possible."""

from collections.abc import Mapping

import numpy as np
import pytest

from consilium.common.study.pace import BufferedPace
from consilium.common.weights.arrays import Array, block, spec
from consilium.server.strategies import ServerState, Update
from consilium.server.strategies.fedavg import FedAvg
from consilium.server.study.staleness import discounted, factor


def make_update(site: str, **delta: Array) -> Update:
    """Return an update of a site."""
    return Update(site, delta, 10, {})


def make_state(round_number: int, **weights: Array) -> ServerState:
    """Return a state with one array that is trained, a variance and a count."""
    return ServerState(round_number, weights, frozenset({"var", "count"}))


@pytest.mark.parametrize(
    ("discount", "expected"),
    [
        (0.5, [1, 2**-0.5, 3**-0.5, 0.5]),
        (0.0, [1, 1, 1, 1]),
        (1.0, [1, 1 / 2, 1 / 3, 1 / 4]),
        (2.0, [1, 0.25, 1 / 9, 1 / 16]),
    ],
)
def test_factor_is_one_over_a_power_of_the_staleness(discount: float, expected: list[float]) -> None:
    """(1 + tau) ** -discount; the paper's is 1 / sqrt(1 + tau), section 3."""
    schedule = BufferedPace(size=2, discount=discount)
    np.testing.assert_allclose(expected, [factor(schedule, stale) for stale in range(4)], rtol=1e-15)


def test_new_weights_take_a_shorter_step_from_old_updates() -> None:
    """Shares 1/2 each, factors 1 and 1/2: 1 + (2 * 1 + 4 * 1/2) / 2 = 3; factors are not made to sum to 1 again."""
    weights = {"w": np.array([1.0], np.float32), "var": np.array([2.0], np.float32), "count": np.array(8)}
    state, sent = make_state(6, **weights), {**weights}
    updates = [
        make_update("a", w=np.array([2.0], np.float32), var=np.zeros(1, np.float32), count=np.array(0)),
        make_update("b", w=np.array([4.0], np.float32), var=np.zeros(1, np.float32), count=np.array(0)),
    ]
    schedule = BufferedPace(size=2, discount=1.0)
    late = discounted(schedule, state, updates, {"a": 0, "b": 1}, {6: sent})
    assert late[0] is updates[0]
    step = FedAvg(1.0).apply(state, late, {"a": 0.5, "b": 0.5})
    assert [3.0] == step.state.weights["w"].tolist()


def test_variance_goes_towards_what_the_site_has_and_not_below_zero() -> None:
    """It was sent 10 and has 1; now it is 2: with the factor 1/2 it moves by (1 - 2) / 2, and not by -9 / 2 to -2.5."""
    sent: Mapping[str, Array] = {"var": np.array([10.0], np.float32), "count": np.array(30)}
    now = make_state(3, w=np.zeros(1, np.float32), var=np.array([2.0], np.float32), count=np.array(40))
    update = make_update("a", w=np.zeros(1, np.float32), var=np.array([-9.0], np.float32), count=np.array(14))
    (late,) = discounted(BufferedPace(size=1, discount=1.0), now, [update], {"a": 1}, {3: sent})
    assert [-0.5] == late.delta["var"].tolist()
    assert 2 == late.delta["count"]  # (30 + 14 - 40) / 2
    assert np.float32 == late.delta["var"].dtype and np.int64 == late.delta["count"].dtype


def test_late_arrays_read_in_blocks_are_those_read_whole() -> None:
    """Strategies read blocks; names, shapes and dtypes are those of the update."""
    chance = np.random.default_rng(1)
    made = {name: chance.normal(size=(4, 5)).astype(np.float32) for name in ("w", "var")} | {"count": np.array(3)}
    state = make_state(2, **{name: np.ones_like(array) for name, array in made.items()})
    (late,) = discounted(BufferedPace(size=1), state, [make_update("a", **made)], {"a": 2}, {1: state.weights})
    for name, array in made.items():
        whole = late.delta[name].reshape(-1)
        parts = [block(late.delta, name, start, start + 7) for start in range(0, max(1, array.size), 7)]
        np.testing.assert_array_equal(whole, np.concatenate(parts))
        assert (array.shape, array.dtype) == spec(late.delta, name) == (late.delta[name].shape, late.delta[name].dtype)
