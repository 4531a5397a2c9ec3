"""Whole federations in one process: the real ServerApp against the real ClientApp, with scripted faults."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SIZES, MakeSites, MakeStudy, method_settings, scaled_site, settled_scale, write_table
from flwr.app import Error, Message, RecordDict
from paths import SHARED
from safetensors.numpy import load, load_file, save

from client.app import _warm
from client.data import SiteData, load_data
from client.data.split import split_rows
from client.flower.message import plan_of
from client.methods import METHODS, build_method
from client.models import build_model, set_weights
from client.site.site import Site
from client.training.local_work import batches, evaluate
from common.codecs import Identity
from common.errors import (
    CohortTooSmall,
    ConfigError,
    ConsiliumError,
    DataError,
    HandshakeMismatch,
    ModelError,
    StateError,
)
from common.protocol import FinishPlan, Plan, Reply, RoundPlan, parse_reply, study_digest
from common.study.load import load_site
from common.study.study import StudyConfig
from common.study.training import SplitConfig
from common.weights.arrays import Array
from consilium.data.sources import heart_disease_hospitals
from consilium.findings import Evidence, interval_of
from consilium.report.report import build_report
from consilium.running.in_process import Answering, Deliver, deliver_always, run_in_process
from server.flower.exchange import pack, unpack

HEART = SHARED / "data" / "heart_disease"
BACKBONE = {"backbone.layer1.0.weight", "backbone.layer1.0.bias"}
HEAD = {"head.weight", "head.bias"}


@dataclass
class Seen:
    """One message and its reply, as they crossed the grid."""

    site: str
    plan: Plan
    down: bytes | None
    reply: Reply
    up: bytes | None


@dataclass
class Wire:
    """Delivers everything and remembers it."""

    seen: list[Seen] = field(default_factory=list)

    def __call__(self, site: str, message: Message, answering: Answering) -> Message | None:
        """Deliver one message."""
        plan, down = plan_of(message)
        answer = answering(message)
        text, up = unpack(answer.content)
        self.seen.append(Seen(site, plan, down, parse_reply(text, site=site), up))
        return answer

    def rounds(self, site: str) -> Iterator[Seen]:
        """Yield what one site was asked and answered in rounds."""
        return (item for item in self.seen if item.site == site and isinstance(item.plan, RoundPlan))


def run(study: StudyConfig, sites: Mapping[str, Path], folder: Path, deliver: Deliver = deliver_always) -> Any:
    run_in_process(study, sites, folder, deliver=deliver)
    return json.loads((folder / "result.json").read_text())


def data_at(path: Path, study: StudyConfig, folder: Path) -> SiteData:
    """Return a site's data as a run scaled it."""
    site = load_site(path)
    scale = settled_scale(folder)
    return load_data(site.data, study.task, study.split, site=site.name, min_examples=2, scale=scale)


def global_bytes(folder: Path) -> bytes:
    return (folder / "global.safetensors").read_bytes()


def state_dir(path: Path, folder: Path) -> Path:
    return path.parent / "state" / "quick" / folder.name


def kept_by(path: Path, folder: Path, number: int) -> dict[str, Array]:
    return load_file(state_dir(path, folder) / f"round-{number:06d}.safetensors")


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a result that is equal from run to run."""
    rounds = [
        {key: value for key, value in item.items() if not key.endswith("seconds") and key != "bytes_up"}
        for item in result["rounds"]
    ]
    for item in rounds:
        item["sites"] = {
            site: {key: value for key, value in facts.items() if key != "seconds"}
            for site, facts in item["sites"].items()
        }
    return {"rounds": rounds, "sites": result["sites"], "warnings": result["warnings"]}


# --- what a run leaves -----------------------------------------------------------------------------


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


@pytest.mark.parametrize("method", METHODS)
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


# --- oracles ---------------------------------------------------------------------------------------


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
    local = kept_by(path, tmp_path / "run", 4)
    for name, array in load(global_bytes(tmp_path / "run")).items():
        np.testing.assert_allclose(local[f"local/{name}"], array, rtol=1e-6, atol=1e-7)
    counts = result["sites"]["berlin"]["test"]
    assert counts["local"] == counts["global_"] == counts["personal"]


# --- what crosses the grid -------------------------------------------------------------------------


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
    personal = {f"personal/{name}" for name in (BACKBONE | HEAD) - expected}
    for path in sites.values():
        kept = kept_by(path, tmp_path / "run", 3)
        assert personal == {name for name in kept if name.startswith("personal/")}
    on_server = [load_file(file) for file in (tmp_path / "run").glob("*.safetensors")]
    assert 2 == len(on_server)
    shares = {f"weighting/share/{site}" for site in sites}
    for file in on_server:
        assert expected == {name.removeprefix("weights/") for name in file} - shares


def test_personal_weights_differ_from_site_to_site_and_are_served(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """FedPer: one backbone for all, each site its own head, and both are in the file that the site serves."""
    sites = make_sites()
    run(make_study(method={"kind": "fedper"}), sites, tmp_path / "run")
    backbone, heads = load(global_bytes(tmp_path / "run")), set()
    for path in sites.values():
        served = load_file(state_dir(path, tmp_path / "run") / "personal.safetensors")
        kept = kept_by(path, tmp_path / "run", 3)
        np.testing.assert_equal(backbone, {name: served[name] for name in BACKBONE})
        np.testing.assert_equal(
            {name: kept[f"personal/{name}"] for name in HEAD}, {name: served[name] for name in HEAD}
        )
        heads.add(served["head.weight"].tobytes())
    assert 3 == len(heads)


def test_personal_weights_stay_when_a_plan_names_another_method(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """A server that asks for FedAvg in a FedPer run gets an update that does not depend on the personal head."""
    updates = []
    for under, rounds_before in (("one", 2), ("two", 0)):
        sites = make_sites({"berlin": 40}, under=under)
        fedper = make_study(sites=["berlin"], rounds=2, method={"kind": "fedper"})
        fedavg = make_study(sites=["berlin"], rounds=3, method={"kind": "fedavg"})
        wire = Wire()
        run(fedavg, sites, tmp_path / under / "other", wire)
        if rounds_before:
            run(fedper, sites, tmp_path / under / "run")
        site = scaled_site(sites["berlin"], fedavg, scale=settled_scale(tmp_path / under / "other"))
        plan = RoundPlan(study=study_digest(fedavg), run="run", site="berlin", round=3, asked=3, accepted=2)
        updates.append(load(site.answer(plan, next(wire.rounds("berlin")).down)[1] or b""))
    np.testing.assert_equal(*updates)


# --- faults ----------------------------------------------------------------------------------------


def altered(change: Callable[[Any], None] | None = None, payload: Callable[[bytes], bytes] | None = None) -> Any:
    """Return a fault that rewrites a reply: its JSON fields, its payload, or both."""

    def fault(message: Message, answering: Answering) -> Message:
        text, content = unpack(answering(message).content)
        fields = json.loads(text)
        if change is not None:
            change(fields)
        if payload is not None:
            content = payload(content or b"")
        return Message(pack(json.dumps(fields), content), reply_to=message)

    return fault


def with_arrays(change: Callable[[dict[str, Array]], None]) -> Any:
    def rewrite(content: bytes) -> bytes:
        arrays = {name: array.copy() for name, array in Identity().decode(content).items()}
        change(arrays)
        return Identity().encode(arrays)

    return altered(payload=rewrite)


def error_reply(message: Message, answering: Answering) -> Message:
    return Message(Error(code=0, reason="the process was killed"), reply_to=message)


def exception_in_the_app(message: Message, answering: Answering) -> Message:
    message.content.clear()  # the real ClientApp meets a message without a plan and raises
    return answering(message)


def lost(message: Message, answering: Answering) -> None:
    answering(message)  # trained, saved, answered: and the answer never comes


def nan(arrays: dict[str, Array]) -> None:
    arrays["head.bias"] = np.full_like(arrays["head.bias"], np.nan)


def renamed(arrays: dict[str, Array]) -> None:
    arrays["head.offset"] = arrays.pop("head.bias")


def reshaped(arrays: dict[str, Array]) -> None:
    arrays["head.weight"] = arrays["head.weight"].T.copy()


def retyped(arrays: dict[str, Array]) -> None:
    arrays["head.weight"] = arrays["head.weight"].astype(np.float64)


FAULTS: dict[str, tuple[Any, str]] = {
    "error reply": (error_reply, "crash"),
    "exception": (exception_in_the_app, "crash"),
    "reply lost": (lost, "timeout"),
    "message lost": (lambda message, answering: None, "timeout"),
    "NaN": (with_arrays(nan), "not_finite"),
    "array renamed": (with_arrays(renamed), "names"),
    "array reshaped": (with_arrays(reshaped), "shape"),
    "array retyped": (with_arrays(retyped), "dtype"),
    "payload cut off": (altered(payload=lambda content: content[:-1]), "protocol"),
    "no payload": (altered(payload=lambda content: None), "protocol"),  # type: ignore[arg-type, return-value]
    "no JSON": (lambda message, answering: Message(pack("{", b""), reply_to=message), "protocol"),
    "no record": (lambda message, answering: Message(RecordDict(), reply_to=message), "protocol"),
    "another site": (altered(lambda fields: fields.update(site="berlin")), "protocol"),
    "another run": (altered(lambda fields: fields.update(run="yesterday")), "run"),
    "another round": (altered(lambda fields: fields.update(round=1)), "round"),
    "no examples": (altered(lambda fields: fields.update(num_examples=0)), "num_examples"),
}


def in_rounds(numbers: set[int], fault: Any, *, at: set[str]) -> Deliver:
    """Return a delivery in which `fault` happens to the sites `at` in some rounds."""

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        hit = isinstance(plan, RoundPlan) and plan.round in numbers and site in at
        reply: Message | None = fault(message, answering) if hit else answering(message)
        return reply

    return deliver


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_fault_at_one_site_is_named_and_the_run_goes_on(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, name: str
) -> None:
    """Quorum 2 of 3: the unusable update of round 2 is rejected with its reason, and never replaced by anything."""
    fault, reason = FAULTS[name]
    study = make_study(quorum=2, round_timeout_seconds=0.4)
    result = run(study, make_sites(), tmp_path / "run", in_rounds({2}, fault, at={"lyon"}))
    first, second, third = result["rounds"]
    assert {"lyon": reason} == second["rejected"]
    assert "site 'lyon'" in second["details"]["lyon"]
    assert ["berlin", "porto"] == second["accepted"] == sorted(second["sites"])
    assert sorted(SIZES) == second["asked"]
    assert ({}, {}) == (first["rejected"], third["rejected"])
    examples = {site: facts["num_examples"] for site, facts in second["sites"].items()}
    for site, facts in second["sites"].items():
        assert examples[site] / sum(examples.values()) == pytest.approx(facts["weight"])
    assert sorted(SIZES) == sorted(result["sites"])


def test_fault_at_a_site_leaves_the_round_as_if_it_had_not_been_asked(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The weights after a round in which one site crashed are those of the other two alone, by the same scale."""
    task = make_study().task.model_dump() | {"scale": {name: {"mean": 0.0, "std": 1.0} for name in "ab"}}
    study = make_study(quorum=2, rounds=1, task=task)
    run(study, make_sites(), tmp_path / "run", in_rounds({1}, error_reply, at={"lyon"}))
    two = make_sites({name: rows for name, rows in SIZES.items() if name != "lyon"}, under="two")
    for number, name in enumerate(SIZES):  # the same table as in the federation of three
        if name in two:
            write_table(two[name].parent / "data.csv", rows=SIZES[name], seed=number)
    run(make_study(rounds=1, sites=["berlin", "porto"], task=task), two, tmp_path / "two" / "run")
    np.testing.assert_equal(load(global_bytes(tmp_path / "two" / "run")), load(global_bytes(tmp_path / "run")))


@pytest.mark.parametrize("method", METHODS)
def test_late_joiner_starts_from_the_global_weights(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, method: str
) -> None:
    """A site whose first round is 3 answers as a fresh site would that receives round 2's global weights."""
    study, sites, wire = make_study(quorum=2, **method_settings(method)), make_sites(), Wire()

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, RoundPlan) and plan.round < 3 and site == "porto":
            return error_reply(message, answering)
        return wire(site, message, answering)

    result = run(study, sites, tmp_path / "run", deliver)
    assert [["berlin", "lyon"]] * 2 + [sorted(SIZES)] == [item["accepted"] for item in result["rounds"]]
    (late,) = wire.rounds("porto")
    others = {seen.down for site in ("berlin", "lyon") for seen in wire.rounds(site) if seen.plan.round == 3}
    assert {late.down} == others
    fresh = scaled_site(make_sites(under="fresh")["porto"], study, scale=settled_scale(tmp_path / "run"))
    assert fresh.answer(late.plan, late.down)[1] == late.up


def same_local_curve(site: str, full: dict[str, Any], partial: dict[str, Any]) -> bool:
    """Whether local-only is bit for bit the same in every round in which the site took part, and there is one."""
    pairs = [
        (whole["sites"][site]["metrics"]["local.loss"], part["sites"][site]["metrics"]["local.loss"])
        for whole, part in zip(full["rounds"], partial["rounds"], strict=True)
        if site in part["sites"]
    ]
    return bool(pairs) and all(expected == seen for expected, seen in pairs)


def test_late_joiner_has_had_as_much_local_training_as_the_others(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The local-only baseline of a site that failed when asked catches up: it equals that of a run without faults."""
    sites, study = make_sites(test_readings=2), make_study(quorum=1)
    result = run(study, sites, tmp_path / "faulty", in_rounds({1, 3}, error_reply, at={"porto"}))
    undisturbed = run(study, sites, tmp_path / "whole")
    for site in SIZES:
        assert undisturbed["sites"][site]["test"]["local"] == result["sites"][site]["test"]["local"]
        assert same_local_curve(site, undisturbed, result)


def test_all_sites_failing_ends_the_run_with_every_reason(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Fail closed: no result, the checkpoint of the round before is kept, the event log says who and why."""
    faults = {"berlin": error_reply, "lyon": with_arrays(nan), "porto": FAULTS["another run"][0]}

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        return in_rounds({2}, faults[site], at={site})(site, message, answering)

    with pytest.raises(CohortTooSmall, match=r"round 2: 0 of 3 .* expected 1; .*berlin.*lyon.*porto"):
        run(make_study(quorum=1), make_sites(), tmp_path / "run", deliver)
    assert [".lock", "checkpoint.safetensors", "events.jsonl", "scale.json"] == sorted(
        path.name for path in (tmp_path / "run").iterdir()
    )
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    failed = next(event for event in events if event["event"] == "round_failed")
    assert {"berlin": "crash", "lyon": "not_finite", "porto": "run"} == failed["rejected"]
    assert ("failed", "CohortTooSmall") == (events[-1]["event"], events[-1]["error"])


def test_without_a_quorum_every_site_is_needed(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """By default a single crash ends the run: whoever wants to go on without a site says so in the study."""
    with pytest.raises(CohortTooSmall, match="2 of 3 sites sent a usable update, expected 3"):
        run(make_study(), make_sites(), tmp_path / "run", in_rounds({2}, error_reply, at={"lyon"}))


def test_training_that_diverges_is_a_named_failure_and_is_not_kept(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """NaN at the site itself: a sentence instead of a stack trace, and nothing of it on the site's disk."""
    sites = make_sites()
    study = make_study(training={"epochs": 1, "batch_size": 8, "learning_rate": 1e30}, method={"kind": "fedper"})
    with pytest.raises(CohortTooSmall, match=r"site 'berlin' could not do the round: weights after training: array"):
        run(study, sites, tmp_path / "run")
    for path in sites.values():
        assert not list(state_dir(path, tmp_path / "run").glob("round-*"))


def test_measurement_that_is_not_finite_is_a_named_failure(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """After one huge step the weights are finite and the local-only loss is not: told in a sentence, and not kept."""
    sites = make_sites()
    study = make_study(training={"steps": 1, "batch_size": 8, "learning_rate": 1e30})
    with pytest.raises(CohortTooSmall, match=r"site 'lyon' could not do the round: local.loss: not a finite number"):
        run(study, sites, tmp_path / "run")
    assert not list(state_dir(sites["lyon"], tmp_path / "run").glob("round-*"))
    unseen = study.model_copy(update={"split": SplitConfig(validation=0.0), "rounds": 1})
    with pytest.raises(CohortTooSmall, match=r"only 0 of 3 sites reported test results; .*local.loss.*not a finite"):
        run(unseen, sites, tmp_path / "unseen")


def test_state_folder_that_breaks_in_a_round_is_a_named_failure(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Personal weights that cannot be read stop this site, not the study, and no other weights stand in for them."""
    sites = make_sites()

    def damage(message: Message, answering: Answering) -> Message:
        (state_dir(sites["lyon"], tmp_path / "run") / "round-000001.safetensors").write_bytes(b"")
        _warm.clear()  # a site that runs on has them in memory; this one was restarted
        return answering(message)

    study = make_study(quorum=2, method={"kind": "fedper"})
    result = run(study, sites, tmp_path / "run", in_rounds({2}, damage, at={"lyon"}))
    assert [{}, {"lyon": "failure"}, {"lyon": "failure"}] == [item["rejected"] for item in result["rounds"]]
    assert (
        "StateError; the sentence that says why is in the log of site 'lyon'" in result["rounds"][1]["details"]["lyon"]
    )
    assert {"lyon"} == {site for site, facts in result["sites"].items() if facts["test"] is None}


def test_data_that_change_during_a_run_stop_the_site(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """One row more is another split: what was trained on could be tested on, so the site refuses to go on."""
    sites = make_sites()

    def add_row(message: Message, answering: Answering) -> Message:
        file = load_site(sites["lyon"]).data.path
        file.write_text(file.read_text() + file.read_text().splitlines()[-1] + "\n")
        _warm.clear()
        return answering(message)

    result = run(make_study(quorum=2), sites, tmp_path / "run", in_rounds({2}, add_row, at={"lyon"}))
    assert [{}, {"lyon": "failure"}, {"lyon": "failure"}] == [item["rejected"] for item in result["rounds"]]
    events = (load_site(sites["lyon"]).state_dir / "events.jsonl").read_text()
    assert "the data changed since this run began" in events


def test_study_other_than_the_accepted_one_is_refused(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """A site with a study.toml beside its settings trains that study and no other, whatever the server asks."""
    sites = make_sites()
    text = 'name = "other"\nsites = ["berlin"]\n[task]\nkind = "images"\nclasses = ["a", "b"]\n'
    (sites["lyon"].parent / "study.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"another study than the one this site accepted; they differ in .*name"):
        run(make_study(), sites, tmp_path / "run")


# --- restarts --------------------------------------------------------------------------------------


class Killed(BaseException):
    """The server's process ends here."""


def killed_at(number: int, *, after: int, deliver: Deliver = deliver_always) -> Deliver:
    """Return a delivery in which the server dies in a round, after some sites have answered."""
    answered: list[str] = []

    def dying(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, RoundPlan) and plan.round == number:
            if len(answered) == after:
                raise Killed
            answered.append(site)
        return deliver(site, message, answering)

    return dying


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", [0, 2])
def test_restart_of_the_server_equals_no_restart(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, method: str, after: int
) -> None:
    """Killed in round 3, before or after sites have trained and saved it; continued from its folder: equal bits."""
    study = make_study(rounds=4, **method_settings(method))
    whole = run(study, make_sites(under="one"), tmp_path / "one" / "run")
    sites = make_sites(under="two")
    with pytest.raises(Killed):
        run(study, sites, tmp_path / "two" / "run", killed_at(3, after=after))
    assert not (tmp_path / "two" / "run" / "result.json").exists()
    continued = run(study, sites, tmp_path / "two" / "run")
    assert without_times(whole) == without_times(continued)
    assert global_bytes(tmp_path / "one" / "run") == global_bytes(tmp_path / "two" / "run")


@pytest.mark.parametrize("number", [3, 4, 5])
def test_restart_with_sites_that_missed_rounds_equals_no_restart(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, number: int
) -> None:
    """A site's last state may be several rounds old when a round is asked again: it still starts from it."""
    study = make_study(rounds=6, method={"kind": "fedper"}, cohort_fraction=0.5, seed=3)
    whole = run(study, make_sites(under="one"), tmp_path / "one" / "run")
    sites = make_sites(under="two")
    with pytest.raises(Killed):
        run(study, sites, tmp_path / "two" / "run", killed_at(number, after=1))
    continued = run(study, sites, tmp_path / "two" / "run")
    assert without_times(whole) == without_times(continued)
    assert global_bytes(tmp_path / "one" / "run") == global_bytes(tmp_path / "two" / "run")


@pytest.mark.parametrize("method", METHODS)
def test_restart_of_the_sites_equals_no_restart(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, method: str
) -> None:
    """A site whose process is new at every message (nothing in memory) answers as one that stayed warm."""
    study = make_study(**method_settings(method))
    whole = run(study, make_sites(under="one"), tmp_path / "one" / "run")

    def forgetful(site: str, message: Message, answering: Answering) -> Message | None:
        _warm.clear()
        return answering(message)

    restarted = run(study, make_sites(under="two"), tmp_path / "two" / "run", forgetful)
    assert without_times(whole) == without_times(restarted)
    assert global_bytes(tmp_path / "one" / "run") == global_bytes(tmp_path / "two" / "run")


def test_restarted_hospital_continues_with_its_own_head(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """FedPer: the head after round 1 is on disk, and round 2 starts from it; without it the update is another."""
    study, sites, wire = make_study(rounds=2, method={"kind": "fedper"}), make_sites(), Wire()
    heads = {}

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if site == "lyon" and isinstance(plan, RoundPlan) and plan.round == 2:
            _warm.clear()
            kept = kept_by(sites["lyon"], tmp_path / "run", 1)
            heads.update({name.removeprefix("personal/"): array for name, array in kept.items() if "personal/" in name})
        return wire(site, message, answering)

    run(study, sites, tmp_path / "run", deliver)
    assert heads.keys() == HEAD
    _, second = wire.rounds("lyon")
    scale = settled_scale(tmp_path / "run")
    forgotten = scaled_site(make_sites(under="fresh")["lyon"], study, scale=scale)
    assert second.up != forgotten.answer(second.plan, second.down)[1]

    data = data_at(sites["lyon"], study, tmp_path / "run")
    model = build_model(study.model, input_shape=data.input_shape, num_outputs=1, weights_dir=None, seed=0).module
    start = load(second.down or b"") | heads
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in start.items()})
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches(scaled_site(sites["lyon"], study, run="other", scale=scale)._work(2)):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y.float()).backward()
        optimiser.step()
    for name, delta in load(second.up or b"").items():
        np.testing.assert_allclose(model.state_dict()[name].numpy() - start[name], delta, rtol=1e-4, atol=1e-6)


# --- bad input stops a study before training -------------------------------------------------------


def few_rows(path: Path) -> None:
    write_table(path.parent / "data.csv", rows=12, seed=0)


def unknown_class(path: Path) -> None:
    file = path.parent / "data.csv"
    file.write_text(file.read_text() + "0.5,0.5,maybe\n")


def no_data(path: Path) -> None:
    (path.parent / "data.csv").unlink()


def state_is_a_file(path: Path) -> None:
    (path.parent / "state").write_text("a file")


def other_data_kind(path: Path) -> None:
    path.write_text(path.read_text().replace("kind = 'table'", "kind = 'images'"))


BAD_INPUT: dict[str, tuple[Callable[[Path], None], type[ConsiliumError], str]] = {
    "few rows": (few_rows, DataError, "12 usable examples, expected at least 20"),
    "unknown class": (unknown_class, DataError, "expected one of"),
    "no data": (no_data, DataError, "does not exist"),
    "state folder": (state_is_a_file, StateError, "is not writable"),
    "kind of data": (other_data_kind, ConfigError, "data.kind is 'images', expected 'table'"),
}


@pytest.mark.parametrize("name", sorted(BAD_INPUT))
@pytest.mark.parametrize("share", [False, True])
def test_bad_input_at_a_site_stops_the_study_before_training(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, name: str, share: bool
) -> None:
    """The right error with the site's name; why it is wrong stays at the site unless it chose to share that."""
    spoil, error, sentence = BAD_INPUT[name]
    sites, wire = make_sites(share_error_details=share), Wire()
    spoil(sites["lyon"])
    with pytest.raises(error, match=r"^site 'lyon': ") as caught:
        run(make_study(), sites, tmp_path / "run", wire)
    assert type(caught.value) is error
    assert not any(isinstance(seen.plan, RoundPlan) for seen in wire.seen)
    told = (tmp_path / "run" / "events.jsonl").read_text() + "".join(seen.reply.model_dump_json() for seen in wire.seen)
    private = error in (DataError, StateError) and not share
    assert private != (sentence in str(caught.value))
    assert not (private and (str(tmp_path) in told or "data.csv" in told))


def test_bad_input_of_which_the_reason_stays_private_is_in_the_sites_own_log(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    """The site's operator reads the whole sentence."""
    sites = make_sites()
    no_data(sites["lyon"])
    with pytest.raises(DataError, match=r"^site 'lyon': DataError; the sentence that says why is in the log"):
        run(make_study(), sites, tmp_path / "run")
    assert any("does not exist" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("case", ["another file", "no file"])
def test_pretrained_weights_that_are_not_those_of_the_study_stop_it(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, case: str
) -> None:
    """One site holds another file than the study pins, or none: no round is trained on it."""
    sites = make_sites()
    for name, path in sites.items():
        (path.parent / "weights").mkdir()
        content = save({"x": np.zeros(2 if name == "lyon" and case == "another file" else 1, dtype=np.float32)})
        if not (name == "lyon" and case == "no file"):
            (path.parent / "weights" / "start.safetensors").write_bytes(content)
    model = {"name": "mlp", "hidden": [6], "pretrained": {"file": "start.safetensors", "sha256": "0" * 64}}
    with pytest.raises(ModelError, match=r"^site 'berlin': .*sha256 is .*, the study pins 0000"):
        run(make_study(model=model), sites, tmp_path / "first")

    good = build_model(make_study().model, input_shape=(2,), num_outputs=1, weights_dir=None, seed=5).module
    content = save({name: value.numpy() for name, value in good.state_dict().items()})
    model["pretrained"] = {"file": "start.safetensors", "sha256": hashlib.sha256(content).hexdigest()}
    for name, path in sites.items():
        if name != "lyon":
            (path.parent / "weights" / "start.safetensors").write_bytes(content)
    sentence = "the study pins" if case == "another file" else "not found in weights_dir"
    with pytest.raises(ModelError, match=rf"^site 'lyon': weights file 'start.safetensors': .*{sentence}"):
        run(make_study(model=model), sites, tmp_path / "second")
    (sites["lyon"].parent / "weights" / "start.safetensors").write_bytes(content)
    assert 3 == len(run(make_study(model=model), sites, tmp_path / "third")["rounds"])


@pytest.mark.parametrize("other", ["protocol", "codecs"])
def test_site_of_another_protocol_or_codec_version_ends_the_handshake_with_a_sentence(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, other: str
) -> None:
    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        reply: Message = altered(lambda fields: fields.update({other: 9}))(message, answering)
        return reply if site == "porto" else answering(message)

    with pytest.raises(HandshakeMismatch, match=f"'porto'.* {other[:5]}.* version 9.*install the same release"):
        run(make_study(), make_sites(), tmp_path / "run", deliver)


def test_site_that_crashes_in_the_handshake_stops_the_study(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """A site that takes part must be heard before round 1."""

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        return error_reply(message, answering) if site == "porto" else answering(message)

    with pytest.raises(HandshakeMismatch, match="site 'porto' did not answer the handshake: crash"):
        run(make_study(), make_sites(), tmp_path / "run", deliver)


# --- what is measured, and on what -----------------------------------------------------------------


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
        served = load_file(state_dir(path, tmp_path / "run") / "personal.safetensors")
        kept = kept_by(path, tmp_path / "run", 3)
        local = {key.removeprefix("local/"): array for key, array in kept.items() if key.startswith("local/")}
        for which, weights in (("personal", served), ("local", local)):
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
        kept = kept_by(path, tmp_path / "run", 2)
        own = {key.removeprefix("personal/"): array for key, array in kept.items() if key.startswith("personal/")}
        model = build_model(study.model, input_shape=(2,), num_outputs=1, weights_dir=None, seed=0)
        set_weights(model.module, load(seen.down or b"") | own)
        site = scaled_site(path, study, scale=settled_scale(tmp_path / "run"))
        if method == "fine_tune":
            build_method(study.method).personalise(model, {}, site._work(2))
        data = data_at(path, study, tmp_path / "run")
        expected = evaluate(model.module, data.validation)
        metrics = seen.reply.metrics  # type: ignore[union-attr]
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


# --- real hospitals --------------------------------------------------------------------------------


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


# --- a frozen backbone -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedavg", "knn_per"])
def test_cached_features_of_a_frozen_backbone_change_nothing_but_the_time(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Without it: the same counts, the same weights up to rounding, and a served file that holds the backbone too."""
    study = make_study(model={"name": "mlp", "hidden": [6], "trainable": "head"}, method={"kind": method})
    sites = make_sites()
    cached = run(study, sites, tmp_path / "cached")
    monkeypatch.setattr("client.site.feature_cache.FeatureCache.apply", lambda _, model, data: (model, data))
    plain = run(study, sites, tmp_path / "plain")
    assert {site: facts["test"] for site, facts in cached["sites"].items()} == {
        site: facts["test"] for site, facts in plain["sites"].items()
    }
    one, other = (load_file(tmp_path / name / "global.safetensors") for name in ("cached", "plain"))
    assert one.keys() == other.keys() == {"head.weight", "head.bias"}
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-3, atol=1e-5)
    for path in sites.values():
        served, expected = (
            load_file(state_dir(path, tmp_path / name) / "personal.safetensors") for name in ("cached", "plain")
        )
        assert served.keys() == expected.keys()
        for name, array in served.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-4)


# --- the best round, and the scores that stay ------------------------------------------------------


def test_best_round_by_validation_is_kept_and_measured_beside_the_last(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """With a rate that worsens from round to round, the best is the first; the scores are those of its model."""
    study = make_study(rounds=4, keep_best=True, split={"test": 0.3, "validation": 0.3}, method={"kind": "fine_tune"})
    sites = make_sites()
    result = run(study, sites, tmp_path / "run")
    for name, path in sites.items():
        kept = kept_by(path, tmp_path / "run", 4)
        losses = {which: [r["sites"][name]["metrics"][f"{which}.loss"] for r in result["rounds"]] for which in SERVED}
        for which, prefix in SERVED.items():
            assert float(kept[f"{prefix}/loss"]) == min(losses[which])
        scores = load_file(state_dir(path, tmp_path / "run") / "test-scores.safetensors")
        assert set(scores) == {"labels", "majority", "global", "personal", "local", "personal.best", "local.best"}
        counts = result["sites"][name]["test"]
        for which, count in (("personal", "personal"), ("local", "local"), ("global", "global_")):
            right = (scores[which][:, 0] > 0) == (scores["labels"] == 1)
            assert int(right.sum()) == counts[count]
    best = 1 + int(np.argmin([r["sites"]["lyon"]["metrics"]["personal.loss"] for r in result["rounds"]]))
    run(study.model_copy(update={"rounds": best}), sites, tmp_path / "shorter")  # ends with lyon's best round
    longer, shorter = kept_by(sites["lyon"], tmp_path / "run", 4), kept_by(sites["lyon"], tmp_path / "shorter", best)
    for name in (name for name in longer if name.startswith("best/")):
        np.testing.assert_array_equal(longer[name], shorter[name])


def test_without_keep_best_nothing_more_is_kept(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    sites = make_sites()
    run(make_study(), sites, tmp_path / "run")
    path = sites["berlin"]
    assert not [name for name in kept_by(path, tmp_path / "run", 3) if name.startswith("best")]
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
    report = build_report(run(study, sites, tmp_path / "run"))
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


SERVED = {"personal": "best/", "local": "best_local/"}


def test_measuring_less_often_changes_what_is_told_and_nothing_else(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
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
    sites = make_sites()
    settings: dict[str, Any] = {"method": {"kind": "fedper"}, "split": {"test": 0.3, "validation": 0.2}}
    beside = run(make_study(**settings), sites, tmp_path / "with")
    result = run(make_study(local_baseline=False, **settings), sites, tmp_path / "without")
    assert global_bytes(tmp_path / "with") == global_bytes(tmp_path / "without")
    for site in SIZES:
        counts, other = result["sites"][site]["test"], beside["sites"][site]["test"]
        assert (counts["local"], counts["pairs"]) == (None, None)
        assert counts["personal"] == other["personal"]
        assert not [name for name in kept_by(sites[site], tmp_path / "without", 3) if name.startswith("local/")]
    report = build_report(result)
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
