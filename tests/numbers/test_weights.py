"""Weights: a mean that is exact where it can be, refusals that name the array, a digest of content alone."""

import hashlib
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consilium.common.errors import UpdateRejected
from consilium.common.weights.arithmetic import add_scaled, norm, subtract, weighted_mean
from consilium.common.weights.arrays import Array, Weights, digest, is_float
from consilium.common.weights.checks import check_finite, check_like

MODERATE: dict[str, Any] = {"min_value": -1e6, "max_value": 1e6, "allow_nan": False, "allow_subnormal": False}
FLOAT_DTYPES: tuple[Any, ...] = (np.float32, np.float64)


def copied(weights: Weights) -> dict[str, Array]:
    """Return copies of the arrays."""
    return {name: array.copy() for name, array in weights.items()}


def same(expected: Weights, seen: Weights) -> bool:
    """Tell whether names, shapes, dtypes and every bit are equal."""
    return expected.keys() == seen.keys() and all(
        (expected[name].dtype, expected[name].shape, expected[name].tobytes())
        == (seen[name].dtype, seen[name].shape, seen[name].tobytes())
        for name in expected
    )


@st.composite
def several_weights(draw: st.DrawFn, *, most: int = 4) -> list[dict[str, Array]]:
    """Two to `most` weights with equal names, shapes and dtypes: float32, float64 and int64, also 0-d and empty."""
    names = draw(st.lists(st.sampled_from(["head.weight", "head.bias", "bn.count", "scale"]), min_size=1, unique=True))
    forms = {
        name: (
            draw(st.sampled_from([*FLOAT_DTYPES, np.int64])),
            draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)),
        )
        for name in names
    }

    def one() -> dict[str, Array]:
        return {
            name: draw(
                hnp.arrays(
                    dtype,
                    shape,
                    elements=st.integers(-1000, 1000)
                    if dtype is np.int64
                    else st.floats(**MODERATE, width=32 if dtype is np.float32 else 64),
                )
            )
            for name, (dtype, shape) in forms.items()
        }

    return [one() for _ in range(draw(st.integers(2, most)))]


# --- weighted mean ---------------------------------------------------------------------------------


def test_weighted_mean_gives_the_numbers_worked_out_by_hand() -> None:
    """Shares 1 and 3: (1*1 + 3*5) / 4 = 4, (1*2 + 3*(-2)) / 4 = -1."""
    mean = weighted_mean([{"w": np.array([1.0, 2.0])}, {"w": np.array([5.0, -2.0])}], [1, 3])
    assert [4.0, -1.0] == mean["w"].tolist()


@pytest.mark.parametrize("count", [8, 9, 17])
def test_weighted_mean_counts_every_item_however_many(count: int) -> None:
    """Items are read eight at a time: sum(k * k) / sum(k) = (2 count + 1) / 3 for values and shares 1 to count."""
    items = [{"w": np.array([float(number)])} for number in range(1, count + 1)]
    assert pytest.approx((2 * count + 1) / 3, rel=1e-12) == weighted_mean(items, range(1, count + 1))["w"][0]


def test_weighted_mean_is_reduced_in_float64() -> None:
    """In float32 2**25 + 2 is 2**25 again; the mean of 2**25, 2 and -2**25 is 2/3 all the same."""
    items = [{"w": np.array([value], dtype=np.float32)} for value in (2.0**25, 2.0, -(2.0**25))]
    assert np.float32(2 / 3) == pytest.approx(weighted_mean(items, [1, 1, 1])["w"][0], rel=1e-7)


def test_weighted_mean_of_counts_is_exact_and_else_rounded_to_the_nearest() -> None:
    """int64 buffers stay int64: (10 + 20) / 2 = 15; (1*10 + 2*11) / 3 = 10.67 becomes 11."""
    items = [{"count": np.array(10)}, {"count": np.array(20)}]
    mean = weighted_mean(items, [1, 1])["count"]
    assert (np.dtype(np.int64), 15) == (mean.dtype, int(mean))
    assert 11 == weighted_mean([{"count": np.array(10)}, {"count": np.array(11)}], [1, 2])["count"]


def test_weighted_mean_of_equal_large_counts_is_that_count() -> None:
    """Three thirds of 2**40 + 1 are 2**40 + 1, not a neighbour."""
    items = [{"count": np.array(2**40 + 1)}] * 3
    assert 2**40 + 1 == weighted_mean(items, [1 / 3, 1 / 3, 1 / 3])["count"]


@given(several_weights(), st.data())
def test_weighted_mean_keeps_names_shapes_and_dtypes_and_leaves_inputs_alone(
    items: list[dict[str, Array]], data: st.DataObject
) -> None:
    """A 0-d array stays 0-d, an empty one empty; every value lies between the smallest and the largest."""
    shares = data.draw(st.lists(st.floats(0.01, 1000), min_size=len(items), max_size=len(items)))
    before = [copied(item) for item in items]
    mean = weighted_mean(items, shares)
    check_like(mean, items[0], who="mean")
    assert all(same(old, item) for old, item in zip(before, items, strict=True))
    for name, array in mean.items():
        stacked = np.stack([item[name] for item in items])
        slack = 1e-6 * np.abs(stacked).max(axis=0, initial=0) + 1e-12
        assert (stacked.min(axis=0) - slack <= array).all() and (array <= stacked.max(axis=0) + slack).all()


@given(several_weights(), st.data())
def test_weighted_mean_does_not_depend_on_the_order_of_pairs(
    items: list[dict[str, Array]], data: st.DataObject
) -> None:
    """Permuting items together with their shares changes nothing beyond the last bits of float64."""
    shares = data.draw(st.lists(st.floats(0.01, 1000), min_size=len(items), max_size=len(items)))
    order = data.draw(st.permutations(range(len(items))))
    first = weighted_mean(items, shares)
    second = weighted_mean([items[i] for i in order], [shares[i] for i in order])
    for name in first:
        size = max(float(np.abs(item[name]).max(initial=0)) for item in items)
        tolerance = 1.0  # a tie may round either way
        if is_float(first[name]):
            tolerance = 4 * size * max(float(np.finfo(str(first[name].dtype)).eps), 1e-15)
        apart = np.abs(first[name].astype(np.float64) - second[name].astype(np.float64))
        assert apart.max(initial=0) <= tolerance


@given(several_weights())
def test_weighted_mean_of_one_item_is_that_item(items: list[dict[str, Array]]) -> None:
    """The share of a single item does not matter (only -0.0 becomes 0.0)."""
    mean = weighted_mean(items[:1], [0.3])
    check_like(mean, items[0], who="mean")
    assert all(np.array_equal(items[0][name], mean[name]) for name in mean)


def test_weighted_mean_with_share_zero_leaves_that_item_out() -> None:
    """A share of 0 is allowed as long as another is positive."""
    assert [7.0] == weighted_mean([{"w": np.array([7.0])}, {"w": np.array([1e300])}], [2, 0])["w"].tolist()


@pytest.mark.parametrize("shares", [[1, -1], [1, float("nan")], [1, float("inf")], [0, 0], [-1, -1]])
def test_weighted_mean_refuses_shares_that_are_no_shares(shares: list[float]) -> None:
    """Negative, NaN, infinite or all zero: a sentence with the shares, no number."""
    with pytest.raises(ValueError, match=re.escape(f"shares must be finite, >= 0 and not all zero, got {shares}")):
        weighted_mean([{"w": np.ones(2)}, {"w": np.ones(2)}], shares)


def test_weighted_mean_refuses_no_items() -> None:
    """There is no mean of nothing."""
    with pytest.raises(ValueError, match="one item at least"):
        weighted_mean([], [])


@pytest.mark.parametrize("shares", [[1.0], [1.0, 1.0, 1.0]])
def test_weighted_mean_refuses_another_number_of_shares(shares: list[float]) -> None:
    """One share per item."""
    with pytest.raises(ValueError, match="one share per item"):
        weighted_mean([{"w": np.ones(2)}, {"w": np.ones(2)}], shares)


# --- like ------------------------------------------------------------------------------------------

LIKE = {"body": np.zeros((2, 3), dtype=np.float32), "head": np.zeros(3, dtype=np.float32)}


@pytest.mark.parametrize(
    ("change", "reason", "sentence"),
    [
        ({"body": np.zeros(3, np.float32)}, "shape", "'body' has shape (3,), expected (2, 3)"),
        ({"body": np.zeros((1, 3), np.float32)}, "shape", "'body' has shape (1, 3), expected (2, 3)"),
        ({"head": np.array(0, np.float32)}, "shape", "'head' has shape (), expected (3,)"),
        ({"head": np.zeros(3)}, "dtype", "'head' has dtype float64, expected float32"),
        ({"head": np.zeros(3, np.int64)}, "dtype", "'head' has dtype int64, expected float32"),
        ({"head": None}, "names", "missing ['head'], unexpected none"),
        ({"tail": np.zeros(1)}, "names", "missing none, unexpected ['tail']"),
    ],
)
def test_mismatch_is_refused_and_named_never_broadcast(
    change: dict[str, npt.NDArray[Any] | None], reason: str, sentence: str
) -> None:
    """Names, shape and dtype must be equal in every operation on two weights; (2, 3) with (3,) is not added up."""
    other = {name: array for name, array in {**LIKE, **change}.items() if array is not None}
    for operation in (
        lambda: check_like(other, LIKE, who="site 'berlin'"),
        lambda: subtract(other, LIKE),
        lambda: weighted_mean([LIKE, other], [1, 1]),
    ):
        with pytest.raises(UpdateRejected, match=re.escape(sentence)) as caught:
            operation()
        assert reason == caught.value.reason


def test_like_weights_pass() -> None:
    """Values and the order of names do not matter."""
    check_like({"head": np.ones(3, np.float32), "body": np.ones((2, 3), np.float32)}, LIKE, who="anyone")


# --- subtract and add ------------------------------------------------------------------------------


def test_delta_is_after_minus_before() -> None:
    """The sign that holds everywhere: 5 - 3 = 2; counts are subtracted exactly, far beyond 2**53."""
    after = {"w": np.array([5.0], np.float32), "count": np.array(2**60 + 1)}
    before = {"w": np.array([3.0], np.float32), "count": np.array(2**60)}
    delta = subtract(after, before)
    assert ([2.0], 1) == (delta["w"].tolist(), int(delta["count"]))
    assert [np.dtype(np.float32), np.dtype(np.int64)] == [delta["w"].dtype, delta["count"].dtype]


@given(several_weights(most=2))
def test_before_plus_delta_is_after(items: list[dict[str, Array]]) -> None:
    """The round trip is exact for counts and within the last bits for floating-point numbers."""
    before, after = items
    kept = copied(before), copied(after)
    again: dict[str, Any] = add_scaled(before, subtract(after, before))
    check_like(again, after, who="round trip")
    for name, expected in after.items():
        if is_float(expected):
            size = np.abs(expected).max(initial=0) + np.abs(before[name]).max(initial=0)
            assert np.abs(again[name] - expected).max(initial=0) <= 4 * size * np.finfo(again[name].dtype).eps
        else:
            assert expected.tolist() == again[name].tolist()
    assert same(kept[0], before) and same(kept[1], after)


def test_scaled_delta_is_added_and_other_names_are_kept() -> None:
    """1 + 0.5 * 4 = 3, count 3 + 0.5 * 3 = 4.5 is rounded to the even 4; names the delta lacks stay."""
    weights = {"w": np.array([1.0]), "count": np.array(3), "frozen": np.array([9.0])}
    result = add_scaled(weights, {"w": np.array([4.0]), "count": np.array(3)}, 0.5)
    assert ([3.0], 4, [9.0]) == (result["w"].tolist(), int(result["count"]), result["frozen"].tolist())


def test_sum_too_large_for_the_dtype_is_infinite_and_told() -> None:
    """float32 ends at 3.4e38: the sum becomes infinite without a warning, and `check_finite` refuses it."""
    large = {"w": np.full(2, 3e38, np.float32)}
    with pytest.raises(UpdateRejected, match="2 NaN or infinite of 2 values"):
        check_finite(add_scaled(large, large), who="sum")


# --- finite ----------------------------------------------------------------------------------------


def test_not_finite_values_are_counted_and_never_printed() -> None:
    """The sentence says who, which array and how many of how many; no value of the array stands in it."""
    array = np.array([[123.456, np.nan, np.inf], [-np.inf, 98.765, 0.0]])
    with pytest.raises(UpdateRejected) as caught:
        check_finite({"fine": np.ones(2), "head.weight": array}, who="site 'berlin'")
    assert "not_finite" == caught.value.reason
    assert "site 'berlin': array 'head.weight' has 3 NaN or infinite of 6 values" == str(caught.value)


@given(hnp.arrays(np.float32, 5, elements=st.floats(width=32)))
def test_finite_check_agrees_with_numpy(array: npt.NDArray[np.float32]) -> None:
    """Refused exactly when some value is NaN or infinite, with their number."""
    bad = int((~np.isfinite(array)).sum())
    if bad == 0:
        check_finite({"w": array}, who="anyone")
    else:
        with pytest.raises(UpdateRejected, match=f"has {bad} NaN or infinite of 5 values"):
            check_finite({"w": array}, who="anyone")


def test_counts_and_empty_arrays_are_finite() -> None:
    """Integers have no NaN, and an empty array has no values."""
    check_finite({"count": np.array(2**62), "none": np.zeros((0, 3))}, who="anyone")


# --- digest ----------------------------------------------------------------------------------------

SOME: dict[str, Array] = {"a": np.array([[1.0, 2.0]], np.float32), "b": np.array(3)}


def test_digest_does_not_depend_on_the_order_of_names() -> None:
    """Nor on whether an array is a copy, or laid out in another order in memory."""
    turned = {"b": np.array(3), "a": np.asfortranarray(np.array([[1.0, 2.0]], np.float32))}
    assert digest(SOME) == digest(turned)
    grid = np.arange(6.0).reshape(2, 3)
    assert digest({"a": grid}) == digest({"a": np.asfortranarray(grid)}) == digest({"a": grid[::-1][::-1]})


@pytest.mark.parametrize(
    "other",
    [
        {"c": SOME["a"], "b": SOME["b"]},
        {"a": SOME["b"], "b": SOME["a"]},
        {**SOME, "a": SOME["a"].reshape(2, 1)},
        {**SOME, "a": SOME["a"].reshape(2)},
        {**SOME, "a": SOME["a"].view(np.int32)},
        {**SOME, "a": SOME["a"].astype(np.float64)},
        {**SOME, "a": np.array([[1.0, np.nextafter(np.float32(2), np.float32(3))]], np.float32)},
        {"a": SOME["a"]},
        {**SOME, "c": np.zeros(0)},
        {},
    ],
    ids=[
        "name",
        "names swapped",
        "shape",
        "dimensions",
        "dtype, same bytes",
        "dtype",
        "value",
        "fewer",
        "more",
        "none",
    ],
)
def test_digest_depends_on_name_shape_dtype_and_value(other: dict[str, Array]) -> None:
    """One bit or one name elsewhere is another digest."""
    assert digest(SOME) != digest(other)


def test_digest_is_the_same_on_every_machine() -> None:
    """The sha256 of this very text and these bytes: sites on different machines must agree on it."""
    first = b'["a", "<f4", [1, 2]]' + b"\x00\x00\x80\x3f\x00\x00\x00\x40"
    content = first + b'["b", "<i8", []]' + b"\x03\x00\x00\x00\x00\x00\x00\x00"
    assert hashlib.sha256(content).hexdigest() == digest(SOME)


# --- norm ------------------------------------------------------------------------------------------


def test_norm_is_euclidean_over_the_floating_point_arrays() -> None:
    """sqrt(3^2 + 4^2 + 12^2) = 13; the counter is left out; `names` chooses."""
    weights = {"w": np.array([[3.0], [4.0]], np.float32), "b": np.array(12.0), "count": np.array(1000)}
    assert (13.0, 5.0, 0.0) == (norm(weights), norm({"w": weights["w"]}), norm({}))


def test_norm_is_taken_in_float64() -> None:
    """1e30 squared is beyond float32."""
    assert pytest.approx(1e30, rel=1e-6) == norm({"w": np.array([1e30], np.float32)})
