"""Files on a machine: who owns a folder, what killed processes leave, and how much room there is."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from consilium.common.errors import DiskFull, StateError, error_named
from consilium.common.events.log import EventLog
from consilium.common.events.run import RunStopped
from consilium.common.host.disk import SPARE_BYTES, Room, check_room, in_units, room_in
from consilium.common.host.files import Scratch, check_free, only_one, scratch, scratch_here, sweep, write_atomically

HOLDER = """
import sys
from pathlib import Path
from consilium.common.host.files import only_one
with only_one(Path(sys.argv[1]), otherwise="taken"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_owner_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    """Its process and machine; when that process is gone, however it ended, the lock is free."""
    lock = tmp_path / "run" / ".lock"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert "held\n" == holder.stdout.readline()
    sentence = rf"^it runs \(process {holder.pid} on '{socket.gethostname()}'\)$"
    with pytest.raises(StateError, match=sentence), only_one(lock, otherwise="it runs"):
        pass
    with pytest.raises(StateError, match=sentence):
        check_free(lock, otherwise="it runs")
    holder.kill()
    holder.communicate()
    check_free(lock, otherwise="it runs")
    with only_one(lock, otherwise="it runs"):
        assert f"{os.getpid()} {socket.gethostname()}\n" == lock.read_text()


def test_lock_whose_file_says_nothing_is_a_sentence_too(tmp_path: Path) -> None:
    """Empty, or with a name in it that would steer a terminal; and asking makes no file."""
    lock = tmp_path / ".lock"
    check_free(lock, otherwise="it runs")
    assert not lock.exists()
    for content, sentence in (
        ("", "^it runs$"),
        ("x y z", "^it runs$"),
        ("7 \x1b[2J", r"^it runs \(process 7 on '\\x1b"),
    ):
        with only_one(lock, otherwise="first"):
            lock.write_text(content)
            with pytest.raises(StateError, match=sentence):
                check_free(lock, otherwise="it runs")


def left(folder: Path, name: str) -> Path:
    """Write a file as one that was left over."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    return path


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    """As deep as is asked for; files that others wrote, or that are being written now, stay."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = int(gone.stdout)
    swept = [
        left(tmp_path, f".orders.json.0123abcd-{dead}-1.tmp"),
        left(tmp_path, f".a.b.0123abcd-{os.getpid()}-1.tmp"),  # a container's processes have the same numbers each time
        left(tmp_path, f"study/run/.round-000001.safetensors.0123abcd-{dead}-77.tmp"),
    ]
    kept = [
        left(tmp_path, f".orders.json.0123abcd-{os.getppid()}-1.tmp"),
        left(tmp_path, f"study/run/models/.w.0123abcd-{dead}-77.tmp"),
        left(tmp_path, f"orders.json.0123abcd-{dead}-1.tmp"),
        left(tmp_path, f".orders.json.0123abcd-{dead}-1.tmp.x"),
        left(tmp_path, f".orders.json.0123ABCD-{dead}-1.tmp"),
        left(tmp_path, "notes.tmp"),
        left(tmp_path, ".lock"),
    ]
    (tmp_path / "elsewhere").symlink_to(tmp_path / "study" / "run" / "models")
    assert 3 == sweep(tmp_path, depth=2)
    assert [] == [path for path in swept if path.exists()]
    assert [] == [path for path in kept if not path.exists()]
    assert 0 == sweep(tmp_path / "nowhere")


def test_file_that_is_being_written_is_not_swept(tmp_path: Path) -> None:
    """Nor one that another thread of this process has begun."""

    def pieces() -> list[bytes]:
        assert 0 == sweep(tmp_path)
        return [b"whole"]

    def all_pieces() -> object:
        yield from pieces()

    write_atomically(tmp_path / "a", all_pieces())  # type: ignore[arg-type]  # a generator, as a checkpoint is
    assert b"whole" == (tmp_path / "a").read_bytes()


# --- room on the disk ------------------------------------------------------------------------------

_Usage = namedtuple("_Usage", ["total", "used", "free"])


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of 10 GB with 0.9 GB left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(10**10, 9 * 10**9, 9 * 10**8))


@pytest.mark.usefixtures("small_disk")
def test_room_is_asked_for_before_it_is_used(tmp_path: Path) -> None:
    """To the byte, with something left for logs; less than a tenth of the disk is scarce."""
    assert Room(9 * 10**8, 10**10) == check_room(tmp_path, 9 * 10**8 - SPARE_BYTES)
    sentence = r"the disk of '.*' has 900\.0 MB left, expected at least 900\.0 MB for a checkpoint: make room there"
    with pytest.raises(DiskFull, match=sentence):
        check_room(tmp_path, 9 * 10**8 - SPARE_BYTES + 1, what="a checkpoint")
    assert room_in(tmp_path / "not" / "yet").is_scarce
    assert not Room(10**9, 10**10).is_scarce
    assert ["0.0 MB", "999.9 MB", "1.0 GB"] == [in_units(count) for count in (0, 999_900_000, 10**9)]


def test_disk_that_says_nothing_is_a_state_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale network share, say."""

    def stale(_: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(shutil, "disk_usage", stale)
    with pytest.raises(StateError, match=r"cannot say how much room the disk of '.*' has: Stale"):
        check_room(tmp_path, 1)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, StateError)]
)
def test_write_on_a_full_disk_is_told_from_others(
    number: int, kind: type[StateError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run can wait for room, and not for a disk that is broken. Both are errors of state, with one exit code."""

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateError, match="cannot write") as caught:
        write_atomically(tmp_path / "a", b"x")
    assert caught.type is kind
    with pytest.raises(StateError, match="cannot write") as caught:
        EventLog(tmp_path / "b").log(RunStopped())
    assert caught.type is kind
    assert b"" == (tmp_path / "b").read_bytes()  # half a batch of lines would be there twice when it is written again
    assert isinstance(error_named("DiskFull", "x"), DiskFull)
    assert 10 == DiskFull.exit_code


def test_scratch_keeps_no_more_than_its_bytes() -> None:
    """What does not fit is not kept, what is replaced or dropped makes room, and what has no size always fits."""
    kept = Scratch(100)
    one, other = Path("one"), Path("other")
    assert kept.put(one, "a", size=60)
    assert not kept.put(other, "b", size=41)
    assert (None, "a") == (kept.get(other), kept.get(one))
    assert kept.put(one, "c", size=10) and kept.put(other, "b", size=90) and kept.put(Path("third"), "d")
    assert not kept.put(one, "e", size=11)
    assert kept.get(one) is None  # the old one is not what was written last
    assert kept.drop(other) and not kept.drop(other)
    assert kept.put(one, "e", size=100)


def test_scratch_is_gone_with_its_block() -> None:
    """Outside of a block there is none; a block in a block has its own."""
    assert scratch_here() is None
    with scratch():
        outer = scratch_here()
        assert outer is not None and outer.put(Path("one"), "a")
        with scratch():
            assert scratch_here() is not outer
        assert scratch_here() is outer
    assert scratch_here() is None
