"""A federation whose server or sites start again ends with the weights of one that ran through."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy, method_settings, scaled_site, settled_scale
from federations import HEAD, Wire, data_at, global_bytes, kept_by, run, without_times
from flwr.app import Message
from safetensors.numpy import load

from consilium.client.app import _warm
from consilium.client.flower.message import plan_of
from consilium.client.methods import METHODS
from consilium.client.models import build_model
from consilium.client.training.work import batches
from consilium.common.protocol.plans import RoundPlan
from consilium.running.in_process import Answering, Deliver, deliver_always


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


@pytest.mark.parametrize(
    ("method", "after"),
    [
        *((method, 2) for method in METHODS),
        *(pytest.param(method, 0, marks=() if method == "scaffold" else pytest.mark.nightly) for method in METHODS),
    ],
)
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
    heads: dict[str, Any] = {}

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if site == "lyon" and isinstance(plan, RoundPlan) and plan.round == 2:
            _warm.clear()
            heads.update(kept_by(sites["lyon"], tmp_path / "run", 1).personal)
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
    for x, y in batches(scaled_site(sites["lyon"], study, run="other", scale=scale).learner.work(2)):
        optimiser.zero_grad()
        torch.autograd.backward(torch.nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y.float()))
        optimiser.step()
    for name, delta in load(second.up or b"").items():
        np.testing.assert_allclose(model.state_dict()[name].numpy() - start[name], delta, rtol=1e-4, atol=1e-6)
