"""Mutated inputs to every decoder of bytes from outside: our own errors and little memory.

More than 100,000 each night, the first tenth of them with every change. All of it runs in one process: what a
decoder written in C does to memory, or a crash, stays there. Every case follows from its kind and number alone:
`PYTHONPATH=.:tests python tests/units/test_fuzz.py png 1234` runs a single one and shows what happens.
"""

import hashlib
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

MAX_SECONDS, MAX_MEGABYTES, ADDRESS_SPACE = 1.0, 400, 8 * 2**30


@dataclass(frozen=True)
class Target:
    """A decoder of bytes from outside.

    Args:
        seeds: valid inputs.
        decode: takes bytes; what it may raise are errors of consilium, and `may`.
        mend: gives mutated bytes a right checksum again, so that what lies behind it is reached; used for every other.
    """

    seeds: Sequence[bytes]
    decode: Callable[[bytes], object]
    count: int
    may: tuple[type[Exception], ...] = ()
    mend: Callable[[bytes], bytes] | None = None


# --- mutations -------------------------------------------------------------------------------------

TOKENS = (
    b"-1", b"1e999", b"NaN", b"Infinity", b"99999999999999999999999", b"9" * 4500,
    b"null", b"true", b'""', b"[]", b"{}",
    b'"\\u001b[2J"', b'"\\ud800"', b"\x1b[2J", b"\xff\xfe", b"\x00", b"[" * 3000,
    b'{"a":' * 2000, b'"', b",", b"\n", b"/../",
)  # fmt: skip


def mutated(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the inputs after one to eight changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        _change(data, chance, seeds)
    return bytes(data)


def _change(data: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> None:
    place = chance.randrange(len(data) + 1)
    match chance.randrange(9):
        case 0 | 1 if data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
        case 2 if data:
            data[place % len(data)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        case 3:
            del data[place:]
        case 4:
            data[place:place] = chance.randbytes(chance.randint(1, 16))
        case 5:  # what may be a length
            width = chance.choice((1, 2, 4, 8))
            value = chance.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, 65535))
            value = value % 2 ** (8 * width)
            data[place : place + width] = value.to_bytes(width, chance.choice(("little", "big")))
        case 6:
            other = chance.choice(seeds)
            data[place:] = other[chance.randrange(len(other) + 1) :]
        case 7:
            del data[place : place + chance.randint(1, 64)]
        case _:
            data[place : place + chance.choice((0, 0, 1, 4))] = chance.choice(TOKENS)


def case_of(kind: str, target: Target, number: int) -> bytes:
    """Return a kind's input of this number."""
    chance = random.Random(f"{kind}/{number}")
    data = mutated(chance, target.seeds)
    return target.mend(data) if target.mend is not None and number % 2 else data


# --- targets ---------------------------------------------------------------------------------------


def wire_targets() -> Iterator[tuple[str, Target]]:
    """Messages of the wire, and orders: with a wrong signature, and wrong with a right one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from google.protobuf.message import DecodeError

    from consilium.common.wire import wire_pb2 as pb
    from consilium.common.wire.envelope import Order, open_order, sign_order

    from_site = [
        pb.FromSite(hello=pb.Hello(protocol=1, consilium="0.1.0", tasks=[b"a" * 16])),
        pb.FromSite(reply=pb.Reply(task=b"a" * 16, text=b'{"kind": "round"}', payload=b"p" * 50)),
        pb.FromSite(renew=pb.Renew(request=b"-----BEGIN CERTIFICATE REQUEST-----")),
    ]
    from_server = [
        pb.FromServer(welcome=pb.Welcome(site="berlin", time=1.5, consilium="0.1.0", authorities=b"pem")),
        pb.FromServer(task=pb.Task(id=b"a" * 16, order=b"o" * 40, payload=b"p" * 50, seconds=60.0)),
        pb.FromServer(turn=pb.Turn(task=b"a" * 16, offset=2**40)),
        pb.FromServer(farewell=pb.Farewell(reason="revoked", text="this site was revoked")),
    ]
    may = (DecodeError,)
    yield "from site", Target([m.SerializeToString() for m in from_site], pb.FromSite.FromString, 12_000, may)
    yield "from server", Target([m.SerializeToString() for m in from_server], pb.FromServer.FromString, 12_000, may)
    yield (
        "piece",
        Target([pb.Piece(task=b"a", offset=9, data=b"d" * 99).SerializeToString()], pb.Piece.FromString, 4_000, may),
    )

    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    order = Order(7, "run-1", "berlin", "plan", '{"kind": "round"}', hashlib.sha256(b"").digest(), 10)
    signed = [sign_order(order, key), sign_order(Order(8, "run-1", "berlin", "flower", "{}"), key)]
    contents = [pb.SignedOrder.FromString(seed).order for seed in signed]

    def resigned(data: bytes) -> bytes:
        content = data[:2000]
        return pb.SignedOrder(order=content, signature=key.sign(b"consilium order 1\0" + content)).SerializeToString()

    public = key.public_key()
    yield "order", Target(signed, lambda data: open_order(data, public), 3_000)
    yield "signed order", Target(contents, lambda data: open_order(resigned(data), public), 3_000)


def text_targets(folder: Path) -> Iterator[tuple[str, Target]]:
    """Plans and replies, bundles, and settings."""
    from messages import PLANS, REPLIES

    from consilium.common.protocol.parse import parse_plan, parse_reply
    from consilium.common.study.bundle import read_bundle
    from consilium.common.study.load import load_site, load_study

    def text(data: bytes) -> str:
        return data.decode("utf-8", "replace")

    plans = [plan.model_dump_json().encode() for plan in PLANS]
    replies = [reply.model_dump_json().encode() for reply in REPLIES]
    yield "plan", Target(plans, lambda data: parse_plan(text(data)), 20_000)
    yield "reply", Target(replies, lambda data: parse_reply(text(data), site="berlin"), 24_000)
    bundle = bundle_values()
    yield (
        "bundle",
        Target(
            [rebundled(json.dumps(bundle).encode())], on_disk(folder / "x.bundle", read_bundle), 4_000, mend=rebundled
        ),
    )
    study = b"""name = "hearts"\nsites = ["berlin", "lyon"]\nrounds = 3\n[task]\nkind = "images"\nclasses = ["a", "b"]
[model]\nname = "small_cnn"\n[training]\nepochs = 1\nlearning_rate = 0.1\n[method]\nkind = "ditto"
[weighting]\nfactors = [{kind = "size"}, {kind = "loss", temperature = 2.0}]\n"""
    site = b"""name = "berlin"\nserver = "localhost:1"\nca_certificate = "ca.pem"\nprivate_key = "key"\nstate_dir = "s"
[data]\nkind = "table"\npath = "data.csv"\n"""
    yield "study.toml", Target([study], on_disk(folder / "study.toml", load_study), 4_000)
    yield "site.toml", Target([site], on_disk(folder / "site.toml", load_site), 3_000)


def bundle_values() -> dict[str, Any]:
    """Return a bundle's values, as far as a fuzzer needs them to be right."""
    from consilium.common.study.bundle import FORMAT

    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    key = "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"
    values = {
        "format": FORMAT,
        "site": "berlin",
        "fingerprint": "SHA256:abc",
        "server": "localhost:1",
        "study": "name = 'x'",
    }
    versions = {"consilium": "0.1.0", "flwr": "1.42.0"}
    return {**values, "ca_certificate": pem, "certificate": pem, "study_key": key, "versions": versions}


def rebundled(data: bytes) -> bytes:
    """Return a bundle with the checksum of what is in it."""
    try:
        values = json.loads(data)
        values.pop("sha256", None)
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
        return json.dumps({**values, "sha256": hashlib.sha256(canonical).hexdigest()}).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return data


def on_disk(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a decoder that reads its bytes from a file."""

    def decode(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return decode


CHAINS = (
    *(
        ("identity",),
        ("fp16",),
        ("bf16",),
        ("integer_delta",),
        ("int8",),
        ("int4",),
        ("top_k",),
        ("sign",),
        ("low_rank",),
    ),
    *(("zstd",), ("top_k", "int8", "zstd"), ("low_rank", "fp16"), ("integer_delta", "zstd")),
)


def codec_targets(folder: Path) -> Iterator[tuple[str, Target]]:
    """The container, every codec and some chains, and checkpoints."""
    from pydantic import TypeAdapter

    from consilium.common.codecs import CODECS, Identity, build_chain
    from consilium.common.codecs.container import read_form
    from consilium.common.study.codecs import CodecConfig
    from consilium.server.strategies import ServerState
    from consilium.server.study.checkpoint import load_checkpoint, save_checkpoint

    chance = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "body.weight": chance.normal(size=(9, 8)).astype(np.float32),
        "body.bias": chance.normal(size=7),
        "count": np.array(3),
        "empty": np.zeros((0, 2), np.float32),
    }
    before = {name: (array * 0.5).astype(array.dtype) for name, array in weights.items()}
    container = Identity().encode(weights)
    yield "container", Target([container, Identity().encode({})], read_form, 8_000)
    yield "identity", Target([container], Identity().decode, 8_000)
    assert {name for chain in CHAINS for name in chain} == set(CODECS), "a new codec is tested by being listed"
    for names in CHAINS:
        chain = build_chain([TypeAdapter(CodecConfig).validate_python({"kind": name}) for name in names])
        payload = chain.encode(weights, before, seed=1).payload
        decode = partial(chain.decode, reference=before)
        mend = None if "zstd" in names else partial(with_header_of, payload)
        yield "+".join(names) + " chain", Target([payload], decode, 1_200, mend=mend)
    path = folder / "seed.safetensors"
    state = ServerState(
        3, weights, frozenset({"count"}), memory={"m/body.bias": weights["body.bias"]}, shares={"a": 0.5}
    )
    save_checkpoint(path, state, run="run-1", study_digest="d")
    load = on_disk(folder / "checkpoint.safetensors", partial(load_checkpoint, study_digest="d"))
    yield "checkpoint", Target([path.read_bytes()], load, 5_000)


def with_header_of(payload: bytes, data: bytes) -> bytes:
    """Return a container with the header and the length of a good one, and the mutated numbers."""
    header = 8 + int.from_bytes(payload[:8], "little")
    return (payload[:header] + data[header:]).ljust(len(payload), b"\xff")[: len(payload)]


PICTURES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "png": (("L", {}), ("RGB", {}), ("P", {"transparency": 0}), ("1", {}), ("I;16", {}), ("RGBA", {}), ("LA", {})),
    "jpeg": (("L", {}), ("RGB", {"progressive": True}), ("CMYK", {}), ("RGB", {"quality": 30, "comment": b"c"})),
    "tiff": (
        ("L", {}), ("RGB", {"compression": "tiff_lzw"}), ("RGB", {"compression": "tiff_adobe_deflate"}),
        ("1", {"compression": "group4"}), ("L", {"compression": "packbits"}), ("RGB", {"compression": "jpeg"}),
        ("I;16", {}), ("P", {}),
    ),
    "bmp": (("L", {}), ("RGB", {}), ("1", {}), ("P", {}), ("RGBA", {})),
    "webp": (("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"})),
}  # fmt: skip


def picture(mode: str, kind: str, settings: dict[str, Any]) -> bytes:
    """Return a small picture in a file format."""
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    file = io.BytesIO()
    (image if image.mode == mode else image.convert(mode)).save(file, kind, **settings)
    return file.getvalue()


def mended_png(data: bytes) -> bytes:
    """Return a PNG whose chunks have right checksums, as far as there are chunks."""
    result, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        length = min(int.from_bytes(data[place : place + 4], "big"), len(data) - place - 12)
        body = data[place + 4 : place + 8 + length]
        result += length.to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        place += 12 + length
    return bytes(result + data[place:])


def file_targets(folder: Path) -> Iterator[tuple[str, Target]]:
    """A hospital's own files: pictures, arrays, tables."""
    from pydicom.uid import UID
    from scanner_files import dicom, nifti

    from consilium.client.data.arrays import read_arrays
    from consilium.client.data.images import read_images
    from consilium.client.data.parts import parts_in_file
    from consilium.client.data.table import read_table
    from consilium.common.study.site import ArraysData, ImageFolderData, TableData
    from consilium.common.study.task import ImageTask, TableTask
    from consilium.common.study.training import SplitConfig

    images = ImageTask(classes=("no", "yes"), size=8, channels=3)
    (folder / "pictures" / "no").mkdir(parents=True)
    place, split = ImageFolderData(path=folder / "pictures"), SplitConfig()

    def read_picture(path: Path) -> object:
        return read_images(place, images, split, site="berlin")

    for kind, several in PICTURES.items():
        seeds = [picture(mode, kind, settings) for mode, settings in several]
        decode = on_disk(folder / "pictures" / "no" / "x.png", read_picture)  # by content, whatever the name says
        yield kind, Target(seeds, decode, 3_000, mend=mended_png if kind == "png" else None)

    decode = on_disk(folder / "pictures" / "no" / "x.png", read_picture)
    levels = np.random.default_rng(1).integers(0, 4096, (24, 20), dtype=np.uint16)
    scans = [
        dicom(levels, bits=12, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400),
        dicom(levels.astype(np.uint8)[..., None].repeat(3, axis=2)),
        dicom(levels, bits=12, TransferSyntaxUID=UID("1.2.840.10008.1.2.5")),  # run lengths
    ]
    yield "dicom", Target(scans, decode, 3_000)
    volume = levels.astype(np.uint8)[..., None].repeat(3, axis=2)
    yield "nifti", Target([nifti(volume), nifti(volume, packed=True)], decode, 3_000)

    arrays = [packed(how, dtype) for how in (np.savez, np.savez_compressed) for dtype in (np.uint8, np.float32)]
    reading = ArraysData(path=folder / "x.npz")
    decode = on_disk(reading.path, lambda path: read_arrays(reading, images, split, site="berlin"))
    yield "npz", Target(arrays, decode, 3_000)
    with zipfile.ZipFile(io.BytesIO(arrays[0])) as archive:
        inner = {name: archive.read(name) for name in archive.namelist()}
    for name, content in inner.items():

        def decode_one(data: bytes, name: str = name, decode: Callable[[bytes], object] = decode) -> object:
            return decode(zipped(inner | {name: data}))

        yield name, Target([content], decode_one, 1_500)

    columns = {"a": {"kind": "number"}, "b": {"kind": "category", "values": ["u", "v", "w"]}}
    table = TableTask(classes=("no", "yes"), label="ill", columns=columns, missing="impute")  # type: ignore[arg-type]  # pydantic reads dictionaries
    csv = TableData(path=folder / "x.csv")
    rows = "".join(f'{n / 7},"{"uvw"[n % 3]}",{("no", "yes")[n % 2]}\r\n' for n in range(30))
    texts = [f"a,b,ill\n{rows}".encode(), '\ufeffill,a,b,c\nyes,1,u,x\n\nno,?,v,"a\nb"\n'.encode()]
    yield "csv", Target(texts, on_disk(csv.path, lambda path: read_table(csv, table, split, site="berlin")), 4_000)
    parquet = TableData(path=folder / "x.parquet")
    decode = on_disk(parquet.path, lambda path: read_table(parquet, table, split, site="berlin"))
    yield "parquet", Target(parquets(), decode, 4_000)

    keys = [str(number) for number in range(6)]
    index = "\r\n".join(
        ["row,part", *(f"{key},{part}" for key, part in zip(keys, ("train", "Test", "dev") * 2, strict=True))]
    )
    decode = on_disk(folder / "index.csv", lambda path: parts_in_file(path, keys, range(6), key="row", site="berlin"))
    yield "index file", Target([index.encode()], decode, 4_000)


def packed(how: Callable[..., None], dtype: type[np.generic]) -> bytes:
    """Return an `.npz` file."""
    file, x = io.BytesIO(), np.random.default_rng(2).random((6, 5, 5))
    how(
        file,
        x=(x * 200).astype(dtype) if dtype is np.uint8 else x.astype(dtype),
        y=np.arange(6) % 2,
        classes=["no", "yes"],
    )
    return file.getvalue()


def zipped(arrays: dict[str, bytes]) -> bytes:
    """Return an archive that is whole, whatever is in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in arrays.items():
            archive.writestr(name, content)
    return file.getvalue()


def parquets() -> list[bytes]:
    """Return Parquet files with the codecs and encodings that writers use."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"a": [n / 7 for n in range(30)], "b": ["u", "v", "w"] * 10, "ill": ["no", "yes"] * 15})
    files = []
    for settings in ({}, {"compression": "none"}, {"compression": "zstd", "use_dictionary": False}, {"version": "1.0"}):
        file = io.BytesIO()
        pq.write_table(table, file, **settings)
        files.append(file.getvalue())
    return files


def targets(folder: Path) -> dict[str, Target]:
    """Return all decoders by kind."""
    return {
        **dict(wire_targets()),
        **dict(text_targets(folder)),
        **dict(codec_targets(folder)),
        **dict(file_targets(folder)),
    }


# --- the process that runs them --------------------------------------------------------------------


def megabytes(*, reset: bool = False) -> int:
    """Return the largest resident memory since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def run_kind(kind: str, target: Target, count: int) -> dict[str, Any]:
    """Run the first cases of a kind; return how it went."""
    from consilium.common.errors import ConsiliumError

    warnings.simplefilter("error")
    expected: tuple[type[Exception], ...] = (ConsiliumError, *target.may)
    for seed in target.seeds:
        target.decode(seed if target.mend is None else target.mend(seed))  # or the fuzzer fuzzes nothing
    problems: list[str] = []
    accepted, slowest, before, began = 0, 0.0, megabytes(reset=True), time.monotonic()
    for number in range(count):
        data = case_of(kind, target, number)
        started = time.process_time()
        try:
            target.decode(data)
            accepted += 1
        except expected:
            pass
        except Exception as error:
            problems.append(f"case {number}: {type(error).__name__}: {str(error)[:200]}")
        took = time.process_time() - started
        slowest = max(slowest, took)
        if took > MAX_SECONDS:
            problems.append(f"case {number} took {took:.2f} s")
    return {
        "kind": kind,
        "count": count,
        "accepted": accepted,
        "slowest": round(slowest, 4),
        "megabytes": megabytes() - before,
        "seconds": round(time.monotonic() - began, 2),
        "problems": problems[:20],
    }


def main() -> None:
    """Run one part in so many of all and print a line of JSON for each kind; or run one case: a kind and a number."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        every = targets(Path(folder))
        if len(sys.argv) == 3:
            print(every[sys.argv[1]].decode(case_of(sys.argv[1], every[sys.argv[1]], int(sys.argv[2]))))
            return
        for kind, target in every.items():
            print(json.dumps({"begins": kind}), flush=True)
            print(json.dumps(run_kind(kind, target, target.count // int(sys.argv[1]))), flush=True)


KINDS = (
    *(
        "from site",
        "from server",
        "piece",
        "order",
        "signed order",
        "plan",
        "reply",
        "bundle",
        "study.toml",
        "site.toml",
    ),
    *("container", "identity", *("+".join(names) + " chain" for names in CHAINS), "checkpoint"),
    *(*PICTURES, "dicom", "nifti", "npz", "x.npy", "y.npy", "classes.npy", "csv", "parquet", "index file"),
)


@pytest.fixture(scope="module", params=[10, pytest.param(1, marks=pytest.mark.nightly)], ids=["a tenth", "all"])
def part(request: pytest.FixtureRequest) -> int:
    """Return the part of all cases that runs: one in so many."""
    return int(request.param)


@pytest.fixture(scope="module")
def outcome(part: int) -> dict[str, dict[str, Any]]:
    """Return how it went, by kind."""
    done = subprocess.run(
        [sys.executable, __file__, str(part)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE)),
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert 0 == done.returncode, f"ended by {done.returncode} in {lines[-1:]}: {done.stderr[-2000:]}"
    return {line["kind"]: line for line in lines if "kind" in line}


@pytest.mark.parametrize("kind", KINDS)
def test_only_our_own_errors_come_out_at_once(outcome: dict[str, dict[str, Any]], kind: str) -> None:
    """Of every mutated input: it is read or refused with a sentence, within a second, in little memory."""
    seen = outcome[kind]
    assert [] == seen["problems"]
    assert seen["megabytes"] < MAX_MEGABYTES
    assert seen["accepted"] < seen["count"]


def test_enough_inputs_were_tried(outcome: dict[str, dict[str, Any]], part: int) -> None:
    """More than 100,000 of all, or a tenth; of pictures and of tables 2,000 of each kind, or a tenth."""
    assert set(KINDS) == set(outcome)
    assert sum(seen["count"] for seen in outcome.values()) * part >= 100_000
    assert min(outcome[kind]["count"] for kind in (*PICTURES, "csv", "parquet")) * part >= 2_000


def test_a_case_follows_from_its_kind_and_number() -> None:
    """So that a failure can be seen again; and numbers differ."""
    target = Target([b"x" * 50, struct.pack("<Q", 7)], bytes, 10)
    assert [case_of("a", target, n) for n in range(50)] == [case_of("a", target, n) for n in range(50)]
    assert len({case_of("a", target, n) for n in range(50)}) > 25


if __name__ == "__main__":
    main()
