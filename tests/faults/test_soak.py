"""A long study: no process grows, no file or thread is left open, the disk holds a few logs per round."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from supervised import Federation, command_line, counted_twice, events, finished, measured, rounds_done, wait

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

NAMES = ("berlin", "lyon", "madrid", "porto")
GROWTH = 1.10
"""Goal: by so much memory grows at most."""
SPARE_BYTES = 2_000_000
"""Memory is counted in pages, and a small process is warmed up a little later than a large one."""
ROUND_BYTES = 40_000
"""So much the logs of all five places may hold of one round, together."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server and four sites."""
    place = Federation(tmp_path_factory.mktemp("soak"), NAMES)
    try:
        place.start()
        yield place
    finally:
        place.close()


def memory(pid: int) -> int:
    """Return how many bytes of memory a process has to itself and shares with others."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def sizes(federation: Federation) -> dict[int, tuple[int, int, int]]:
    """Return memory, open files and threads of every process."""
    pids = [pid for program in [federation.server, *federation.sites.values()] for pid in program.pids()]
    return {
        pid: (memory(pid), len(list(Path(f"/proc/{pid}/fd").iterdir())), len(list(Path(f"/proc/{pid}/task").iterdir())))
        for pid in pids
    }


def disk(federation: Federation) -> int:
    """Return how many bytes lie below the federation's folder."""
    return sum(path.stat().st_size for path in federation.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("rounds", [200, pytest.param(2_000, marks=pytest.mark.nightly)])
def test_long_study_grows_nowhere(federation: Federation, rounds: int) -> None:
    """From a quarter of the rounds to the last: memory 10 % at most, files and threads none, disk by its logs."""
    folder = federation.submit(f"soak{rounds}", rounds=rounds, quorum='"all"')
    wait(lambda: rounds_done(folder) >= rounds // 4, 1800)
    before, used, at = sizes(federation), disk(federation), rounds_done(folder)
    wait(lambda: rounds_done(folder) >= rounds - 5, 3600)
    after, filled, reached = sizes(federation), disk(federation), rounds_done(folder)
    finished(folder)
    assert before.keys() == after.keys(), "a process ended in between"
    worst = max(after[pid][0] / before[pid][0] for pid in before)
    grown = {
        command_line(pid): (before[pid], after[pid])
        for pid in before
        if after[pid][0] > GROWTH * before[pid][0] + SPARE_BYTES
        or after[pid][1] > before[pid][1] + 2
        or after[pid][2] > before[pid][2]
    }
    assert {} == grown
    per_round = (filled - used) / (reached - at)
    assert per_round <= ROUND_BYTES
    assert ([], []) == (counted_twice(folder, rounds), events(folder, "paused", "failed"))
    measured(
        f"{rounds} rounds with four sites",
        "no file or thread more",
        memory_of_the_process_that_grew_most=f"{100 * (worst - 1):+.1f} %",
        disk_per_round=f"{per_round / 1000:.1f} kB",
    )
