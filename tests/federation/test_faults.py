"""Whole federations with scripted faults: each is named, and nothing is replaced by a default."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIZES, MakeSites, MakeStudy, method_settings, scaled_site, settled_scale, write_table
from federations import Wire, error_reply, global_bytes, in_rounds, run, state_dir
from flwr.app import Message, RecordDict
from safetensors.numpy import load, save

from consilium.client.app import _warm
from consilium.client.flower.message import content_of, plan_of
from consilium.client.methods import METHODS
from consilium.client.models import build_model
from consilium.common.codecs import Identity
from consilium.common.errors import (
    CohortTooSmall,
    ConfigError,
    ConsiliumError,
    DataError,
    HandshakeMismatch,
    ModelError,
    StateError,
)
from consilium.common.flower.message import unpack
from consilium.common.protocol.plans import RoundPlan
from consilium.common.study.load import load_site
from consilium.common.study.training import SplitConfig
from consilium.common.weights.arrays import Array
from consilium.running.in_process import Answering

# --- faults --------------------------------------------------------------------------------------


def altered(change: Callable[[Any], None] | None = None, payload: Callable[[bytes], bytes] | None = None) -> Any:
    """Return a fault that rewrites a reply: its JSON fields, its payload, or both."""

    def fault(message: Message, answering: Answering) -> Message:
        text, content = unpack(answering(message).content.config_records)
        fields = json.loads(text)
        if change is not None:
            change(fields)
        if payload is not None:
            content = payload(content or b"")
        return Message(content_of(json.dumps(fields), content), reply_to=message)

    return fault


def with_arrays(change: Callable[[dict[str, Array]], None]) -> Any:
    """Return a fault that changes the arrays of an update."""

    def rewrite(content: bytes) -> bytes:
        arrays = {name: array.copy() for name, array in Identity().decode(content).items()}
        change(arrays)
        return Identity().encode(arrays)

    return altered(payload=rewrite)


def message_without_a_plan(message: Message, answering: Answering) -> Message:
    """Have the real ClientApp meet a message without a plan, which it answers with a sentence."""
    message.content.clear()
    return answering(message)


def lost(message: Message, answering: Answering) -> None:
    """Have the site train, save and answer; the answer never comes."""
    answering(message)  # trained, saved, answered: and the answer never comes


def nan(arrays: dict[str, Array]) -> None:
    """Put NaN into an update."""
    arrays["head.bias"] = np.full_like(arrays["head.bias"], np.nan)


def renamed(arrays: dict[str, Array]) -> None:
    """Rename an array of an update."""
    arrays["head.offset"] = arrays.pop("head.bias")


def reshaped(arrays: dict[str, Array]) -> None:
    """Turn an array of an update."""
    arrays["head.weight"] = arrays["head.weight"].T.copy()


def retyped(arrays: dict[str, Array]) -> None:
    """Change the dtype of an array of an update."""
    arrays["head.weight"] = arrays["head.weight"].astype(np.float64)


FAULTS: dict[str, tuple[Any, str]] = {
    "error reply": (error_reply, "crash"),
    "no plan": (message_without_a_plan, "failure"),
    "reply lost": (lost, "timeout"),
    "message lost": (lambda message, answering: None, "timeout"),
    "NaN": (with_arrays(nan), "not_finite"),
    "array renamed": (with_arrays(renamed), "names"),
    "array reshaped": (with_arrays(reshaped), "shape"),
    "array retyped": (with_arrays(retyped), "dtype"),
    "payload cut off": (altered(payload=lambda content: content[:-1]), "protocol"),
    "no payload": (altered(payload=lambda content: None), "protocol"),  # type: ignore[arg-type, return-value]  # a reply without a payload
    "no JSON": (lambda message, answering: Message(content_of("{", b""), reply_to=message), "protocol"),
    "no record": (lambda message, answering: Message(RecordDict(), reply_to=message), "protocol"),
    "another site": (altered(lambda fields: fields.update(site="berlin")), "protocol"),
    "another run": (altered(lambda fields: fields.update(run="yesterday")), "run"),
    "another round": (altered(lambda fields: fields.update(round=1)), "round"),
    "no examples": (altered(lambda fields: fields.update(num_examples=0)), "num_examples"),
}


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
    others = {seen.down for site in ("berlin", "lyon") for seen in wire.rounds(site) if seen.number == 3}
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
    assert [".lock", "checkpoint.safetensors", "events.jsonl", "scale.json", "scale.json.copy"] == sorted(
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
    training = {"steps": 1, "batch_size": 8, "learning_rate": 1e30}
    study = make_study(training=training, defence={"norm": {"kind": "off"}})
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


# --- bad input stops a study before training -----------------------------------------------------


def few_rows(path: Path) -> None:
    """Leave a site with few rows."""
    write_table(path.parent / "data.csv", rows=12, seed=0)


def unknown_class(path: Path) -> None:
    """Add a row of a class that the study does not have."""
    file = path.parent / "data.csv"
    file.write_text(file.read_text() + "0.5,0.5,maybe\n")


def no_data(path: Path) -> None:
    """Remove a site's data."""
    (path.parent / "data.csv").unlink()


def state_is_a_file(path: Path) -> None:
    """Put a file where the state's folder should be."""
    (path.parent / "state").write_text("a file")


def other_data_kind(path: Path) -> None:
    """Have a site's settings say another kind of data."""
    path.write_text(path.read_text().replace('kind = "table"', 'kind = "images"'))


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
    """It says both versions and what to do."""

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
