"""Rounds against scripted sites: every fault is rejected by name, nothing is replaced."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import (
    CODEC,
    DIGEST,
    INITIAL,
    NUM_EXAMPLES,
    SITES,
    STAMP,
    VERSIONS,
    Alter,
    ScriptedExchange,
    assert_close,
    completed,
    delta_with,
    events,
    expected_weights,
    failure,
    final_weights,
    log_of,
    make_study,
    problem,
    reply_with,
    run,
    trained,
)

from consilium.common.errors import (
    CohortTooSmall,
    UpdateRejected,
)
from consilium.common.protocol.plans import RoundPlan
from consilium.common.protocol.replies import InitialWeightsReply, RoundReply
from consilium.server.study.checkpoint import load_checkpoint
from consilium.server.study.exchange import Answer
from consilium.server.study.run_folder import RunFolder


def test_honest_run_gives_the_weights_of_fedavg(tmp_path: Path) -> None:
    """Three rounds of 1000, 500 and 200 examples; every round asks, hears and accepts all, with exact shares."""
    result = run(tmp_path)
    assert_close(expected_weights(3), final_weights(tmp_path))
    for record in result["rounds"]:
        assert list(SITES) == list(record["asked"]) == record["answered"] == record["accepted"]
        assert {site: NUM_EXAMPLES[site] / 1700 for site in SITES} == {
            site: facts["weight"] for site, facts in record["sites"].items()
        }
        assert 0 < record["aggregation_seconds"] and 0 < record["update_norm"]
    assert [1, 2, 3] == [record["round"] for record in result["rounds"]]


def test_result_on_disk_is_the_result_returned(tmp_path: Path) -> None:
    """result.json holds transport, versions, study and, per site, what the handshake and the test split told."""
    result = run(tmp_path)
    assert json.loads(json.dumps(result)) == json.loads(RunFolder(tmp_path).result.read_text())
    assert ("scripted", VERSIONS, 42) == (result["transport"], result["versions"], result["seed"])
    paris = result["sites"]["paris"]
    assert (4711, 240, 17) == (paris["pid"], paris["num_examples"], paris["test"]["personal"])


def test_events_tell_the_whole_run_in_order(tmp_path: Path) -> None:
    """The audit trail of one round."""
    run(tmp_path, rounds=1)
    one_round = ["asked", *["answered"] * 3, "round", "checkpoint"]
    expected = ["started", "waiting", "agreed", *one_round, "finishing", "finished"]
    assert expected == [event["event"] for event in log_of(tmp_path)]


def test_bytes_are_counted_for_all_answers(tmp_path: Path) -> None:
    """100 bytes up per answer, the payload down per site; a site that is silent has cost bytes down."""
    size = len(CODEC.encode(INITIAL))
    result = run(tmp_path, {("round", 2, "paris"): problem("timeout", "late")}, quorum=2)
    assert [(300, 3 * size), (200, 3 * size), (300, 3 * size)] == [
        (record["bytes_up"], record["bytes_down"]) for record in result["rounds"]
    ]


NAN = np.array([[1, np.nan, 2], [np.inf, 3, 4]], np.float32)

FAULTS: dict[str, tuple[Alter, str, str]] = {
    "NaN": (delta_with(body__weight=NAN), "not_finite", "array 'body.weight' has 2 NaN or infinite of 6 values"),
    "wrong shape": (
        delta_with(body__weight=np.zeros((3, 2), np.float32)),
        "shape",
        "array 'body.weight' has shape (3, 2), expected (2, 3)",
    ),
    "shape that broadcasts": (
        delta_with(body__weight=np.zeros(3, np.float32)),
        "shape",
        "array 'body.weight' has shape (3,), expected (2, 3)",
    ),
    "wrong dtype": (
        delta_with(body__weight=np.zeros((2, 3))),
        "dtype",
        "array 'body.weight' has dtype float64, expected float32",
    ),
    "missing array": (delta_with(bn__count=None), "names", "missing ['bn.count'], unexpected none"),
    "extra array": (delta_with(head=np.zeros(1)), "names", "missing none, unexpected ['head']"),
    "no arrays": (
        delta_with(bn__count=None, body__weight=None),
        "names",
        "missing ['bn.count', 'body.weight'], unexpected none",
    ),
    "no examples": (reply_with(num_examples=0), "num_examples", "sent num_examples 0, announced 500"),
    "negative examples": (reply_with(num_examples=-5), "num_examples", "sent num_examples -5, announced 500"),
    "too many examples": (
        reply_with(num_examples=10**9),
        "num_examples",
        "sent num_examples 1000000000, announced 500",
    ),
    "earlier round": (reply_with(round=1), "round", "answered for round 1, expected 2"),
    "later round": (reply_with(round=3), "round", "answered for round 3, expected 2"),
    "another run": (reply_with(run="run-0"), "run", "answered for run 'run-0', expected 'run-1'"),
    "garbage payload": (
        lambda answer: replace(answer, payload=b"\xff" * 40),
        "protocol",
        "payload of 40 bytes is not a safetensors container",
    ),
    "cut payload": (
        lambda answer: replace(answer, payload=(answer.payload or b"")[:-1]),
        "protocol",
        "is not a safetensors container",
    ),
    "no payload": (lambda answer: replace(answer, payload=None), "protocol", "expected RoundReply with a payload"),
    "another kind": (
        lambda answer: replace(answer, reply=InitialWeightsReply(**STAMP)),
        "protocol",
        "answered InitialWeightsReply, expected RoundReply",
    ),
    "failure": (failure("ModelError", "out of memory"), "failure", "could not do the round: out of memory"),
    "timeout": (problem("timeout", "did not answer within 600 s"), "timeout", "did not answer within 600 s"),
    "crash": (problem("crash", "ended by itself"), "crash", "ended by itself"),
    "gone": (problem("gone", "is not connected"), "gone", "is not connected"),
    "protocol": (problem("protocol", "reply is not JSON"), "protocol", "reply is not JSON"),
}

SILENT = {"timeout", "crash", "gone", "protocol"}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_unusable_update_is_rejected_and_the_others_are_aggregated(tmp_path: Path, fault: str) -> None:
    """With a quorum of 2, madrid's bad update of round 2 counts nothing: its reason and a sentence are recorded."""
    alter, reason, sentence = FAULTS[fault]
    result = run(tmp_path, {("round", 2, "madrid"): alter}, quorum=2)
    record = result["rounds"][1]
    assert {"madrid": reason} == record["rejected"]
    assert record["details"]["madrid"].startswith("site 'madrid'") and sentence in record["details"]["madrid"]
    assert list(SITES) == list(record["asked"])
    assert (["berlin", "paris"] if fault in SILENT else list(SITES)) == record["answered"]
    assert ["berlin", "paris"] == record["accepted"] == sorted(record["sites"])
    assert {"berlin": 1000 / 1200, "paris": 200 / 1200} == {s: f["weight"] for s, f in record["sites"].items()}
    assert_close(expected_weights({1: SITES, 2: ("berlin", "paris"), 3: SITES}), final_weights(tmp_path))
    (event,) = events(tmp_path, "rejected")
    assert (2, "madrid", reason) == (event["round"], event["site"], event["reason"])


def told(**metrics: float) -> dict[tuple[str, int, str], Alter]:
    """Every site's answers in all rounds carry these metrics too; names with `__` for a dot."""
    extra = {name.replace("__", "."): value for name, value in metrics.items()}

    def alter(answer: Answer) -> Answer:
        assert isinstance(answer.reply, RoundReply)
        return reply_with(metrics={**answer.reply.metrics, **extra})(answer)

    return {("round", number, site): alter for number in (1, 2, 3) for site in SITES}


@pytest.mark.parametrize("value", [None, -0.5])
def test_update_without_what_the_strategy_needs_is_rejected(tmp_path: Path, value: float | None) -> None:
    """q-FedAvg cannot use an update without its loss, or with one that cannot be: its site is named; others go on."""
    script = told(start__loss=0.5)
    bad = {} if value is None else {"start.loss": value}
    script["round", 2, "madrid"] = reply_with(metrics=bad)
    result = run(tmp_path, script, quorum=2, strategy={"kind": "qfedavg"}, training={"epochs": 1, "momentum": 0.0})
    record = result["rounds"][1]
    assert {"madrid": "metrics"} == record["rejected"]
    assert "expected a number from 0 to 1e+09" in record["details"]["madrid"]
    assert ["berlin", "paris"] == record["accepted"]


def test_missing_signal_is_weighted_by_size_and_said(tmp_path: Path) -> None:
    """One site without its validation loss: that round counts by examples, in the record and in the log; others not."""
    script = told(update__loss=0.5)
    script["round", 2, "madrid"] = reply_with(metrics={})
    result = run(tmp_path, script, weighting={"factors": [{"kind": "loss"}]})
    sizes = {"berlin": 1000 / 1700, "madrid": 500 / 1700, "paris": 200 / 1700}
    for record in result["rounds"]:
        shares = {site: facts["weight"] for site, facts in record["sites"].items()}
        assert (sizes if record["round"] == 2 else dict.fromkeys(SITES, 1 / 3)) == shares
        expected = ["weighted by size: update.loss is missing from madrid"] if record["round"] == 2 else []
        assert expected == record["notes"]
    (event,) = events(tmp_path, "weighting")
    assert (2, "weighted by size: update.loss is missing from madrid") == (event["round"], event["message"])


def test_plan_tells_a_site_its_share_in_the_weights_it_gets(tmp_path: Path) -> None:
    """0 in round 1 and after a round without it; its weight of the round before otherwise."""
    exchange = ScriptedExchange({("round", 2, "madrid"): problem("timeout", "did not answer")})
    completed(make_study(tmp_path, exchange, quorum=2))
    shares = {(plan.round, plan.site): plan.share for plan in exchange.asked if isinstance(plan, RoundPlan)}
    assert {0.0} == {shares[1, site] for site in SITES}
    assert (1000 / 1700, 500 / 1700) == (shares[2, "berlin"], shares[2, "madrid"])
    assert (1000 / 1200, 0.0) == (shares[3, "berlin"], shares[3, "madrid"])


def test_candidates_travel_with_the_weights_of_the_round(tmp_path: Path) -> None:
    """After round 1 of `auto`: what mixtures in proportion to exp(+-0.3 sign) would have made of the same updates."""
    run(tmp_path, rounds=1, weighting={"factors": [{"kind": "auto"}]})
    state = load_checkpoint(RunFolder(tmp_path).checkpoint, study_digest=DIGEST)
    deltas: dict[str, Any] = {site: trained(site, INITIAL)["body.weight"] for site in SITES}
    along: Mapping[str, Any] = state.along
    names = {f"candidate-{which}/{name}" for which in "ab" for name in INITIAL}
    assert names == along.keys()
    for which, step in (("a", 0.3), ("b", -0.3)):
        odds = {site: math.exp(step * state.weighting[f"auto/sign/{site}"]) for site in SITES}
        mean = sum(odds[site] / sum(odds.values()) * deltas[site] for site in SITES)
        expected: Any = np.asarray(INITIAL["body.weight"] + mean, dtype=np.float32)
        np.testing.assert_allclose(along[f"candidate-{which}/body.weight"], expected, rtol=1e-6)


def test_nothing_of_the_spool_is_left(tmp_path: Path) -> None:
    """The updates of a round lie on disk only while it is aggregated."""
    run(tmp_path)
    checkpoints = {"checkpoint.safetensors", "checkpoint-000001.safetensors", "checkpoint-000002.safetensors"}
    assert checkpoints | {"events.jsonl", "model", "result.json"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_round_below_the_quorum_ends_the_run_and_keeps_the_last_good_one(tmp_path: Path, fault: str) -> None:
    """By default every site asked must be usable: who failed, and why; the checkpoint is that of round 1."""
    alter, reason, sentence = FAULTS[fault]
    with pytest.raises(CohortTooSmall) as caught:
        run(tmp_path, {("round", 2, "madrid"): alter})
    assert str(caught.value).startswith("round 2: 2 of 3 sites sent a usable update, expected 3; madrid: ")
    assert sentence in str(caught.value)
    state = load_checkpoint(RunFolder(tmp_path).checkpoint, study_digest=DIGEST)
    assert 1 == state.round
    assert_close(expected_weights(1), state.weights)
    (event,) = events(tmp_path, "round_failed")
    assert {"madrid": reason} == event["rejected"]
    assert not RunFolder(tmp_path).result.exists() and not RunFolder(tmp_path).model.exists()


def test_failing_first_round_leaves_no_checkpoint(tmp_path: Path) -> None:
    """There is nothing to continue from, and nothing pretends to be; every failing site is named."""
    script = {("round", 1, site): problem("crash", f"{site} broke") for site in SITES}
    with pytest.raises(CohortTooSmall, match=r"0 of 3 .*; berlin: .*berlin broke; madrid: .*madrid broke; paris: .*"):
        run(tmp_path, script, quorum=1)
    assert not RunFolder(tmp_path).checkpoint.exists()


def test_no_array_content_is_told_of_a_rejected_update(tmp_path: Path) -> None:
    """Neither error nor event log holds a value of the array."""
    secret = delta_with(body__weight=np.array([[123.456, np.nan, 0], [0, 0, 98.765]], np.float32))
    with pytest.raises(CohortTooSmall) as caught:
        run(tmp_path, {("round", 1, "madrid"): secret})
    told = str(caught.value) + RunFolder(tmp_path).events.read_text()
    assert "123.4" not in told and "98.7" not in told


def test_sum_that_the_dtype_cannot_hold_ends_the_run(tmp_path: Path) -> None:
    """Without a bound on updates: each is finite, their sum is not; the run stops, the last good checkpoint stands."""
    huge = delta_with(body__weight=np.full((2, 3), 3.3e38, np.float32))
    script = {("round", number, site): huge for number in (1, 2) for site in SITES}
    with pytest.raises(UpdateRejected, match=r"round 2: the new global weights: array 'body.weight' has 6 NaN"):
        run(tmp_path, script, defence={"norm": {"kind": "off"}})
    assert 1 == load_checkpoint(RunFolder(tmp_path).checkpoint, study_digest=DIGEST).round


def test_only_the_cohort_is_asked(tmp_path: Path) -> None:
    """A third of three sites is one per round; its share is 1, and its quorum is one."""
    exchange = ScriptedExchange()
    result = completed(make_study(tmp_path, exchange, cohort_fraction=0.3, rounds=12))
    for record in result["rounds"]:
        (site,) = record["asked"]
        assert {site: 1.0} == {name: facts["weight"] for name, facts in record["sites"].items()}
    asked = [plan.site for plan in exchange.asked if isinstance(plan, RoundPlan)]
    assert [record["asked"][0] for record in result["rounds"]] == asked
    assert set(SITES) == set(asked)
