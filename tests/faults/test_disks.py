"""Disks that are full or read-only under a running federation: small ones of their own, mounted in memory."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from supervised import (
    Federation,
    counted_twice,
    differing,
    events,
    finished,
    measured,
    rounds_done,
    seconds_since,
    wait,
    weights_of,
)

from consilium.server.operations.home import ServerHome

NAMES = ("berlin", "lyon", "porto")
ROUNDS = 40
MEGABYTES = 160
"""Of a small disk: the product leaves 64 MB of each free."""


def can_mount() -> bool:
    """Return whether this user may mount a disk in memory."""
    try:
        with small_disk(Path(f"/tmp/consilium-mount-{os.getpid()}")):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """Mount a small disk."""
    path.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs"]
    subprocess.run(["mount", *options, str(path)], check=True, capture_output=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)


pytestmark = [
    pytest.mark.e2e,
    pytest.mark.faults,
    pytest.mark.skipif(not can_mount(), reason="this user may not mount a disk in memory"),
]


def fill(disk: Path, *, leaving: int = 0) -> Path:
    """Fill a disk, to its last byte or until so many bytes are left, and return the file that does."""
    path = disk / "filling"
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while shutil.disk_usage(disk).free > leaving:
            file.write(bytes(4096 if shutil.disk_usage(disk).free < 2**21 else 2**20))
    return path


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Keep a disk full."""
    path = fill(disk)
    yield
    path.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Keep a folder read-only for everything that is opened in it from now on."""
    for words in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
        subprocess.run(["mount", *words], check=True)
    yield
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation in which the server's home, the runs, and the state of the site porto have small disks."""
    folder = tmp_path_factory.mktemp("disks")
    with small_disk(folder / "home"), small_disk(folder / "runs"), small_disk(folder / "porto"):
        place = Federation(folder, NAMES, home=ServerHome(folder / "home"))
        try:
            place.start()
            yield place
        finally:
            place.close()


@pytest.fixture(scope="module")
def expected(federation: Federation) -> dict[str, object]:
    """The weights of a run to which nothing happens."""
    folder = federation.submit("undisturbed", rounds=ROUNDS, quorum='"all"')
    finished(folder)
    return weights_of(folder)


def test_full_home_of_the_server_ends_no_study(federation: Federation, expected: dict[str, object]) -> None:
    """The journal for the metrics cannot be written; the run's own log can, and has everything."""
    folder = federation.submit("home", rounds=ROUNDS, quorum='"all"')
    wait(lambda: rounds_done(folder) >= 2)
    filling = fill(federation.home.path)
    full = rounds_done(folder)
    finished(folder)
    filling.unlink()
    assert full < ROUNDS
    assert ([], []) == (differing(expected, weights_of(folder)), counted_twice(folder, ROUNDS))
    again = federation.submit("home-again", rounds=2)
    finished(again)
    measured("full disk of the server's home, during a run", f"bit-equal; full for {ROUNDS - full} rounds")


def test_full_disk_of_the_runs_pauses_the_run_until_there_is_room(
    federation: Federation, expected: dict[str, object]
) -> None:
    """It stops before there is none left, says why, and goes on by itself."""
    folder = federation.submit("runs-full", rounds=ROUNDS, quorum='"all"')
    wait(lambda: rounds_done(folder) >= 2)
    filling = fill(federation.folder / "runs", leaving=20 * 2**20)
    (paused,) = wait(lambda: events(folder, "paused"))
    time.sleep(5)
    reached = rounds_done(folder)
    assert reached < ROUNDS and "the disk of" in paused["why"]
    filling.unlink()
    room = time.monotonic()
    wait(lambda: rounds_done(folder) > reached, 90)
    seconds = seconds_since(room)
    finished(folder)
    assert ([], []) == (differing(expected, weights_of(folder)), counted_twice(folder, ROUNDS))
    measured("20 MB left on the disk of the run's folder", "pauses, goes on, bit-equal", goes_on_after_seconds=seconds)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_disk_of_one_site_is_full_or_read_only_and_the_others_go_on(federation: Federation, how: str) -> None:
    """It says why it cannot answer; with room again it takes part in the same run."""
    disk = federation.folder / "porto"
    folder = federation.submit(f"site-{how}", rounds=200)
    wait(lambda: rounds_done(folder) >= 2)
    with filled(disk) if how == "full" else read_only(disk / "state"):
        wait(lambda: [event for event in events(folder, "rejected") if event["site"] == "porto"], 60)
        time.sleep(1)
    at = rounds_done(folder)
    result = finished(folder, 600)
    accepted = [record["round"] for record in result["rounds"] if "porto" in record["accepted"]]
    assert ([], []) == (events(folder, "failed"), counted_twice(folder, 200))
    assert {"porto"} == {site for record in result["rounds"] for site in record["rejected"]}
    assert max(accepted) > at
    measured(f"{how} disk of one of three sites", f"the others go on; {200 - len(accepted)} of 200 rounds without it")
