"""Processes that are killed, at random moments and at named points: all go on by themselves, and end bit-equal.

A supervisor starts each program again whenever it ends, as systemd and containers do.
"""

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from supervised import (
    Federation,
    counted_twice,
    differing,
    events,
    finished,
    in_time,
    kill_all,
    measured,
    moved_on,
    rounds_done,
    seconds_since,
    wait,
    weights_of,
)

from consilium.common.errors import StateError

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

NAMES = ("berlin", "lyon", "porto")
WITHIN_SECONDS = 60.0
"""Goal: so soon after a kill the run goes on."""
STALL_SECONDS = 10.0
"""Goal: so long the others wait at most for a site that was killed."""
SITE_SECONDS = 30.0
"""Goal: so soon a site that was killed is connected again."""
FEW, MANY = 3, pytest.param(20, marks=pytest.mark.nightly)
ROUNDS_PER_KILL = 4


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server and three sites, all supervised."""
    place = Federation(tmp_path_factory.mktemp("kills"), NAMES)
    try:
        place.start()
        yield place
    finally:
        place.close()


@pytest.fixture(scope="module")
def undisturbed(federation: Federation) -> Callable[[int], dict[str, Any]]:
    """Return a function that runs a study of so many rounds to which nothing happens, once, and returns its weights."""
    known: dict[int, dict[str, Any]] = {}

    def weights(rounds: int) -> dict[str, Any]:
        if rounds not in known:
            folder = federation.submit(f"undisturbed{rounds}", rounds=rounds, quorum='"all"')
            finished(folder)
            known[rounds] = weights_of(folder)
        return known[rounds]

    return weights


def kill_run(federation: Federation) -> None:
    """Kill the processes of runs, the spare among them, as the kernel does when memory runs out."""
    kill_all(federation.run_processes())


def kill_server(federation: Federation) -> None:
    """Kill the server with all that it has started."""
    federation.server.kill()


def kill_server_alone(federation: Federation) -> None:
    """Kill the server's own process only: what it has started has to end by itself."""
    kill_all(federation.server.pids()[:1])


def kill_machine(federation: Federation) -> None:
    """Kill every process of the server and of all sites at once."""
    kill_all(pid for program in [federation.server, *federation.sites.values()] for pid in program.pids())


VICTIMS = {"run": kill_run, "server": kill_server, "server alone": kill_server_alone, "all processes": kill_machine}


@pytest.mark.parametrize("times", [FEW, MANY])
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_at_random_moments_it_goes_on_by_itself_bit_equal(
    federation: Federation, undisturbed: Callable[[int], dict[str, Any]], victim: str, times: int
) -> None:
    """One run is killed so many times, each at a random moment, and ends with the very weights of one that was not."""
    rounds = times * ROUNDS_PER_KILL
    expected = undisturbed(rounds)
    federation.wait_for_all()
    moments = random.Random(f"{victim} {times}")
    folder = federation.submit(f"{victim.replace(' ', '-')}{times}", rounds=rounds, quorum='"all"')
    longest = 0.0
    for _ in range(times):
        reached = rounds_done(folder)
        wait(moved_on(folder, reached), 120)
        time.sleep(moments.uniform(0, 0.6))
        if events(folder, "finished"):
            break
        reached, killed = rounds_done(folder), time.monotonic()
        VICTIMS[victim](federation)
        wait(moved_on(folder, reached), WITHIN_SECONDS)
        longest = max(longest, seconds_since(killed))
    finished(folder)
    assert ([], []) == (differing(expected, weights_of(folder)), counted_twice(folder, rounds))
    measured(f"kill -9 of {victim}, {times} times", f"{times} of {times} go on, bit-equal", longest_seconds=longest)


@pytest.mark.parametrize("moment", ["submitted", "started", "agreed", "asked", "answered"])
def test_server_killed_before_the_first_checkpoint_begins_again_by_itself(
    federation: Federation, undisturbed: Callable[[int], dict[str, Any]], moment: str
) -> None:
    """At each of the first events of a run there is nothing to go on from, and it begins anew."""
    expected = undisturbed(ROUNDS_PER_KILL)
    federation.wait_for_all()
    folder = federation.submit(f"early-{moment}", rounds=ROUNDS_PER_KILL, quorum='"all"')
    wait(lambda: events(folder, moment), 60)
    had = (folder / "checkpoint.safetensors").exists()
    reached, killed = rounds_done(folder), time.monotonic()
    kill_server(federation)
    wait(moved_on(folder, reached), WITHIN_SECONDS)
    seconds = seconds_since(killed)
    finished(folder)
    assert ([], []) == (differing(expected, weights_of(folder)), counted_twice(folder, ROUNDS_PER_KILL))
    measured(f"kill -9 of the server at '{moment}' ({'a' if had else 'no'} checkpoint)", "bit-equal", seconds=seconds)


@pytest.mark.parametrize("quorum", ['"all"', "2"])
@pytest.mark.parametrize("times", [FEW, MANY])
def test_site_killed_at_random_moments_is_back_and_holds_nobody_up(
    federation: Federation, undisturbed: Callable[[int], dict[str, Any]], quorum: str, times: int
) -> None:
    """Who needs all waits and ends bit-equal; who needs two of three waits at most a moment for the third."""
    rounds = times * ROUNDS_PER_KILL
    expected = undisturbed(rounds)
    federation.wait_for_all()
    moments = random.Random(times)
    folder = federation.submit(f"site{times}-{quorum.strip(chr(34))}", rounds=rounds, quorum=quorum)
    back = 0.0
    for _ in range(times):
        reached = rounds_done(folder)
        wait(moved_on(folder, reached), 120)
        time.sleep(moments.uniform(0, 0.6))
        killed, name = time.monotonic(), moments.choice(NAMES)
        federation.sites[name].kill()
        wait(partial(federation.is_offline, name), 20)
        federation.wait_for_all(SITE_SECONDS)
        back = max(back, seconds_since(killed))
        if events(folder, "finished"):
            break
    result = finished(folder)
    assert [] == counted_twice(folder, rounds)
    stall = max(event["seconds"] for event in events(folder, "round"))
    if quorum == '"all"':
        assert [] == differing(expected, weights_of(folder))
    else:
        assert stall <= in_time(STALL_SECONDS)
        refused = {reason for record in result["rounds"] for reason in record["rejected"].values()}
        assert refused <= {"gone", "crash", "timeout"}
    assert all(facts["test"] is not None for facts in result["sites"].values())
    outcome = "bit-equal" if quorum == '"all"' else "finished"
    measured(
        f"kill -9 of a site's processes, {times} times, quorum {quorum}",
        outcome,
        longest_until_back_seconds=back,
        longest_round_seconds=stall,
    )


def test_second_resume_while_the_first_runs_is_refused_and_leaves_no_trace(federation: Federation) -> None:
    """It gets a sentence; the first run's log has neither a failure nor another submission, and it ends as it would."""
    rounds = FEW * ROUNDS_PER_KILL
    folder = federation.submit("twice", rounds=rounds, quorum='"all"', training={"steps": 200})
    wait(lambda: rounds_done(folder) > 0)
    words = ("run", "twice.toml", "--home", str(federation.home.path), "--resume", str(folder))
    code, output = federation.command(*words)
    assert "is going on already" in output.replace("\n", " "), output
    assert code == StateError.exit_code
    finished(folder)
    assert ([], 1) == (events(folder, "failed", "stopped"), len(events(folder, "submitted")))
    assert [] == counted_twice(folder, rounds)
    measured("a second --resume while the first runs", "refused with a sentence, the first one finished")


def test_nothing_is_left_after_kills(federation: Federation) -> None:
    """No process without a parent, no temporary file, and the folders of runs hold what they always do."""
    kill_machine(federation)
    federation.wait_for_all()
    folder = federation.submit("last", rounds=1)
    finished(folder)
    temporary = [
        path
        for place in (federation.home.path, folder, *(site.path / "state" for site in federation.folders.values()))
        for path in Path(place).rglob(".*.tmp")
    ]
    assert [] == temporary
