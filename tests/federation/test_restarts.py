"""A federation whose server or sites start again ends with the weights of one that ran through."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy, method_settings, scaled_site, settled_scale
from federations import HEAD, Killed, Wire, data_at, global_bytes, kept_by, killed_at, run, without_times
from flwr.app import Message
from safetensors.numpy import load

from consilium.client.app import _warm
from consilium.client.flower.message import plan_of
from consilium.client.methods import METHODS
from consilium.client.models import build_model
from consilium.client.training.work import batches
from consilium.common.errors import StateError
from consilium.common.host.files import only_one
from consilium.common.protocol.plans import RoundPlan
from consilium.privacy.audit.audit import audit_run
from consilium.running.in_process import Answering
from consilium.running.run import submit_study
from consilium.server.operations.home import ServerHome


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


def test_second_owner_of_a_run_writes_nothing(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Neither the process that would run it, nor the command that would submit it: the first one's log is its own."""
    folder, study = tmp_path / "run", make_study(rounds=1)
    with only_one(folder / ".lock", otherwise=""):
        with pytest.raises(
            StateError, match=r"is still going on in another process; stop that one first \(process \d+"
        ):
            run(study, make_sites(), folder)
        with pytest.raises(StateError, match=r"run 'run' is going on already; .* \(process \d+ on '"):
            submit_study(study, ServerHome(tmp_path / "home"), folder)
        assert [".lock"] == [path.name for path in folder.iterdir()]
    run(study, make_sites(), folder)


BACK: list[dict[str, Any]] = [
    *({**method_settings(method)} for method in METHODS),
    {"uplink": [{"kind": "top_k", "fraction": 0.5}]},
    {"downlink": [{"kind": "int8"}]},
]
DAILY = ("fedper", "scaffold", "uplink", "downlink")


def named(settings: dict[str, Any]) -> str:
    """Return a case's name."""
    return str(settings["method"]["kind"] if "method" in settings else next(iter(settings)))


@pytest.mark.parametrize(
    "settings",
    [pytest.param(each, id=named(each), marks=() if named(each) in DAILY else pytest.mark.nightly) for each in BACK],
)
def test_restart_from_an_earlier_checkpoint_equals_no_restart(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, settings: dict[str, Any]
) -> None:
    """Killed in round 5, two checkpoints damaged: rounds 3 and 4 are run again, to the last bit as before."""
    study = make_study(rounds=5, **settings)
    whole = run(study, make_sites(under="one"), tmp_path / "one" / "run")
    sites, folder = make_sites(under="two"), tmp_path / "two" / "run"
    with pytest.raises(Killed):
        run(study, sites, folder, killed_at(5, after=2))
    for name in ("checkpoint.safetensors", "checkpoint-000003.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    continued = run(study, sites, folder)
    (warning,) = (text for text in continued["warnings"] if text not in whole["warnings"])
    assert "went on from the one after round 2" in warning
    continued["warnings"].remove(warning)
    assert without_times(whole) == without_times(continued)
    assert global_bytes(tmp_path / "one" / "run") == global_bytes(folder)
    audit = audit_run(folder)
    assert [] == audit.problems


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
    forgotten = scaled_site(make_sites(under="fresh", on_lost_state="start_anew")["lyon"], study, scale=scale)
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
