"""Codecs: the law of every codec in the registry, and bytes from outside that can do no harm."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.codecs import CODECS, Codec, Identity
from common.errors import ProtocolError
from common.weights import Array, Weights, check_like

DTYPES: tuple[Any, ...] = (np.float32, np.float64, np.int64)

WEIGHTS: dict[str, Array] = {
    "head.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "head.bias": np.array([1e-300, -0.0, 1e300]),
    "bn.count": np.array(2**62 + 1),
    "scale": np.array(0.1, dtype=np.float32),
    "none": np.zeros((0, 3), dtype=np.float32),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "every second": np.arange(10.0)[::2],
}


@pytest.fixture(params=sorted(CODECS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]()


def each_codec(test: Any) -> Any:
    """Run a property over every codec of the registry (a fixture would be shared between its examples)."""
    return pytest.mark.parametrize("name", sorted(CODECS))(test)


def weights_of_any_form() -> st.SearchStrategy[dict[str, Array]]:
    """Draw weights with any names, of float32 (every bit pattern, so every NaN), float64 and int64."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    bits = hnp.arrays(np.uint32, shapes).map(lambda array: array.view(np.float32))
    others = st.sampled_from([np.float64, np.int64]).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=10).filter(lambda name: name != "__metadata__")
    return st.dictionaries(names, bits | others, max_size=4)


# --- contract: every codec -------------------------------------------------------------------------


def test_codec_keeps_names_shapes_and_dtypes(codec: Codec) -> None:
    """The law: float32, float64, int64, a 0-d array, an empty array, and any layout in memory."""
    check_like(codec.decode(codec.encode(WEIGHTS)), WEIGHTS, who="law")


def test_codec_keeps_counts_exactly(codec: Codec) -> None:
    """Whatever a codec does to floating-point numbers, an integer buffer arrives as it left."""
    assert 2**62 + 1 == codec.decode(codec.encode(WEIGHTS))["bn.count"]


def test_codec_of_nothing_is_nothing(codec: Codec) -> None:
    """A method that shares no array sends a payload all the same, and it decodes to no arrays."""
    assert {} == codec.decode(codec.encode({}))


def test_codec_leaves_its_input_alone_and_is_pure(codec: Codec) -> None:
    """Encoding twice decodes to the same arrays, and the input has not changed."""
    kept = {name: array.tobytes() for name, array in WEIGHTS.items()}
    first, second = codec.decode(codec.encode(WEIGHTS)), codec.decode(codec.encode(WEIGHTS))
    assert kept == {name: array.tobytes() for name, array in WEIGHTS.items()}
    assert {n: a.tobytes() for n, a in first.items()} == {n: a.tobytes() for n, a in second.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoded_arrays_can_be_written_to(codec: Codec, dtype: Any) -> None:
    """What is decoded belongs to the receiver: writing to it does not raise, nor change another decoding."""
    payload = codec.encode({"w": np.ones(3, dtype)})
    codec.decode(payload)["w"][:] = 5
    assert [1, 1, 1] == np.rint(codec.decode(payload)["w"].astype(np.float64)).tolist()


@each_codec
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_are_a_protocol_error_or_weights(name: str, content: bytes) -> None:
    """Bytes that no codec wrote raise ProtocolError, never anything else."""
    _decodes_or_refuses(CODECS[name](), content)


@each_codec
@given(header=st.binary(max_size=120) | st.text(max_size=60).map(str.encode), rest=st.binary(max_size=40))
def test_arbitrary_header_is_a_protocol_error_or_weights(name: str, header: bytes, rest: bytes) -> None:
    """The same with a length in front that makes the header be read."""
    _decodes_or_refuses(CODECS[name](), len(header).to_bytes(8, "little") + header + rest)


@each_codec
@given(where=st.integers(0, 10_000), value=st.integers(0, 255))
def test_damaged_payload_is_a_protocol_error_or_weights(name: str, where: int, value: int) -> None:
    """One byte changed anywhere in a valid payload."""
    codec = CODECS[name]()
    content = bytearray(codec.encode(WEIGHTS))
    content[where % len(content)] = value
    _decodes_or_refuses(codec, bytes(content))


def test_cut_payload_is_a_protocol_error(codec: Codec) -> None:
    """Every proper beginning of a valid payload is refused, with its size in the sentence."""
    whole = codec.encode({"w": np.arange(4.0), "b": np.array(1.0)})
    for length in range(len(whole)):
        with pytest.raises(ProtocolError, match=f"payload of {length} bytes"):
            codec.decode(whole[:length])


@pytest.mark.parametrize(
    "header",
    [
        b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}',
        b'{"w":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}',
        b'{"w":{"dtype":"F32","shape":[0,4611686018427387904,1099511627776],"data_offsets":[0,0]}}',
        b'{"w":' * 3000,
        b"[" * 3000,
    ],
    ids=["dtype that NumPy lacks", "huge dimension", "huge product", "deep objects", "deep lists"],
)
def test_hostile_header_is_a_protocol_error(codec: Codec, header: bytes) -> None:
    """Headers chosen to overflow or to exhaust the reader are refused without allocating anything."""
    with pytest.raises(ProtocolError):
        codec.decode(len(header).to_bytes(8, "little") + header + b"\0\0")


def _decodes_or_refuses(codec: Codec, content: bytes) -> None:
    try:
        decoded: Weights = codec.decode(content)
    except ProtocolError:
        return
    assert all(isinstance(array, np.ndarray) for array in decoded.values())


# --- identity --------------------------------------------------------------------------------------


@given(weights_of_any_form())
def test_identity_is_exact_bit_for_bit(weights: dict[str, Array]) -> None:
    """Every bit arrives, also those inside a NaN and the sign of a zero."""
    decoded = Identity().decode(Identity().encode(weights))
    check_like(decoded, weights, who="law")
    assert {name: array.tobytes() for name, array in weights.items()} == {
        name: array.tobytes() for name, array in decoded.items()
    }
