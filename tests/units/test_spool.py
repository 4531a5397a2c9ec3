"""Spool: arrays come back from disk bit for bit, one at a time, and leave nothing behind."""

import contextlib
import errno
import os
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consilium.common.errors import DiskFull, StateError
from consilium.common.weights.arithmetic import dot, norm, weighted_mean
from consilium.common.weights.arrays import Array, Weights, block
from consilium.common.weights.checks import check_like
from consilium.server.study.update_files import Spool

ARRAYS: dict[str, Array] = {
    "matrix": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "double": np.array([0.1, -0.0, 5e-324, np.nan, np.inf]),
    "half": np.array([0.5, -2.0], dtype=np.float16),
    "scalar": np.array(1.5, dtype=np.float32),
    "count": np.array(7),
    "small": np.arange(-3, 3, dtype=np.int8),
    "flags": np.array([True, False, True]),
    "big endian": np.array([1.0, 2.0], dtype=">f8"),
    "strided": np.arange(24.0).reshape(2, 3, 4)[:, ::-2, 1:],
    "every other": np.arange(10.0)[::2],
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "nothing": np.zeros((0, 3), dtype=np.float32),
}


def same(expected: Weights, seen: Weights) -> bool:
    """Tell whether weights are equal bit for bit."""
    return list(expected) == list(seen) and all(
        (array.dtype, array.shape, array.tobytes()) == (seen[name].dtype, seen[name].shape, seen[name].tobytes())
        for name, array in expected.items()
    )


@pytest.mark.parametrize("memory_bytes", [0, 10_000])
def test_kept_arrays_come_back_bit_for_bit(memory_bytes: int, tmp_path: Path) -> None:
    """Every kind of array: dtypes, byte order, shapes, no dimension, no element, any layout in memory."""
    with Spool(tmp_path, memory_bytes=memory_bytes) as spool:
        assert same(ARRAYS, spool.keep(ARRAYS))


@given(hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64]), hnp.array_shapes(min_dims=0, min_side=0)))
def test_any_array_comes_back(tmp_path_factory: pytest.TempPathFactory, array: Array) -> None:
    """A round trip is the identity."""
    with Spool(tmp_path_factory.getbasetemp(), memory_bytes=0) as spool:
        assert same({"w": array}, spool.keep({"w": array}))


def test_several_sites_are_kept_apart(tmp_path: Path) -> None:
    """Written in any order, read in any order, as often as asked for, beside empty ones."""
    with Spool(tmp_path, memory_bytes=0) as spool:
        sent = [{"w": np.full(5, float(number)), "v": np.array(number)} for number in range(4)]
        kept = [spool.keep(weights) for weights in (*sent, {})]
        for number in (3, 0, 2, 2, 1):
            assert same(sent[number], kept[number])
        assert (0, []) == (len(kept[4]), list(kept[4]))


@pytest.mark.parametrize("memory_bytes", [0, 10_000])
def test_kept_arrays_are_the_readers_own(memory_bytes: int, tmp_path: Path) -> None:
    """What is read may be written to: it is a copy, and the next reader sees what was kept."""
    with Spool(tmp_path, memory_bytes=memory_bytes) as spool:
        kept = spool.keep({"w": np.ones(3)})
        kept["w"][:] = 9.0
        assert [1.0, 1.0, 1.0] == kept["w"].tolist()


@pytest.mark.parametrize("memory_bytes", [0, 24, 10_000])
def test_kept_arrays_take_part_in_arithmetic(memory_bytes: int, tmp_path: Path) -> None:
    """The functions on weights take them as they take a dict, and give the same bits."""
    plain = [{"w": np.array([1.0, 2.0]), "n": np.array(3)}, {"w": np.array([5.0, 8.0]), "n": np.array(6)}]
    with Spool(tmp_path, memory_bytes=memory_bytes) as spool:
        kept = [spool.keep(weights) for weights in plain]
        check_like(kept[0], plain[1], who="kept")
        assert same(weighted_mean(plain, [1, 2]), weighted_mean(kept, [1, 2]))
        assert (norm(plain[0]), dot(plain[0], plain[1], ["w"])) == (norm(kept[0]), dot(kept[0], kept[1], ["w"]))


def test_names_are_known_without_reading(tmp_path: Path) -> None:
    """Comparing names must not read every array of the model: it works on a file that cannot be read any more."""
    with Spool(tmp_path, memory_bytes=0) as spool:
        kept, other = spool.keep(ARRAYS), spool.keep(ARRAYS)
    assert kept.keys() == other.keys() == ARRAYS.keys()
    assert "matrix" in kept and "unknown" not in kept
    assert len(ARRAYS) == len(kept)


def test_unknown_name_is_a_key_error(tmp_path: Path) -> None:
    """As with any mapping."""
    with Spool(tmp_path, memory_bytes=0) as spool:
        kept = spool.keep({"w": np.ones(2)})
        assert kept.get("v") is None
        with pytest.raises(KeyError):
            kept["v"]


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (0, 4), (4, 8), (2, 2), (6, 9), (100, 200), (5, 6)])
def test_block_reads_the_elements_asked_for(start: int, stop: int, tmp_path: Path) -> None:
    """Of the flattened array, as far as it goes; the same from disk and from memory."""
    with Spool(tmp_path, memory_bytes=0) as spool:
        for name in ("matrix", "scalar", "nothing", "small", "strided"):
            expected = ARRAYS[name].reshape(-1)[start:stop]
            for weights in (ARRAYS, spool.keep(ARRAYS)):
                seen = block(weights, name, start, stop)
                assert (expected.dtype, expected.tolist()) == (seen.dtype, seen.tolist())


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    """The file has no name while it is used, and is gone afterwards, also after an error; the folder is made."""
    folder = tmp_path / "run" / "new"
    with contextlib.suppress(RuntimeError), Spool(folder, memory_bytes=0) as spool:
        spool.keep(ARRAYS)
        assert [] == list(folder.iterdir())
        raise RuntimeError
    assert [] == list(folder.iterdir())


def test_closed_spool_cannot_be_read(tmp_path: Path) -> None:
    """Not even by accident: the number of its file may belong to another file by then."""
    with Spool(tmp_path, memory_bytes=0) as spool:
        kept = spool.keep({"w": np.ones(2)})
    (tmp_path / "other").write_bytes(b"x" * 100)
    with (tmp_path / "other").open("rb"), pytest.raises(ValueError, match="closed file"):
        kept["w"]


def test_memory_is_one_array_whatever_the_number_of_sites(tmp_path: Path) -> None:
    """Reading 40 sites of 8 arrays of 128 KiB in turn takes a few arrays' memory."""

    def peak(sites: int) -> int:
        with Spool(tmp_path, memory_bytes=0) as spool:
            weights = {f"array-{number}": np.ones(16384) for number in range(8)}
            kept = [spool.keep(weights) for _ in range(sites)]
            tracemalloc.start()
            weighted_mean(kept, [1.0] * sites)
            highest = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return highest

    assert peak(40) - peak(8) < 2**17


def test_block_reads_no_more_than_the_block(tmp_path: Path) -> None:
    """A hundred elements of a 4 MiB array."""
    with Spool(tmp_path, memory_bytes=0) as spool:
        kept = spool.keep({"w": np.arange(2**19, dtype=np.float64)})
        tracemalloc.start()
        seen = block(kept, "w", 2**18, 2**18 + 100)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert float(2**18) == seen[0]
    assert highest < 2**14


def test_memory_that_is_used_is_bounded(tmp_path: Path) -> None:
    """As many sites as fit stay in memory; the file holds those after them, and one larger than all of it at once."""
    weights = {"w": np.ones(10), "v": np.ones(5)}
    with Spool(tmp_path, memory_bytes=250) as spool:
        assert [0, 0, 120] == [os.fstat(spool._file.fileno()).st_size for _ in range(3) if spool.keep(weights)]
    with Spool(tmp_path, memory_bytes=119) as spool:
        spool.keep(weights)
        assert 120 == os.fstat(spool._file.fileno()).st_size


def test_unwritable_folder_is_told(tmp_path: Path) -> None:
    """A file where the folder should be; the message names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"^cannot write '.*file/run': Not a directory$"):
        Spool(tmp_path / "file" / "run")


def test_full_disk_is_told(tmp_path: Path) -> None:
    """What does not fit ends the round with a sentence; a limit on the size of files stands in for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Spool(tmp_path, memory_bytes=0) as spool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(StateError, match=r"^cannot write '.*': File too large, where the round's updates go$"):
                spool.keep({"w": np.ones(1000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_without_room_is_told_from_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the one a run waits, for the other it does not."""

    def no_space(descriptor: int, content: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", no_space)
    with Spool(tmp_path, memory_bytes=0) as spool, pytest.raises(DiskFull, match="No space left on device, where the"):
        spool.keep({"w": np.ones(1000)})


def test_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    """Zeros are no substitute for what is missing."""
    with Spool(tmp_path, memory_bytes=0) as spool:
        kept = spool.keep({"w": np.ones(100)})
        os.truncate(spool._file.fileno(), 50)
        with pytest.raises(StateError, match="cut short"):
            kept["w"]
