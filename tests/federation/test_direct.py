"""Plans handed over as they are: the same numbers as in messages, with one model for all, in memory or on the disk."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy
from safetensors.numpy import load_file

import consilium.client.app
from consilium.client.app import answer_plan, forget_sites
from consilium.client.methods import serves_as_held
from consilium.client.methods.fedavg import FedAvg
from consilium.client.site.state_folder import TEST_SCORES, StateFolder
from consilium.common.host.files import scratch
from consilium.common.protocol.plans import HandshakePlan, ScalePlan, study_digest
from consilium.common.protocol.replies import FailureReply
from consilium.common.results import RunResult
from consilium.common.study.study import StudyConfig
from consilium.running.in_process import deliver_always, run_in_process

STUDIES: dict[str, dict[str, Any]] = {
    "fedavg": {"keep_best": True, "metrics": ("auroc",)},
    "fedper": {"method": {"kind": "fedper"}, "model": {"name": "mlp", "hidden": [6]}},
    "ditto": {"method": {"kind": "ditto"}, "uplink": ({"kind": "int8"},)},
    "seldom": {"evaluate_every": 2, "local_baseline": False},
    "stopped": {"stopping": {"patience": 1, "final": "best"}},
}


@pytest.fixture(autouse=True)
def _nothing_warm() -> Iterator[None]:
    forget_sites()
    yield
    forget_sites()


def numbers_of(study: StudyConfig, sites: dict[str, Path], folder: Path, **options: Any) -> Any:
    """Run a study; return all numbers of its result that do not hang on the clock, and every site's answers."""
    result: RunResult = run_in_process(study, sites, folder, **options)
    clock = {"seconds", "transfer_seconds", "aggregation_seconds", "bytes_up"}
    rounds = [
        {
            **record.model_dump(exclude=clock | {"sites"}),
            "sites": {site: of.model_dump(exclude={"seconds"}) for site, of in record.sites.items()},
        }
        for record in result.rounds
    ]
    states = {
        site: StateFolder.of(path.parent / "state", study=study.name, run=folder.name, site=site).path
        for site, path in sites.items()
    }
    answers = {site: load_file(path / TEST_SCORES) for site, path in states.items()}
    return rounds, {site: of.model_dump(exclude={"data_commitment"}) for site, of in result.sites.items()}, answers


@pytest.mark.parametrize("name", sorted(STUDIES))
@pytest.mark.parametrize("memory", [None, 2**20, 0])
def test_numbers_are_those_of_messages(
    name: str, memory: int | None, make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """On the disk, in memory and where memory is full: rounds, counts and answers are equal to the last bit."""
    study = make_study(rounds=4, **STUDIES[name])
    expected = numbers_of(study, make_sites(under="messages"), tmp_path / "a" / "run", deliver=deliver_always)
    forget_sites()
    with nullcontext() if memory is None else scratch(most_bytes=memory):
        found = numbers_of(study, make_sites(under="direct"), tmp_path / "b" / "run")
    np.testing.assert_equal(found, expected)


def test_states_lie_in_memory_and_beyond_its_bytes_on_the_disk(
    make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """In `scratch` no file of a state is written while there is room, and no line that nobody reads."""
    study, written = make_study(rounds=2, method={"kind": "ditto"}), list[set[str]]()
    for number, most_bytes in enumerate((2**20, 0)):
        sites = make_sites(under=f"sites-{number}")
        with scratch(most_bytes=most_bytes):
            run_in_process(study, sites, tmp_path / f"{number}" / "run")
        names = {path.name for site in sites.values() for path in (site.parent / "state").rglob("*") if path.is_file()}
        written.append(names)
        forget_sites()
    assert {"round-000001.safetensors", "round-000002.safetensors"} == written[1] - written[0]
    assert TEST_SCORES in written[0]
    assert not {"events.jsonl", "manifest.json"} & (written[0] | written[1])


def test_sites_take_turns_with_one_model(make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path) -> None:
    """Sites that answer in turn have one model, and one copy of how it began; in messages each has its own."""
    sites, modules = make_sites(), list[set[int]]()
    for folder, deliver in (("direct", None), ("messages", deliver_always)):
        run_in_process(make_study(rounds=1), sites, tmp_path / folder / "run", deliver=deliver)
        learners = [warm.site.learner for warm in consilium.client.app._warm.values()]
        modules.append({id(learner.model.module) for learner in learners})
        forget_sites()
    assert [1, len(sites)] == [len(each) for each in modules]


def test_model_that_is_served_as_it_came_is_measured_once(
    make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FedAvg serves what it received: the numbers of the one measurement are those of two."""
    assert serves_as_held(FedAvg())
    study = make_study(rounds=3, keep_best=True)
    once = numbers_of(study, make_sites(under="once"), tmp_path / "a" / "run")
    forget_sites()
    monkeypatch.setattr(FedAvg, "serves_as_held", False)
    np.testing.assert_equal(numbers_of(study, make_sites(under="twice"), tmp_path / "b" / "run"), once)


def test_policy_that_data_break_holds_for_every_later_plan(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A site that was refused for its data is refused again from memory; another policy is held against it anew."""
    path = make_sites()["berlin"]
    policy = path.parent / "policy.toml"
    study = make_study().seen_by("berlin")
    asked = HandshakePlan(run="run", site="berlin", study=study)
    later = ScalePlan(run="run", site="berlin", study=study_digest(study), scale=None)

    def errors() -> list[str]:
        replies = [answer_plan(path, plan, None)[0] for plan in (asked, later, later)]
        return [reply.error if isinstance(reply, FailureReply) else "" for reply in replies]

    policy.write_text("accepted_study = false\nmin_examples = 1000\n")
    assert ["PolicyRefused"] * 3 == errors()
    policy.write_text("accepted_study = false\nmin_examples = 2\n")
    assert [""] * 3 == errors()
    policy.write_text('accepted_study = false\nmethods = ["local"]\n')
    reply, _ = answer_plan(path, later, None)
    assert isinstance(reply, FailureReply) and "PolicyRefused" == reply.error
