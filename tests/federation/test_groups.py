"""Groups of devices in a run: who is drawn for a round, who takes another's place, and who gets the last weights."""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import scripted
from scripted import (
    FIVE,
    SITES,
    Alter,
    ScriptedExchange,
    assert_close,
    completed,
    events,
    expected_weights,
    failure,
    final_weights,
    make_study,
    problem,
)

from consilium.common.errors import CohortTooSmall, SitesMissing
from consilium.common.study.device_names import device_name
from consilium.server.study import groups, hold
from consilium.server.study.groups import draw

PHONES = tuple(device_name("phones", number) for number in range(1, 31))
GROUP = {"name": "phones", "cohort": 4}
GONE = problem("gone", "is not connected")


@pytest.fixture(autouse=True)
def _devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let devices answer as the scripted sites do, and nobody wait long."""
    for number, name in enumerate(PHONES):
        monkeypatch.setitem(scripted.NUM_EXAMPLES, name, 100 + number)
    monkeypatch.setattr(scripted, "FIVE", (*FIVE, *PHONES))
    monkeypatch.setattr(hold, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(hold, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(groups, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr("consilium.server.study.round.WAIT_SECONDS", 0.05)


@dataclass
class Coming(ScriptedExchange):
    """Sites that come and go with the rounds.

    Args:
        changes: round -> who is online once it is asked.
    """

    patient: bool = True
    changes: Mapping[int, Collection[str]] = field(default_factory=dict)

    def connected(self) -> frozenset[str]:
        """Return the sites that are online in the round that was asked last."""
        last = max((getattr(plan, "round", 0) for plan in self.asked), default=0)
        known = [number for number in self.changes if number <= last]
        return frozenset(self.changes[max(known)]) if known else self.online


def online(*names: str, script: Mapping[tuple[str, int, str], Alter] | None = None, **more: Any) -> Coming:
    """Return an exchange with these sites."""
    return Coming(script or {}, frozenset(names), **more)


def asked_in(exchange: ScriptedExchange, kind: str, number: int = 0) -> list[str]:
    """Return who was sent a plan of one kind and round, in order of names."""
    return sorted(plan.site for plan in exchange.asked if (plan.kind, getattr(plan, "round", 0)) == (kind, number))


def run(folder: Path, exchange: Coming, **settings: Any) -> dict[str, Any]:
    """Run a study of the group alone, unless the settings say otherwise."""
    return completed(make_study(folder, exchange, **{"sites": (), "groups": (GROUP,), **settings}))


def test_cohort_of_each_round_is_drawn_from_who_is_connected(tmp_path: Path) -> None:
    """Four of thirty in each round, others each time, and the weights are the mean of exactly these."""
    result = run(tmp_path / "one", online(*PHONES))
    asked = [tuple(record["asked"]) for record in result["rounds"]]
    assert [4, 4, 4] == [len(set(sites) & set(PHONES)) for sites in asked]
    assert 3 == len(set(asked))
    assert asked == [tuple(record["accepted"]) for record in result["rounds"]]
    assert_close(expected_weights(dict(enumerate(asked, start=1))), final_weights(tmp_path / "one"))
    again = run(tmp_path / "two", online(*reversed(PHONES)))
    assert asked == [tuple(record["asked"]) for record in again["rounds"]]
    other = run(tmp_path / "three", online(*PHONES), seed=7)
    assert asked != [tuple(record["asked"]) for record in other["rounds"]]


def test_draw_is_even_over_the_devices(tmp_path: Path) -> None:
    """In 3,000 rounds each of thirty is asked 400 times on average; none is off by more than five deviations."""
    config = make_study(tmp_path, online(), sites=(), groups=(GROUP,)).config
    counts = dict.fromkeys(PHONES, 0)
    for number in range(1, 3001):
        for name in draw(config, PHONES, round_number=number)["phones"][:4]:
            counts[name] += 1
    assert 12_000 == sum(counts.values())
    assert all(abs(count - 400) <= 5 * (400 * (1 - 4 / 30)) ** 0.5 for count in counts.values())


def test_only_drawn_devices_shake_hands_before_the_end(tmp_path: Path) -> None:
    """Four and two spare ones at the start; at the end all thirty get the last weights and their row."""
    exchange = online(*PHONES)
    result = run(tmp_path, exchange, rounds=1)
    kinds = [plan.kind for plan in exchange.asked]
    first = kinds.index("round")
    assert 6 <= kinds[:first].count("handshake") <= 12
    assert list(PHONES) == asked_in(exchange, "finish", 1)
    assert 30 == sum(facts["test"] is not None for facts in result["sites"].values())


def test_over_selection_asks_more_devices_and_ends_with_the_cohort(tmp_path: Path) -> None:
    """With 0.5 more, six devices are asked and the first four count."""
    result = run(tmp_path, online(*PHONES), over_selection=0.5)
    assert [(6, 4)] * 3 == [(len(record["asked"]), len(record["accepted"])) for record in result["rounds"]]


def test_spare_device_takes_the_place_of_one_that_goes(tmp_path: Path) -> None:
    """Two of four were away in round 2, and all four are needed: two others were asked, and nobody waited."""
    first = run(tmp_path / "honest", online(*PHONES), quorum="all")["rounds"][1]["asked"]
    script: dict[tuple[str, int, str], Alter] = {("round", 2, name): GONE for name in first[:2]}
    exchange = online(*PHONES, script=script)
    record = run(tmp_path / "faulty", exchange, quorum="all")["rounds"][1]
    assert set(first) < set(record["asked"])
    assert (6, 4) == (len(record["asked"]), len(record["accepted"]))
    assert dict.fromkeys(first[:2], "gone") == record["rejected"]
    assert [] == events(tmp_path / "faulty", "paused")


def test_round_is_tried_again_with_others_where_no_spare_is_left(tmp_path: Path) -> None:
    """Both devices that were there go in round 2, and two others have come: the study goes on with these."""
    few, others = PHONES[:2], PHONES[2:4]
    script: dict[tuple[str, int, str], Alter] = {("round", 2, name): GONE for name in few}
    exchange = online(*few, script=script, changes={2: others})
    result = run(tmp_path, exchange, groups=({"name": "phones", "cohort": 2},), quorum="all")
    assert [list(few), list(others), list(others)] == [record["accepted"] for record in result["rounds"]]
    assert [2] == [event["round"] for event in events(tmp_path, "round_failed")]


def test_round_is_not_tried_again_for_ever(tmp_path: Path) -> None:
    """Where all devices fail for longer than the study pauses, the run ends with what was wrong with them."""
    script: dict[tuple[str, int, str], Alter] = {("round", 2, name): problem("crash", "died") for name in PHONES[:2]}
    exchange = online(*PHONES[:2], script=script)
    with pytest.raises(CohortTooSmall, match=r"round 2: .*died"):
        run(tmp_path, exchange, groups=({"name": "phones", "cohort": 2},), pause_limit_seconds=0.2)


def test_run_pauses_while_too_few_devices_are_connected(tmp_path: Path) -> None:
    """With one device left of the two that a round needs at least, it waits until others are there."""
    exchange = online(*PHONES[:3], changes={1: PHONES[:1]})
    later = threading.Timer(0.3, lambda: setattr(exchange, "changes", {1: PHONES[5:9]}))
    later.start()
    result = run(tmp_path, exchange, groups=({"name": "phones", "cohort": 3},))
    later.join()
    assert set(result["rounds"][1]["asked"]) <= set(PHONES[5:9])
    (paused,) = events(tmp_path, "paused")
    assert (2, 1, 2) == (paused["round"], paused["usable"], paused["quorum"])
    assert "missing: 2 of 3 devices of group 'phones'" in paused["why"]
    assert [2] == [event["round"] for event in events(tmp_path, "went_on")]


def test_pause_for_devices_ends_with_its_limit(tmp_path: Path) -> None:
    """Nobody comes: the run ends, and says how many devices are missing."""
    exchange = online(*PHONES[:3], changes={1: PHONES[:1]})
    with pytest.raises(CohortTooSmall, match=r"round 2: 1 sites can be asked, expected 2; missing: 2 of 3 devices"):
        run(tmp_path, exchange, groups=({"name": "phones", "cohort": 3},), pause_limit_seconds=0.1)


def test_start_waits_for_a_cohort_and_says_how_many_are_missing(tmp_path: Path) -> None:
    """A group has no names to be listed."""
    exchange = Coming(online=frozenset(PHONES[:1]), patient=False)
    with pytest.raises(SitesMissing, match=r"3 of 4 devices of group 'phones'; connected: phones-000001"):
        run(tmp_path, exchange)


def test_device_that_was_away_rests_for_some_rounds(tmp_path: Path) -> None:
    """It is drawn again only once the others do not suffice."""
    config = make_study(tmp_path, online(), sites=(), groups=(GROUP,)).config
    first = draw(config, PHONES, round_number=1)["phones"]
    assert 6 == len(first)
    rested = draw(config, PHONES, round_number=1, resting=first)["phones"]
    assert not set(first) & set(rested)
    few = draw(config, first, round_number=1, resting=first[:3])["phones"]
    assert (set(first[3:]), set(first[:3])) == (set(few[:3]), set(few[3:]))


def test_newcomer_is_drawn_once_it_is_there(tmp_path: Path) -> None:
    """After round 1 only new devices are connected: they shake hands and train, from the weights so far."""
    exchange = online(*PHONES[:8], changes={1: PHONES[8:20]})
    result = run(tmp_path, exchange)
    accepted = [tuple(record["accepted"]) for record in result["rounds"]]
    assert set(accepted[0]) <= set(PHONES[:8])
    assert all(set(sites) <= set(PHONES[8:20]) for sites in accepted[1:])
    assert_close(expected_weights(dict(enumerate(accepted, start=1))), final_weights(tmp_path))
    assert events(tmp_path, "joined")


def test_run_waits_at_its_end_until_a_device_is_back(tmp_path: Path) -> None:
    """All go before they have tested: the run says who is missing, and ends with the rows of those that come back."""
    script: dict[tuple[str, int, str], Alter] = {("finish", 3, name): GONE for name in PHONES}
    exchange = online(*PHONES[:8], script=script, changes={3: ()})

    def back() -> None:
        script.clear()
        exchange.changes = {}

    later = threading.Timer(0.5, back)
    later.start()
    result = run(tmp_path, exchange)
    later.join()
    tested = {site for site, facts in result["sites"].items() if facts["test"] is not None}
    assert tested == set(result["sites"]) and len(tested) >= 4
    (paused,) = events(tmp_path, "paused")
    assert (0, 1) == (paused["usable"], paused["quorum"])
    assert set(paused["missing"]) == tested


def test_run_without_any_test_row_is_not_finished(tmp_path: Path) -> None:
    """Nobody comes back before the limit of the pause."""
    script: dict[tuple[str, int, str], Alter] = {("finish", 3, name): GONE for name in PHONES}
    exchange = online(*PHONES[:8], script=script, changes={3: ()})
    with pytest.raises(CohortTooSmall, match=r"only 0 of \d sites reported test results; .*phones-00000"):
        run(tmp_path, exchange, pause_limit_seconds=0.2)
    assert [] == events(tmp_path, "finished")


def test_devices_that_hang_at_the_start_are_replaced_by_others(tmp_path: Path) -> None:
    """Of thirty the six of the first draw do not answer: six others shake hands, and the study goes on with these."""
    hung = online(*PHONES)
    run(tmp_path / "honest", hung, rounds=1)
    first = [plan.site for plan in hung.asked if plan.kind == "handshake"][:6]
    script: dict[tuple[str, int, str], Alter] = {
        ("handshake", 0, name): problem("timeout", "does not answer") for name in first
    }
    exchange = online(*PHONES, script=script)
    result = run(tmp_path / "faulty", exchange, pause_limit_seconds=5)
    asked = [plan.site for plan in exchange.asked if plan.kind == "handshake"]
    assert sorted(first) == sorted(asked[:6])
    assert not set(first) & set(asked[6:12])
    assert [4, 4, 4] == [len(record["accepted"]) for record in result["rounds"]]
    (paused,) = events(tmp_path / "faulty", "paused")
    assert all(name in paused["why"] for name in first)


def test_named_sites_and_groups_train_together(tmp_path: Path) -> None:
    """All named sites are asked in every round, with four devices."""
    result = run(tmp_path, online(*SITES, *PHONES), sites=SITES)
    for record in result["rounds"]:
        assert [*SITES] == [site for site in record["asked"] if site in SITES]
        assert 4 == len(set(record["asked"]) - set(SITES))


def test_device_that_differs_is_left_out_and_another_is_drawn(tmp_path: Path) -> None:
    """A device whose handshake fails is named and never asked again; its place in the round is taken."""
    first = run(tmp_path / "honest", online(*PHONES))["rounds"][0]["asked"]
    script: dict[tuple[str, int, str], Alter] = {("handshake", 0, first[0]): failure("DataError", "no rows")}
    exchange = online(*PHONES, script=script)
    result = run(tmp_path / "faulty", exchange)
    assert 4 == len(result["rounds"][0]["accepted"])
    assert first[0] not in result["sites"]
    assert [first[0]] == [event["site"] for event in events(tmp_path / "faulty", "rejected")]


def test_stranger_of_another_group_is_never_asked(tmp_path: Path) -> None:
    """Devices of a group that the study has not are connected to the same server."""
    strangers = [device_name("watches", number) for number in range(1, 20)]
    exchange = online(*PHONES[:6], *strangers, "phones", "phones-0001", "phones-000000")
    run(tmp_path, exchange)
    assert {plan.site for plan in exchange.asked} <= set(PHONES)


def test_run_goes_on_from_its_checkpoint_with_other_devices(tmp_path: Path) -> None:
    """After a restart the devices that are there shake hands, and the rounds are drawn as without one."""
    exchange = online(*PHONES)
    exchange.stop_in_round = 3
    with pytest.raises(scripted.Stopped):
        run(tmp_path / "cut", exchange)
    run(tmp_path / "cut", online(*PHONES))
    whole = run(tmp_path / "whole", online(*PHONES))
    read = [event["asked"] for event in events(tmp_path / "cut", "round")]
    assert [record["asked"] for record in whole["rounds"]] == read
    assert_close(final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut"))
