"""Whole federations in one process: the real ServerApp against the real ClientApp."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SIZES, MakeSites, MakeStudy, method_settings, scaled_site, settled_scale
from federations import BACKBONE, HEAD, Wire, data_at, global_bytes, kept_by, run, state_dir, without_times
from paths import SHARED
from safetensors.numpy import load, load_file

from consilium.client.methods import METHODS
from consilium.common.protocol.plans import RoundPlan, study_digest
from consilium.data.sources import heart_disease_hospitals

HEART = SHARED / "data" / "heart_disease"


# --- what a run leaves ---------------------------------------------------------------------------


def test_federation_leaves_a_result_with_every_fact(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Per site: process, examples, test counts; per round: time, bytes both ways, who was asked and who answered."""
    wire = Wire()
    result = run(make_study(), make_sites(), tmp_path / "run", wire)
    assert ("in-process", False, 42, "run") == tuple(result[key] for key in ("transport", "tls", "seed", "run"))
    assert sorted(SIZES) == sorted(result["sites"])
    for site, facts in result["sites"].items():
        assert (os.getpid(), SIZES[site]) == (facts["pid"], facts["num_examples"])
        assert SIZES[site] == facts["num_train"] + facts["num_validation"] + facts["num_test"]
        counts = facts["test"]
        both, only_local, only_personal, neither = counts["pairs"]
        assert facts["num_test"] == counts["num_test"] == both + only_local + only_personal + neither
        assert (counts["local"], counts["personal"]) == (both + only_local, both + only_personal)
        assert counts["global_"] == counts["personal"]  # FedAvg serves the global model
        assert 0 <= counts["majority"] <= counts["num_test"]
    assert [1, 2, 3] == [item["round"] for item in result["rounds"]]
    for item in result["rounds"]:
        for key in ("asked", "answered", "accepted"):
            assert sorted(SIZES) == item[key]
        assert {} == item["rejected"]
        assert item["seconds"] > 0 and item["update_norm"] > 0
        assert 1.0 == pytest.approx(sum(facts["weight"] for facts in item["sites"].values()))
        messages = [seen for seen in wire.seen if isinstance(seen.plan, RoundPlan) and seen.plan.round == item["round"]]
        down = sum(len(seen.plan.model_dump_json()) + len(seen.down or b"") for seen in messages)
        up = sum(len(seen.reply.model_dump_json()) + len(seen.up or b"") for seen in messages)
        assert (down, up) == (item["bytes_down"], item["bytes_up"])
    for site in SIZES:
        train_counts = {item["sites"][site]["num_examples"] for item in result["rounds"]}
        assert {result["sites"][site]["num_train"]} == train_counts


def test_federation_learns(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The sign of everything together: the mean validation loss of the global weights falls over the rounds."""
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 0.3}
    result = run(make_study(rounds=8, training=training), make_sites(), tmp_path / "run")
    losses = [
        np.mean([facts["metrics"]["global.loss"] for facts in item["sites"].values()]) for item in result["rounds"]
    ]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "method",
    [pytest.param(kind, marks=() if kind in ("fedavg", "ditto") else pytest.mark.nightly) for kind in METHODS],
)
def test_federation_with_the_same_seed_gives_the_same_bytes(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, method: str
) -> None:
    """Equal settings, equal data: equal files and equal results, whoever computed before in this process."""
    study = make_study(**method_settings(method))
    first = run(study, make_sites(under="one"), tmp_path / "one-run" / "run")
    torch.manual_seed(99)
    second = run(study, make_sites(under="two"), tmp_path / "two-run" / "run")
    assert without_times(first) == without_times(second)
    assert global_bytes(tmp_path / "one-run" / "run") == global_bytes(tmp_path / "two-run" / "run")


def test_federation_with_another_seed_gives_other_weights(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The seed decides on initial weights and on the order of examples."""
    sites = make_sites()
    run(make_study(seed=1), sites, tmp_path / "one")
    run(make_study(seed=2), sites, tmp_path / "two")
    assert global_bytes(tmp_path / "one") != global_bytes(tmp_path / "two")


# --- oracles -------------------------------------------------------------------------------------


def test_fedavg_of_one_step_is_the_weighted_mean_of_gradient_steps(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """One batch of all rows, no momentum, by hand: w0 - lr * sum_k (n_k / n) grad_k, for logistic regression."""
    study = make_study(
        rounds=1,
        model={"name": "linear"},
        training={"steps": 1, "batch_size": 100, "learning_rate": 0.3, "momentum": 0.0},
    )
    sites, wire = make_sites(), Wire()
    run(study, sites, tmp_path / "run", wire)
    start = load(next(wire.rounds("berlin")).down or b"")
    w, b = start["weight"][0].astype(np.float64), float(start["bias"][0])
    gradients, counts = [], []
    for path in sites.values():
        data = data_at(path, study, tmp_path / "run").train
        x, y = data.x.double().numpy(), data.y.double().numpy()
        error = 1 / (1 + np.exp(-(x @ w + b))) - y
        gradients.append(np.append((error[:, None] * x).mean(axis=0), error.mean()))
        counts.append(len(y))
    assert 3 == len(set(counts))
    expected = np.append(w, b) - 0.3 * np.average(gradients, axis=0, weights=counts)
    seen = load(global_bytes(tmp_path / "run"))
    np.testing.assert_allclose(expected, np.append(seen["weight"][0], seen["bias"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_federation_of_one_site_is_local_training(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, model: str
) -> None:
    """Alone, FedAvg and local-only walk the same path; adding a float32 delta rounds once per round (2 ulp)."""
    path = make_sites({"berlin": 40})["berlin"]
    study = make_study(sites=["berlin"], rounds=4, model={"name": model})
    result = run(study, {"berlin": path}, tmp_path / "run")
    local = kept_by(path, tmp_path / "run", 4).alone.weights
    for name, array in load(global_bytes(tmp_path / "run")).items():
        np.testing.assert_allclose(local[name].astype(np.float64), array, rtol=1e-6, atol=1e-7)
    counts = result["sites"]["berlin"]["test"]
    assert counts["local"] == counts["global_"] == counts["personal"]


# --- what crosses the grid -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": {"kind": "fedavg"}}, BACKBONE | HEAD),
        ({"method": {"kind": "fine_tune"}}, BACKBONE | HEAD),
        ({"method": {"kind": "fedper"}}, BACKBONE),
        ({"method": {"kind": "local"}}, set()),
    ],
    ids=["fedavg", "fine_tune", "fedper", "local"],
)
def test_payloads_hold_exactly_the_shared_names(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, settings: dict[str, Any], expected: set[str]
) -> None:
    """In both directions, in every kind of message; personal arrays lie under the site's own state_dir only."""
    sites, wire = make_sites(), Wire()
    run(make_study(**settings), sites, tmp_path / "run", wire)
    payloads = [payload for seen in wire.seen for payload in (seen.down, seen.up) if payload is not None]
    assert 1 + 3 * 3 * 2 + 3 == len(payloads)
    assert all(expected == set(load(payload)) for payload in payloads)
    for path in sites.values():
        assert (BACKBONE | HEAD) - expected == kept_by(path, tmp_path / "run", 3).personal.keys()
    on_server = [load_file(file) for file in (tmp_path / "run").rglob("*.safetensors")]
    assert 4 == len(on_server)  # three checkpoints and the model
    for file in on_server:
        assert expected == {name.removeprefix("weights/") for name in file}


def test_personal_weights_differ_from_site_to_site_and_are_served(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """FedPer: one backbone for all, each site its own head, and both are in the file that the site serves."""
    sites = make_sites()
    run(make_study(method={"kind": "fedper"}), sites, tmp_path / "run")
    backbone, heads = load(global_bytes(tmp_path / "run")), set()
    for path in sites.values():
        served = load_file(state_dir(path, tmp_path / "run") / "models/personal/weights.safetensors")
        kept = kept_by(path, tmp_path / "run", 3)
        np.testing.assert_equal(backbone, {name: served[name] for name in BACKBONE})
        np.testing.assert_equal(dict(kept.personal), {name: served[name] for name in HEAD})
        heads.add(served["head.weight"].tobytes())
    assert 3 == len(heads)


def test_personal_weights_stay_when_a_plan_names_another_method(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """A server that asks for FedAvg in a FedPer run gets an update that does not depend on the personal head."""
    updates = []
    for under, rounds_before in (("one", 2), ("two", 0)):
        sites = make_sites({"berlin": 40}, under=under, on_lost_state="start_anew")
        fedper = make_study(sites=["berlin"], rounds=2, method={"kind": "fedper"})
        fedavg = make_study(sites=["berlin"], rounds=3, method={"kind": "fedavg"})
        wire = Wire()
        run(fedavg, sites, tmp_path / under / "other", wire)
        if rounds_before:
            run(fedper, sites, tmp_path / under / "run")
        site = scaled_site(sites["berlin"], fedavg, scale=settled_scale(tmp_path / under / "other"))
        plan = RoundPlan(study=study_digest(fedavg), run="run", site="berlin", round=3, asked=3, accepted=2)
        updates.append(load(site.answer(plan, next(wire.rounds("berlin")).down)[1] or b""))
    np.testing.assert_equal(updates[0], updates[1])


# --- real hospitals ------------------------------------------------------------------------------


@pytest.mark.skipif(not HEART.is_dir(), reason="the UCI Heart Disease files are not on this machine")
def test_heart_disease_follows_flambys_protocol(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Four hospitals, FLamby's split: 254 test patients, of whom the majority class gets .721 / .638 right."""
    federation = heart_disease_hospitals(HEART, tmp_path / "source")
    sites = make_sites(dict.fromkeys(federation.folders, 6))
    for name, path in sites.items():
        (path.parent / "data.csv").write_bytes((federation.folders[name] / "patients.csv").read_bytes())
    study = make_study(
        sites=sorted(sites),
        rounds=3,
        task=federation.task.model_dump() | {"scale": "site"},
        model={"name": "linear"},
        training={"steps": 100, "batch_size": 4, "learning_rate": 0.001, "momentum": 0.0},
        split={"test": 0.34, "validation": 0.0, "seed": 43, "copies": "ignore"},
    )
    counts = {site: facts["test"] for site, facts in run(study, sites, tmp_path / "run")["sites"].items()}
    totals = {site: item["num_test"] for site, item in counts.items()}
    assert {"cleveland": 104, "hungarian": 89, "switzerland": 16, "va": 45} == totals
    right = {site: item["majority"] for site, item in counts.items()}
    assert 0.721 == pytest.approx(np.mean([right[site] / totals[site] for site in sites]), abs=5e-4)
    assert 0.638 == pytest.approx(sum(right.values()) / sum(totals.values()), abs=5e-4)


# --- a frozen backbone ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedavg", "knn_per"])
def test_cached_features_of_a_frozen_backbone_change_nothing_but_the_time(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Without it: the same counts, the same weights up to rounding, and a served file that holds the backbone too."""
    study = make_study(model={"name": "mlp", "hidden": [6], "trainable": "head"}, method={"kind": method})
    sites = make_sites()
    cached = run(study, sites, tmp_path / "cached")
    monkeypatch.setattr("consilium.client.site.feature_cache.FeatureCache.apply", lambda _, model, data: (model, data))
    plain = run(study, sites, tmp_path / "plain")
    assert {site: facts["test"] for site, facts in cached["sites"].items()} == {
        site: facts["test"] for site, facts in plain["sites"].items()
    }
    one, other = (load_file(tmp_path / name / "model/weights.safetensors") for name in ("cached", "plain"))
    assert one.keys() == other.keys() == {"head.weight", "head.bias"}
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-3, atol=1e-5)
    for path in sites.values():
        served, expected = (
            load_file(state_dir(path, tmp_path / name) / "models/personal/weights.safetensors")
            for name in ("cached", "plain")
        )
        assert served.keys() == expected.keys()
        for name, array in served.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-4)
