"""Handshake, rounds and finish against scripted sites: every fault is rejected by name, nothing is replaced."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scripted import (
    CARD,
    CODEC,
    INITIAL,
    NUM_EXAMPLES,
    SITES,
    VERSIONS,
    Alter,
    ScriptedExchange,
    Stopped,
    card_with,
    delta_with,
    events,
    failure,
    final_weights,
    make_study,
    problem,
    reply_with,
    run,
    run_with_late,
    trained,
)

import common
from common.errors import (
    CohortTooSmall,
    ConsiliumError,
    DataError,
    HandshakeMismatch,
    ModelError,
    ProtocolError,
    SitesMissing,
    StateError,
    UpdateRejected,
)
from common.protocol import (
    DataCard,
    InitialWeightsReply,
    RoundPlan,
    RoundReply,
    Versions,
)
from common.study.task import ImageTask
from common.weights.arrays import Array, Weights, digest
from server.study.checkpoint import load_checkpoint
from server.study.exchange import Answer
from server.study.run import run_study
from server.study.run_folder import RunFolder

# --- handshake -------------------------------------------------------------------------------------


def test_missing_sites_end_the_run_by_name(tmp_path: Path) -> None:
    """Who is missing, who came, and how long was waited; nobody is asked anything."""
    exchange = ScriptedExchange(online=frozenset({"madrid", "stranger"}))
    sentence = r"after 0\.15 s these sites of study 'hearts' .*: berlin, paris; connected: madrid$"
    with pytest.raises(SitesMissing, match=sentence):
        run_study(make_study(tmp_path, exchange), transport={})
    assert [] == exchange.asked
    assert [["madrid"]] == [event["online"] for event in events(tmp_path, "waiting")]


def test_no_sites_at_all_end_the_run(tmp_path: Path) -> None:
    """Nobody came is said in words."""
    with pytest.raises(SitesMissing, match=r"connected: none$"):
        run_study(make_study(tmp_path, ScriptedExchange(online=frozenset())), transport={})


@pytest.mark.parametrize(
    ("alter", "line"),
    [
        (
            reply_with(versions=Versions(**{**VERSIONS, "torch": "2.8.0"})),
            "  torch version: berlin has 2.9.0, madrid has 2.8.0, paris has 2.9.0",
        ),
        (
            reply_with(versions=Versions(**{**VERSIONS, "python": "3.12"})),
            "  python version: berlin has 3.11, madrid has 3.12, paris has 3.11",
        ),
        (
            card_with(schema_digest="0" * 64),
            f"  data schema: berlin has {CARD.schema_digest[:12]}, madrid has 000000000000, "
            f"paris has {CARD.schema_digest[:12]}",
        ),
        (
            reply_with(initial_digest="f" * 64),
            f"  initial weights: berlin has {digest(INITIAL)[:12]}, madrid has ffffffffffff, "
            f"paris has {digest(INITIAL)[:12]}",
        ),
        (
            reply_with(shared_digest="e" * 64),
            f"  shared initial weights: berlin has {digest(INITIAL)[:12]}, madrid has eeeeeeeeeeee, "
            f"paris has {digest(INITIAL)[:12]}",
        ),
    ],
    ids=["torch", "python", "schema", "initial weights", "shared"],
)
def test_sites_that_differ_are_told_in_a_table(tmp_path: Path, alter: Alter, line: str) -> None:
    """One line per difference, with every site's value; what is equal is not listed; nothing is trained."""
    with pytest.raises(HandshakeMismatch) as caught:
        run(tmp_path, {("handshake", 0, "madrid"): alter})
    assert line == str(caught.value).split("\n", 1)[1]
    assert [] == events(tmp_path, "asked")


def test_every_difference_has_its_line(tmp_path: Path) -> None:
    """Two differences at two sites are two lines."""
    script = {
        ("handshake", 0, "madrid"): reply_with(initial_digest="f" * 64),
        ("handshake", 0, "paris"): card_with(schema_digest="0" * 64),
    }
    with pytest.raises(HandshakeMismatch) as caught:
        run(tmp_path, script)
    assert ["  data schema", "  initial weights"] == [line.split(":")[0] for line in str(caught.value).split("\n")[1:]]


def test_sites_of_another_version_than_the_server_are_told(tmp_path: Path) -> None:
    """All sites alike is not enough: the server's own version stands in the line."""
    old = reply_with(versions=Versions(**{**VERSIONS, "consilium": "0.0.1"}))
    with pytest.raises(HandshakeMismatch, match=f"paris has 0.0.1, server has {common.__version__}"):
        run(tmp_path, {("handshake", 0, site): old for site in SITES})


@pytest.mark.parametrize(
    ("error", "cls"),
    [
        ("DataError", DataError),
        ("ModelError", ModelError),
        ("StateError", StateError),
        ("UpdateRejected", UpdateRejected),
        ("KeyError", ConsiliumError),
    ],
)
def test_site_that_cannot_take_part_ends_the_run_with_its_own_error(
    tmp_path: Path, error: str, cls: type[ConsiliumError]
) -> None:
    """The class (so the exit code) is the site's, and its name stands in front of its sentence."""
    with pytest.raises(cls) as caught:
        run(tmp_path, {("handshake", 0, "madrid"): failure(error, "no images")})
    assert (cls, "site 'madrid': no images") == (type(caught.value), str(caught.value))


def test_site_is_named_once(tmp_path: Path) -> None:
    """A sentence that begins with the site's name is not given another."""
    with pytest.raises(DataError, match=r"^site 'madrid': no images$"):
        run(tmp_path, {("handshake", 0, "madrid"): failure("DataError", "site 'madrid': no images")})


@pytest.mark.parametrize("kind", ["timeout", "crash", "gone", "protocol"])
def test_site_that_does_not_shake_hands_is_named(tmp_path: Path, kind: str) -> None:
    """A study does not begin without one of its sites."""
    with pytest.raises(HandshakeMismatch, match=f"site 'paris' did not answer the handshake: {kind}: it was night"):
        run(tmp_path, {("handshake", 0, "paris"): problem(kind, "it was night")})


@pytest.mark.parametrize(
    ("alter", "cls", "sentence"),
    [
        (
            delta_with(body__weight=INITIAL["body.weight"] + 1),
            HandshakeMismatch,
            "site 'berlin' sent initial weights other",
        ),
        (lambda answer: replace(answer, payload=None), ProtocolError, "^site 'berlin': payload of 0 bytes"),
        (delta_with(bn__count=None), HandshakeMismatch, "site 'berlin' sent initial weights other than"),
        (reply_with(run="run-0"), ProtocolError, "site 'berlin' answered for run 'run-0', expected 'run-1'"),
        (lambda answer: replace(answer, payload=b"x"), ProtocolError, "^site 'berlin': payload of 1 bytes"),
        (
            delta_with(body__weight=np.full((2, 3), np.nan, np.float32)),
            HandshakeMismatch,
            "site 'berlin' sent initial weights other than",
        ),
        (failure("ModelError", "weights gone"), ModelError, "^site 'berlin': weights gone$"),
        (problem("crash", "out of memory"), HandshakeMismatch, "site 'berlin' did not answer .*: out of memory"),
        (
            lambda answer: replace(answer, reply=RoundReply(**STAMP, round=1, num_examples=1, metrics={})),
            ProtocolError,
            "site 'berlin' answered RoundReply, expected InitialWeightsReply",
        ),
    ],
    ids=["altered", "no payload", "array missing", "another run", "garbage", "NaN", "failure", "crash", "another kind"],
)
def test_initial_weights_that_are_not_those_agreed_on_end_the_run(
    tmp_path: Path, alter: Alter, cls: type[ConsiliumError], sentence: str
) -> None:
    """They come from the first site by name, which is named in the sentence."""
    with pytest.raises(cls, match=sentence):
        run(tmp_path, {("initial_weights", 0, "berlin"): alter})


STAMP: dict[str, Any] = {"run": "run-1", "site": "berlin", "pid": 1, "seconds": 0.1}


def test_class_of_one_site_and_skipped_rows_are_warned_of(tmp_path: Path) -> None:
    """Both are allowed, so the run goes on; result and event log hold the sentences."""
    script = {
        ("handshake", 0, "madrid"): card_with(classes=("no", "rare", "yes")),
        ("handshake", 0, "paris"): card_with(num_skipped=4),
    }
    task = ImageTask(classes=("no", "rare", "yes"))
    warnings = run(tmp_path, script, rounds=1, task=task)["warnings"]
    assert [
        "class 'rare' occurs only at site 'madrid'; no other site can learn to recognise it from its own data",
        "site 'paris' skipped 4 unusable rows or files",
    ] == warnings
    assert warnings == [event["message"] for event in events(tmp_path, "warning")]


@pytest.mark.parametrize("change", [{"classes": ("no", "other")}, {"class_counts": {"no": 3, "other": 1}}])
def test_classes_outside_the_study_end_the_run(tmp_path: Path, change: dict[str, Any]) -> None:
    """A site cannot add classes to what the others are weighed by."""
    with pytest.raises(ProtocolError, match="site 'madrid' tells of classes that the study does not have: other"):
        run(tmp_path, {("handshake", 0, "madrid"): card_with(**change)})


@pytest.mark.parametrize("change", [{"num_train": 10**400}, {"class_counts": {"no": -2}}, {"num_examples": -1}])
def test_counts_that_cannot_be_are_no_card(change: dict[str, Any]) -> None:
    """Numbers that no sum could hold, or below 0, are refused where the reply is read."""
    with pytest.raises(ValidationError):
        DataCard.model_validate(CARD.model_dump() | change)


def test_only_site_of_a_study_is_not_warned_of_its_classes(tmp_path: Path) -> None:
    """With one site every class is lonely, which is no news."""
    assert [] == run(tmp_path, sites=("berlin",), rounds=1)["warnings"]


# --- rounds ----------------------------------------------------------------------------------------


def expected_weights(rounds: Mapping[int, tuple[str, ...]] | int) -> dict[str, Array]:
    """Work out FedAvg over honest deltas in plain float64 arithmetic: round number -> sites that count."""
    plan = dict.fromkeys(range(1, rounds + 1), SITES) if isinstance(rounds, int) else rounds
    weights = dict(INITIAL)
    for number in sorted(plan):
        total = sum(NUM_EXAMPLES[site] for site in plan[number])
        mean = sum(
            NUM_EXAMPLES[site] / total * trained(site, weights)["body.weight"].astype(np.float64)
            for site in plan[number]
        )
        weights = {
            "body.weight": (weights["body.weight"] + mean).astype(np.float32),
            "bn.count": weights["bn.count"] + 3,
        }
    return weights


def assert_close(expected: Weights, seen: Weights) -> None:
    assert expected.keys() == seen.keys()
    assert expected["bn.count"] == seen["bn.count"]
    np.testing.assert_allclose(expected["body.weight"], seen["body.weight"], rtol=1e-6)


def test_honest_run_gives_the_weights_of_fedavg(tmp_path: Path) -> None:
    """Three rounds of 1000, 500 and 200 examples; every round asks, hears and accepts all, with exact shares."""
    result = run(tmp_path)
    assert_close(expected_weights(3), final_weights(tmp_path))
    for record in result["rounds"]:
        assert list(SITES) == list(record["asked"]) == record["answered"] == record["accepted"]
        assert {site: NUM_EXAMPLES[site] / 1700 for site in SITES} == {
            site: facts["weight"] for site, facts in record["sites"].items()
        }
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
    assert expected == [event["event"] for event in RunFolder(tmp_path).read_events()]


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
    run_study(make_study(tmp_path, exchange, quorum=2), transport={})
    shares = {(plan.round, plan.site): plan.share for plan in exchange.asked if isinstance(plan, RoundPlan)}
    assert {0.0} == {shares[1, site] for site in SITES}
    assert (1000 / 1700, 500 / 1700) == (shares[2, "berlin"], shares[2, "madrid"])
    assert (1000 / 1200, 0.0) == (shares[3, "berlin"], shares[3, "madrid"])


def test_nothing_of_the_spool_is_left(tmp_path: Path) -> None:
    """The updates of a round lie on disk only while it is aggregated."""
    run(tmp_path)
    assert {"checkpoint.safetensors", "events.jsonl", "global.safetensors", "result.json"} == {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_round_below_the_quorum_ends_the_run_and_keeps_the_last_good_one(tmp_path: Path, fault: str) -> None:
    """By default every site asked must be usable: who failed, and why; the checkpoint is that of round 1."""
    alter, reason, sentence = FAULTS[fault]
    with pytest.raises(CohortTooSmall) as caught:
        run(tmp_path, {("round", 2, "madrid"): alter})
    assert str(caught.value).startswith("round 2: 2 of 3 sites sent a usable update, expected 3; madrid: ")
    assert sentence in str(caught.value)
    state = load_checkpoint(RunFolder(tmp_path).checkpoint, study_digest="d1")
    assert 1 == state.round
    assert_close(expected_weights(1), state.weights)
    (event,) = events(tmp_path, "round_failed")
    assert {"madrid": reason} == event["rejected"]
    assert not RunFolder(tmp_path).result.exists() and not RunFolder(tmp_path).weights.exists()


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
    """Each update is finite, their sum is not: the run stops at once, and the last good checkpoint stands."""
    huge = delta_with(body__weight=np.full((2, 3), 3.3e38, np.float32))
    script = {("round", number, site): huge for number in (1, 2) for site in SITES}
    with pytest.raises(UpdateRejected, match=r"round 2: the new global weights: array 'body.weight' has 6 NaN"):
        run(tmp_path, script)
    assert 1 == load_checkpoint(RunFolder(tmp_path).checkpoint, study_digest="d1").round


def test_only_the_cohort_is_asked(tmp_path: Path) -> None:
    """A third of three sites is one per round; its share is 1, and its quorum is one."""
    exchange = ScriptedExchange()
    result = run_study(make_study(tmp_path, exchange, cohort_fraction=0.3, rounds=12), transport={})
    for record in result["rounds"]:
        (site,) = record["asked"]
        assert {site: 1.0} == {name: facts["weight"] for name, facts in record["sites"].items()}
    asked = [plan.site for plan in exchange.asked if isinstance(plan, RoundPlan)]
    assert [record["asked"][0] for record in result["rounds"]] == asked
    assert set(SITES) == set(asked)


# --- checkpoint and resume -------------------------------------------------------------------------


def test_checkpoint_is_written_after_every_round(tmp_path: Path) -> None:
    """When round n is asked, the state after round n - 1 is on disk."""
    for number in (2, 3):
        with pytest.raises(Stopped):
            run_study(make_study(tmp_path / str(number), ScriptedExchange(stop_in_round=number)), transport={})
        checkpoint = RunFolder(tmp_path / str(number)).checkpoint
        assert_close(expected_weights(number - 1), load_checkpoint(checkpoint, study_digest="d1").weights)


@pytest.mark.parametrize("stop_in_round", [1, 2, 3, 4])
def test_run_that_was_stopped_goes_on_as_if_it_never_had_been(tmp_path: Path, stop_in_round: int) -> None:
    """The final weights are those of an uninterrupted run bit for bit, and every round is in the result once."""
    whole = run(tmp_path / "whole", rounds=4)
    with pytest.raises(Stopped):
        run_study(make_study(tmp_path / "cut", ScriptedExchange(stop_in_round=stop_in_round), rounds=4), transport={})
    exchange = ScriptedExchange()
    resumed = run_study(make_study(tmp_path / "cut", exchange, rounds=4), transport={})
    assert digest(final_weights(tmp_path / "whole")) == digest(final_weights(tmp_path / "cut"))
    assert [1, 2, 3, 4] == [record["round"] for record in resumed["rounds"]]
    again = sorted({plan.round for plan in exchange.asked if isinstance(plan, RoundPlan)})
    assert list(range(stop_in_round, 5)) == again
    for one, other in zip(whole["rounds"], resumed["rounds"], strict=True):
        for key in ("asked", "answered", "accepted", "rejected", "sites", "update_norm", "bytes_up", "bytes_down"):
            assert json.dumps(one[key], sort_keys=True) == json.dumps(other[key], sort_keys=True)
        assert one.keys() == other.keys()


def test_round_that_was_logged_but_not_checkpointed_is_in_the_result_once(tmp_path: Path) -> None:
    """Stopped between the two writes, the round is asked again, and the later record counts."""
    with pytest.raises(Stopped):
        run_study(make_study(tmp_path, ScriptedExchange(stop_in_round=3)), transport={})
    last = events(tmp_path, "round")[-1]
    RunFolder(tmp_path).log("round", **{**_without(last, "time", "event"), "round": 3, "asked": ["nobody"]})
    with pytest.raises(Stopped):  # stopped once more, now as it resumes
        run_study(make_study(tmp_path, ScriptedExchange(stop_in_round=3)), transport={})
    result = run(tmp_path)
    assert [(1, list(SITES)), (2, list(SITES)), (3, list(SITES))] == [
        (record["round"], list(record["asked"])) for record in result["rounds"]
    ]
    assert_close(expected_weights(3), final_weights(tmp_path))


def _without(event: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in keys}


def test_run_that_had_finished_its_rounds_only_finishes_again(tmp_path: Path) -> None:
    """Stopped while test results came in, no round is trained twice."""

    def stop(answer: Answer) -> Answer:
        raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path, {("finish", 3, "paris"): stop})
    exchange = ScriptedExchange()
    result = run_study(make_study(tmp_path, exchange), transport={})
    assert not any(isinstance(plan, RoundPlan) for plan in exchange.asked)
    assert [1, 2, 3] == [record["round"] for record in result["rounds"]]


def test_run_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    """The digest of the study stands in the checkpoint."""
    run(tmp_path)
    other = replace(make_study(tmp_path, ScriptedExchange()), digest="d2")
    with pytest.raises(StateError, match="belongs to run 'run-1' with other study settings"):
        run_study(other, transport={})


# --- finish ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alter", "sentence"),
    [
        (problem("timeout", "did not answer within 600 s"), "did not answer within 600 s"),
        (failure("StateError", "personal state is damaged"), "personal state is damaged"),
        (reply_with(round=2), "an unexpected answer"),
        (reply_with(run="run-0"), "an unexpected answer"),
    ],
    ids=["timeout", "failure", "another round", "another run"],
)
def test_site_without_test_results_has_no_row(tmp_path: Path, alter: Alter, sentence: str) -> None:
    """With a quorum of 2 the report is made without it, and the log says why; without one the run ends."""
    script = {("finish", 3, "madrid"): alter}
    result = run(tmp_path / "quorum", script, quorum=2)
    assert {"madrid"} == {site for site, facts in result["sites"].items() if facts["test"] is None}
    (event,) = events(tmp_path / "quorum", "rejected")
    assert ("madrid", "finish", sentence) == (event["site"], event["reason"], event["message"])
    with pytest.raises(CohortTooSmall, match=f"only 2 of 3 sites reported test results; madrid: {sentence}"):
        run(tmp_path / "all", script)


def test_every_site_is_finished_also_those_outside_the_last_cohort(tmp_path: Path) -> None:
    """With one site per round, all three still report their test split, on the final weights."""
    assert set(SITES) == set(run(tmp_path, cohort_fraction=0.3)["sites"])


# --- sites that come later -------------------------------------------------------------------------


def test_site_that_comes_later_takes_part_from_the_next_round(tmp_path: Path) -> None:
    """Two sites are enough to start; the third shakes hands when it comes, and starts from the global weights."""
    result = run_with_late(tmp_path, {})
    two, three = ["berlin", "madrid"], ["berlin", "madrid", "paris"]
    assert [two, two, three, three] == [record["accepted"] for record in result["rounds"]]
    assert [(3, "paris", 240)] == [
        (event["round"], event["site"], event["num_examples"]) for event in events(tmp_path, "joined")
    ]
    assert three == sorted(result["sites"])
    late = ("berlin", "madrid")
    expected = expected_weights({1: late, 2: late, 3: SITES, 4: SITES})
    np.testing.assert_array_equal(expected["body.weight"], final_weights(tmp_path)["body.weight"])


def test_site_that_comes_later_and_differs_is_refused_by_name(tmp_path: Path) -> None:
    """The others go on without it; it is not asked again."""
    result = run_with_late(tmp_path, {("handshake", 0, "paris"): card_with(schema_digest="0" * 64)})
    assert [["berlin", "madrid"]] * 4 == [record["accepted"] for record in result["rounds"]]
    (event,) = events(tmp_path, "rejected")
    assert ("paris", "handshake", 3) == (event["site"], event["reason"], event["round"])
    assert "data schema: berlin has" in event["message"]


def test_fewer_sites_than_needed_to_start_end_the_run(tmp_path: Path) -> None:
    """min_sites counts: two of three are not enough where three must be there."""
    with pytest.raises(SitesMissing, match="paris; connected: berlin, madrid"):
        run_with_late(tmp_path, {}, min_sites=3)


def test_site_that_leaves_does_not_stop_the_others(tmp_path: Path) -> None:
    """With a quorum of two, the third may go; it is named in every round, and has no row at the end."""
    script: dict[tuple[str, int, str], Alter] = {
        ("round", number, "paris"): problem("gone", "is not connected") for number in (2, 3)
    }
    script["finish", 3, "paris"] = problem("gone", "is not connected")
    result = run(tmp_path, script, quorum=2)
    assert [{}, {"paris": "gone"}, {"paris": "gone"}] == [record["rejected"] for record in result["rounds"]]
    assert {"paris"} == {site for site, facts in result["sites"].items() if facts["test"] is None}
