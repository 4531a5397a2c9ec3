"""Buffered rounds: slow sites hold up nobody and count later by less, and nothing counts twice, whatever happens."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import (
    FIVE,
    INITIAL,
    NUM_EXAMPLES,
    SITES,
    ScriptedExchange,
    Stopped,
    completed,
    delta_with,
    events,
    failure,
    final_weights,
    log_of,
    make_study,
    problem,
)

from consilium.common.errors import CohortTooSmall
from consilium.common.protocol.plans import RoundPlan
from consilium.common.weights.arrays import digest
from consilium.server.study import hold
from consilium.server.study.exchange import Answer

UNTIMED = frozenset({"time", "before", "seconds", "transfer_seconds", "aggregation_seconds", "settings", "digest"}) | {
    *("result", "model"),
}


def buffered(size: int, **settings: Any) -> dict[str, Any]:
    """Return the schedule of a study."""
    return {"kind": "buffered", "size": size, **settings}


def stale_of(record: Mapping[str, Any]) -> dict[str, int]:
    """Return how stale each update of a round was."""
    return {site: facts.get("stale", 0) for site, facts in record["sites"].items()}


def plans_for(exchange: ScriptedExchange, site: str) -> list[RoundPlan]:
    """Return the plans of rounds that a site had."""
    return [plan for plan in exchange.asked if isinstance(plan, RoundPlan) and plan.site == site]


def timeless(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event without what differs from run to run, nor what names the schedule."""
    return {name: value for name, value in event.items() if name not in UNTIMED}


@pytest.mark.parametrize("script", [{}, {("round", 2, "paris"): delta_with(body__weight=None)}], ids=["well", "wrong"])
def test_buffer_of_all_sites_is_a_round_bit_for_bit(tmp_path: Path, script: dict[Any, Any]) -> None:
    """The same events, records and weights, also where one answer has to be rejected and the run ends by that."""
    logs = []
    for name, settings in (("rounds", {}), ("buffered", {"schedule": buffered(3)})):
        study = make_study(tmp_path / name, ScriptedExchange(script), **settings)
        if script:
            with pytest.raises(CohortTooSmall, match="2 of 3 sites sent a usable update, expected 3"):
                completed(study)
        else:
            completed(study)
        logs.append([json.dumps(timeless(event), sort_keys=True) for event in log_of(tmp_path / name)])
    assert logs[0] == logs[1]
    if not script:
        assert digest(final_weights(tmp_path / "rounds")) == digest(final_weights(tmp_path / "buffered"))


@dataclass
class Simulation:
    """FedBuff on the scripted sites' quadratics, in plain float64: a loop over events, written without our code.

    Each site moves the weights half the way to its own target, so an update is `(target - w) / 2` of the weights `w`
    that it began with. The count of batches goes towards what the site has, what it began with and 3 more, by a whole
    number for each update.
    """

    sites: tuple[str, ...]
    size: int
    most: int
    discount: float
    seconds: Mapping[tuple[int, str], float]
    stale: list[dict[str, int]] = field(default_factory=list)

    def run(self, rounds: int) -> tuple[Any, int]:
        """Return the weights and the count after so many rounds."""
        weights, count, now, order = np.asarray(INITIAL["body.weight"], np.float64), 0, 0.0, 0
        work: dict[str, tuple[float, int, int, Any, int]] = {}
        for number in range(1, rounds + 1):
            buffer: dict[str, tuple[int, Any, int]] = {}
            asked: set[str] = set()
            while len(buffer) < self.size:
                for site in sorted(set(self.sites) - work.keys() - buffer.keys() - asked):
                    order -= 1
                    work[site] = (now + self.seconds.get((number, site), 1.0), order, number, weights, count)
                    asked.add(site)
                site = min(work, key=lambda name: work[name][:2])
                now, _, began, sent, counted = work.pop(site)
                if number - began <= self.most:
                    buffer[site] = number - began, (FIVE.index(site) + 1 - sent) / 2, counted + 3
            total = sum(NUM_EXAMPLES[site] for site in buffer)
            parts = {site: NUM_EXAMPLES[site] / total * (1 + buffer[site][0]) ** -self.discount for site in buffer}
            weights = weights + sum(parts[site] * buffer[site][1] for site in buffer)
            moves = {
                site: np.rint((1 + tau) ** -self.discount * (had - count)) for site, (tau, _, had) in buffer.items()
            }
            count += int(np.rint(sum(NUM_EXAMPLES[site] / total * moves[site] for site in buffer)))
            self.stale.append({site: tau for site, (tau, _, _) in buffer.items()})
        return weights, count


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_those_of_fedbuff_written_down_plainly(tmp_path: Path, seed: int) -> None:
    """Five sites with delays by chance, buffers of 1 to 4, several discounts: the same weights and staleness."""
    chance = np.random.default_rng(seed)
    rounds, size, discount = 9, 1 + seed, (0.5, 0.0, 1.0, 2.0)[seed]
    seconds = {
        (number, site): float(chance.integers(1, 6)) * (7 if site == "rome" else 1)
        for number in range(1, rounds + 1)
        for site in FIVE
    }
    exchange = ScriptedExchange(online=frozenset(FIVE), seconds=seconds)
    schedule = buffered(size, max_staleness=3, discount=discount)
    settings = {"rounds": rounds, "sites": FIVE, "weighting": {"maximum": 1.0}, "defence": {"norm": {"kind": "off"}}}
    result = completed(make_study(tmp_path, exchange, schedule=schedule, **settings))
    simulation = Simulation(FIVE, size, 3, discount, seconds)
    weights, count = simulation.run(rounds)
    assert simulation.stale == [stale_of(record) for record in result["rounds"]]
    assert any(any(stale.values()) for stale in simulation.stale)
    seen = final_weights(tmp_path)
    np.testing.assert_allclose(weights, seen["body.weight"].astype(np.float64), rtol=2e-6, atol=2e-6)
    assert count == seen["bn.count"]


def test_slow_site_holds_up_nobody_and_counts_once(tmp_path: Path) -> None:
    """Paris needs as long as three rounds of the others: each of its two plans counts once, three rounds late."""
    seconds = {(number, "paris"): 3.5 for number in range(1, 9)}
    exchange = ScriptedExchange(seconds=seconds)
    result = completed(make_study(tmp_path, exchange, rounds=8, schedule=buffered(2)))
    stale = {record["round"]: stale_of(record) for record in result["rounds"]}
    assert {4: 3, 8: 3} == {number: sites["paris"] for number, sites in stale.items() if "paris" in sites}
    first, again = plans_for(exchange, "paris")
    assert (1, 5) == (first.round, again.round)
    assert (1, 2) == (again.accepted, again.asked)  # it goes on from what it kept after round 1, which counted in 4
    assert all(len(record["accepted"]) == 2 for record in result["rounds"])
    assert all(list(SITES) == record["asked"] for record in result["rounds"])


def test_update_that_is_too_stale_is_refused_and_its_site_asked_anew(tmp_path: Path) -> None:
    """It is named, goes on from the state before, and gets no strike; its next answer, in time, counts."""
    seconds = {(1, "paris"): 3.5}
    exchange = ScriptedExchange(seconds=seconds)
    schedule = buffered(2, max_staleness=2)
    result = completed(make_study(tmp_path, exchange, rounds=6, schedule=schedule, defence={"strikes": 1}))
    (event,) = events(tmp_path, "rejected")
    assert (4, "paris", "stale") == (event["round"], event["site"], event["reason"])
    assert "its update is from weights of 3 rounds ago, expected at most 2" in event["message"]
    assert [(1, None), (4, None)] == [(plan.round, plan.accepted) for plan in plans_for(exchange, "paris")][:2]
    assert any("paris" in record["accepted"] for record in result["rounds"][3:])
    assert [] == events(tmp_path, "set_aside")


def test_site_that_fails_late_is_asked_again_and_counts(tmp_path: Path) -> None:
    """Its failure of an earlier plan stands in the log; where it counts in the same round, it is no rejected site."""
    exchange = ScriptedExchange({("round", 1, "paris"): failure("ModelError", "diverged")}, seconds={(1, "paris"): 1.5})
    result = completed(make_study(tmp_path, exchange, rounds=3, schedule=buffered(3 - 1)))
    (event,) = events(tmp_path, "rejected")
    assert (2, "failure") == (event["round"], event["reason"])
    assert all(not set(record["rejected"]) & set(record["accepted"]) for record in result["rounds"])


def test_site_that_lies_is_set_aside_and_its_plan_taken_back(tmp_path: Path) -> None:
    """After its strikes it is asked no more, and the others go on."""
    script = {("round", number, "paris"): delta_with(body__weight=None) for number in range(1, 9)}
    exchange = ScriptedExchange(script)
    result = completed(make_study(tmp_path, exchange, rounds=6, schedule=buffered(2), defence={"strikes": 2}))
    assert ["paris"] == [event["site"] for event in events(tmp_path, "set_aside")]
    assert 2 == len(plans_for(exchange, "paris"))
    assert ["berlin", "madrid"] == result["rounds"][-1]["asked"]


SLOW = {(number, site): {"paris": 2.7, "rome": 1.6}.get(site, 1.0) for number in range(1, 9) for site in FIVE}


@pytest.mark.parametrize("answers", range(1, 16, 2))
def test_run_that_is_killed_at_any_answer_goes_on_and_counts_nothing_twice(tmp_path: Path, answers: int) -> None:
    """All sites are asked for the round after the checkpoint; every update that counts is of a plan of this process."""
    left = [answers]

    def count_down(answer: Answer) -> Answer:
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return answer

    settings = {"rounds": 8, "sites": FIVE, "schedule": buffered(3)}
    script = {("round", number, site): count_down for number in range(1, 9) for site in FIVE}
    with pytest.raises(Stopped):
        completed(make_study(tmp_path, ScriptedExchange(script, online=frozenset(FIVE), seconds=SLOW), **settings))
    saved = [event["round"] for event in events(tmp_path, "checkpoint")]
    exchange = ScriptedExchange(online=frozenset(FIVE), seconds=SLOW)
    result = completed(make_study(tmp_path, exchange, **settings))
    plans = [plan for plan in exchange.asked if isinstance(plan, RoundPlan)]
    began = max(saved, default=0) + 1
    assert list(FIVE) == sorted(plan.site for plan in plans if plan.round == began)
    assert began == min(plan.round for plan in plans)
    assert list(range(1, 9)) == [record["round"] for record in result["rounds"]]
    counted = [
        (site, record["round"] - stale)
        for record in result["rounds"]
        if record["round"] >= began
        for site, stale in stale_of(record).items()
    ]
    assert len(counted) == len(set(counted)) and set(counted) <= {(plan.site, plan.round) for plan in plans}


def test_run_pauses_where_its_buffer_cannot_be_filled_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three are away in round 2: when they are back they are asked for round 2 again."""
    monkeypatch.setattr(hold, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(hold, "FIRST_PAUSE_SECONDS", 0.001)
    times: dict[str, int] = {}

    def once(answer: Answer) -> Answer:
        times[answer.site] = times.get(answer.site, 0) + 1
        return problem("gone", "is not connected")(answer) if times[answer.site] == 1 else answer

    exchange = ScriptedExchange({("round", 2, site): once for site in ("paris", "madrid")}, patient=True)
    result = completed(make_study(tmp_path, exchange, schedule=buffered(2)))
    (paused,) = events(tmp_path, "paused")
    assert (2, 1, 2, ["madrid", "paris"]) == tuple(paused[name] for name in ("round", "usable", "quorum", "missing"))
    assert [2, 2, 2] == [len(record["accepted"]) for record in result["rounds"]]
    plans = [plan for plan in exchange.asked if isinstance(plan, RoundPlan) and plan.round == 2]
    assert {"berlin": 0, "madrid": 2, "paris": 2} == {site: sum(p.site == site for p in plans) for site in SITES}
    assert {"berlin": 1, "paris": 0} == stale_of(result["rounds"][1])  # berlin was at work on round 1 until then
