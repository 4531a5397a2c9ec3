"""What a federation measures, on which rows, what is kept as best and which scores stay."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIZES, MakeSites, MakeStudy, method_settings, scaled_site, settled_scale
from federations import (
    BACKBONE,
    HEAD,
    Wire,
    data_at,
    error_reply,
    global_bytes,
    in_rounds,
    kept_by,
    run,
    state_dir,
    without_times,
)
from safetensors.numpy import load, load_file

from consilium.client.data.split import split_rows
from consilium.client.methods import METHODS, build_method
from consilium.client.models import build_model, set_weights
from consilium.client.site.site import Site
from consilium.client.training.evaluation import evaluate
from consilium.common.errors import (
    CohortTooSmall,
)
from consilium.common.protocol.plans import FinishPlan
from consilium.common.results import RunResult
from consilium.common.study.load import load_site
from consilium.common.study.study import StudyConfig
from consilium.findings import Evidence, interval_of
from consilium.report.report import build_report

# --- what is measured, and on what ---------------------------------------------------------------


def test_local_baseline_of_a_partial_cohort_is_trained_in_the_rounds_that_the_site_was_asked_in(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """With 2 of 3 sites per round: asked n times, local-only is bit for bit that after round n of a full cohort."""
    sites = make_sites()
    full = run(make_study(rounds=5), sites, tmp_path / "full")
    partial = run(make_study(rounds=5, cohort_fraction=0.5), sites, tmp_path / "partial")
    assert [2] * 5 == [len(item["asked"]) for item in partial["rounds"]]
    for site in SIZES:
        whole = [item["sites"][site]["metrics"]["local.loss"] for item in full["rounds"]]
        part = [item["sites"][site]["metrics"]["local.loss"] for item in partial["rounds"] if site in item["asked"]]
        assert 0 < len(part) and whole[: len(part)] == part
        local = load_file(state_dir(sites[site], tmp_path / "partial") / "test-scores.safetensors")["local"]
        asked = run(make_study(rounds=len(part)), sites, tmp_path / f"{site}-{len(part)}")
        same = load_file(state_dir(sites[site], tmp_path / f"{site}-{len(part)}") / "test-scores.safetensors")["local"]
        np.testing.assert_equal(same, local)
        assert asked["sites"][site]["test"]["local"] == partial["sites"][site]["test"]["local"]
    assert any(site not in item["asked"] for item in partial["rounds"] for site in SIZES)


def spoil_test_rows(path: Path, study: StudyConfig) -> None:
    """Flip the labels of the test rows and blow up their features; the split stays as it was."""
    header, *lines = path.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    labels = np.array([study.task.classes.index(row[2]) for row in cells])
    for row in split_rows(labels, study.split).test:
        a, b, label = cells[row]
        cells[row] = [str(-100 * float(a)), str(100 * float(b)), {"yes": "no", "no": "yes"}[label]]
    path.write_text("\n".join([header, *(",".join(row) for row in cells)]) + "\n")


@pytest.mark.parametrize("method", METHODS)
def test_test_split_is_read_by_the_finish_alone(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, method: str
) -> None:
    """Other test rows change the test counts, and no weight and no number of any round.

    One row of a third class keeps the split from being stratified, so that it does not depend on labels.
    """
    task = make_study().task.model_copy(update={"classes": ("no", "yes", "rare")}).model_dump()
    study = make_study(**method_settings(method), task=task)
    results = []
    for under in ("one", "two"):
        sites = make_sites(under=under)
        for path in sites.values():
            file = path.parent / "data.csv"
            lines = file.read_text().splitlines()
            file.write_text("\n".join([*lines, "0.1,0.2,rare"]) + "\n")
            if under == "two":
                spoil_test_rows(file, study)
        results.append(run(study, sites, tmp_path / under / "run"))
    one, two = (without_times(result) for result in results)
    assert one["rounds"] == two["rounds"]
    assert global_bytes(tmp_path / "one" / "run") == global_bytes(tmp_path / "two" / "run")
    for site in SIZES:
        assert one["sites"][site]["test"] != two["sites"][site]["test"]


def test_served_model_is_the_one_whose_test_counts_are_reported(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """By our own torch code: load the served file, predict the test split, count; local-only likewise."""
    sites, study = make_sites(), make_study(method={"kind": "fedper"})
    result = run(study, sites, tmp_path / "run")
    for name, path in sites.items():
        data = data_at(path, study, tmp_path / "run")
        served = load_file(state_dir(path, tmp_path / "run") / "models/personal/weights.safetensors")
        kept = kept_by(path, tmp_path / "run", 3)
        for which, weights in (("personal", served), ("local", kept.alone.weights)):
            w1, b1, w2, b2 = (weights[key] for key in (*sorted(BACKBONE, reverse=True), *sorted(HEAD, reverse=True)))
            logits = np.maximum(data.test.x.numpy() @ w1.T + b1, 0) @ w2.T + b2
            right = (logits[:, 0] > 0) == data.test.y.numpy()
            assert int(right.sum()) == result["sites"][name]["test"][which]
        majority = np.bincount(data.train.y.numpy()).argmax()
        assert int((data.test.y.numpy() == majority).sum()) == result["sites"][name]["test"]["majority"]


@pytest.mark.parametrize("method", ["fedavg", "fedper", "fine_tune"])
def test_served_model_of_a_round_is_made_from_the_weights_received(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, method: str
) -> None:
    """What `personal.loss` measures: received backbone, own new head, then fine-tuning where the method has it."""
    sites, study, wire = make_sites(), make_study(rounds=2, method={"kind": method}), Wire()
    run(study, sites, tmp_path / "run", wire)
    for name, path in sites.items():
        *_, seen = wire.rounds(name)
        own = dict(kept_by(path, tmp_path / "run", 2).personal)
        model = build_model(study.model, input_shape=(2,), num_outputs=1, weights_dir=None, seed=0)
        set_weights(model.module, load(seen.down or b"") | own)
        site = scaled_site(path, study, scale=settled_scale(tmp_path / "run"))
        if method == "fine_tune":
            build_method(study.method).personalise(model, {}, site.learner.work(2))
        data = data_at(path, study, tmp_path / "run")
        expected = evaluate(model.module, data.validation)
        metrics = seen.reply.metrics  # type: ignore[union-attr]  # a round's reply
        assert (expected.loss, expected.accuracy) == (metrics["personal.loss"], metrics["personal.accuracy"])
        if method == "fedavg":
            assert metrics["global.loss"] == metrics["personal.loss"]


def test_finish_asked_again_gives_the_same_answer(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Reading the test split changes nothing at the site."""
    sites, study, wire = make_sites(), make_study(method={"kind": "fine_tune"}), Wire()
    run(study, sites, tmp_path / "run", wire)
    last = next(seen for seen in wire.seen if isinstance(seen.plan, FinishPlan) and seen.site == "lyon")
    again, _ = Site(load_site(sites["lyon"]), study).answer(last.plan, last.down)
    ignored = {"seconds"}
    assert last.reply.model_dump(exclude=ignored) == again.model_dump(exclude=ignored)


# --- the best round, and the scores that stay ----------------------------------------------------


def test_best_round_by_validation_is_kept_and_measured_beside_the_last(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """With a rate that worsens from round to round, the best is the first; the scores are those of its model."""
    study = make_study(rounds=4, keep_best=True, split={"test": 0.3, "validation": 0.3}, method={"kind": "fine_tune"})
    sites = make_sites()
    result = run(study, sites, tmp_path / "run")
    for name, path in sites.items():
        kept = kept_by(path, tmp_path / "run", 4)
        for which, model in (("personal", kept.best), ("local", kept.best_alone)):
            losses = [each["sites"][name]["metrics"][f"{which}.loss"] for each in result["rounds"]]
            assert model is not None and min(losses) == model.loss
        scores = load_file(state_dir(path, tmp_path / "run") / "test-scores.safetensors")
        assert set(scores) == {"labels", "majority", "global", "personal", "local", "personal.best", "local.best"}
        counts = result["sites"][name]["test"]
        for which, count in (("personal", "personal"), ("local", "local"), ("global", "global_")):
            right = (scores[which][:, 0] > 0) == (scores["labels"] == 1)
            assert int(right.sum()) == counts[count]
    best = 1 + int(np.argmin([r["sites"]["lyon"]["metrics"]["personal.loss"] for r in result["rounds"]]))
    run(study.model_copy(update={"rounds": best}), sites, tmp_path / "shorter")  # ends with lyon's best round
    longer, shorter = (
        kept_by(sites["lyon"], tmp_path / run, number) for run, number in (("run", 4), ("shorter", best))
    )
    assert longer.best is not None and shorter.best is not None
    np.testing.assert_equal(longer.best.weights, shorter.best.weights)


def test_without_keep_best_nothing_more_is_kept(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Neither at the sites nor in the result."""
    sites = make_sites()
    run(make_study(), sites, tmp_path / "run")
    path = sites["berlin"]
    kept = kept_by(path, tmp_path / "run", 3)
    assert kept.best is kept.best_alone is None
    assert set(load_file(state_dir(path, tmp_path / "run") / "test-scores.safetensors")) == {
        "labels",
        "majority",
        "global",
        "personal",
        "local",
    }


def test_sites_tell_sums_over_patients_from_which_the_report_has_what_the_rows_say(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Three rows per patient: the report of counts and sums is, to the last digit, that of the kept rows."""
    sites = make_sites({"berlin": 120, "lyon": 150})
    for path in sites.values():
        head, *lines = (path.parent / "data.csv").read_text().splitlines()
        whose = [f"{head},patient", *(f"{line},{number // 3}" for number, line in enumerate(lines))]
        (path.parent / "data.csv").write_text("\n".join(whose) + "\n")
    study = make_study(split={"test": 0.4, "group": "patient"}, sites=list(sites))
    report = build_report(RunResult.model_validate(run(study, sites, tmp_path / "run"))).as_json()
    for name, path in sites.items():
        scores = load_file(state_dir(path, tmp_path / "run") / "test-scores.safetensors")
        right = {which: (scores[which][:, 0] > 0) == (scores["labels"] == 1) for which in ("local", "personal")}
        assert len(np.unique(scores["groups"])) == report["sites"][name]["test"]["patients"]["personal"]["num"]
        assert len(scores["groups"]) == 3 * len(np.unique(scores["groups"]))
        rows = right["personal"].astype(np.float64) - right["local"]
        one = interval_of(Evidence.of_rows(rows[None], scores["groups"]), kind="difference")
        assert report["sites"][name]["intervals"]["personal_minus_local"] == [one.low, one.high]
        share = interval_of(Evidence.of_rows(right["local"][None].astype(np.float64), scores["groups"]), kind="share")
        assert report["sites"][name]["intervals"]["local"] == [share.low, share.high]


def test_measuring_less_often_changes_what_is_told_and_nothing_else(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The same weights, with gaps between measurements."""
    sites = make_sites()
    settings: dict[str, Any] = {"method": {"kind": "fine_tune"}, "split": {"test": 0.3, "validation": 0.2}}
    often = run(make_study(**settings), sites, tmp_path / "often")
    seldom = run(make_study(evaluate_every=2, **settings), sites, tmp_path / "seldom")
    told = [{"personal.accuracy" in facts["metrics"] for facts in each["sites"].values()} for each in seldom["rounds"]]
    assert told == [{False}, {True}, {True}]  # the second, and the last
    assert global_bytes(tmp_path / "often") == global_bytes(tmp_path / "seldom")
    for site in SIZES:
        assert often["sites"][site]["test"] == seldom["sites"][site]["test"]
        last, same = (result["rounds"][2]["sites"][site]["metrics"] for result in (often, seldom))
        assert last == same


def test_without_the_local_baseline_everything_else_is_the_same(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """It takes no part in the federation."""
    sites = make_sites()
    settings: dict[str, Any] = {"method": {"kind": "fedper"}, "split": {"test": 0.3, "validation": 0.2}}
    beside = run(make_study(**settings), sites, tmp_path / "with")
    result = run(make_study(local_baseline=False, **settings), sites, tmp_path / "without")
    assert global_bytes(tmp_path / "with") == global_bytes(tmp_path / "without")
    for site in SIZES:
        counts, other = result["sites"][site]["test"], beside["sites"][site]["test"]
        assert (counts["local"], counts["pairs"]) == (None, None)
        assert counts["personal"] == other["personal"]
        assert not kept_by(sites[site], tmp_path / "without", 3).alone.weights
    report = build_report(RunResult.model_validate(result)).as_json()
    assert report["summary"]["mean"]["metrics"]["local"] is None
    assert re.match(
        r"No model was trained at berlin alone to compare with: 0\.\d\d after joining\.", report["headlines"][0]
    )


def test_of_many_failing_sites_a_few_are_told(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A hundred sites that diverge must not fill a terminal: five with their reasons, and how many more."""
    names = {f"site-{number}": 30 for number in range(8)}
    study = make_study(sites=tuple(names), quorum=1)
    with pytest.raises(CohortTooSmall, match=r"0 of 8 .*site-0: .*site-4: .*; and 3 more sites$") as seen:
        run(study, make_sites(names), tmp_path / "run", in_rounds({1}, error_reply, at=set(names)))
    assert "site-5" not in str(seen.value)


def test_too_few_test_examples_are_said_at_the_start(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """8 and 6 test examples say nothing of joining: a warning before round 1, not a dash after the last."""
    result = run(make_study(sites=("berlin", "lyon")), make_sites({"berlin": 40, "lyon": 30}), tmp_path / "run")
    assert any("berlin, lyon: fewer than 10 test examples" in warning for warning in result["warnings"])
