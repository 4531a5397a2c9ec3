"""Patience: a run below its quorum pauses, asks the missing sites again, and ends as if nothing had happened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from scripted import (
    INITIAL,
    SITES,
    Alter,
    ScriptedExchange,
    card_with,
    completed,
    events,
    failure,
    final_weights,
    make_study,
    problem,
    run,
)

from consilium.common.errors import CohortTooSmall, DiskFull, HandshakeMismatch, SitesMissing
from consilium.common.protocol.plans import Plan
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import ImageTask
from consilium.server.study import hold
from consilium.server.study import run as server_run
from consilium.server.study.exchange import Answer

Key = tuple[str, int, str]


@dataclass
class Returning(ScriptedExchange):
    """Sites whose faults pass: each scripted answer is altered as often as `times` says, and honest after that."""

    patient: bool = True
    times: Mapping[Key, int] = field(default_factory=dict)
    seen: dict[Key, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Wrap the script so that it counts."""
        self.script = {key: self._passing(key, alter) for key, alter in self.script.items()}

    def _passing(self, key: Key, alter: Alter) -> Alter:
        def altered(answer: Answer) -> Answer:
            self.seen[key] = self.seen.get(key, 0) + 1
            return alter(answer) if self.seen[key] <= self.times.get(key, 1) else answer

        return altered


GONE = problem("gone", "is not connected")
LATE = problem("timeout", "did not answer within 600 s")


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(hold, "FIRST_PAUSE_SECONDS", 0.001)


def plans_of(exchange: ScriptedExchange, kind: str, number: int) -> list[tuple[str, Plan]]:
    """Return the plans of one kind and round in the order in which they were sent."""
    return [(plan.site, plan) for plan in exchange.asked if (plan.kind, getattr(plan, "round", 0)) == (kind, number)]


@pytest.mark.parametrize("quorum", [None, "all", 3])
def test_default_quorum_goes_on_without_one_of_three_and_all_waits_for_it(
    tmp_path: Path, quorum: int | str | None
) -> None:
    """More than half is enough by default; who asks for all gets the very weights that a run without a fault has."""
    exchange = Returning({("round", 2, "paris"): GONE})
    result = completed(make_study(tmp_path / "faulty", exchange, quorum=quorum))
    accepted = [record["accepted"] for record in result["rounds"]]
    if quorum is None:
        assert [3, 2, 3] == [len(sites) for sites in accepted]
        assert [] == events(tmp_path / "faulty", "paused")
        return
    run(tmp_path / "whole")
    assert [list(SITES)] * 3 == accepted
    expected = final_weights(tmp_path / "whole")
    assert all(np.array_equal(expected[name], array) for name, array in final_weights(tmp_path / "faulty").items())


@pytest.mark.parametrize("fault", [GONE, LATE, problem("crash", "died")], ids=["gone", "timeout", "crash"])
def test_pause_asks_only_the_missing_again_with_the_same_plan(tmp_path: Path, fault: Alter) -> None:
    """Two of three missed round 2: the third's answer is kept, theirs are asked for until they come."""
    keys = [("round", 2, "paris"), ("round", 2, "madrid")]
    exchange = Returning(dict.fromkeys(keys, fault), times={keys[0]: 2, keys[1]: 2})
    result = completed(make_study(tmp_path, exchange))
    asked = plans_of(exchange, "round", 2)
    assert {"berlin": 1, "madrid": 3, "paris": 3} == {site: sum(one == site for one, _ in asked) for site in SITES}
    assert all(len({plan.model_dump_json() for one, plan in asked if one == site}) == 1 for site in SITES)
    (paused,) = events(tmp_path, "paused")
    assert (2, 1, 2, ["madrid", "paris"]) == tuple(paused[name] for name in ("round", "usable", "quorum", "missing"))
    assert [2] == [event["round"] for event in events(tmp_path, "went_on")]
    assert ([], {}) == (events(tmp_path, "round_failed"), result["rounds"][1]["rejected"])


def test_site_whose_answer_is_refused_is_not_waited_for(tmp_path: Path) -> None:
    """It would send the same again; the run ends with both reasons, as no quorum can come about."""
    script = {("round", 2, site): failure("ModelError", "diverged") for site in ("madrid", "paris")}
    exchange = Returning(script)
    with pytest.raises(CohortTooSmall, match=r"1 of 3 sites sent a usable update, expected 2.*diverged"):
        completed(make_study(tmp_path, exchange))
    assert ([], 1) == (events(tmp_path, "paused"), len(events(tmp_path, "round_failed")))


def test_process_that_dies_of_its_plan_again_and_again_is_not_asked_for_ever(tmp_path: Path) -> None:
    """Three times in a row are enough."""
    keys = [("round", 1, "paris"), ("round", 1, "madrid")]
    exchange = Returning(dict.fromkeys(keys, problem("crash", "died")), times=dict.fromkeys(keys, 99))
    with pytest.raises(CohortTooSmall, match="died"):
        completed(make_study(tmp_path, exchange))
    assert hold.MOST_CRASHES == exchange.seen[keys[0]]


@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_pause_ends_with_its_limit(tmp_path: Path, limit: float) -> None:
    """Nobody comes back: the run ends with the sentence of a run that does not wait."""
    script = {("round", 2, site): GONE for site in ("madrid", "paris")}
    exchange = Returning(script, times=dict.fromkeys(script, 99))
    exchange.online = frozenset(SITES)
    study = make_study(tmp_path, exchange, pause_limit_seconds=limit)
    with pytest.raises(CohortTooSmall, match="1 of 3 sites sent a usable update, expected 2"):
        completed(study)
    assert (limit > 0) == bool(events(tmp_path, "paused"))


def test_handshake_goes_on_without_a_site_that_differs_or_fails(tmp_path: Path) -> None:
    """Two of three are alike: the third is named, is not asked again, and a study that needs all ends."""
    script: dict[Key, Alter] = {("handshake", 0, "madrid"): card_with(schema_digest="0" * 64)}
    result = completed(make_study(tmp_path, Returning(script)))
    assert [["berlin", "paris"]] * 3 == [record["accepted"] for record in result["rounds"]]
    (event,) = events(tmp_path, "rejected")
    assert ("madrid", "handshake") == (event["site"], event["reason"])
    assert "data schema: berlin has" in event["message"]
    with pytest.raises(HandshakeMismatch, match="data schema"):
        completed(make_study(tmp_path / "all", Returning(script), quorum="all"))


def test_the_first_by_name_has_no_more_say_than_the_others(tmp_path: Path) -> None:
    """Where berlin differs from madrid and paris, berlin is left out."""
    script: dict[Key, Alter] = {("handshake", 0, "berlin"): card_with(schema_digest="0" * 64)}
    result = completed(make_study(tmp_path, Returning(script)))
    assert ["madrid", "paris"] == sorted(result["sites"])


@pytest.mark.parametrize("kind", ["handshake", "initial_weights"])
def test_start_is_asked_again_where_sites_do_not_answer_it(tmp_path: Path, kind: str) -> None:
    """Two that are away in the handshake are waited for; one that does not send its weights is passed over."""
    away = ["berlin", "madrid"] if kind == "handshake" else ["berlin"]
    exchange = Returning({(kind, 0, site): GONE for site in away})
    result = completed(make_study(tmp_path, exchange))
    assert 3 == len(result["rounds"])
    assert (kind == "handshake") == bool(events(tmp_path, "paused"))
    assert list(SITES) == result["rounds"][2]["accepted"]


def test_start_waits_for_a_majority_and_no_longer_for_all(tmp_path: Path) -> None:
    """After the time to join two of three are enough; one alone pauses until its limit."""
    exchange = Returning(online=frozenset({"berlin", "paris"}))
    result = completed(make_study(tmp_path / "two", exchange))
    assert [["berlin", "paris"]] * 3 == [record["accepted"] for record in result["rounds"]]
    exchange = Returning(online=frozenset({"berlin"}))
    with pytest.raises(SitesMissing, match=r"after 0\.45 s .*: madrid, paris; connected: berlin"):
        completed(make_study(tmp_path / "one", exchange, pause_limit_seconds=0.3))
    (paused,) = events(tmp_path / "one", "paused")
    assert (0, 1, 2) == tuple(paused[name] for name in ("round", "usable", "quorum"))


def test_finish_waits_below_its_quorum(tmp_path: Path) -> None:
    """Two of three are away at the end: the third is not asked again, and all three have their row."""
    keys = [("finish", 3, "paris"), ("finish", 3, "madrid")]
    exchange = Returning(dict.fromkeys(keys, GONE))
    result = completed(make_study(tmp_path, exchange))
    assert all(facts["test"] is not None for facts in result["sites"].values())
    assert 1 == sum(site == "berlin" for site, _ in plans_of(exchange, "finish", 3))


@pytest.mark.parametrize(
    ("settings", "updates", "start"),
    [
        ({}, 3, 3),
        ({"quorum": "all"}, 5, 5),
        ({"quorum": 2}, 2, 3),
        ({"quorum": 2, "min_sites": 2}, 2, 2),
        ({"cohort_fraction": 0.4}, 2, 3),
        ({"strategy": {"kind": "krum"}}, 5, 5),
        ({"strategy": {"kind": "trimmed_mean", "trim": 1}}, 3, 3),
        ({"weighting": {"factors": [{"kind": "size"}], "maximum": 0.25}}, 4, 4),
        ({"privacy": {"secure_aggregation": True, "bound": 1.0}}, 5, 5),
    ],
)
def test_least_updates_of_five_sites(settings: dict[str, object], updates: int, start: int) -> None:
    """More than half by default, but never fewer than the strategy, the bounds of shares or secure sums can do with."""
    config = StudyConfig(
        name="hearts",
        sites=("a", "b", "c", "d", "e"),
        task=ImageTask(classes=("no", "yes")),
        **settings,  # type: ignore[arg-type] # as a study file has them
    )
    assert (updates, start) == (config.least_updates, config.least_sites_to_start)


def test_nobody_is_waited_for_where_nobody_can_come_back(tmp_path: Path) -> None:
    """In one process every site is needed by default: one that fails has a fault of its own."""
    with pytest.raises(CohortTooSmall, match="2 of 3 sites sent a usable update, expected 3"):
        completed(make_study(tmp_path, ScriptedExchange({("round", 1, "paris"): GONE})))


def test_straggler_is_cut_off_once_the_quorum_is_there(tmp_path: Path) -> None:
    """Two of three have answered and nobody waits any longer: the third is named, and its plan is withdrawn."""
    exchange = Returning()
    result = completed(make_study(tmp_path, exchange, straggler_seconds=0.0))
    assert [["madrid", "paris"]] * 3 == [record["accepted"] for record in result["rounds"]]
    assert [{"berlin": "cut_off"}] * 3 == [record["rejected"] for record in result["rounds"]]
    patient = completed(make_study(tmp_path / "patient", Returning(), straggler_seconds=60.0))
    assert [list(SITES)] * 3 == [record["accepted"] for record in patient["rounds"]]


def test_over_selection_takes_the_first_answers(tmp_path: Path) -> None:
    """A round of two asks three, ends with the first two, and nobody is reproached for being slower."""
    exchange = Returning()
    result = completed(make_study(tmp_path, exchange, cohort_fraction=0.5, over_selection=0.5))
    first = result["rounds"][0]
    assert (list(SITES), ["madrid", "paris"], {}) == tuple(first[name] for name in ("asked", "accepted", "rejected"))
    assert 3 == len(plans_of(exchange, "round", 1))
    assert all(facts["test"] is not None for facts in result["sites"].values())


@pytest.mark.parametrize("times", [2, 10_000])
def test_full_disk_pauses_a_run_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The sentence says whose disk and how much it needs; with no room for longer than the limit the run ends."""
    looked = []

    def check_room(folder: Path, needed: int, *, what: str) -> None:
        looked.append(needed)
        if len(looked) in range(2, 2 + times):  # from round 2 on
            raise DiskFull(f"the disk of '{folder.name}' has no room for {what}")

    monkeypatch.setattr(server_run, "check_room", check_room)
    monkeypatch.setattr(hold, "DISK_SECONDS", 0.001)
    study = make_study(tmp_path / "heart", Returning(), pause_limit_seconds=0.2)
    if times > 2:
        with pytest.raises(DiskFull, match="has no room for a round"):
            completed(study)
        return
    assert 3 == len(completed(study)["rounds"])
    (paused,) = events(tmp_path / "heart", "paused")
    assert (2, "the disk of 'heart' has no room for a round") == (paused["round"], paused["why"])
    assert looked[0] == (1 + len(SITES)) * sum(array.nbytes for array in INITIAL.values())
