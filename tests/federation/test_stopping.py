"""Studies that end where their sites' validation numbers no longer improve: when, with which model, after a restart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from comparing import SETTINGS, console, options, write_sites
from conftest import MakeSites, MakeStudy
from federations import global_bytes, kept_by
from federations import run as run_federation
from safetensors.numpy import load_file
from scripted import (
    NUM_EXAMPLES,
    SITES,
    STAMP,
    Alter,
    ScriptedExchange,
    Stopped,
    assert_close,
    completed,
    events,
    expected_weights,
    final_weights,
    make_study,
    reply_with,
    run,
)

from consilium.common.errors import ConfigError, StateError, UpdateRejected
from consilium.common.protocol.plans import FinishPlan, RoundPlan, study_digest
from consilium.common.protocol.replies import RoundReply
from consilium.common.results import RoundRecord, RunResult, SiteRound
from consilium.common.stopping import Point, best_of, point_of, stopped_by
from consilium.common.study.stopping import StoppingConfig
from consilium.comparison.compare import compare
from consilium.history.runs import read_run
from consilium.privacy.audit.audit import audit_run
from consilium.privacy.audit.files import check_end
from consilium.running.progress import Progress
from consilium.server.study.check import check_signals
from consilium.server.study.context import Study
from consilium.server.study.exchange import Answer
from consilium.server.study.run import run_study

pytestmark = pytest.mark.usefixtures("few_trees")

STOPPING = {"patience": 2}
LOSSES = (0.9, 0.7, 0.8, 0.75, 0.6, 0.5)
"""Of every site in rounds 1 to 6: the best of the first four is that of round 2."""


def measured(losses: Sequence[float], *, name: str = "personal.loss") -> dict[tuple[str, int, str], Alter]:
    """Have every site measure these numbers, round by round."""
    return {
        ("round", number, site): reply_with(metrics={name: value, "personal.accuracy": 0.5})
        for number, value in enumerate(losses, start=1)
        for site in SITES
    }


def exchange(losses: Sequence[float] = LOSSES, **settings: Any) -> ScriptedExchange:
    """Return sites that measure these losses."""
    return ScriptedExchange(measured(losses), **settings)


def audited(folder: Path, **settings: Any) -> Study:
    """Return a study over such sites, under the digest of its settings as an audit expects it."""
    study = make_study(folder, exchange(), **settings)
    return replace(study, digest=study_digest(study.config))


def completed_result(folder: Path, **settings: Any) -> RunResult:
    """Run such a study to its end and return its result."""
    return run_study(audited(folder, **settings), transport="scripted", tls=False)


# --- the rule --------------------------------------------------------------------------------------


def ends(values: Sequence[float], **settings: Any) -> tuple[int, int] | None:
    """Return the round after which a rule ends a study that measures these numbers, and the best one; None: never."""
    stopping, points = StoppingConfig(**settings), tuple[Point, ...]()
    for number, value in enumerate(values, start=1):
        points = (*points, Point(number, value))
        if (stopped := stopped_by(stopping, points)) is not None:
            return stopped.round, stopped.best_round
    return None


def test_a_study_ends_after_patience_rounds_without_a_better_one() -> None:
    """A smaller loss or a greater accuracy is better; an equal one is not; the last better one begins to count anew."""
    assert (4, 2) == ends(LOSSES, patience=2)
    assert ends(LOSSES, patience=3) is None
    assert (3, 1) == ends([0.5, 0.5, 0.5, 0.1], patience=2)
    assert (5, 3) == ends([0.5, 0.6, 0.7, 0.7, 0.1, 0.9], patience=2, metric="accuracy")
    assert (2, 1) == ends([0.5, 0.6], patience=1)


def test_only_a_gain_of_some_size_counts() -> None:
    """Steps of 0.1 of a loss do not count where 0.15 is asked for, but add up to it."""
    assert (3, 1) == ends([0.9, 0.8, 0.85, 0.6], patience=2, least_gain=0.15)
    assert (5, 3) == ends([0.9, 0.8, 0.7, 0.65, 0.6], patience=2, least_gain=0.15)
    assert best_of(StoppingConfig(patience=1), []) is None


def test_rounds_without_a_measurement_are_no_patience_by_themselves() -> None:
    """Measured in rounds 2, 4 and 6 alone, patience of 3 rounds ends with the second that is no better."""
    stopping = StoppingConfig(patience=3)
    points = (Point(2, 0.5), Point(4, 0.6))
    assert stopped_by(stopping, points) is None
    stopped = stopped_by(stopping, (*points, Point(6, 0.7)))
    assert stopped is not None and (6, 2) == (stopped.round, stopped.best_round)


def record(metrics: Mapping[str, dict[str, float]], weights: Mapping[str, float | None]) -> RoundRecord:
    """Return a round in which sites measured and counted so much."""
    sites = {
        site: SiteRound(num_examples=NUM_EXAMPLES[site], seconds=1.0, metrics=of, weight=weights[site])
        for site, of in metrics.items()
    }
    return RoundRecord(round=7, asked=SITES, sites=sites)


def test_the_mean_is_over_sites_as_they_count_in_the_round() -> None:
    """0.5 and 0.3 of the round with 1 and 2: (0.5 + 0.6) / 0.8; a site that measured nothing is not in it."""
    stopping, one = StoppingConfig(patience=1), "personal.loss"
    metrics = {"berlin": {one: 1.0}, "madrid": {one: 2.0}, "paris": {"global.loss": 9.0}}
    weights = {"berlin": 0.5, "madrid": 0.3, "paris": 0.2}
    point = point_of(stopping, record(metrics, weights))
    assert point is not None and 7 == point.round and pytest.approx(1.1 / 0.8) == point.value
    alike = point_of(stopping, record(metrics, {"berlin": 0.0, "madrid": 0.0, "paris": 1.0}))
    assert alike is not None and pytest.approx(1.5) == alike.value
    by_size = point_of(stopping, record(metrics, dict.fromkeys(SITES)))
    assert by_size is not None and pytest.approx((1000 + 2 * 500) / 1500) == by_size.value
    assert point_of(stopping, record({"paris": {"global.loss": 9.0}}, weights)) is None
    assert point_of(None, record(metrics, weights)) is None


# --- a run that stops ------------------------------------------------------------------------------


def test_run_ends_early_in_a_state_that_has_a_name(tmp_path: Path) -> None:
    """Four of ten rounds; result, log, list of runs and terminal say after which, why, and which was best."""
    result = completed(audited(tmp_path, rounds=10, stopping=STOPPING))
    sentence = (
        "stopped early after round 4: the sites' mean validation loss has not improved for 2 rounds (best: 0.7 in "
        "round 2)"
    )
    assert [1, 2, 3, 4] == [one["round"] for one in result["rounds"]]
    assert {"round": 4, "metric": "loss", "best_round": 2, "best": pytest.approx(0.7)} == result["stopped"]
    assert "final_round" not in result
    (said,) = events(tmp_path, "stopped_early")
    assert (4, 2) == (said["round"], said["best_round"])
    assert [4] == [event["round"] for event in events(tmp_path, "finishing")]
    entry = read_run(tmp_path, "run-1")
    assert ("finished", 4, 10) == (entry.status, entry.rounds_done, entry.rounds_asked)
    assert sentence == entry.detail
    assert_close(expected_weights(4), final_weights(tmp_path))
    assert [] == audit_run(tmp_path).problems
    shown = Progress("hearts")
    lines = [shown.take(event) for event in make_study(tmp_path, exchange()).folder.read_events()]
    assert f"hearts: {sentence}" in lines


def test_run_that_goes_on_improving_ends_as_planned(tmp_path: Path) -> None:
    """Nothing is said of stopping, and the weights are those of a study without it, bit for bit."""
    better = [1.0, 0.9, 0.8, 0.7]
    one = run(tmp_path / "one", measured(better), rounds=4, stopping=STOPPING)
    other = run(tmp_path / "other", measured(better), rounds=4)
    assert "stopped" not in one and 4 == len(one["rounds"])
    assert not events(tmp_path / "one", "stopped_early")
    for name, array in final_weights(tmp_path / "one").items():
        np.testing.assert_array_equal(array, final_weights(tmp_path / "other")[name])
    assert one.keys() == other.keys()


def test_patience_that_ends_with_the_last_round_is_no_early_stop(tmp_path: Path) -> None:
    """Of four rounds, the fourth was the last in any case."""
    result = run(tmp_path, measured(LOSSES), rounds=4, stopping=STOPPING)
    assert "stopped" not in result and 4 == len(result["rounds"])


@pytest.mark.parametrize("final", ["last", "best"])
@pytest.mark.parametrize("stop_in_round", [1, 2, 3, 4])
def test_run_that_is_resumed_stops_as_if_it_never_had_been_cut(tmp_path: Path, final: str, stop_in_round: int) -> None:
    """Same rounds, same end, same final weights, bit for bit; the best round's weights are in the checkpoint."""
    settings: dict[str, Any] = {"rounds": 10, "stopping": {**STOPPING, "final": final}}
    whole = completed(make_study(tmp_path / "whole", exchange(), **settings))
    with pytest.raises(Stopped):
        completed(make_study(tmp_path / "cut", exchange(stop_in_round=stop_in_round), **settings))
    resumed = completed(make_study(tmp_path / "cut", exchange(), **settings))
    assert whole["stopped"] == resumed["stopped"] and 4 == len(resumed["rounds"])
    for name, array in final_weights(tmp_path / "whole").items():
        np.testing.assert_array_equal(array, final_weights(tmp_path / "cut")[name])


def test_run_that_was_cut_while_it_finished_only_finishes_again(tmp_path: Path) -> None:
    """It has stopped already, so no further round is asked."""

    def cut(answer: Answer) -> Answer:
        raise Stopped

    script = measured(LOSSES) | {("finish", 4, "paris"): cut}
    with pytest.raises(Stopped):
        run(tmp_path, script, rounds=10, stopping=STOPPING)
    again = exchange()
    result = completed(make_study(tmp_path, again, rounds=10, stopping=STOPPING))
    assert 4 == result["stopped"]["round"]
    assert not any(isinstance(plan, RoundPlan) for plan in again.asked)


def test_run_may_end_with_the_model_of_its_best_round(tmp_path: Path) -> None:
    """What sites measured in round 2 is the model after round 1: it is final, and sites finish as after round 2."""
    study = audited(tmp_path, rounds=10, stopping={**STOPPING, "final": "best"})
    sites, result = study.exchange, completed(study)
    assert isinstance(sites, ScriptedExchange)
    assert 2 == result["final_round"] and 4 == result["stopped"]["round"]
    assert_close(expected_weights(1), final_weights(tmp_path))
    assert 2 == json.loads((tmp_path / "model" / "model.json").read_text())["provenance"]["round"]
    finish = [plan for plan in sites.asked if isinstance(plan, FinishPlan)]
    assert [(2, 2, 2)] * 3 == [(plan.round, plan.accepted, plan.asked) for plan in finish]
    kept = {plan.round: plan.best for plan in sites.asked if isinstance(plan, RoundPlan)}
    assert {1: None, 2: 1, 3: 2, 4: 2} == kept
    audit = audit_run(tmp_path)
    assert [] == audit.problems
    assert "its weights those of the best one, which was measured in round 2" in "\n".join(audit.files)


def test_audit_finds_a_result_that_ends_elsewhere_than_its_rounds_say(tmp_path: Path) -> None:
    """A result that says nothing of its early end; one whose rounds went on after the study's own rule had ended it."""
    result = completed_result(tmp_path, rounds=10, stopping=STOPPING)
    check_end(tmp_path, result)
    with pytest.raises(StateError, match="4 of 10 rounds, and says that the run ended as planned: its rounds do not"):
        check_end(tmp_path, result.model_copy(update={"stopped": None}))
    longer = result.rounds[-1].model_copy(update={"round": 5})
    with pytest.raises(StateError, match="the study stops after round 4, but the run went on to round 5"):
        check_end(tmp_path, result.model_copy(update={"rounds": (*result.rounds, longer)}))
    study = result.study.model_copy(update={"stopping": None})
    with pytest.raises(StateError, match=r"stopped early after round 4.*its rounds do not say so"):
        check_end(tmp_path, result.model_copy(update={"study": study}))


# --- through real sites ----------------------------------------------------------------------------


def best_by_hand(losses: Sequence[float], gain: float, patience: int) -> tuple[int, int]:
    """Return the best and the last round, plainly."""
    best = 0
    for number, loss in enumerate(losses):
        if number and losses[best] - loss >= gain:
            best = number
        if number - best == patience:
            return best + 1, number + 1
    raise AssertionError("it never stops")


@pytest.mark.parametrize("method", ["fedper", "ditto"])
def test_every_site_serves_what_it_measured_in_the_best_round(
    method: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The shared weights are those after the round before, the personal ones those that the best round left.

    Both are taken from runs of so many rounds without stopping, bit for bit; the local-only model too.
    """
    sites = make_sites({"berlin": 40, "lyon": 30})
    fast = {"epochs": 4, "batch_size": 8, "learning_rate": 0.3}
    base = {"sites": list(sites), "method": {"kind": method}, "training": fast}
    plain = run_federation(make_study(**base, rounds=6), sites, tmp_path / "plain")
    losses = [
        sum(of["weight"] * of["metrics"]["personal.loss"] for of in one["sites"].values()) for one in plain["rounds"]
    ]
    gain = 0.999 * (losses[0] - losses[1])  # the second round is better by enough, and later ones soon are not
    best, last = best_by_hand(losses, gain, 2)
    assert 1 < best < last < 6
    stopping = {"patience": 2, "least_gain": gain, "final": "best"}
    result = run_federation(make_study(**base, rounds=6, stopping=stopping), sites, tmp_path / "stopped")
    assert last == len(result["rounds"]) and best == result["final_round"]
    run_federation(make_study(**base, rounds=best), sites, tmp_path / "best")
    run_federation(make_study(**base, rounds=best - 1), sites, tmp_path / "before")
    assert global_bytes(tmp_path / "before") == global_bytes(tmp_path / "stopped")
    for site, path in sites.items():
        kept = kept_by(path, tmp_path / "best", best)
        scores = load_file(path.parent / "state" / "quick" / "stopped" / "test-scores.safetensors")
        assert {"labels", "majority", "personal", "local"} <= scores.keys()
        alone = load_file(path.parent / "state" / "quick" / "best" / "test-scores.safetensors")["local"]
        np.testing.assert_array_equal(alone, scores["local"], err_msg=site)
        again = kept_by(path, tmp_path / "stopped", best)
        np.testing.assert_equal(kept.to_arrays(), again.to_arrays())


@pytest.mark.parametrize(("metric", "value"), [("loss", -1e308), ("loss", 1e308), ("accuracy", 1.5), ("auroc", -0.1)])
def test_one_site_cannot_stop_a_study_by_a_number_that_cannot_be(
    metric: str, value: float, make_study: MakeStudy
) -> None:
    """The server takes no update that comes with it; what can be is taken."""
    study = make_study(stopping={"patience": 2, "metric": metric}, metrics=["auroc"])
    told: Any = SimpleNamespace(config=study)

    def reply(number: float) -> RoundReply:
        return RoundReply(**STAMP, round=1, num_examples=10, metrics={f"personal.{metric}": number})

    with pytest.raises(UpdateRejected, match=f"as 'personal.{metric}', expected a number from 0 to 1"):
        check_signals(reply(value), told, who="site 'a'")
    check_signals(reply(0.5), told, who="site 'a'")


def test_what_a_study_cannot_be_stopped_by_is_refused(make_study: MakeStudy) -> None:
    """A metric that nobody measures; a known one, or one of the study's own, is not."""
    with pytest.raises(ConfigError, match=r"stopping\.metric: 'auroc' is not measured in this study, which measures"):
        make_study(stopping={"patience": 2, "metric": "auroc"})
    study = make_study(stopping={"patience": 2, "metric": "auroc"}, metrics=["auroc"])
    assert study.stopping is not None and not study.stopping.smaller_is_better


# --- in a comparison -------------------------------------------------------------------------------


def test_cells_of_a_comparison_stop_each_by_itself(make_study: MakeStudy, tmp_path: Path) -> None:
    """No gain is 100: each of them after two rounds; what is trained again takes the first round's rounds, and no rule.

    The pooled model too; the report says who stopped, and its curves end with the rounds that there are.
    """
    folder, out = write_sites(tmp_path / "federation"), tmp_path / "out"
    stopping = {"patience": 1, "least_gain": 100.0, "final": "best"}
    fall = {"training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "schedule": {"kind": "cosine"}}}
    study = make_study(**(SETTINGS | fall | {"rounds": 4}), stopping=stopping)
    report = compare(options(folder, study, out, methods="fedper", seeds=1, refit=True), console())
    cells = [json.loads(path.read_text()) for path in (out / "cells").glob("*.json")]
    stopped = [cell for cell in cells if cell["kind"] != "usual" and "refitted" not in cell["label"]]
    assert {2} == {cell["stopped"]["round"] for cell in stopped} and {1} == {cell["ended"] for cell in stopped}
    again = [cell for cell in cells if "refitted" in cell["label"] and cell["kind"] == "federated"]
    assert again and {1} == {len(cell["rounds"]) for cell in again}
    assert any(text.startswith("Stopped early: fedper in 1 of 1 studies, after round 2") for text in report.problems)
    fedavg = report.line("FedAvg")
    assert fedavg is not None and [1, 2] == fedavg.curve.rounds
