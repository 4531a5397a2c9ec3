"""Links that fail: one hospital's, the server's own, all in turn, silently, slowly; no study ends by it.

Where the table of faults has minutes, the tests have seconds, and `absent_seconds` is scaled with them; the partition
of 60 s is as long as it says, since the pings of a connection are not scaled.
"""

import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from bad_links import GOOD, Line, Link
from supervised import (
    Federation,
    accuracy,
    counted_twice,
    differing,
    events,
    finished,
    in_time,
    measured,
    rounds_done,
    seconds_since,
    wait,
    weights_of,
)

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

NAMES = ("berlin", "lyon", "madrid", "porto", "rome")
FOUR, THREE = NAMES[:4], NAMES[:3]
AWAY_SECONDS = 15.0
"""Stands for the 2 minutes of a hospital's link and the 90 s of the server's."""
BACK_SECONDS = 30.0
"""Goal: so soon after its link is whole a site is connected again."""
ROUNDS = 200
"""Enough that a study is not over before a link is back."""
ABSENT = {"absent_seconds": 1.0}
"""Of a round of 0.1 s, as the default of 8 s is of one of minutes."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server and five sites, each with a link of its own."""
    place = Federation(tmp_path_factory.mktemp("links"), NAMES)
    try:
        place.start()
        yield place
    finally:
        place.close()


def was_cut(link: Link, before: int, folder: Path) -> bool:
    """Return whether a link has cut another piece short, or the run is over."""
    return link.short > before or bool(events(folder, "finished"))


@pytest.fixture(autouse=True)
def _whole_again(federation: Federation) -> Iterator[None]:
    yield
    for link in federation.links.values():
        link.line = GOOD
        link.back()
    federation.wait_for_all()


def test_one_of_five_links_is_down_and_the_others_go_on(federation: Federation) -> None:
    """By default a majority is enough: no pause, no failure, and the fifth takes part again when it is back."""
    folder = federation.submit("one-down", rounds=ROUNDS, training={"steps": 300}, **ABSENT)
    wait(lambda: rounds_done(folder) >= 2)
    federation.links["rome"].away()
    cut = time.monotonic()
    time.sleep(AWAY_SECONDS)
    without = rounds_done(folder)
    federation.links["rome"].back()
    back = time.monotonic()
    wait(lambda: federation.is_online("rome"), BACK_SECONDS)
    seconds = seconds_since(back)
    at = rounds_done(folder)
    took_part = wait(
        lambda: (
            [event for event in events(folder, "round") if event["round"] > at and "rome" in event["accepted"]]
            or events(folder, "finished")
        ),
        60,
    )
    assert took_part[0]["event"] == "round", "the study ended before the fifth was back: more rounds are needed"
    result = finished(folder, 600)
    assert ([], []) == (events(folder, "paused", "failed"), counted_twice(folder, ROUNDS))
    named = {site for record in result["rounds"] for site in record["rejected"]}
    assert {"rome"} == named
    stall = max(event["seconds"] for event in events(folder, "round"))
    assert stall <= in_time(10) and without > 2
    assert all(facts["test"] is not None for facts in result["sites"].values())
    measured(
        f"one of five links down for {seconds_since(cut) - seconds_since(back):.0f} s, default quorum",
        "the others go on, no pause",
        back_after_seconds=seconds,
        longest_round_seconds=stall,
    )


@pytest.mark.parametrize("how", ["away", "hole"])
def test_servers_own_link_is_down_and_the_run_pauses_and_goes_on(federation: Federation, how: str) -> None:
    """Nobody is reached: it says who is missing, and ends with the weights of a run without the outage."""
    settings = {"rounds": 12, "quorum": '"all"', "training": {"steps": 100}, **ABSENT}
    whole = federation.submit(f"whole-{how}", **settings)
    finished(whole)
    folder = federation.submit(f"uplink-{how}", **settings)
    wait(lambda: rounds_done(folder) >= 2)
    cut = time.monotonic()
    for link in federation.links.values():
        link.away() if how == "away" else link.hole()
    # A hole is only noticed by the pings of a connection: after 30 s at most.
    time.sleep(AWAY_SECONDS if how == "away" else 60.0)
    assert rounds_done(folder) < 12
    for link in federation.links.values():
        link.back()
    back = time.monotonic()
    reached = rounds_done(folder)
    wait(lambda: rounds_done(folder) > reached, BACK_SECONDS + 15)
    seconds = seconds_since(back)
    finished(folder)
    assert [] == differing(weights_of(whole), weights_of(folder))
    assert ([], []) == (events(folder, "failed"), counted_twice(folder, 12))
    paused = events(folder, "paused")
    if how == "away":
        assert paused and set(paused[0]["missing"]) <= set(NAMES)
        assert len(paused) == len(events(folder, "went_on"))
    measured(
        f"the server's link {'down' if how == 'away' else 'silent'} for {back - cut:.0f} s, quorum all",
        "pauses and goes on, bit-equal",
        goes_on_after_seconds=seconds,
    )


def test_partition_of_a_minute_in_the_middle_of_a_round_counts_nothing_twice(federation: Federation) -> None:
    """Two of five are behind a silent hole for 60 s: three are enough, and the two take part again."""
    folder = federation.submit("partition", rounds=4, quorum=3, straggler_seconds=5, training={"steps": 100})
    wait(lambda: rounds_done(folder) >= 1)
    for name in ("porto", "rome"):
        federation.links[name].hole()
    holed = time.monotonic()
    wait(lambda: rounds_done(folder) == 4, 120)
    time.sleep(max(0.0, 60 - seconds_since(holed)))
    for name in ("porto", "rome"):
        federation.links[name].back()
    back = time.monotonic()
    result = finished(folder)
    seconds = seconds_since(back)
    assert ([], []) == (events(folder, "failed"), counted_twice(folder, 4))
    assert all(facts["test"] is not None for facts in result["sites"].values())
    stall = max(record["seconds"] for record in result["rounds"])
    assert stall <= 60
    again = federation.submit("after-partition", rounds=2, quorum='"all"')
    finished(again)
    assert [] == counted_twice(again, 2)
    measured(
        "two of five behind a silent hole for 60 s, quorum 3, straggler_seconds 5",
        "goes on without them",
        longest_round_seconds=stall,
        all_have_their_row_after_seconds=seconds,
    )


def test_drop_out_of_thirty_percent_over_fifty_rounds_with_a_quorum_of_two(federation: Federation) -> None:
    """In each round each site's link is down with probability 0.3; the accuracy stays that of a whole run."""
    settings = {"rounds": 50, "quorum": 2, "sites": list(FOUR), "training": {"steps": 100}, **ABSENT}
    whole = finished(federation.submit("steady", **settings), 600)
    folder = federation.submit("drop-out", **settings)
    accidents, reached, down = random.Random(5), -1, 0
    while not events(folder, "finishing", "failed"):
        if (now := rounds_done(folder)) == reached:
            time.sleep(0.02)
            # below the quorum nothing moves until links are back: they come back after a second
            if not events(folder, "paused") or len(events(folder, "paused")) == len(events(folder, "went_on")):
                continue
            time.sleep(1.0)
        reached = now
        for name in FOUR:
            link = federation.links[name]
            if accidents.random() < 0.3:
                link.away()
                down += 1
            else:
                link.back()
    for name in FOUR:
        federation.links[name].back()
    result = finished(folder)
    assert ([], []) == (events(folder, "failed"), counted_twice(folder, 50))
    missed = sum(len(record["rejected"]) for record in result["rounds"])
    assert missed > 20 and {"gone"} >= {why for record in result["rounds"] for why in record["rejected"].values()}
    assert abs(accuracy(whole) - accuracy(result)) <= 0.02
    measured(
        "30 % drop-out over 50 rounds, quorum 2 of 4",
        f"finished; {missed} of 200 updates missed",
        pauses=str(len(events(folder, "paused"))),
        accuracy_undisturbed=f"{accuracy(whole):.3f}",
        accuracy=f"{accuracy(result):.3f}",
    )


def test_slow_line_with_resets_ends_bit_equal(federation: Federation) -> None:
    """200 ms +- 50 each way, 5 Mbit/s, 1 % of the pieces reset the connection; the model has 4 MB."""
    settings = {
        "rounds": 4,
        "quorum": '"all"',
        "sites": list(THREE),
        "model": {"name": '"mlp"', "hidden": [1000, 1000]},
        "absent_seconds": 30,
        "round_timeout_seconds": 300.0,
    }
    whole = federation.submit("fast", **settings)
    finished(whole)
    began = time.monotonic()
    for name in THREE:
        federation.links[name].line = Line(0.2, 0.05, 5_000_000 / 8, 0.01)
        federation.links[name].cut()  # so that nothing is left of what came before
    federation.wait_for_all()
    folder = federation.submit("slow", **settings)
    finished(folder, 900)
    resets = sum(federation.links[name].resets for name in THREE)
    assert [] == differing(weights_of(whole), weights_of(folder))
    assert ([], []) == (events(folder, "failed"), counted_twice(folder, 4))
    assert resets > 0
    record = events(folder, "round")[-1]
    moved = record["bytes_down"] / 3 / 1e6
    measured(
        f"200 ms +- 50, 5 Mbit/s, 1 % resets, a model of {moved:.1f} MB, 4 rounds",
        f"bit-equal; {resets} resets",
        seconds=seconds_since(began),
    )


def test_connections_that_end_in_the_middle_of_a_message_change_nothing(federation: Federation) -> None:
    """Ten times, at random moments and sites, a piece arrives in half and its connection ends."""
    settings = {"rounds": 30, "quorum": '"all"', "sites": list(THREE), "training": {"steps": 50}}
    whole = federation.submit("untruncated", **settings)
    finished(whole)
    folder = federation.submit("truncated", **settings)
    accidents, links = random.Random(7), [federation.links[name] for name in THREE]
    for _ in range(10):
        link = accidents.choice(links)
        before = link.short
        link.cut_short()
        wait(partial(was_cut, link, before, folder))
        time.sleep(accidents.uniform(0, 0.5))
    finished(folder)
    short = sum(link.short for link in links)
    assert short > 0
    assert ([], []) == (differing(weights_of(whole), weights_of(folder)), counted_twice(folder, 30))
    measured("connections that end in the middle of a piece", f"bit-equal; {short} of them")
