"""A private study from the handshake to its end: what leaves has noise, is counted once, or stays at the site."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy, method_settings
from federations import Wire, global_bytes, run, state_dir
from flwr.app import Message
from private_sites import alone, asked, begun, ledger_of, private, weights_of
from safetensors.numpy import load_file

from consilium.adaptation.adapt import adapt_site
from consilium.client.app import _warm
from consilium.client.flower.message import plan_of
from consilium.client.site.announced import ANNOUNCED
from consilium.client.site.answers import Answers
from consilium.client.site.kept import Kept
from consilium.client.site.round import play_round
from consilium.client.site.site import Site
from consilium.common.codecs import Identity
from consilium.common.errors import (
    CohortTooSmall,
    ConfigError,
    DataError,
    PolicyRefused,
    PrivacyBudgetSpent,
    StateError,
)
from consilium.common.model import read_record
from consilium.common.privacy.accounting import epsilon_of
from consilium.common.protocol.plans import FinishPlan, RoundPlan, study_digest
from consilium.common.protocol.replies import FinishReply, RoundReply
from consilium.common.study.load import load_site
from consilium.common.study.policy import UNBOUND
from consilium.running.in_process import Answering
from consilium.serving.own_rows import own_rows_of

SIZES = {"berlin": 120, "lyon": 80, "porto": 90}


class Killed(BaseException):
    """The server's process ends here."""


@pytest.mark.parametrize("method", ["fedavg", "fedper", "ditto", "scaffold"])
def test_private_study_ends_within_its_budget_and_tells_nothing_else(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, method: str
) -> None:
    """Epsilon 3 at three sites: a site's ledger has all that it told, at most 3; no reply holds a measurement."""
    study, wire = private(make_study, **method_settings(method)), Wire()
    sites = make_sites(SIZES, declared_examples=100)
    result = run(study, sites, tmp_path / "run", wire)
    for name, path in sites.items():
        entries = ledger_of(path)
        assert [(1, "training"), (2, "training"), (3, "training"), (3, "test counts")] == [
            (entry.round, entry.what) for entry in entries
        ]
        spent = epsilon_of([charge for entry in entries for charge in entry.drawn], 1e-3)
        assert 2.7 < spent <= 3.0
        assert spent == pytest.approx(result["sites"][name]["privacy"]["epsilon"])
        assert [{}, {}, {}] == [seen.reply.metrics for seen in wire.rounds(name) if isinstance(seen.reply, RoundReply)]
        assert 68 == result["sites"][name]["num_train"] == result["rounds"][0]["sites"][name]["num_examples"]
        test = result["sites"][name]["test"]
        assert (test["majority"], test["local"], test["pairs"], test["patients"]) == (None, None, None, None)
        assert (test["personal"] is None) == (method == "ditto")
        assert (test["global_"] is None) == (method == "fedper")
        assert 20 == test["num_test"]
        assert test["noise"] > 1
        assert {"local", "personal", "labels"} <= load_file(
            state_dir(path, tmp_path / "run") / "test-scores.safetensors"
        ).keys()


def test_numbers_are_announced_with_noise_and_once(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """After a restart, and in another run too, they are the same and cost once; what is exact is left out."""
    path, study = alone(make_sites, make_study, declared_examples=None)
    config = load_site(path)
    first = begun(Site(config, study), study)
    again = begun(Site(config, study), study, run="other")
    assert first.card.model_copy(update={"data_commitment": again.card.data_commitment}) == again.card
    (entry,) = ledger_of(path)
    assert ("number of patients", "laplace") == (entry.what, entry.charges[0].mechanism)
    assert 1 / 0.15 == pytest.approx(entry.charges[0].noise)
    card = first.card
    assert card.num_examples == card.num_train + card.num_validation + card.num_test
    assert abs(card.num_examples - 120) < 130
    assert card.num_test == max(1, round(0.2 * card.num_examples))
    assert (0, 0, 0, None, None) == (
        card.num_skipped,
        card.num_copies,
        card.num_alike,
        card.num_groups,
        card.class_counts,
    )
    assert ("no", "yes") == card.classes


def test_numbers_that_were_lost_are_drawn_and_charged_anew(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The kept draw is gone: what is told now is another draw, and in the ledger another line."""
    path, study = alone(make_sites, make_study, declared_examples=None)
    begun(Site(load_site(path), study), study)
    (path.parent / "state" / ANNOUNCED).unlink()
    begun(Site(load_site(path), study), study)
    one, other = ledger_of(path)
    assert one.charges == other.charges
    assert one.key != other.key


def test_study_that_leaves_nothing_for_numbers_needs_declared_ones(
    make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """With numbers = 0 the site has to declare how many patients it has, and its counts are withheld in the end."""
    path, study = alone(make_sites, make_study, {"epsilon": 3.0, "numbers": 0.0}, declared_examples=None)
    with pytest.raises(ConfigError, match=r"set declared_examples in site\.toml, a number that is public anyway"):
        Site(load_site(path), study)
    site = Site(load_site(make_sites({"berlin": 120}, under="declared", declared_examples=100)["berlin"]), study)
    begun(site, study)
    site.answer(asked(study), weights_of(site))
    plan = FinishPlan(study=study_digest(study), run="run", site="berlin", round=1, accepted=1, asked=1)
    reply, _ = site.answer(plan, weights_of(site))
    assert isinstance(reply, FinishReply)
    assert (20, None, None, None) == (reply.test.num_test, reply.test.personal, reply.test.global_, reply.test.noise)


def test_class_counts_are_told_with_noise_and_charged(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Without noise they stay; with it they are in the ledger, and the study's noise leaves room for them."""
    path, study = alone(make_sites, make_study, share_class_counts=True)
    assert begun(Site(load_site(path), study), study).card.class_counts is None
    noised, _ = alone(make_sites, make_study, share_class_counts=True, class_counts_epsilon=0.5, under="noised")
    site = Site(load_site(noised), study)
    assert {"no", "yes"} == (begun(site, study).card.class_counts or {}).keys()
    (entry,) = ledger_of(noised)
    assert ("class counts", 2.0) == (entry.what, entry.charges[0].noise)
    for number in (1, 2, 3):
        site.answer(asked(study, number, accepted=number - 1 or None), weights_of(site))
    assert epsilon_of([charge for one in ledger_of(noised) for charge in one.drawn], 1e-3) <= 3.0


def test_round_asked_again_is_answered_with_the_same_bytes(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The same plan and weights: no new noise and no charge, also after a restart; other weights cost anew."""
    path, study = alone(make_sites, make_study)
    site = Site(load_site(path), study)
    begun(site, study)
    plan, weights = asked(study), weights_of(site)
    reply, payload = site.answer(plan, weights)
    assert (reply, payload) == site.answer(plan, weights)
    assert (reply, payload) == Site(load_site(path), study).answer(plan, weights)
    assert 1 == len(ledger_of(path))
    other, changed = site.answer(plan, weights_of(site, 0.1))
    assert payload != changed
    assert 2 == len(ledger_of(path))
    assert isinstance(other, RoundReply)
    assert other.privacy is not None
    assert (other, changed) == site.answer(plan, weights_of(site, 0.1))


def test_server_that_goes_back_gets_the_same_answers_for_nothing(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Its newest checkpoint is damaged, and it asks again: the same bytes come, and no ledger has a line more."""
    study, folder = private(make_study, **method_settings("fedavg")), tmp_path / "run"
    sites, wire = make_sites(SIZES, declared_examples=100), Wire()

    def dying(site: str, message: Message, answering: Answering) -> Message | None:
        if isinstance(plan_of(message)[0], FinishPlan):
            raise Killed
        return wire(site, message, answering)

    with pytest.raises(Killed):
        run(study, sites, folder, dying)
    before = {name: ledger_of(path) for name, path in sites.items()}
    (folder / "checkpoint.safetensors").write_bytes(b"damaged")
    again = Wire()
    run(study, sites, folder, again)
    for name, path in sites.items():
        assert before[name] == ledger_of(path)[:-1]
        assert "test counts" == ledger_of(path)[-1].what
        (repeated,) = again.rounds(name)
        assert [seen.up for seen in wire.rounds(name)][-1] == repeated.up


def test_earlier_round_asked_again_with_other_weights_is_charged(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Kept answers are of this very round and these very weights; those of the last rounds stay, others are deleted."""
    path, _ = alone(make_sites, make_study)
    study = private(make_study, {"noise": 1.0, "delta": 1e-3}, sites=["berlin"], rounds=7)
    site = Site(load_site(path), study)
    begun(site, study)
    answers = [site.answer(asked(study, n, accepted=n - 1 or None), weights_of(site)) for n in (1, 2, 3)]
    assert answers[:2] == [site.answer(asked(study, n, accepted=n - 1 or None), weights_of(site)) for n in (1, 2)]
    assert 3 == len(ledger_of(path))
    site.answer(asked(study, 2, accepted=1), weights_of(site, 0.1))
    assert [1, 2, 3, 2] == [entry.round for entry in ledger_of(path)]
    for n in (3, 4, 5, 6, 7):
        site.answer(asked(study, n, accepted=n - 1), weights_of(site))
    folder = path.parent / "state" / "quick" / "run"
    assert [f"answer-{n:06d}.json" for n in (5, 6, 7)] == sorted(each.name for each in folder.glob("answer-*.json"))


def test_answer_that_could_not_be_kept_never_left_and_costs_once(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Interrupted between charge and answer, the round is drawn again under the same charge."""
    path, study = alone(make_sites, make_study)
    site = Site(load_site(path), study)
    begun(site, study)
    in_the_way = path.parent / "state" / "quick" / "run" / "answer-000001.bin"
    in_the_way.mkdir()
    with pytest.raises(StateError, match="cannot write"):
        site.answer(asked(study), weights_of(site))
    assert 1 == len(ledger_of(path))
    in_the_way.rmdir()
    site.answer(asked(study), weights_of(site))
    assert 1 == len(ledger_of(path))


def test_state_folder_that_was_deleted_buys_no_noise(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Without the kept answer of the run, the same plan is a new draw, which is charged."""
    path, study = alone(make_sites, make_study)
    site = Site(load_site(path), study)
    begun(site, study)
    site.answer(asked(study), weights_of(site))
    folder = path.parent / "state" / "quick" / "run"
    for file in ("answer-000001.json", "answer-000001.bin"):
        (folder / file).unlink()
    site.answer(asked(study), weights_of(site))
    assert 2 == len(ledger_of(path))


def test_what_would_cost_too_much_is_refused_before_training(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Three rounds are paid for; a fourth draw, with other weights, is refused, and leaves no trace at the site."""
    path, study = alone(make_sites, make_study)
    site = Site(load_site(path), study)
    begun(site, study)
    for by in (0.0, 0.1, 0.2):
        site.answer(asked(study), weights_of(site, by))
    state = path.parent / "state" / "quick" / "run" / "round-000001.safetensors"
    before = state.read_bytes()
    with pytest.raises(PrivacyBudgetSpent, match=r"study 'quick' has spent epsilon 2\.6.* of 3 with this data"):
        site.answer(asked(study), weights_of(site, 0.3))
    assert before == state.read_bytes()
    assert 3 == len(ledger_of(path))


def test_second_run_of_a_study_is_refused_once_its_budget_is_spent(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Whatever the run is called: it ends in its first round with each site's sentence."""
    study, sites = private(make_study), make_sites(SIZES, declared_examples=100)
    run(study, sites, tmp_path / "run")
    with pytest.raises(
        CohortTooSmall, match=r"site 'lyon'.*study 'quick' has spent epsilon 2\.9.* of 3 with this data"
    ):
        run(study, sites, tmp_path / "another")
    assert not (tmp_path / "another" / "result.json").exists()


def test_restart_of_the_server_costs_nothing(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Killed in round 2 when two sites have answered, and continued: these give the same answer, at one charge."""
    study, sites, wire = private(make_study), make_sites(SIZES, declared_examples=100), Wire()

    def dying(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, RoundPlan) and (plan.round, site) == (2, "porto"):
            raise Killed
        return wire(site, message, answering)

    with pytest.raises(Killed):
        run(study, sites, tmp_path / "run", dying)
    _warm.clear()  # the sites are restarted too
    run(study, sites, tmp_path / "run", wire)
    for name in ("berlin", "lyon"):
        first, second = (seen for seen in wire.rounds(name) if seen.number == 2)
        assert first.up == second.up
    for path in sites.values():
        assert [1, 2, 3] == [entry.round for entry in ledger_of(path) if entry.what == "training"]


def test_two_runs_draw_other_noise(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The study's seed does not decide the noise: equal studies at equal sites end with other weights."""
    study = private(make_study, rounds=1)
    for under in ("one", "two"):
        run(study, make_sites(SIZES, under=under, declared_examples=100), tmp_path / under / "run")
    assert global_bytes(tmp_path / "one" / "run") != global_bytes(tmp_path / "two" / "run")


def test_given_noise_is_used_and_its_cost_is_told(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """With `noise` there is no budget: the multiplier is the one given, and what it costs is in the result."""
    study, sites = private(make_study, {"noise": 2.0}), make_sites(SIZES, declared_examples=100)
    result = run(study, sites, tmp_path / "run")
    for name, path in sites.items():
        spent = result["sites"][name]["privacy"]
        assert (2.0, None) == (spent["noise"], spent.get("budget"))
        assert spent["epsilon"] == epsilon_of([one for entry in ledger_of(path) for one in entry.drawn], 1e-3)
        assert {2.0} == {
            charge.noise for entry in ledger_of(path) for charge in entry.charges if charge.mechanism == "sgd"
        }


def test_unit_is_the_patient_or_the_row(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """By patients, the noise hides all rows of one, and the site announces patients; by rows, rows."""
    path, _ = alone(make_sites, make_study, declared_examples=None)
    rows = (path.parent / "data.csv").read_text().splitlines()
    numbered = [f"{rows[0]},who", *(f"{row},p{place // 4}" for place, row in enumerate(rows[1:]))]
    (path.parent / "data.csv").write_text("\n".join(numbered) + "\n")
    split = {"group": "who"}
    for unit, whole in (("patient", 30), ("example", 120)):
        study = private(make_study, {"epsilon": 100.0, "unit": unit, "numbers": 0.5}, sites=["berlin"], split=split)
        site = Site(load_site(path), study)
        assert abs(begun(site, study).card.num_examples - whole) <= 2
        noise = site.learner.noise
        assert noise is not None
        assert (noise.groups is None) == (unit == "example")
        assert min(1.0, 8 / noise.units) == noise.rate


def test_patient_counts_by_one_row_in_test_counts(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """With next to no noise, the share that is told is that of the patients' first test rows that are right."""
    path, _ = alone(make_sites, make_study, declared_examples=None)
    rows = (path.parent / "data.csv").read_text().splitlines()
    numbered = [f"{rows[0]},who", *(f"{row},p{place % 40}" for place, row in enumerate(rows[1:]))]
    (path.parent / "data.csv").write_text("\n".join(numbered) + "\n")
    promise = {"epsilon": 100.0, "numbers": 0.5}
    study = private(make_study, promise, sites=["berlin"], split={"group": "who", "test": 0.4}, rounds=1)
    site = Site(load_site(path), study)
    begun(site, study)
    site.answer(asked(study), weights_of(site))
    plan = FinishPlan(study=study_digest(study), run="run", site="berlin", round=1, accepted=1, asked=1)
    reply, _ = site.answer(plan, weights_of(site))
    assert isinstance(reply, FinishReply)
    assert reply.test.noise is not None
    assert reply.test.noise < 0.3
    scores = load_file(path.parent / "state" / "quick" / "run" / "test-scores.safetensors")
    right = (scores["global"][:, 0] > 0) == (scores["labels"] == 1)
    _, first = np.unique(scores["groups"], return_index=True)
    assert reply.test.global_ is not None
    assert reply.test.global_ / reply.test.num_test == pytest.approx(right[first].mean(), abs=0.12)
    assert reply.test.global_ == reply.test.personal


def test_policy_bounds_what_a_study_may_cost(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The site's own limits on noise, delta and epsilon hold over the study's."""
    path, study = alone(make_sites, make_study)
    with pytest.raises(PolicyRefused, match="asks for at least min_noise = 5"):
        Site(load_site(path), study, policy=UNBOUND.model_copy(update={"min_noise": 5.0}))
    with pytest.raises(PolicyRefused, match="is larger than max_delta = 1e-05"):
        Site(load_site(path), study, policy=UNBOUND.model_copy(update={"max_delta": 1e-5}))
    site = Site(load_site(path), study, policy=UNBOUND.model_copy(update={"max_epsilon": 2.0}))
    begun(site, study)
    site.answer(asked(study), weights_of(site))
    with pytest.raises(PrivacyBudgetSpent, match=r"above epsilon 2 .delta 0\.001., the most that its own policy"):
        site.answer(asked(study, 2, accepted=1), weights_of(site))


@pytest.mark.parametrize("clip", [0.5, 2.0])
def test_one_patient_moves_a_step_by_no_more_than_the_clip(
    make_sites: MakeSites, make_study: MakeStudy, clip: float
) -> None:
    """An absurd row in place of another moves a step without noise by 2 learning_rate clip / (rate n) at most."""
    training = {"steps": 1, "batch_size": 68, "learning_rate": 0.1, "momentum": 0.0}
    study = private(
        make_study, {"noise": 1.0, "clip": clip}, sites=["berlin"], training=training, method={"kind": "fedper"}
    )
    path = make_sites({"berlin": 120}, declared_examples=100)["berlin"]
    site = Site(load_site(path), study)
    learner, noise, changed = site.learner, site.learner.noise, site.learner.data.train.x.clone()
    assert noise is not None
    changed[3] = 1e6

    def update(x: Any) -> dict[str, Any]:
        silent = replace(noise, multiplier=0.0)
        data = replace(learner.data, train=learner.data.train.with_inputs(x))
        result = play_round(replace(learner, noise=silent, data=data), asked(study), weights_of(site), Kept())
        return dict(Identity().decode(result.payload)) | dict(result.kept.personal)

    one, other = update(learner.data.train.x), update(changed)
    moved = math.sqrt(sum(float(np.square(one[name] - other[name], dtype=np.float64).sum()) for name in one))
    most = 2 * 0.1 * clip / (noise.rate * noise.units)
    assert most / 100 < moved <= most * (1 + 1e-4)


def test_private_study_is_told_nothing_of_what_is_wrong_with_data(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Though the site's settings share error details, the coordinator learns the kind of the error alone."""
    sites = make_sites(SIZES, declared_examples=100, share_error_details=True)
    (sites["lyon"].parent / "data.csv").write_text("a,b,ill\n1,secret,yes\n")
    with pytest.raises(DataError) as caught:
        run(private(make_study), sites, tmp_path / "run")
    assert "DataError; the sentence that says why is in the log of site 'lyon'" in str(caught.value)
    assert "data.csv" not in str(caught.value)


def test_site_that_diverges_alone_does_not_say_so(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """What was trained without noise may come to nothing: a failure would tell of the rows, so there is none."""
    path, _ = alone(make_sites, make_study)
    study = private(
        make_study,
        sites=["berlin"],
        method={"kind": "ditto", "lam": 1e30},
        training={"epochs": 1, "batch_size": 8, "learning_rate": 10.0, "momentum": 0.0},
    )
    site = Site(load_site(path), study)
    begun(site, study)
    reply, payload = site.answer(asked(study), weights_of(site))
    assert isinstance(reply, RoundReply)
    assert payload is not None
    kept = load_file(path.parent / "state" / "quick" / "run" / "round-000001.safetensors")
    assert not all(np.isfinite(array).all() for array in kept.values())
    assert all(np.isfinite(array).all() for array in Identity().decode(payload).values())


def test_answers_stay_private_on_the_disk(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The kept answer names the attempt that the ledger charged, and only this user can read it."""
    path, study = alone(make_sites, make_study)
    site = Site(load_site(path), study)
    begun(site, study)
    _, payload = site.answer(asked(study), weights_of(site))
    folder = path.parent / "state" / "quick" / "run"
    record, content = Answers(folder, "berlin").files(1)
    kept = json.loads(record.read_text())
    assert [kept["attempt"]] == [entry.key for entry in ledger_of(path)]
    assert payload == content.read_bytes()
    assert {0o600} == {path.stat().st_mode & 0o777 for path in (record, content)}


def test_finished_model_is_adapted_and_measured_for_nothing(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """At a newcomer, and at a site of the study on the very rows that the run held out, no ledger gets a line."""
    study, sites = private(make_study), make_sites(SIZES, declared_examples=100)
    run(study, sites, tmp_path / "run")
    (tmp_path / "study.toml").write_text(
        'name = "quick"\nsites = ["berlin", "lyon", "porto"]\nrounds = 3\n'
        '[task]\nkind = "table"\nclasses = ["no", "yes"]\nlabel = "ill"\n'
        'columns = { a = { kind = "number" }, b = { kind = "number" } }\n'
        "scale = { a = { mean = 0.0, std = 1.0 }, b = { mean = 0.0, std = 1.0 } }\n"
        '[model]\nname = "mlp"\nhidden = [6]\n'
        "[training]\nepochs = 1\nbatch_size = 8\nlearning_rate = 0.1\nmomentum = 0.0\n"
        "[privacy.examples]\nepsilon = 3.0\n"
    )
    newcomer = make_sites({"rome": 60}, under="new")["rome"]
    adapted = adapt_site(newcomer, model=tmp_path / "run" / "model", study_file=tmp_path / "study.toml", steps=3)
    assert adapted.num_test > 1
    assert () == ledger_of(newcomer)
    before = ledger_of(sites["lyon"])
    kept = state_dir(sites["lyon"], tmp_path / "run")
    own = own_rows_of(sites["lyon"], read_record(kept / "models" / "personal"), part="test", option="--site")
    assert own.inputs.y is not None
    assert load_file(kept / "test-scores.safetensors")["labels"].tolist() == own.inputs.y.tolist()
    assert before == ledger_of(sites["lyon"])
