"""Codecs: the law of every stage and chain, what both ends agree on, and bytes from outside that can do no harm.

The stages' own numbers are in test_codec_numbers.
"""

import ast
import dataclasses
import functools
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import load, save

from consilium.common.codecs import CODECS, ByteStage, Chain, Identity, Stage, build_chain, form_of
from consilium.common.codecs.base import bytes_of
from consilium.common.codecs.container import container_bytes, pack
from consilium.common.codecs.identity import Unchanged
from consilium.common.errors import ProtocolError, StateError, UpdateRejected, is_clean
from consilium.common.study.codecs import CodecConfig
from consilium.common.study.ranges import variants
from consilium.common.weights.arithmetic import subtract
from consilium.common.weights.arrays import Array, Weights
from consilium.common.weights.checks import check_like

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


WHOLE = {"identity": Identity}
"""Codecs of whole weights."""


@pytest.fixture(params=sorted(WHOLE))
def codec(request: pytest.FixtureRequest) -> Identity:
    """Return every codec of whole weights in turn."""
    return WHOLE[request.param]()


def each_codec(test: Any) -> Any:
    """Run a property over every codec of the registry (a fixture would be shared between its examples)."""
    return pytest.mark.parametrize("name", sorted(WHOLE))(test)


def weights_of_any_form() -> st.SearchStrategy[dict[str, Array]]:
    """Draw weights with any names, of float32 (every bit pattern, so every NaN), float64 and int64."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    bits = hnp.arrays(np.uint32, shapes).map(lambda array: array.view(np.float32))
    others = st.sampled_from([np.float64, np.int64]).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=10).filter(
        lambda name: name != "__metadata__" and is_clean(name)
    )
    return st.dictionaries(names, bits | others, max_size=4)


# --- weights whose form is not known: every codec --------------------------------------------------


def test_codec_keeps_names_shapes_and_dtypes(codec: Identity) -> None:
    """The law: float32, float64, int64, a 0-d array, an empty array, and any layout in memory."""
    check_like(codec.decode(codec.encode(WEIGHTS)), WEIGHTS, who="law")


def test_codec_keeps_counts_exactly(codec: Identity) -> None:
    """Whatever a codec does to floating-point numbers, an integer buffer arrives as it left."""
    assert 2**62 + 1 == codec.decode(codec.encode(WEIGHTS))["bn.count"]


def test_codec_of_nothing_is_nothing(codec: Identity) -> None:
    """A method that shares no array sends a payload all the same, and it decodes to no arrays."""
    assert {} == codec.decode(codec.encode({}))


def test_codec_leaves_its_input_alone_and_is_pure(codec: Identity) -> None:
    """Encoding twice decodes to the same arrays, and the input has not changed."""
    kept = {name: array.tobytes() for name, array in WEIGHTS.items()}
    first, second = codec.decode(codec.encode(WEIGHTS)), codec.decode(codec.encode(WEIGHTS))
    assert kept == {name: array.tobytes() for name, array in WEIGHTS.items()}
    assert {n: a.tobytes() for n, a in first.items()} == {n: a.tobytes() for n, a in second.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoded_arrays_lie_in_the_payload_and_cannot_be_written_to(codec: Identity, dtype: Any) -> None:
    """Nothing is copied, and nobody can change what another reads."""
    array = codec.decode(codec.encode({"w": np.ones(3, dtype)}))["w"]
    assert array.base is not None
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 5


@each_codec
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_are_a_protocol_error_or_weights(name: str, content: bytes) -> None:
    """Bytes that no codec wrote raise ProtocolError, never anything else."""
    _decodes_or_refuses(WHOLE[name](), content)


@each_codec
@given(header=st.binary(max_size=120) | st.text(max_size=60).map(str.encode), rest=st.binary(max_size=40))
def test_arbitrary_header_is_a_protocol_error_or_weights(name: str, header: bytes, rest: bytes) -> None:
    """The same with a length in front that makes the header be read."""
    _decodes_or_refuses(WHOLE[name](), len(header).to_bytes(8, "little") + header + rest)


@each_codec
@given(where=st.integers(0, 10_000), value=st.integers(0, 255))
def test_damaged_payload_is_a_protocol_error_or_weights(name: str, where: int, value: int) -> None:
    """One byte changed anywhere in a valid payload."""
    codec = WHOLE[name]()
    content = bytearray(codec.encode(WEIGHTS))
    content[where % len(content)] = value
    _decodes_or_refuses(codec, bytes(content))


def test_cut_payload_is_a_protocol_error(codec: Identity) -> None:
    """Every proper beginning of a valid payload is refused, with its size in the sentence."""
    whole = codec.encode({"w": np.arange(4.0), "b": np.array(1.0)})
    for length in range(len(whole)):
        with pytest.raises(ProtocolError, match=f"payload of {length} bytes"):
            codec.decode(whole[:length])


HOSTILE = {
    "dtype that NumPy lacks": b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}',
    "huge dimension": b'{"w":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}',
    "huge product": b'{"w":{"dtype":"F32","shape":[0,4611686018427387904,1099511627776],"data_offsets":[0,0]}}',
    "more digits than JSON writes": b'{"w":{"dtype":"F32","shape":[' + b",".join([b"%d" % 2**62] * 250) + b"]}}",
    "product of many": b'{"w":{"dtype":"F32","shape":[' + b",".join([b"%d" % 2**62] * 60) + b"]}}",
    "deep objects": b'{"w":' * 3000,
    "deep lists": b"[" * 3000,
}
each_hostile_header = pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE.keys())


@each_hostile_header
def test_hostile_header_is_a_protocol_error(codec: Identity, header: bytes) -> None:
    """Headers chosen to overflow or to exhaust the reader are refused without allocating anything."""
    with pytest.raises(ProtocolError):
        codec.decode(len(header).to_bytes(8, "little") + header + b"\0\0")


def _decodes_or_refuses(codec: Identity, content: bytes) -> None:
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


# --- stages and chains -----------------------------------------------------------------------------

MODEL: dict[str, Any] = {
    "conv.weight": np.linspace(-1e-3, 2e-3, 8 * 4 * 9, dtype=np.float32).reshape(8, 4, 3, 3),
    "head.weight": np.cos(np.arange(60.0)).reshape(6, 10),
    "half.weight": np.sin(np.arange(30.0)).reshape(5, 6).astype(np.float16),
    "head.bias": np.array([1e-8, -3e-8, 0.0, -0.0, 2e-8], dtype=np.float32),
    "columns": np.asfortranarray(np.arange(70, dtype=np.float32).reshape(7, 10) / 7),
    "scale": np.array(-0.1, dtype=np.float32),
    "none": np.zeros((0, 3), dtype=np.float32),
    "zero": np.zeros((6, 6), dtype=np.float32),
    "bn.count": np.array(2**62 + 1),
    "token": np.array([[-3, 2**31 - 1]], dtype=np.int32),
}
HELD: dict[str, Any] = {
    name: (array * 0 + np.asarray(0.75 if array.dtype.kind == "f" else 7)).astype(array.dtype)
    for name, array in MODEL.items()
}
"""What the receiver holds already."""
AFTER: dict[str, Array] = {name: np.asarray(HELD[name] + MODEL[name]) for name in MODEL}

CHAINS: dict[str, list[dict[str, Any]]] = {
    "": [],
    **{kind: [{"kind": kind}] for kind in CODECS},
    "int8 blocks": [{"kind": "int8", "block": 16, "error_feedback": True}],
    "int4 array": [{"kind": "int4", "block": 0}],
    "identity zstd": [{"kind": "identity"}, {"kind": "zstd", "level": 1}],
    "integer_delta zstd": [{"kind": "integer_delta"}, {"kind": "zstd"}],
    "bf16 zstd": [{"kind": "bf16"}, {"kind": "zstd"}],
    "top_k int8 zstd": [{"kind": "top_k", "fraction": 0.3}, {"kind": "int8"}, {"kind": "zstd"}],
    "low_rank fp16": [{"kind": "low_rank", "rank": 1}, {"kind": "fp16"}],
    "low_rank top_k int4 zstd": [
        {"kind": "low_rank", "rank": 2},
        {"kind": "top_k"},
        {"kind": "int4"},
        {"kind": "zstd"},
    ],
    "sign zstd": [{"kind": "sign"}, {"kind": "zstd"}],
}
LOSSLESS = sorted(name for name in CHAINS if set(name.split()) <= {"identity", "integer_delta", "zstd"})
LOSSY = sorted(set(CHAINS) - set(LOSSLESS))
ARRAY_KINDS = sorted(set(CODECS) - {"zstd"})
CITED = {"int8", "int4", "top_k", "sign", "low_rank", "zstd"}

CONFIGS: TypeAdapter[Any] = TypeAdapter(list[CodecConfig])
KINDS = {variant.model_fields["kind"].default: variant for variant in variants(CodecConfig)}


def chain(name: str, *, exact: frozenset[str] = frozenset()) -> Chain:
    """Return a chain of codecs by its name above."""
    return build_chain(CONFIGS.validate_python(CHAINS[name]), exact=exact)


def array_stage(kind: str) -> Stage:
    """Return the only stage of a chain, which codes arrays."""
    (stage,) = chain(kind).stages
    assert not isinstance(stage, ByteStage)
    return stage


def bits(weights: Weights) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Everything there is to compare."""
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in sorted(weights.items())}


each_chain = pytest.mark.parametrize("name", sorted(CHAINS))
each_lossless = pytest.mark.parametrize("name", LOSSLESS)
each_lossy = pytest.mark.parametrize("name", LOSSY)
each_array_stage = pytest.mark.parametrize("kind", ARRAY_KINDS)
each_kind = pytest.mark.parametrize("kind", sorted(CODECS))


@st.composite
def models(draw: st.DrawFn, *, finite: bool = True) -> dict[str, Array]:
    """Draw arrays of any form: floats of any magnitude that is far from overflow, or of any bits; and integers."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays: dict[str, Array] = {}
    for name in draw(st.sets(st.sampled_from(["head.weight", "head.bias", "é", "control/a", "n"]), max_size=4)):
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
        dtype = np.dtype(draw(st.sampled_from(["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8"])))
        raw = np.frombuffer(chance.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape).copy()
        if dtype.kind == "f" and finite:
            low, high = {2: (-7, 3), 4: (-44, 36), 8: (-322, 36)}[dtype.itemsize]
            magnitude = 10.0 ** draw(st.integers(low, high))
            raw = (chance.normal(size=shape) * magnitude * chance.integers(0, 2, shape)).astype(dtype)
        arrays[name] = np.asarray(raw)
    return arrays


# --- contract: every stage in the registry ---------------------------------------------------------


def test_every_stage_has_its_settings_and_the_reverse() -> None:
    """What a study may name is what the registry holds, in the same order."""
    assert list(KINDS) == list(CODECS)


@each_kind
def test_stage_is_a_frozen_dataclass_whose_fields_are_its_settings(kind: str) -> None:
    """A variant's keys, but for `kind`, are its class's fields, without a second default; what a study sets arrives."""
    cls, settings = CODECS[kind], KINDS[kind]().model_dump(exclude={"kind"})
    assert dataclasses.is_dataclass(cls)
    stage = cls(**settings)
    assert settings == dataclasses.asdict(stage)
    assert build_chain([KINDS[kind]()]) == Chain((stage,))
    for field in dataclasses.fields(cls):
        assert field.default is dataclasses.MISSING
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, field.name, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "int8", "block": -1},
        {"kind": "int4", "block": 65537},
        {"kind": "top_k", "fraction": 0},
        {"kind": "top_k", "fraction": 1.01},
        {"kind": "low_rank", "rank": 0},
        {"kind": "zstd", "level": 0},
        {"kind": "zstd", "level": 20},
        {"kind": "zip"},
        {"kind": "identity", "level": 1},
    ],
    ids=str,
)
def test_settings_out_of_bounds_are_refused(bad: dict[str, Any]) -> None:
    """Bounds are those of the file; nothing is rounded to the nearest that is allowed."""
    with pytest.raises(ValidationError):
        CONFIGS.validate_python([bad])


@each_kind
def test_stage_states_its_bound_and_its_paper(kind: str) -> None:
    """One sentence, the paper where there is one, the bound."""
    text = sys.modules[CODECS[kind].__module__].__doc__ or ""
    assert text.startswith(f"{kind}: ")
    assert "\nBound: " in text
    assert (kind in CITED) == ("https://" in text)


@each_kind
def test_stage_knows_no_other_stage(kind: str) -> None:
    """A stage is read in one file: of its own folder it imports `base` only, and it has no logger, clock or chance."""
    tree = ast.parse(Path(sys.modules[CODECS[kind].__module__].__file__ or "").read_text(encoding="utf-8"))
    seen = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    seen |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    codecs = "consilium.common.codecs"
    assert {name for name in seen if name and name.startswith(codecs)} <= {f"{codecs}.base"}
    assert seen.isdisjoint({"logging", "time", "random", "pydantic"})


@each_array_stage
@settings(max_examples=25)
@given(model=models())
def test_stage_keeps_the_law_and_the_form_it_foretells(kind: str, model: dict[str, Array]) -> None:
    """What is encoded has the form that follows from the input's form; what decodes has the input's form.

    Integers arrive exactly, the input is left alone, and the same seed gives the same arrays.
    """
    stage, before = array_stage(kind), bits(model)
    encoded, memory = stage.encode(model, {}, 7)
    assert dict(stage.form(form_of(model))) == form_of(encoded)
    decoded = stage.decode(encoded, form_of(model))
    assert form_of(model) == form_of(decoded)
    assert all(np.array_equal(array, decoded[name]) for name, array in model.items() if array.dtype.kind in "iu")
    assert before == bits(model)
    again, same = stage.encode(model, {}, 7)
    assert (bits(encoded), bits(memory)) == (bits(again), bits(same))


# --- chains: the three uses ------------------------------------------------------------------------


@each_chain
def test_chain_keeps_names_shapes_and_dtypes(name: str) -> None:
    """The law, in each of the three uses."""
    codec = chain(name)
    difference = codec.encode(AFTER, HELD, seed=1)
    check_like(codec.decode(difference.payload, HELD), MODEL, who="decode")
    check_like(codec.advance(HELD, difference.payload), MODEL, who="advance")
    check_like(codec.receive(codec.encode(MODEL, seed=1).payload, HELD), MODEL, who="receive")


@each_chain
@settings(max_examples=15)
@given(model=models())
def test_chain_of_any_model_decodes_within_its_size(name: str, model: dict[str, Array]) -> None:
    """Any form, any magnitude: what decodes has the form, integers are exact, the payload is within `max_bytes`."""
    codec = chain(name)
    encoded = codec.encode(model, seed=3)
    assert len(encoded.payload) <= codec.max_bytes(model)
    decoded = codec.receive(encoded.payload, model)
    assert form_of(model) == form_of(decoded)
    assert all(np.array_equal(array, decoded[n]) for n, array in model.items() if array.dtype.kind in "iu")


@each_chain
def test_all_ways_to_decode_agree(name: str) -> None:
    """`advance` is the reference plus what `decode` gives, in the arrays' own dtypes; a lossless chain is exact."""
    codec = chain(name)
    payload = codec.encode(AFTER, HELD, seed=1).payload
    delta, weights = codec.decode(payload, HELD), codec.advance(HELD, payload)
    if codec.lossless:
        assert bits(AFTER) == bits(weights)
        assert bits(subtract(AFTER, HELD)) == bits(delta)
    else:
        assert bits({n: np.asarray(np.add(HELD[n], delta[n])) for n in HELD}) == bits(weights)
        assert bits(codec.receive(payload, HELD)) == bits(delta)


@each_lossy
def test_lossy_chain_of_a_delta_is_that_of_the_difference(name: str) -> None:
    """A delta that was clipped and noised is coded as it is: the same payload as from weights and reference."""
    delta = {n: np.asarray(array) for n, array in subtract(AFTER, HELD).items()}
    assert chain(name).encode(AFTER, HELD, seed=4).payload == chain(name).encode(delta, seed=4).payload


@each_lossless
@settings(max_examples=25)
@given(model=models(finite=False), data=st.data())
def test_lossless_chain_is_exact_bit_for_bit(name: str, model: dict[str, Array], data: st.DataObject) -> None:
    """Every bit pattern of every dtype arrives, from any reference: -0.0, subnormals, NaN; the error is 0."""
    chance = np.random.default_rng(data.draw(st.integers(0, 99)))
    held = {n: np.frombuffer(chance.bytes(a.nbytes), a.dtype).reshape(a.shape) for n, a in model.items()}
    codec = chain(name)
    encoded = codec.encode(model, held, seed=0)
    assert (0.0, {}) == (encoded.nmse, encoded.memory)
    assert bits(model) == bits(codec.advance(held, encoded.payload))
    assert bits(model) == bits(codec.receive(codec.encode(model, seed=0).payload, held))
    if not any(np.isnan(a).any() for a in (*model.values(), *held.values()) if a.dtype.kind == "f"):
        with np.errstate(over="ignore", invalid="ignore"):  # infinities, and differences that become one
            expected = subtract(model, held)
            assert bits(expected) == bits(codec.decode(encoded.payload, held))


@each_lossless
def test_lossless_chain_gives_the_delta_of_today(name: str) -> None:
    """The server computes from the weights what a site computed itself: `after - before` in the arrays' dtype."""
    chance = np.random.default_rng(5)
    before: dict[str, Any] = {"w": chance.normal(size=500).astype(np.float32), "n": np.array(4)}
    after: dict[str, Array] = {"w": before["w"] + chance.normal(size=500).astype(np.float32) / 100, "n": np.array(9)}
    codec = chain(name)
    assert bits(subtract(after, before)) == bits(codec.decode(codec.encode(after, before, seed=0).payload, before))


@each_chain
def test_equal_seeds_give_equal_bytes(name: str) -> None:
    """Pure: inputs are left alone, and a second call gives the same bytes and the same memory."""
    inputs, codec = [bits(AFTER), bits(HELD)], chain(name)
    first, second = (codec.encode(AFTER, HELD, seed=11) for _ in range(2))
    assert (first.payload, bits(first.memory), first.nmse) == (second.payload, bits(second.memory), second.nmse)
    assert inputs == [bits(AFTER), bits(HELD)]


@pytest.mark.parametrize("name", ["int8", "int4", "int8 blocks", "low_rank fp16"])
def test_other_seeds_give_other_bytes(name: str) -> None:
    """Random rounding, and the random start of the power iteration."""
    assert chain(name).encode(AFTER, HELD, seed=1).payload != chain(name).encode(AFTER, HELD, seed=2).payload


def test_stages_of_a_chain_draw_from_different_chance() -> None:
    """A stage's seed depends on the chain's and on the stage, so that two stages never draw the same numbers."""
    seen: list[int] = []

    class Look(Unchanged):
        def encode(self, arrays: Weights, memory: Weights, seed: int) -> Any:
            seen.append(seed)
            return dict(arrays), {}

    class Other(Look):
        pass

    for seed in (1, 2):
        Chain((Look(), Other())).encode(MODEL, seed=seed)
    assert 4 == len(set(seen))


@each_chain
def test_memory_has_the_same_form_from_the_first_call_on(name: str) -> None:
    """What a site keeps on disk never changes its names, shapes and dtypes; with error feedback it is not empty."""
    codec = chain(name)
    first = codec.encode(AFTER, HELD, seed=1)
    second = codec.encode(HELD, AFTER, memory=first.memory, seed=2)
    assert form_of(first.memory) == form_of(second.memory)
    floats = {f"residual/{n}" for n, array in MODEL.items() if array.dtype.kind == "f"}
    assert (floats if codec.error_feedback else set()) == {n for n in first.memory if n.startswith("residual/")}


@each_chain
def test_what_is_decoded_can_be_written_to(name: str) -> None:
    """It belongs to the receiver: no view of the payload, of the reference, or of another decoding."""
    codec, inputs = chain(name), [bits(AFTER), bits(HELD)]
    payload = codec.encode(AFTER, HELD, seed=1).payload
    expected = bits(codec.advance(HELD, payload))
    for decoded in (codec.decode(payload, HELD), codec.advance(HELD, payload), codec.receive(payload, HELD)):
        for array in decoded.values():
            array[...] = 5
    assert expected == bits(codec.advance(HELD, payload))
    assert inputs == [bits(AFTER), bits(HELD)]


@each_chain
def test_nothing_is_coded_as_nothing(name: str) -> None:
    """A method that shares no array sends a payload all the same."""
    codec = chain(name)
    encoded = codec.encode({}, {}, seed=0)
    assert (0.0, {}) == (encoded.nmse, encoded.memory)
    assert {} == codec.decode(encoded.payload, {}) == codec.advance({}, encoded.payload)


@each_chain
def test_no_difference_arrives_as_no_difference(name: str) -> None:
    """Weights that did not move decode to zeros and advance to themselves, with an error of 0."""
    codec = chain(name)
    encoded = codec.encode(HELD, HELD, seed=0)
    assert 0.0 == encoded.nmse
    assert not any(array.any() for array in codec.decode(encoded.payload, HELD).values())
    assert bits(HELD) == bits(codec.advance(HELD, encoded.payload))


@each_lossy
def test_nmse_is_the_squared_error_over_the_squared_norm(name: str) -> None:
    """Over all floating-point arrays, computed anew from what the receiver decodes; in any unit."""
    codec = chain(name)
    encoded = codec.encode(MODEL, seed=1)
    decoded = codec.receive(encoded.payload, MODEL)
    if name != "bf16" and "zstd" not in name:
        for unit in (2.0**-1000, 2.0**900):
            model: dict[str, Array] = {"w": MODEL["head.weight"] * unit}
            same = codec.encode({"w": MODEL["head.weight"]}, seed=1).nmse
            assert codec.encode(model, seed=1).nmse == pytest.approx(same, rel=1e-6)
    floats = [n for n, array in MODEL.items() if array.dtype.kind == "f"]
    error = sum(np.sum((MODEL[n].astype(float) - decoded[n].astype(float)) ** 2) for n in floats)
    assert encoded.nmse == pytest.approx(error / sum(np.sum(MODEL[n].astype(float) ** 2) for n in floats))
    assert 0 < encoded.nmse < 1


@each_chain
def test_exact_arrays_pass_a_lossy_chain_unchanged(name: str) -> None:
    """Running statistics arrive as they left, and nothing is kept of them."""
    names = frozenset({"head.bias", "half.weight", "bn.count", "not in the model"})
    codec = chain(name, exact=names)
    encoded = codec.encode(MODEL, seed=1)
    decoded = codec.receive(encoded.payload, MODEL)
    kept = names & MODEL.keys()
    assert bits({n: MODEL[n] for n in kept}) == bits({n: decoded[n] for n in kept})
    assert not {n for n in encoded.memory if n.partition("/")[2] in names}
    without = chain(name).encode({n: array for n, array in MODEL.items() if n not in names}, seed=1)
    assert encoded.nmse == pytest.approx(without.nmse)
    assert len(encoded.payload) <= codec.max_bytes(MODEL)


@each_chain
def test_payload_without_zstd_is_a_safetensors_file(name: str) -> None:
    """Any reader of safetensors reads it; names are sorted, and a model's arrays are under their own names."""
    codec = chain(name)
    payload = codec.encode(MODEL, seed=1).payload
    if not isinstance(codec.stages[-1] if codec.stages else None, ByteStage):
        assert len(payload) == codec.max_bytes(MODEL)
        read = load(payload)
        assert MODEL.keys() <= read.keys()
        header = payload[8 : 8 + int.from_bytes(payload[:8], "little")].decode()
        assert sorted(read) == sorted(read, key=lambda n: header.index(f'"{n}":'))
    if not codec.stages:
        assert bits(MODEL) == bits(Identity().decode(payload))


# --- chains: what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "why"),
    [
        (["zstd", "int8"], "bytes must be the last"),
        (["zstd", "zstd"], "once"),
        (["top_k", "top_k"], "once"),
        (["int8", "top_k"], "codes must be the last"),
        (["sign", "fp16"], "codes must be the last"),
        (["integer_delta", "int8"], "codes must be the last"),
        (["top_k", "integer_delta"], "integer_delta is exact"),
    ],
    ids=str,
)
def test_stages_that_do_not_fit_are_refused(kinds: list[str], why: str) -> None:
    """Codes are no numbers for another stage, bytes no arrays, and a lossless difference is of whole weights."""
    with pytest.raises(ValueError, match=f"{why}.*, got "):
        build_chain([KINDS[kind]() for kind in kinds])


@each_lossy
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_lossy_chain_refuses_to_code_what_is_not_finite(name: str, value: float) -> None:
    """A scale made of NaN would hide every other value; the site says so instead."""
    bad = MODEL | {"head.weight": np.full((6, 10), value)}
    with pytest.raises(UpdateRejected, match=r"'head\.weight' has 60 NaN or infinite"):
        chain(name).encode(bad, seed=0)


@each_lossy
def test_values_that_a_stage_cannot_hold_are_refused_by_the_sender(name: str) -> None:
    """Near the end of float64, either it decodes within the law or the sender refuses; never infinities on the wire."""
    huge: dict[str, Array] = {"w": np.full((9, 9), 1.7e308), "v": np.array([-1.7e308, 1.0])}
    try:
        payload = chain(name).encode(huge, seed=0).payload
    except UpdateRejected:
        return
    assert all(np.isfinite(array).all() for array in chain(name).receive(payload, huge).values())


def test_difference_too_large_for_its_dtype_is_refused() -> None:
    """2e38 - -2e38 is infinite in float32."""
    one: dict[str, Any] = {"w": np.full(3, 2e38, np.float32)}
    with pytest.raises(UpdateRejected, match="has 3 NaN or infinite"):
        chain("int8").encode(one, {"w": -one["w"]}, seed=0)


def test_sum_too_large_for_its_dtype_is_refused() -> None:
    """The sender may be honest about its difference, and the receiver's weights overflow all the same."""
    one: dict[str, Any] = {"w": np.full(3, 2e38, np.float32)}
    with pytest.raises(ProtocolError, match="weights after the difference: array 'w' has 1 NaN or infinite"):
        chain("top_k").advance(one, chain("top_k").encode(one, seed=0).payload)


@each_chain
def test_weights_of_another_form_than_the_reference_are_refused(name: str) -> None:
    """Also by a lossless chain, which looks at the reference only to subtract; and by the receiver."""
    other = HELD | {"scale": np.zeros((2, 1), np.float32)}
    with pytest.raises(UpdateRejected, match=r"array 'scale' has shape \(\), expected \(2, 1\)"):
        chain(name).encode(AFTER, other, seed=0)
    with pytest.raises(ProtocolError):
        chain(name).decode(payload_of(name), HELD | {"more": np.zeros(1)})


def test_memory_of_other_arrays_is_refused() -> None:
    """A residual of another model must not be added to this one."""
    kept = chain("top_k").encode(MODEL, seed=0).memory
    for other in ({"w": np.zeros(3)}, MODEL | {"scale": np.zeros(1, np.float32)}, MODEL | {"scale": np.array(0.0)}):
        with pytest.raises(StateError, match="fits no array"):
            chain("top_k").encode(other, memory=kept, seed=0)


def test_names_and_dtypes_that_cannot_travel_are_refused() -> None:
    """':' marks a chain's own arrays; complex numbers and other byte orders are not in the container."""
    with pytest.raises(ValueError, match="array 'w:scale' has ':' in its name"):
        chain("int8").encode({"w": np.zeros(2), "w:scale": np.zeros(2)}, seed=0)
    for dtype in ("c8", ">f4"):
        with pytest.raises(ValueError, match="array 'w' has dtype"):
            chain("").max_bytes({"w": np.zeros(2, dtype)})


# --- chains: bytes from outside --------------------------------------------------------------------


@functools.cache
def payload_of(name: str) -> bytes:
    """Return what a chain makes of the model."""
    return chain(name).encode(AFTER, HELD, seed=1).payload


def decodes_or_refuses(codec: Chain, payload: bytes) -> None:
    """Nothing but a ProtocolError, or numbers of the right form."""
    try:
        decoded = codec.decode(payload, HELD)
    except ProtocolError:
        return
    check_like(decoded, HELD, who="law")
    assert codec.lossless or all(np.isfinite(array).all() for array in decoded.values())


@each_chain
@settings(max_examples=40)
@given(data=st.data())
def test_damaged_payload_is_refused_or_of_the_right_form(name: str, data: st.DataObject) -> None:
    """Bytes changed anywhere, also in the arrays' own: scales, positions and exponents become anything."""
    content = bytearray(payload_of(name))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_refuses(chain(name), bytes(content))


@each_lossy
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_arbitrary_contents_are_refused_or_of_the_right_form(name: str, seed: int) -> None:
    """A container with the right header and any bytes at all behind it, packed as a sender would."""
    codec, chance = chain(name), np.random.default_rng(seed)
    form = codec._forms(form_of(HELD))[-1]
    arrays: dict[str, Array] = {
        n: np.frombuffer(chance.bytes(bytes_of(spec)) if chance.random() < 0.8 else bytes(bytes_of(spec)), spec[1])
        for n, spec in form.items()
    }
    content = pack(arrays, form)
    decodes_or_refuses(codec, codec._bytes.compress(content, form) if codec._bytes else content)


@each_chain
def test_cut_or_extended_payload_is_refused(name: str) -> None:
    """Every proper beginning, and any byte more."""
    codec, whole = chain(name), payload_of(name)
    for wrong in (*(whole[:n] for n in range(0, len(whole), 37)), whole[:-1], whole + b"\0", whole + whole):
        with pytest.raises(ProtocolError, match=f"payload of {len(wrong)} bytes"):
            codec.decode(wrong, HELD)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"zero": None}, "lacks array 'zero'"),
        ({"zero": np.zeros((6, 5), np.float32)}, r"'zero' is float32 \(6, 5\), expected float32 \(6, 6\)"),
        ({"zero": np.zeros((6, 6), np.int32)}, r"'zero' is int32 \(6, 6\), expected float32 \(6, 6\)"),
        ({"zero": np.zeros((9, 4), np.float32)}, r"'zero' is float32 \(9, 4\)"),
        ({"more": np.zeros(0, np.float32)}, "too long|has 11 arrays, expected 10"),
    ],
    ids=["name", "shape", "dtype", "shape of the same size", "more"],
)
def test_payload_of_another_form_is_refused_by_name(change: dict[str, Any], why: str) -> None:
    """The sentence says which array, what was seen and what was expected."""
    arrays = {n: array for n, array in (MODEL | change).items() if array is not None}
    for payload in (pack(arrays, form_of(arrays)), Identity().encode(arrays)):
        with pytest.raises(ProtocolError, match=why):
            chain("").decode(payload, HELD)


@each_hostile_header
def test_hostile_header_in_a_payload_of_the_right_length_is_refused(header: bytes) -> None:
    """Where the length is that of a good payload, the reader that says what is wrong is fed the same headers."""
    like: dict[str, Array] = {"w": np.zeros(10_000, np.float32)}
    content = len(header).to_bytes(8, "little") + header
    with pytest.raises(ProtocolError, match=r"payload of \d+ bytes"):
        chain("").decode(content.ljust(container_bytes(form_of(like)), b"\0"), like)


def test_container_in_another_order_is_refused() -> None:
    """One model has one header: the same arrays written by another writer are refused too."""
    model: dict[str, Array] = {"a": np.zeros(2, np.float16), "b": np.zeros(2, np.float32)}
    payload = save(model)  # widest numbers first, so "b" before "a"
    assert len(payload) == container_bytes(form_of(model))
    with pytest.raises(ProtocolError, match="has 2 arrays, expected 2 in"):
        chain("").decode(payload, model)


def peak_of(codec: Chain, payload: bytes, like: Weights, *, refused: bool) -> int:
    """Return the most bytes that were allocated while decoding."""
    tracemalloc.start()
    try:
        if refused:
            with pytest.raises(ProtocolError):
                codec.decode(payload, like)
        else:
            codec.decode(payload, like)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bomb_is_refused_before_it_is_expanded() -> None:
    """Frames that announce a gigabyte, no size, or the right size for too much content; none takes memory.

    A megabyte of zeros is 60 bytes in zstd; the model here is 4 KB, and the peak stays below 1 MB in each case.
    """
    like: dict[str, Array] = {"w": np.zeros(1000, np.float32)}
    codec = chain("zstd")
    size = container_bytes(form_of(like))
    whole = zstandard.ZstdCompressor().compress(bytes(2**26))
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**26))
    liar = bytearray(zstandard.ZstdCompressor(write_content_size=True).compress(bytes(2**26)))
    assert 2**26 == int.from_bytes(liar[6:10], "little"), "frame header: magic, descriptor, window, size"
    liar[6:10] = size.to_bytes(4, "little")
    skippable = b"\x50\x2a\x4d\x18" + size.to_bytes(4, "little") + bytes(size)
    codec.decode(codec.encode(like, seed=0).payload, like)  # what is loaded at first use does not count
    for payload in (whole, unknown, bytes(liar), skippable, whole[:20], b""):
        assert peak_of(codec, payload, like, refused=True) < 2**20


@each_chain
def test_decoding_takes_a_small_multiple_of_the_model(name: str) -> None:
    """At most 12 times the model's 4 MB, with all float64 on the way, and nothing for a payload that is too long."""
    like: dict[str, Any] = {"w": np.ones((1000, 1000), np.float32), "b": np.ones(1000, np.float32)}
    codec, size = chain(name), 4 * 1001_000
    payload = codec.encode({n: array * 0.5 for n, array in like.items()}, like, seed=0).payload
    assert peak_of(codec, payload, like, refused=False) < 12 * size
    assert peak_of(codec, payload + bytes(5 * size), like, refused=True) < size / 4
