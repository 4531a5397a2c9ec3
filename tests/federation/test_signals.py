"""What a site measures for the server's weights and strategies: only what is asked, and the right numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PLAIN_SGD, MakeSites, MakeStudy, scaled_site
from safetensors.numpy import load_file

from consilium.client.data import Examples
from consilium.client.site.baseline import train_alone
from consilium.client.site.signals import leave_one_out
from consilium.client.site.site import Site
from consilium.client.training.evaluation import evaluate
from consilium.client.training.work import LocalWork
from consilium.common.codecs import Identity
from consilium.common.errors import ProtocolError, UpdateRejected
from consilium.common.protocol.plans import InitialWeightsPlan, RoundPlan, study_digest
from consilium.common.protocol.replies import RoundReply
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Array
from consilium.running.in_process import run_in_process
from consilium.running.run import save_report

EXTRA = {
    *("received.loss", "update.loss", "start.loss", "without.error", "train.effective_steps"),
    *("candidate-a.loss", "candidate-b.loss"),
}


def weighted(kind: str) -> dict[str, Any]:
    """Return settings of a study with a weighting."""
    return {"weighting": {"factors": [{"kind": kind}]}, "split": {"validation": 0.3}}


def site_of(make_sites: MakeSites, study: StudyConfig, *, under: str = "sites") -> tuple[Site, dict[str, Array]]:
    """Return a site and its initial weights."""
    site = scaled_site(make_sites({"berlin": 40}, under=under, on_lost_state="start_anew")["berlin"], study)
    payload = site.answer(InitialWeightsPlan(study=study_digest(study), run="run", site="berlin"), None)[1]
    assert payload is not None
    return site, Identity().decode(payload)


def do_round(site: Site, study: StudyConfig, number: int, arrays: dict[str, Array], share: float = 0.0) -> Any:
    """Have a site do a round."""
    past: dict[str, Any] = {"accepted": number - 1 or None, "asked": number}
    plan = RoundPlan(study=study_digest(study), run="run", site="berlin", round=number, share=share, **past)
    reply, content = site.answer(plan, Identity().encode(arrays))
    assert isinstance(reply, RoundReply) and content is not None
    return reply.metrics, Identity().decode(content)


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rounds of a run's result."""
    found: list[dict[str, Any]] = json.loads((folder / "result.json").read_text(encoding="utf-8"))["rounds"]
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, set()),
        (weighted("loss"), {"update.loss"}),
        (weighted("afl"), {"received.loss"}),
        (weighted("feddg_ga"), {"update.loss", "received.loss"}),
        (weighted("fedce"), {"without.error"}),
        ({"strategy": {"kind": "qfedavg"}, "training": PLAIN_SGD}, {"start.loss"}),
        ({"strategy": {"kind": "fednova"}}, {"train.effective_steps"}),
    ],
    ids=["none", "loss", "afl", "feddg_ga", "fedce", "qfedavg", "fednova"],
)
def test_site_measures_what_the_study_needs_and_no_more(
    settings: dict[str, Any], expected: set[str], tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Every further number is a forward pass and something told: a plain study has none of them."""
    run_in_process(make_study(**settings), make_sites(), tmp_path / "run")
    for each in rounds_of(tmp_path / "run"):
        for values in each["sites"].values():
            assert expected == EXTRA & set(values["metrics"])


def test_losses_are_those_of_the_weights_received_and_of_the_weights_sent(
    make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """`received.loss` before training, `update.loss` after it, both on validation; `start.loss` on all of training."""
    for kind, names in (("feddg_ga", ("received.loss", "update.loss")), ("qfedavg", ("start.loss",))):
        study = make_study(
            **(weighted(kind) if kind == "feddg_ga" else {"strategy": {"kind": kind}, "training": PLAIN_SGD})
        )
        site, arrays = site_of(make_sites, study, under=kind)
        metrics, delta = do_round(site, study, 1, arrays)

        def loss(weights: dict[str, Array], on: Examples, site: Site = site) -> float:
            with site.learner.holding(weights) as module:
                return evaluate(module, on).loss

        after = {name: arrays[name] + delta[name] for name in arrays}
        expected = {
            "received.loss": loss(arrays, site.learner.data.validation),
            "update.loss": loss(after, site.learner.data.validation),
            "start.loss": loss(arrays, site.learner.data.train),
        }
        for name in names:
            assert expected[name] == pytest.approx(metrics[name], abs=1e-6)


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    """w = .5 a + .3 b + .2 c; without a: (.3 b + .2 c) / .5. Integers stay, share 0 and 1 change nothing."""
    a, b, c = (np.array([value, -value]) for value in (4.0, 2.0, 7.0))
    whole = {"w": 0.5 * a + 0.3 * b + 0.2 * c, "count": np.array(5)}
    without = leave_one_out(whole, {"w": a, "count": np.array(1)}, 0.5)
    np.testing.assert_allclose((0.3 * b + 0.2 * c) / 0.5, without["w"].astype(np.float64))
    assert 5 == without["count"]
    for share in (0.0, 1.0):
        np.testing.assert_array_equal(whole["w"], leave_one_out(whole, {}, share)["w"])


def test_without_error_is_that_of_the_others_model(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """In round 2 with share .25: the error of (received - .25 own) / .75 on validation, worked out by hand here."""
    study = make_study(**weighted("fedce"))
    site, arrays = site_of(make_sites, study)
    _, delta = do_round(site, study, 1, arrays)
    own = {name: arrays[name] + delta[name] for name in arrays}
    received = {name: (array.astype(np.float64) + 0.1).astype(array.dtype) for name, array in arrays.items()}
    metrics, _ = do_round(site, study, 2, received, share=0.25)
    others = {name: ((received[name].astype(np.float64) - 0.25 * own[name]) / 0.75).astype(np.float32) for name in own}
    with site.learner.holding(others) as module:
        error = 1 - evaluate(module, site.learner.data.validation).accuracy
    assert error == pytest.approx(metrics["without.error"])


def test_without_error_needs_the_last_update(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A site that lost its state does not know what it sent: it tells nothing rather than something else."""
    study = make_study(**weighted("fedce"))
    site, arrays = site_of(make_sites, study)
    assert "without.error" in do_round(site, study, 1, arrays, share=0.0)[0]
    fresh = scaled_site(make_sites({"berlin": 40}, under="fresh", on_lost_state="start_anew")["berlin"], study)
    assert "without.error" not in do_round(fresh, study, 2, arrays, share=0.5)[0]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_effective_steps_are_how_far_a_constant_gradient_leads(momentum: float) -> None:
    """With gradient 1 in every step and learning rate 1, SGD with momentum moves by exactly that many."""
    data = Examples(torch.zeros(20, 1), torch.zeros(20, dtype=torch.long))
    work = LocalWork(data, 8, 1, "sgd", 1.0, momentum, 0.0, epochs=2, steps=None, validation=data)
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = torch.optim.SGD([parameter], lr=1.0, momentum=momentum)
    for _ in range(work.num_steps):
        parameter.grad = torch.ones(1, dtype=torch.float64)
        optimiser.step()
    assert 6 == work.num_steps
    assert -parameter.item() == pytest.approx(work.effective_steps, rel=1e-12)


def test_site_refuses_arrays_that_the_study_has_no_use_for(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Control variates without SCAFFOLD, candidates without a weighting that scores them, or any other prefix."""
    study = make_study()
    site, arrays = site_of(make_sites, study)
    for prefix in ("control/", "candidate-a/", "other/"):
        with pytest.raises(ProtocolError, match="no use for"):
            do_round(site, study, 1, arrays | {prefix + name: array for name, array in arrays.items()})


def test_site_checks_what_comes_along(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Candidates have the names, shapes and dtypes of the weights; NaN is refused."""
    study = make_study(**weighted("auto"))
    site, arrays = site_of(make_sites, study)
    candidate = {f"candidate-a/{name}": array for name, array in arrays.items()}
    some = next(iter(candidate))
    with pytest.raises(UpdateRejected, match="candidate-a from the server: arrays differ"):
        do_round(site, study, 1, arrays | dict(list(candidate.items())[1:]))
    with pytest.raises(UpdateRejected, match="NaN"):
        do_round(site, study, 1, arrays | candidate | {some: np.full_like(candidate[some], np.nan)})


def test_plain_study_sends_nothing_along(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The checkpoint of FedAvg by size holds the weights, and no further array."""
    run_in_process(make_study(), make_sites(), tmp_path / "run")
    names = set(load_file(tmp_path / "run" / "checkpoint.safetensors"))
    assert {"weights"} == {name.split("/")[0] for name in names}


def test_auditor_recomputes_every_share_from_rounds_csv(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """share = size.factor ** .5 * loss.factor ** 2 over the sum of the round's sites: nothing else is needed."""
    factors = [{"kind": "size", "exponent": 0.5}, {"kind": "loss", "exponent": 2.0}]
    study = make_study(weighting={"factors": factors}, split={"validation": 0.3})
    save_report(tmp_path / "run", run_in_process(study, make_sites(), tmp_path / "run"))
    table = pd.read_csv(tmp_path / "run" / "rounds.csv")
    product = table["size.factor"] ** 0.5 * table["loss.factor"] ** 2
    shares = product / product.groupby(table["round"]).transform("sum")
    np.testing.assert_allclose(shares, table["weight"], rtol=1e-12)
    assert 9 == len(table) and 1 < table["weight"].nunique()


def test_site_that_missed_many_rounds_catches_up_over_several(
    make_sites: MakeSites, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for a round is not spent on the local-only model; in the end it is that of a site that was always there.

    Reached first in round 9 and without time for more, it does one round's training in each of rounds 9 to 12.
    """
    study, ends = make_study(rounds=12), []
    for under, first, part in (("always", 1, 0.25), ("late", 9, 0.0)):
        monkeypatch.setattr("consilium.client.site.round.CATCH_UP_PART", part)
        site, arrays = site_of(make_sites, study, under=under)
        for number in range(first, 13):
            do_round(site, study, number, arrays)
        kept = site._folder(RoundPlan(study=study_digest(study), run="run", site="berlin", round=12, asked=12)).load(12)
        assert kept is not None
        assert {"always": 12, "late": 4}[under] == kept.alone.rounds
        ends.append(train_alone(site.learner, kept.alone, rounds=12).weights)
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name])
