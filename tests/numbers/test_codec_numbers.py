"""Codecs: each stage's own numbers by hand, its error bound, its degenerate cases, and error feedback over rounds."""

import csv
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from paths import ROOT

from consilium.common.codecs import CODECS, Chain, Form, Stage, form_of
from consilium.common.codecs.bf16 import Bf16
from consilium.common.codecs.fp16 import Fp16
from consilium.common.codecs.int4 import Int4
from consilium.common.codecs.int8 import Int8
from consilium.common.codecs.integer_delta import IntegerDelta
from consilium.common.codecs.low_rank import LowRank
from consilium.common.codecs.sign import Sign
from consilium.common.codecs.top_k import TopK
from consilium.common.codecs.zstd import Zstd
from consilium.common.errors import ProtocolError
from consilium.common.weights.arrays import Array, Weights

Floats = npt.NDArray[np.float64]


def encoded(stage: Stage, array: Array, seed: int = 0) -> dict[str, Array]:
    """Encode one array under the name `w`."""
    return stage.encode({"w": array}, {}, seed)[0]


def through(stage: Stage, array: Array, seed: int = 0) -> Any:
    """Encode and decode one array."""
    return stage.decode(encoded(stage, array, seed), form_of({"w": array}))["w"]


def f64(array: Array) -> Floats:
    """Return an array in float64."""
    return array.astype(np.float64)


@st.composite
def arrays(draw: st.DrawFn, *, dtypes: tuple[str, ...] = ("f4", "f8"), most: int = 80) -> Array:
    """Draw up to `most` values of either sign, of one magnitude or of many, with zeros of both signs among them."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, dtype = draw(st.integers(0, most)), np.dtype(draw(st.sampled_from(dtypes)))
    spread = draw(st.sampled_from([0.0, 1.0, 10.0]))
    values = chance.normal(size=size) * 10.0 ** (draw(st.integers(-30, 25)) + spread * chance.random(size))
    values[chance.random(size) < 0.1] *= 0.0
    return values.astype(dtype)


# --- fp16 ------------------------------------------------------------------------------------------


def test_fp16_by_hand() -> None:
    """max|x| = 3 is in [2, 4), so e = 2 and values are multiplied by 2**13: 3 -> 24576, 1 -> 8192.

    1 + 2**-11 is between 1 and 1 + 2**-10 and ties to the even 1. Decoding divides by 2**13 again.
    """
    values = np.array([3.0, 1.0, 1 + 2.0**-11, -0.0])
    codes = encoded(Fp16(error_feedback=False), values)
    assert ([24576, 8192, 8192, 0], 2) == (codes["w"].tolist(), int(codes["w:exponent"]))
    assert [3, 1, 1, 0] == through(Fp16(error_feedback=False), values).tolist()
    assert np.signbit(through(Fp16(error_feedback=False), values)[3])


@given(arrays())
def test_fp16_error_is_within_its_bound(values: Array) -> None:
    """2**-11 of the value and 2**-39 of the largest, whatever the magnitude: also from 1e-30 to 1e25 in one array."""
    error = np.abs(f64(through(Fp16(error_feedback=False), values)) - f64(values))
    assert (error <= 2.0**-11 * np.abs(f64(values)) + 2.0**-39 * np.max(np.abs(f64(values)), initial=0)).all()


@pytest.mark.parametrize("value", [5e-324, 1e-45, 1e-8, 65504, 65536, 3e38, 1.7e308])
def test_fp16_holds_any_magnitude(value: float) -> None:
    """Half precision ends at 65504 and begins at 6e-8; the exponent beside it has no such limits."""
    assert through(Fp16(error_feedback=False), np.array([value]))[0] == pytest.approx(value, rel=2**-11)


# --- bf16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 1.0),
        (1 + 2.0**-8, 1.0),  # half way to 1 + 2**-7: the last bit kept is 0 below
        (1 + 3 * 2.0**-8, 1 + 2.0**-6),  # half way again: the last bit kept is 0 above
        (1 + 2.0**-8 + 2.0**-20, 1 + 2.0**-7),  # above half way
        (1 + 3 * 2.0**-8 - 2.0**-20, 1 + 2.0**-7),  # below half way
        (-1 - 2.0**-8, -1.0),
        (-0.0, -0.0),
        (2 - 2.0**-9, 2.0),  # carries into the exponent
    ],
)
def test_bf16_rounds_to_nearest_and_ties_to_even(value: float, expected: float) -> None:
    """Numbers near 1 have steps of 2**-7."""
    seen = through(Bf16(error_feedback=False), np.array([value], dtype=np.float32))
    assert np.array([expected], dtype=np.float32).tobytes() == seen.tobytes()


def test_bf16_is_the_upper_half() -> None:
    """1.0 is 0x3f800000 and -2.5 is 0xc0200000 in float32."""
    assert [0x3F80, 0xC020] == encoded(Bf16(error_feedback=False), np.array([1.0, -2.5]))["w"].tolist()


@given(arrays())
def test_bf16_error_is_within_its_bound(values: Array) -> None:
    """2**-8 of the value, and 2**-133 where float32 itself runs out of digits."""
    error = np.abs(f64(through(Bf16(error_feedback=False), values)) - f64(values))
    assert (error <= 2.0**-8 * np.abs(f64(values)) + 2.0**-133).all()


@pytest.mark.parametrize("stage", [Fp16(error_feedback=False), Bf16(error_feedback=False)])
def test_half_precision_arrays_pass_through(stage: Stage) -> None:
    """Two bytes stay the two bytes they are."""
    values = np.array([65504, 6e-8, -1.5], dtype=np.float16)
    codes = encoded(stage, values)
    assert ({"w"}, values.tobytes()) == (set(codes), codes["w"].tobytes())
    assert values.tobytes() == through(stage, values).tobytes()


# --- integer_delta ---------------------------------------------------------------------------------


def test_integer_delta_by_hand() -> None:
    """The next float32 above 1 differs by +1 (code 2), the one below by -1 (code 1), an equal one by 0 (code 0).

    From 1.0 = 0x3f800000 to -1.0 = 0xbf800000 the difference is 2**31, which wraps around to -2**31: code 2**32 - 1.
    """
    one = np.ones(4, dtype=np.float32)
    next_to = np.array([np.nextafter(one[0], 2), np.nextafter(one[0], 0), 1, -1], dtype=np.float32)
    codes = np.frombuffer(Chain((IntegerDelta(),)).encode({"w": next_to}, {"w": one}, seed=0).payload[-16:], "<u4")
    assert [2, 1, 0, 2**32 - 1] == codes.tolist()


@given(hnp.arrays(st.sampled_from(["u2", "u4", "u8"]), 20))
def test_integer_delta_is_exact_for_every_bit_pattern(raw: Array) -> None:
    """Infinities and every NaN are bits as any other."""
    values = raw.view(f"f{raw.itemsize}")
    assert raw.tobytes() == through(IntegerDelta(), values).tobytes()


def test_integer_delta_makes_small_changes_small() -> None:
    """Changes in the last 8 of 32 bits leave 8 bits of chance per number: zstd gets to about 9, from 32 without."""
    chance = np.random.default_rng(0)
    before = chance.normal(size=20_000).astype(np.float32)
    after = (before.view(np.int32) + chance.integers(-100, 100, before.size)).astype(np.int32).view(np.float32)
    chain = Chain((IntegerDelta(), Zstd(level=3)))
    bits = 8 * len(chain.encode({"w": after}, {"w": before}, seed=0).payload) / before.size
    assert 7.6 < bits < 9
    assert (
        after.tobytes()
        == chain.advance({"w": before}, chain.encode({"w": after}, {"w": before}, seed=0).payload)["w"].tobytes()
    )


# --- int8 and int4 ---------------------------------------------------------------------------------


def test_int8_by_hand() -> None:
    """scale = 254 / 127 = 2; whole multiples of it are exact, 3 = 1.5 scales becomes 2 or 4."""
    values = np.array([254.0, -254, 0, -0.0, 100, 3])
    codes = encoded(Int8(block=0, error_feedback=False), values)
    assert ([2.0], [127, -127, 0, 0, 50]) == (codes["w:scale"].tolist(), codes["w"][:5].tolist())
    assert {2.0, 4.0} == {float(through(Int8(block=0, error_feedback=False), values, seed)[5]) for seed in range(20)}


def test_int4_packs_two_values_per_byte() -> None:
    """scale = 7 / 7 = 1; codes 7, -7, 0, 3, -1 plus 8 are 15, 1, 8, 11, 7: 15 + 1 * 16, 8 + 11 * 16, 7 + 8 * 16."""
    values = np.array([7.0, -7, 0, 3, -1], dtype=np.float32)
    codes = encoded(Int4(block=64, error_feedback=False), values)
    assert ([1.0], [31, 184, 135]) == (codes["w:scale"].tolist(), codes["w"].tolist())
    assert values.tolist() == through(Int4(block=64, error_feedback=False), values).tolist()


@pytest.mark.parametrize("stage", [Int8(block=2, error_feedback=False), Int4(block=2, error_feedback=False)])
def test_each_block_has_its_own_scale(stage: Any) -> None:
    """Blocks of two in the flattened array, the last one shorter: tiny values beside large ones survive."""
    levels = 127 if isinstance(stage, Int8) else 7
    values = np.array([[1e6, -1e6, 1e-6], [1e-6, 0, 0], [0, 0, 3]], dtype=np.float64)
    codes = encoded(stage, values)
    expected = [1e6 / levels, 1e-6 / levels, 0, 0, 3 / levels]
    assert codes["w:scale"].tolist() == pytest.approx(expected)
    np.testing.assert_allclose(through(stage, values), values, rtol=1e-12)


@settings(max_examples=60)
@given(
    arrays(),
    st.sampled_from(
        [
            Int8(block=0, error_feedback=False),
            Int8(block=7, error_feedback=False),
            Int4(block=64, error_feedback=False),
            Int4(block=0, error_feedback=False),
        ]
    ),
    st.integers(0, 9),
)
def test_rounding_errs_by_less_than_a_scale(values: Array, stage: Any, seed: int) -> None:
    """|error| <= scale of the block, for each value; the rounding of the scale and of the result beside it."""
    codes = encoded(stage, values, seed)
    length = stage.block or max(values.size, 1)
    scale = np.repeat(f64(codes["w:scale"]), length)[: values.size]
    error = np.abs(f64(through(stage, values, seed)) - f64(values))
    assert (error <= scale + 1e-6 * np.abs(f64(values))).all()


@pytest.mark.parametrize("value", [5e-324, 1e-322, 3e-45, 1e-40, 1e-8, 1e300])
@pytest.mark.parametrize("stage", [Int8(block=0, error_feedback=False), Int4(block=64, error_feedback=False)])
def test_scale_of_tiny_values_is_rounded_up(stage: Stage, value: float) -> None:
    """Near the smallest number, max / 127 is 0 or much too small; the scale is never less than that."""
    for dtype in (np.float32, np.float64) if value < 1e30 else (np.float64,):
        values = np.array([value, -value / 2], dtype=dtype)
        scale = float(encoded(stage, values)["w:scale"][0])
        assert (np.abs(f64(through(stage, values)) - f64(values)) <= scale * (1 + 1e-6)).all()
        assert (scale > 0) == (values[0] > 0)


@pytest.mark.parametrize("stage", [Int8(block=0, error_feedback=False), Int4(block=0, error_feedback=False)])
def test_rounding_is_unbiased(stage: Stage) -> None:
    """Each value's mean over 3000 seeds is within 5 standard errors; a value between two steps errs by < scale / 2.

    So a standard error is at most scale / 2 / sqrt(3000) = 0.0092 scale.
    """
    values = np.array([1.0, 0.3, -0.777, 1e-3, -1e-3, 0.0])
    scale = float(encoded(stage, values)["w:scale"][0])
    mean = np.mean([f64(through(stage, values, seed)) for seed in range(3000)], axis=0)
    np.testing.assert_allclose(mean, values, rtol=0, atol=5 * 0.0092 * scale)


# --- top_k -----------------------------------------------------------------------------------------


def test_top_k_by_hand() -> None:
    """ceil(0.3 * 6) = 2 of 6 values: -5 at position 1 and 4 at 4, the distances 1 and 3."""
    values = np.array([[1.0, -5, 2], [3, 4, 0]], dtype=np.float32)
    codes = encoded(TopK(fraction=0.3, error_feedback=True), values)
    assert ([-5, 4], [1, 3], np.dtype(np.uint8)) == (
        codes["w"].tolist(),
        codes["w:index"].tolist(),
        codes["w:index"].dtype,
    )
    assert [[0, -5, 0], [0, 4, 0]] == through(TopK(fraction=0.3, error_feedback=True), values).tolist()


@pytest.mark.parametrize(
    ("size", "fraction", "expected"),
    [(0, 0.5, 0), (1, 0.05, 1), (20, 0.05, 1), (21, 0.05, 2), (100, 0.07, 7), (5, 1.0, 5), (300, 1e-9, 1)],
)
def test_top_k_keeps_the_fraction_rounded_up(size: int, fraction: float, expected: int) -> None:
    """At least one value of each array that has any; 0.07 of 100 is 7 and not 8."""
    form: Form = {"w": ((size,), np.dtype(np.float32))}
    assert ((expected,), np.dtype(np.float32)) == TopK(fraction, error_feedback=True).form(form)["w"]


@given(arrays(), st.floats(0.01, 1))
def test_top_k_keeps_the_largest_exactly(values: Array, fraction: float) -> None:
    """What arrives is bit for bit; nothing that is left out is larger; the squared error is within its bound."""
    seen = through(TopK(fraction, error_feedback=True), values)
    kept = seen != 0
    assert values[kept].tobytes() == seen[kept].tobytes()
    count = TopK(fraction, error_feedback=True).form(form_of({"w": values}))["w"][0][0]
    assert np.max(np.abs(values[~kept]), initial=0) <= np.min(np.abs(values[kept]), initial=np.inf)
    assert kept.sum() == min(count, (values != 0).sum())
    norm = np.sum(f64(values) ** 2)
    error = np.sum((f64(values) - f64(seen)) ** 2)
    assert error <= (1 - count / max(values.size, 1)) * norm * (1 + 1e-12)


@pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_top_k_positions_take_the_narrowest_dtype(size: int, dtype: Any) -> None:
    """One value at the very end: its distance is size - 1."""
    values = np.zeros(size, dtype=np.float32)
    values[-1] = 1
    codes = encoded(TopK(fraction=1e-9, error_feedback=True), values)
    assert ([size - 1], np.dtype(dtype)) == (codes["w:index"].tolist(), codes["w:index"].dtype)
    assert values.tobytes() == through(TopK(fraction=1e-9, error_feedback=True), values).tobytes()


@pytest.mark.parametrize("steps", [[0, 0], [9, 0], [10, 1], [0, 10], [5, 5], [255, 255], [255, 1]])
def test_top_k_refuses_positions_that_do_not_rise_within_the_array(steps: list[int]) -> None:
    """A position twice, or 10 and more in an array of 10; sums that would wrap in a byte (255 + 1) as well."""
    form = form_of({"w": np.zeros(10)})
    codes: Weights = {"w": np.ones(2), "w:index": np.array(steps, dtype=np.uint8)}
    with pytest.raises(ProtocolError, match="positions of array 'w' do not rise within its 10 values"):
        TopK(fraction=0.2, error_feedback=True).decode(codes, form)


def test_top_k_refuses_positions_whose_sum_wraps() -> None:
    """Arrays beyond 2**32 values have distances of 64 bits: 2**63 + 2**63 is 0, and must not pass for a position."""
    form: Form = {"w": ((2**33,), np.dtype(np.float32))}
    codes: Weights = {"w": np.ones(2, np.float32), "w:index": np.array([2**63, 2**63], dtype=np.uint64)}
    stage = TopK(fraction=2e-10, error_feedback=True)
    assert stage.form(form) == form_of(codes)
    with pytest.raises(ProtocolError, match="do not rise within its 8589934592 values"):
        stage.decode(codes, form)


def test_top_k_reads_every_position_within_the_array() -> None:
    """0 and 9 are the first and the last of 10."""
    codes: Weights = {"w": np.array([1.5, 2.5]), "w:index": np.array([0, 9], dtype=np.uint8)}
    assert [1.5, *[0.0] * 8, 2.5] == TopK(fraction=0.2, error_feedback=True).decode(
        codes, form_of({"w": np.zeros(10)})
    )["w"].tolist()


# --- sign ------------------------------------------------------------------------------------------


def test_sign_by_hand() -> None:
    """mean|x| = (1 + 2 + 3 + 4 + 0) / 5 = 2; the signs + - + - + are the bits 10101 000."""
    values = np.array([1.0, -2, 3, -4, 0], dtype=np.float32)
    codes = encoded(Sign(error_feedback=True), values)
    assert ([0b10101000], 2.0) == (codes["w"].tolist(), float(codes["w:scale"]))
    assert [2, -2, 2, -2, 2] == through(Sign(error_feedback=True), values).tolist()


@given(arrays())
def test_sign_error_is_what_the_scale_leaves(values: Array) -> None:
    """||x - s sign(x)||^2 = ||x||^2 - 2 s sum|x| + n s^2 = ||x||^2 - n s^2 with s = sum|x| / n."""
    error, norm = np.sum((f64(through(Sign(error_feedback=True), values)) - f64(values)) ** 2), np.sum(f64(values) ** 2)
    scale = np.mean(np.abs(f64(values))) if values.size else 0.0
    assert error == pytest.approx(norm - values.size * scale**2, rel=1e-5, abs=1e-5 * norm)
    assert error <= norm * (1 + 1e-6)


@pytest.mark.parametrize(
    "stage", [Sign(error_feedback=True), Int8(block=0, error_feedback=False), Int4(block=64, error_feedback=False)]
)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0])
def test_scale_that_is_no_scale_is_refused(stage: Stage, scale: float) -> None:
    """Also where every code is 0: nothing may depend on what 0 times infinity is."""
    values = np.zeros(4)
    codes = encoded(stage, values)
    codes["w:scale"] = np.full_like(codes["w:scale"], scale)
    with pytest.raises(ProtocolError, match="scale of array 'w' is not a finite number >= 0"):
        stage.decode(codes, form_of({"w": values}))


# --- low_rank --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(1, 3), st.sampled_from([np.float32, np.float64]))
def test_low_rank_of_a_matrix_of_that_rank_is_exact(seed: int, rank: int, dtype: Any) -> None:
    """P spans all columns of X after one step from a random start, so P P^T X = X.

    But for rounding: X in float32 is not quite of that rank, and a poor start enlarges that up to some hundred times.
    """
    chance = np.random.default_rng(seed)
    matrix = (chance.normal(size=(12, rank)) @ chance.normal(size=(rank, 20))).astype(dtype).reshape(12, 4, 5)
    tolerance = (1e-4 if dtype is np.float32 else 1e-11) * float(np.max(np.abs(matrix)))
    np.testing.assert_allclose(through(LowRank(rank=3, error_feedback=True), matrix), matrix, rtol=0, atol=tolerance)


def test_low_rank_warms_up_to_the_best_approximation() -> None:
    """Power iteration on one matrix: the error falls to that of the singular value decomposition, which no rank beats.

    Singular values 3, 2, 1, 0.5: the best rank 2 leaves 1**2 + 0.5**2 = 1.25. A random start each time leaves more.
    """
    chance = np.random.default_rng(1)
    left, right = (np.linalg.qr(chance.normal(size=(size, 4)))[0] for size in (30, 20))
    matrix = left * [3.0, 2.0, 1.0, 0.5] @ right.T
    stage, memory, errors = LowRank(rank=2, error_feedback=True), dict[str, Array](), list[float]()
    for _ in range(25):
        codes, memory = stage.encode({"w": matrix}, memory, 0)
        errors.append(float(np.sum((stage.decode(codes, form_of({"w": matrix}))["w"].astype(float) - matrix) ** 2)))
    assert errors[0] > 1.3
    assert errors[-1] == pytest.approx(1.25, rel=1e-6)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(errors))


def test_low_rank_columns_are_orthonormal_and_memory_is_what_was_sent() -> None:
    """P^T P = 1, and the next round starts from the Q that the receiver has seen."""
    matrix = np.random.default_rng(0).normal(size=(9, 11)).astype(np.float32)
    codes, memory = LowRank(rank=2, error_feedback=True).encode({"w": matrix}, {}, 3)
    np.testing.assert_allclose(f64(codes["w"]).T @ f64(codes["w"]), np.eye(2), atol=1e-6)
    np.testing.assert_allclose(f64(codes["w:right"]), matrix.T @ f64(codes["w"]), atol=1e-5)
    assert (["w"], codes["w:right"].tobytes()) == (list(memory), memory["w"].tobytes())


def test_low_rank_recovers_from_a_round_without_a_difference() -> None:
    """Zeros leave Q = 0, from which no power iteration would start: it starts at random again."""
    stage, zero = LowRank(rank=1, error_feedback=True), np.zeros((8, 8))
    codes, memory = stage.encode({"w": zero}, {}, 0)
    assert not stage.decode(codes, form_of({"w": zero}))["w"].any()
    matrix = np.outer(np.arange(8.0), np.ones(8))
    codes, _ = stage.encode({"w": matrix}, memory, 1)
    np.testing.assert_allclose(f64(stage.decode(codes, form_of({"w": matrix}))["w"]), matrix, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype", "coded"),
    [
        ((100,), np.float32, False),
        ((), np.float32, False),
        ((0, 5), np.float32, False),
        ((4, 4), np.float32, False),  # 2 * (4 + 4) = 16 values for 16
        ((4, 5), np.float32, True),  # 2 * (4 + 5) = 18 for 20
        ((4, 5), np.float16, False),  # factors are float32: 72 bytes for 40
        ((8, 2, 2, 2), np.float32, True),  # 8 x 8
        ((9, 9), np.int32, False),
    ],
    ids=str,
)
def test_low_rank_codes_what_gets_smaller(shape: tuple[int, ...], dtype: Any, coded: bool) -> None:
    """Vectors, integers, and matrices whose factors would be no smaller pass through."""
    values = np.ones(shape, dtype)
    codes, memory = LowRank(rank=2, error_feedback=True).encode({"w": values}, {}, 0)
    assert (coded, coded) == ("w:right" in codes, "w" in memory)
    if not coded:
        assert values.tobytes() == codes["w"].tobytes()


# --- zstd ------------------------------------------------------------------------------------------


def test_zstd_sorts_bytes_by_significance() -> None:
    """1.0 and -2.5 are 00 00 80 3f and 00 00 20 c0 in memory; sorted 0000, 0000, 8020, 3fc0. int8 stays as it is."""
    weights: Weights = {"a": np.array([1.0, -2.5], np.float32), "b": np.array([1, 2, 3], np.int8), "c": np.zeros(0)}
    payload = Chain((Zstd(level=3),)).encode(weights, seed=0).payload
    content = zstandard.ZstdDecompressor().decompress(payload)
    assert bytes.fromhex("00000000 8020 3fc0 010203") == content[-11:]
    assert content[:-11] == Chain().encode(weights, seed=0).payload[:-11]


def test_zstd_shrinks_what_repeats_and_hardly_grows_what_does_not() -> None:
    """float32 from a normal distribution: sign and exponent repeat; random bytes stay within the bound."""
    chance = np.random.default_rng(0)
    normal: Weights = {"w": chance.normal(size=50_000).astype(np.float32)}
    assert 8 * len(Chain((Zstd(level=3),)).encode(normal, seed=0).payload) / 50_000 < 28.5
    for size in (0, 1, 1000, 300_000):
        noise: Weights = {"w": np.frombuffer(chance.bytes(size), np.uint8)}
        for level in (1, 19):
            chain = Chain((Zstd(level),))
            assert len(chain.encode(noise, seed=0).payload) <= chain.max_bytes(noise)


@pytest.mark.parametrize("size", [0, 1, 1000, 2**17 - 1, 2**17, 10**6])
def test_zstd_bound_is_that_of_the_library(size: int) -> None:
    """ZSTD_COMPRESSBOUND of zstd.h: size + size / 256, and below 128 KiB a 2048th of what is missing to it."""
    assert size + (size >> 8) + ((2**17 - size) >> 11 if size < 2**17 else 0) == Zstd(level=3).max_bytes(size)


# --- error feedback --------------------------------------------------------------------------------

FEEDBACK: dict[str, tuple[Any, ...]] = {
    "top_k": (TopK(fraction=0.1, error_feedback=True),),
    "top_k int8 zstd": (TopK(fraction=0.1, error_feedback=True), Int8(block=0, error_feedback=False), Zstd(level=3)),
    "sign": (Sign(error_feedback=True),),
    "low_rank": (LowRank(rank=1, error_feedback=True),),
    "low_rank fp16": (LowRank(rank=1, error_feedback=True), Fp16(error_feedback=False)),
    "int8": (Int8(error_feedback=True, block=0),),
    "int4": (Int4(block=0, error_feedback=True),),
    "fp16": (Fp16(error_feedback=True),),
    "bf16": (Bf16(error_feedback=True),),
}


@pytest.mark.parametrize("name", sorted(FEEDBACK))
def test_error_feedback_sends_in_time_what_was_left_out(name: str) -> None:
    """What was decoded over the rounds plus the residual is the sum of the inputs, and the residual stays bounded.

    Inputs are a constant plus noise. Each codec here loses at most a part of the squared norm, so the residual is
    bounded over the rounds, and the mean of what was decoded tends to the mean of the inputs as 1 / rounds.
    """
    chance, chain = np.random.default_rng(2), Chain(FEEDBACK[name])
    constant: dict[str, Floats] = {"w": chance.normal(size=(10, 12)), "b": chance.normal(size=5)}
    sent: dict[str, Floats] = {n: np.zeros(a.shape) for n, a in constant.items()}
    total: dict[str, Floats] = {n: np.zeros(a.shape) for n, a in constant.items()}
    memory, sizes, gaps = dict[str, Array](), list[float](), list[float]()
    for number in range(1, 101):
        inputs: dict[str, Array] = {n: a + 0.1 * chance.normal(size=a.shape) for n, a in constant.items()}
        coded = chain.encode(inputs, memory=memory, seed=number)
        memory, decoded = coded.memory, chain.receive(coded.payload, inputs)
        for n in constant:
            sent[n] += f64(decoded[n])
            total[n] += f64(inputs[n])
            np.testing.assert_allclose(sent[n] + f64(memory[f"residual/{n}"]), total[n], atol=1e-9)
        sizes.append(float(sum(np.sum(f64(memory[f"residual/{n}"]) ** 2) for n in constant)))
        gaps.append(float(sum(np.sum((sent[n] - total[n]) ** 2) for n in constant)) ** 0.5 / number)
    assert max(sizes[50:]) <= 1.5 * max(sizes[:50])
    assert gaps[99] < 0.6 * gaps[39] or gaps[99] < 1e-6


def test_error_feedback_by_hand() -> None:
    """sign of (3, 1): scale 2, sent (2, 2), left (1, -1). Next (0, 0): t = (1, -1), scale 1, sent (1, -1), left 0.

    nmse: (1 + 1) / (9 + 1) = 0.2, then 0.
    """
    chain = Chain((Sign(error_feedback=True),))
    one = chain.encode({"w": np.array([3.0, 1.0])}, seed=0)
    assert [2, 2] == chain.receive(one.payload, {"w": np.zeros(2)})["w"].tolist()
    assert [1, -1] == one.memory["residual/w"].tolist()
    assert 0.2 == pytest.approx(one.nmse)
    two = chain.encode({"w": np.zeros(2)}, memory=one.memory, seed=0)
    assert ([1, -1], [0, 0], 0.0) == (
        chain.receive(two.payload, {"w": np.zeros(2)})["w"].tolist(),
        two.memory["residual/w"].tolist(),
        two.nmse,
    )


@pytest.mark.parametrize(
    "stage",
    [
        TopK(error_feedback=False, fraction=0.05),
        Sign(error_feedback=False),
        Int8(block=0, error_feedback=False),
        Fp16(error_feedback=False),
    ],
)
def test_without_error_feedback_nothing_is_kept(stage: Stage) -> None:
    """And a residual from elsewhere is not added."""
    chain, weights = Chain((stage,)), {"w": np.arange(9.0)}
    kept = {"residual/w": np.full(9, 100.0)}
    assert {} == chain.encode(weights, seed=0).memory
    assert chain.encode(weights, seed=0).payload == chain.encode(weights, memory=kept, seed=0).payload


def test_low_rank_memory_passes_through_the_chain() -> None:
    """The second round starts from the Q of the first: another payload than a first round of the same numbers."""
    chain = Chain((LowRank(rank=1, error_feedback=True),), feedback=False)
    weights: Weights = {"w": np.random.default_rng(0).normal(size=(9, 9))}
    first = chain.encode(weights, seed=0)
    assert {"LowRank/w"} == first.memory.keys()
    second = chain.encode(weights, memory=first.memory, seed=0)
    assert second.nmse < first.nmse
    assert first.payload != second.payload


@pytest.mark.parametrize("name", sorted(FEEDBACK))
def test_weights_that_are_held_need_no_error_feedback(name: str) -> None:
    """Down the link: the next difference from what the receivers hold contains what they did not get.

    The server stands still, and the receivers come ever closer to it; with the residual on top, every error would
    be sent twice.
    """
    chance, chain = np.random.default_rng(4), Chain(FEEDBACK[name], feedback=False)
    server: Weights = {"w": chance.normal(size=(10, 12)), "b": chance.normal(size=5)}
    held: Weights = {n: np.zeros(a.shape) for n, a in server.items()}
    memory: Weights = {}
    gaps = [1.0]
    for number in range(60):
        coded = chain.encode(server, held, memory=memory, seed=number)
        held, memory = chain.advance(held, coded.payload), coded.memory
        gaps.append(float(sum(np.sum((f64(server[n]) - f64(held[n])) ** 2) for n in server)))
    assert not any(key.startswith("residual/") for key in memory)
    assert gaps[-1] < 1e-3 * gaps[1]


# --- what the documentation says -------------------------------------------------------------------


def test_documentation_names_every_stage_and_tells_the_figures_that_were_measured() -> None:
    """The table of docs/coordinator/codecs.md is the benchmark's result file, rounded."""
    root = ROOT
    text = (root / "docs" / "coordinator" / "codecs.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    assert set(CODECS) <= {row[0].strip("`") for row in cells if len(row) == 3}

    def told(number: str) -> str:
        return "0" if float(number) == 0 else f"{float(number):.2g}"

    expected: dict[str, list[str]] = {}
    with (root / "benchmarks" / "results" / "codecs.csv").open(encoding="utf-8") as file:
        for row in sorted(csv.DictReader(file), key=lambda row: row["model"]):
            name, size = f"`{row['chain']}`", f"{float(row['bits_per_parameter']):.2f}"
            if row["model"] == "resnet18":
                errors = [told(row["nmse"]), told(row["nmse_of_sum"])]
                expected[name] = [name, size, *errors, row["encode_mb_s"], row["decode_mb_s"]]
            else:
                expected[name] += [size, told(row["nmse_of_sum"])]
    assert list(expected.values()) == [row for row in cells if len(row) == 8 and row[0] in expected]
