"""Sites that lie, in whole runs against scripted sites: who is named, who is set aside, and what the others get."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted import (
    CODEC,
    FIVE,
    NUM_EXAMPLES,
    Alter,
    ScriptedExchange,
    Stopped,
    completed,
    delta_with,
    events,
    final_weights,
    log_of,
    make_study,
    problem,
    reply_with,
)

from consilium.client.data import Examples
from consilium.client.training.work import LocalWork
from consilium.common.protocol.plans import study_digest
from consilium.privacy.audit.audit import audit_run
from consilium.server.study.believed import effective_steps
from consilium.server.study.checkpoint import load_checkpoint
from consilium.server.study.exchange import Answer
from consilium.server.study.run_folder import RunFolder

LOW = {"norm": {"kind": "median", "factor": 2.0}}
OFF = {"norm": {"kind": "off"}}
ROUNDS = 6


def lie(value: float) -> Alter:
    """Return an update whose numbers are all the same, as large as that."""
    return delta_with(body__weight=np.full((2, 3), value, np.float32))


def run(folder: Path, script: Mapping[tuple[str, int, str], Alter] | None = None, **settings: Any) -> dict[str, Any]:
    """Run a study of five scripted sites, of which three are enough, and return its result."""
    exchange = ScriptedExchange(script or {}, online=frozenset(FIVE))
    return completed(make_study(folder, exchange, **{"sites": FIVE, "quorum": 3, "rounds": ROUNDS} | settings))


def always(site: str, alter: Alter, rounds: range = range(1, ROUNDS + 1)) -> dict[tuple[str, int, str], Alter]:
    """Return the script of a site that does this in every round."""
    return {("round", number, site): alter for number in rounds}


def test_update_beyond_belief_is_rejected_and_the_others_go_on(tmp_path: Path) -> None:
    """1e30 in round 2: named with its length, once; the weights are those of a run in which the site was away."""
    result = run(tmp_path / "lie", {("round", 2, "rome"): lie(1e30)})
    run(tmp_path / "away", {("round", 2, "rome"): problem("gone", "the link is down")})
    record = result["rounds"][1]
    assert ({"rome": "norm"}, sorted(set(FIVE) - {"rome"})) == (record["rejected"], list(record["accepted"]))
    assert "site 'rome': its update has the length 2.45e+30, expected at most" in record["details"]["rome"]
    np.testing.assert_array_equal(
        final_weights(tmp_path / "lie")["body.weight"], final_weights(tmp_path / "away")["body.weight"]
    )
    assert ["norm"] == [event["reason"] for event in events(tmp_path / "lie", "rejected")]


def test_update_a_few_times_too_long_is_shortened_and_said(tmp_path: Path) -> None:
    """Deltas of round 1 are about 1 to 5 halves per number; 4.5 everywhere is longer than twice the median."""
    result = run(tmp_path, {("round", 1, "rome"): lie(4.5)}, training={"steps": 4}, defence=LOW)
    factor = result["rounds"][0]["shortened"]["rome"]
    lengths = sorted(
        [float(np.linalg.norm((k + 1 - np.linspace(-1, 1, 6)) / 2)) for k in (0, 1, 2, 4)] + [4.5 * 6**0.5]
    )
    assert pytest.approx(2 * lengths[2] / lengths[-1], rel=1e-6) == factor
    assert any("site 'rome': its update was shortened in" in warning for warning in result["warnings"])


def test_honest_round_is_the_same_with_and_without_a_bound(tmp_path: Path) -> None:
    """Not a bit differs where nothing is longer than the bound."""
    one, other = tmp_path / "on", tmp_path / "off"
    assert all("shortened" not in record for record in run(one, rounds=1)["rounds"])
    run(other, rounds=1, defence=OFF)
    np.testing.assert_array_equal(final_weights(one)["body.weight"], final_weights(other)["body.weight"])


def test_without_a_bound_one_number_ruins_everybody(tmp_path: Path) -> None:
    """The defence is what keeps the weights: switched off, the same lie takes them to 1e28 and beyond."""
    run(tmp_path, {("round", ROUNDS, "rome"): lie(1e30)}, defence=OFF)
    assert np.abs(final_weights(tmp_path)["body.weight"]).max() > 1e28


def test_site_that_is_rejected_three_times_in_a_row_is_set_aside(tmp_path: Path) -> None:
    """Asked in rounds 1 to 3, in none after; said in the log, in the report and as a metric. The others go on."""
    result = run(tmp_path, always("rome", lie(1e30)))
    asked = [record["asked"] for record in result["rounds"]]
    assert [["rome" in sites for sites in asked]] == [[True] * 3 + [False] * 3]
    (event,) = events(tmp_path, "set_aside")
    assert (3, "rome", 3, "norm") == (event["round"], event["site"], event["strikes"], event["reason"])
    assert any("site 'rome' was set aside: 3 answers in a row" in warning for warning in result["warnings"])


def test_absence_gives_no_strike_and_a_good_answer_takes_them_away(tmp_path: Path) -> None:
    """Rejected, away, rejected, good, rejected, rejected: never three in a row."""
    bad, away = lie(1e30), problem("gone", "the link is down")
    script = {("round", number, "rome"): alter for number, alter in ((1, bad), (2, away), (3, bad), (5, bad), (6, bad))}
    result = run(tmp_path, script)
    assert all("rome" in record["asked"] for record in result["rounds"])
    state = load_checkpoint(
        RunFolder(tmp_path).checkpoint, study_digest=make_study(tmp_path, ScriptedExchange()).digest
    )
    assert {"rome": 2} == dict(state.strikes)


def test_site_stays_set_aside_after_a_restart(tmp_path: Path) -> None:
    """The server ends in round 5 and goes on: it does not ask the site again, and counts no strike twice."""
    script = always("rome", lie(1e30))
    settings: dict[str, Any] = {"sites": FIVE, "quorum": 3, "rounds": ROUNDS}
    with pytest.raises(Stopped):
        completed(make_study(tmp_path, ScriptedExchange(script, online=frozenset(FIVE), stop_in_round=5), **settings))
    result = completed(make_study(tmp_path, ScriptedExchange(script, online=frozenset(FIVE)), **settings))
    assert ["rome" in record["asked"] for record in result["rounds"]] == [True] * 3 + [False] * 3
    assert 1 == len(events(tmp_path, "set_aside"))
    assert any("was set aside" in warning for warning in result["warnings"])


def test_no_site_is_set_aside_where_the_study_says_never(tmp_path: Path) -> None:
    """`strikes = 0`."""
    result = run(tmp_path, always("rome", lie(1e30)), defence={"strikes": 0})
    assert all("rome" in record["asked"] for record in result["rounds"])


def test_site_that_announces_all_the_examples_has_half_of_the_weights(tmp_path: Path) -> None:
    """Within max_examples nobody can check the number: of five sites it has 0.5, and the others share the rest."""

    def card(answer: Any) -> Any:
        counted = answer.reply.card.model_copy(update={"num_train": 9_000_000, "num_examples": 9_000_040})
        return reply_with(card=counted)(answer)

    script = {("handshake", 0, "rome"): card} | always("rome", reply_with(num_examples=9_000_000))
    result = run(tmp_path, script, rounds=1)
    weights = {site: facts["weight"] for site, facts in result["rounds"][0]["sites"].items()}
    rest = sum(NUM_EXAMPLES.values()) - NUM_EXAMPLES["rome"]
    expected = {site: 0.5 * count / rest for site, count in NUM_EXAMPLES.items()} | {"rome": 0.5}
    assert pytest.approx(expected) == weights
    free = run(tmp_path / "free", script, rounds=1, weighting={"maximum": 1.0})
    assert free["rounds"][0]["sites"]["rome"]["weight"] > 0.999


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("update.loss", -1000.0), ("global.loss", -1000.0), ("personal.accuracy", 1.5), ("local.loss", 1e300)),
        *(("personal.auroc", -0.1), ("global.r2", 2.0), ("global.brier", 3.0), ("received.loss", -1e-9)),
    ],
)
def test_measurement_that_cannot_be_costs_the_site_the_round(tmp_path: Path, name: str, value: float) -> None:
    """Whether the study needs it or not: it is in no report, in no curve, and in no share."""
    result = run(tmp_path, {("round", 1, "rome"): reply_with(metrics={name: value})}, rounds=1)
    record = result["rounds"][0]
    assert ({"rome": "metrics"}, False) == (record["rejected"], "rome" in record["sites"])
    assert f"site 'rome' sent {value} as '{name}', expected a number from" in record["details"]["rome"]


def test_measurements_that_can_be_are_taken(tmp_path: Path) -> None:
    """A loss of 1e9 of a model that diverged, a negative training loss as FedDyn has, a metric of one's own."""
    metrics = {"global.loss": 1e9, "train.loss": -3.0, "global.brier": 2.0, "global.my_score": -77.0, "global.r2": -9.0}
    record = run(tmp_path, {("round", 1, "rome"): reply_with(metrics=metrics)}, rounds=1)["rounds"][0]
    assert metrics == record["sites"]["rome"]["metrics"]


@pytest.mark.parametrize(("steps", "rejected"), [(1.0, True), (11.9, True), (13.0, False), (13.1, True), (1e9, True)])
def test_steps_are_believed_as_far_as_the_examples_say(tmp_path: Path, steps: float, rejected: bool) -> None:
    """FedNova divides by them: 400 examples in batches of 32 are 13 steps, or 12 where a rest joins the last batch."""
    training = {"epochs": 1, "batch_size": 32, "momentum": 0.0}
    counts = {
        site: reply_with(metrics={"train.effective_steps": math.ceil(n / 32)}) for site, n in NUM_EXAMPLES.items()
    }
    counts["rome"] = reply_with(metrics={"train.effective_steps": steps})
    script = {("round", 1, site): alter for site, alter in counts.items()}
    result = run(tmp_path, script, rounds=1, training=training, strategy={"kind": "fednova"})
    assert rejected == ("rome" in result["rounds"][0]["rejected"])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("examples", [1, 31, 32, 33, 64, 65, 400])
def test_believed_steps_hold_those_that_a_site_takes(examples: int, momentum: float) -> None:
    """The site's own count, of the batches that it draws, is always believed; ten times as many are not."""
    config = make_study(Path("none"), ScriptedExchange(), training={"epochs": 2, "momentum": momentum}).config
    data = Examples(torch.zeros(examples, 1), torch.zeros(examples, dtype=torch.int64))
    work = LocalWork(
        examples=data,
        batch_size=32,
        seed=1,
        optimiser="sgd",
        learning_rate=0.1,
        momentum=momentum,
        weight_decay=0.0,
        epochs=2,
        steps=None,
        validation=data,
    )
    low, high = effective_steps(config.training, examples)
    assert low <= work.effective_steps <= high
    assert not low <= 10 * work.effective_steps <= high


def test_made_up_examples_and_results_end_at_the_site_that_made_them_up(tmp_path: Path) -> None:
    """A million million training examples: the site takes no part. 2^62 right answers of 20: it has no row.

    The mean over the others is what it is without them.
    """

    def card(answer: Any) -> Any:
        made_up = {"num_train": 10**12, "num_examples": 10**12 + 40}
        return reply_with(card=answer.reply.card.model_copy(update=made_up))(answer)

    def results(answer: Any) -> Any:
        made_up = {"num_test": 2**62, "personal": 2**62}
        return reply_with(test=answer.reply.test.model_copy(update=made_up))(answer)

    script = {("handshake", 0, "rome"): card, ("finish", 1, "turin"): results}
    result = run(tmp_path, script, rounds=1, min_sites=3)
    assert "rome" not in result["sites"] and None is result["sites"]["turin"]["test"]
    assert {17} == {facts["test"]["personal"] for site, facts in result["sites"].items() if site != "turin"}
    told = [event["message"] for event in events(tmp_path, "rejected")]
    assert any(
        "site 'rome' announces 1000000000040 examples, the study accepts at most 10000000" in one for one in told
    )
    assert any(f"site 'turin' tested {2**62} examples, announced 20" in one for one in told)


def test_audit_computes_shortened_and_rejected_updates_again(tmp_path: Path) -> None:
    """Bit for bit, from what the sites sent: one is shortened in round 1, one is rejected in round 2."""
    script = {("round", 1, "rome"): lie(4.5), ("round", 2, "turin"): lie(1e30)}
    exchange = ScriptedExchange(script, online=frozenset(FIVE))
    settings: dict[str, Any] = {"sites": FIVE, "quorum": 3, "rounds": 3, "training": {"steps": 4}, "defence": LOW}
    study = make_study(tmp_path, exchange, keep_updates=True, **settings)
    result = completed(replace(study, digest=study_digest(study.config)))
    assert "rome" in result["rounds"][0]["shortened"] and {"turin": "norm"} == result["rounds"][1]["rejected"]
    audit = audit_run(tmp_path)
    assert [] == audit.problems
    assert [("recomputed", "recomputed")] * 3 == [(row.shares, row.aggregate) for row in audit.rounds]


def test_events_of_lies_are_in_the_log_as_they_are_documented(tmp_path: Path) -> None:
    """What others show to be too long was accepted first, and is rejected after; the round has the truth."""
    run(tmp_path, {("round", 1, "rome"): lie(1e30)}, rounds=1)
    of_rome = [event["event"] for event in log_of(tmp_path) if event.get("site") == "rome"]
    assert ["answered", "rejected"] == of_rome
    (record,) = events(tmp_path, "round")
    assert "rome" not in record["accepted"] and "rome" not in record["sites"]


# --- updates that go against the others ---------------------------------------------------------------


def turned(answer: Answer) -> Answer:
    """Return an answer whose update has the other sign."""
    delta = CODEC.decode(answer.payload or b"")
    return delta_with(body__weight=-np.asarray(delta["body.weight"], np.float32))(answer)


TWICE = {"against": 2}


def test_site_that_goes_against_the_others_does_not_count_and_is_asked_all_the_same(tmp_path: Path) -> None:
    """Its first update counts, from the second on none; the others' weights are those of a run without it then."""
    result = run(tmp_path / "turned", always("rome", turned, range(1, 4)), defence=TWICE, rounds=3)
    gone = always("rome", problem("gone", "the link is down"), range(2, 4))
    run(tmp_path / "gone", {**gone, ("round", 1, "rome"): turned}, rounds=3)
    first, second, third = result["rounds"]
    assert ["rome"] == [*first["against"]]
    assert -1 <= first["against"]["rome"] <= -0.2
    assert ({}, {"rome": "against"}) == (first["rejected"], second["rejected"])
    assert "rome" in third["asked"]
    assert "site 'rome': its updates went against what the others have in common" in second["details"]["rome"]
    np.testing.assert_array_equal(
        final_weights(tmp_path / "turned")["body.weight"], final_weights(tmp_path / "gone")["body.weight"]
    )
    assert ["against"] * 2 == [event["reason"] for event in events(tmp_path / "turned", "rejected")]
    assert any("are its labels coded as the others'?" in warning for warning in result["warnings"])


def test_count_against_the_others_outlives_a_restart(tmp_path: Path) -> None:
    """The server ends in round 2 and goes on: the site's second update is the one that does not count."""
    script = always("rome", turned)
    settings: dict[str, Any] = {"sites": FIVE, "quorum": 3, "rounds": 3, "defence": TWICE}
    with pytest.raises(Stopped):
        completed(make_study(tmp_path, ScriptedExchange(script, online=frozenset(FIVE), stop_in_round=2), **settings))
    result = completed(make_study(tmp_path, ScriptedExchange(script, online=frozenset(FIVE)), **settings))
    assert [{}, {"rome": "against"}] == [record["rejected"] for record in result["rounds"][:2]]


def test_study_that_needs_all_sites_counts_them_all(tmp_path: Path) -> None:
    """A quorum of all leaves no update out; the record says that it went against the others."""
    result = run(tmp_path, always("rome", turned), defence=TWICE, rounds=3, quorum="all")
    assert [["rome"]] * 2 == [[*record["against"]] for record in result["rounds"][:2]]
    assert all(not record["rejected"] for record in result["rounds"])


def test_honest_sites_with_different_aims_all_count(tmp_path: Path) -> None:
    """Five sites pull a number to five others, over six rounds: now one goes against the others, now another."""
    rounds = run(tmp_path)["rounds"]
    assert any("against" in record for record in rounds)
    assert all(not record["rejected"] for record in rounds)


def test_audit_computes_a_round_again_in_which_a_site_did_not_count(tmp_path: Path) -> None:
    """From the updates that counted."""
    exchange = ScriptedExchange(always("rome", turned), online=frozenset(FIVE))
    settings: dict[str, Any] = {"sites": FIVE, "quorum": 3, "rounds": 3, "defence": TWICE}
    study = make_study(tmp_path, exchange, keep_updates=True, **settings)
    assert {"rome": "against"} == completed(replace(study, digest=study_digest(study.config)))["rounds"][1]["rejected"]
    audit = audit_run(tmp_path)
    assert [] == audit.problems
    assert [("recomputed", "recomputed")] * 3 == [(row.shares, row.aggregate) for row in audit.rounds]
