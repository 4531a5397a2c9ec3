"""What a site keeps moves with its last update that counted: lost and rejected replies leave no trace."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIZES, MakeSites, MakeStudy, method_settings
from flwr.app import Error, Message
from safetensors.numpy import load_file

from consilium.client.app import _warm, forget_sites
from consilium.client.flower.message import content_of, plan_of
from consilium.client.methods import METHODS
from consilium.client.site.kept import Kept
from consilium.common.codecs import CODECS, Identity
from consilium.common.errors import ProtocolError
from consilium.common.events.run import RunWarning
from consilium.common.flower.message import unpack
from consilium.common.protocol.parse import parse_plan
from consilium.common.protocol.plans import FinishPlan, Plan, RoundPlan, study_digest
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Array, under
from consilium.running.in_process import Answering, Deliver, deliver_always, run_in_process
from consilium.server.strategies import ServerState
from consilium.server.study.checkpoint import load_checkpoint
from consilium.server.study.run_folder import RunFolder

Fault = Callable[[Message, Answering], Message | None]


def unreached(message: Message, answering: Answering) -> Message:
    """The message never came to the site."""
    return Message(Error(code=0, reason="no way there"), reply_to=message)


def lost(message: Message, answering: Answering) -> Message:
    """The site has trained, kept and answered, and its reply was lost."""
    answering(message)
    return Message(Error(code=0, reason="no way back"), reply_to=message)


def rejected(message: Message, answering: Answering) -> Message:
    """The reply came, with one number in it that is none."""
    text, content = unpack(answering(message).content.config_records)
    arrays = {name: array.copy() for name, array in Identity().decode(content or b"").items()}
    next(iter(arrays.values())).reshape(-1)[0] = np.nan
    return Message(content_of(text, Identity().encode(arrays)), reply_to=message)


def with_faults(faults: Mapping[tuple[int, str], Fault], deliver: Deliver = deliver_always) -> Deliver:
    """Return a delivery with one fault per (round, site)."""

    def delivered(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        fault = faults.get((plan.round, site)) if isinstance(plan, RoundPlan) else None
        return fault(message, answering) if fault is not None else deliver(site, message, answering)

    return delivered


def run(study: StudyConfig, sites: Mapping[str, Path], folder: Path, deliver: Deliver = deliver_always) -> Any:
    """Run a federation and return its result."""
    run_in_process(study, sites, folder, deliver=deliver)
    return json.loads((folder / "result.json").read_text())


def state_of(study: StudyConfig, folder: Path) -> ServerState:
    """Return the server's state from a run's checkpoint."""
    return load_checkpoint(folder / "checkpoint.safetensors", study_digest=study_digest(study))


def kept_by(path: Path, number: int) -> Kept:
    """Return what a site keeps after a round."""
    return Kept.from_arrays(load_file(path.parent / "state" / "quick" / "run" / f"round-{number:06d}.safetensors"))


def flat(arrays: Mapping[str, Array]) -> Any:
    """Return arrays as one vector."""
    return np.concatenate([arrays[name].reshape(-1).astype(np.float64) for name in sorted(arrays)])


# --- SCAFFOLD's fixed point ------------------------------------------------------------------------

ROUNDS = 120


def scaffold(make_study: MakeStudy, **changes: Any) -> StudyConfig:
    """Return a study that comes to rest: a linear model, whole batches, nothing measured on the way."""
    training = {"epochs": 5, "batch_size": 64, "learning_rate": 1.0, "momentum": 0.0}
    values = method_settings("scaffold") | {"model": {"name": "linear"}, "training": training, "rounds": ROUNDS}
    return make_study(**values, quorum=1, evaluate_every=ROUNDS, local_baseline=False, **changes)


ONE: dict[tuple[int, str], Fault] = {(5, "lyon"): lost}
MANY: dict[tuple[int, str], Fault] = {
    **{(number, "porto"): unreached for number in range(1, 9)},  # joins late, and its first reply is lost
    (9, "porto"): lost,
    **{(number, "lyon"): lost for number in range(4, 8)},
    (8, "lyon"): rejected,
    (1, "berlin"): lost,
    (12, "berlin"): rejected,
}
_rest = list[Any]()


@pytest.fixture
def rest(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> Any:
    """Return the weights at which SCAFFOLD comes to rest where nothing is lost; computed once."""
    if not _rest:
        run(scaffold(make_study), make_sites(under="whole"), tmp_path / "whole" / "run")
        _rest.append(flat(load_file(tmp_path / "whole" / "run" / "model/weights.safetensors")))
    return _rest[0]


@pytest.mark.parametrize("faults", [ONE, MANY], ids=["one", "many"])
def test_scaffold_comes_to_rest_at_the_same_point_whatever_was_lost(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, rest: Any, faults: dict[tuple[int, str], Fault]
) -> None:
    """To 1e-5 in every weight; and the server's variate is the mean of the sites', as the algorithm has it.

    It rests where the sites' gradients cancel, whatever the path there, as long as c = mean of c_k.
    """
    study, sites = scaffold(make_study), make_sites()
    result = run(study, sites, tmp_path / "run", with_faults(faults))
    assert len(faults) == sum(len(item["rejected"]) for item in result["rounds"])
    assert result["rounds"][-1]["update_norm"] < 1e-6
    np.testing.assert_allclose(rest, flat(load_file(tmp_path / "run" / "model/weights.safetensors")), rtol=0, atol=1e-5)
    own = [under(kept_by(path, ROUNDS).method, "control/") for path in sites.values()]
    c = under(state_of(study, tmp_path / "run").along, "control/")
    np.testing.assert_allclose(np.mean([flat(each) for each in own], axis=0), flat(c), rtol=0, atol=1e-6)
    assert np.abs(flat(own[0])).max() > 0.01


def test_error_feedback_comes_to_rest_at_the_same_point_whatever_was_lost(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, rest: Any
) -> None:
    """One of three weights is sent at a time, and of the variates too; what is not sent is not forgotten."""
    study = scaffold(make_study, uplink=[{"kind": "top_k", "fraction": 0.5}])
    faults = {(5, "lyon"): lost, (6, "lyon"): lost, (9, "porto"): lost}
    run(study, make_sites(), tmp_path / "run", with_faults(faults))
    np.testing.assert_allclose(rest, flat(load_file(tmp_path / "run" / "model/weights.safetensors")), rtol=0, atol=1e-5)


def test_scaffold_comes_to_rest_at_the_same_point_after_a_restart(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, rest: Any
) -> None:
    """The server dies in round 7 after two sites have answered, the sites' processes too; before, a reply was lost."""
    study, sites, answered = scaffold(make_study), make_sites(), []

    class Killed(BaseException):
        pass

    def dying(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, RoundPlan) and plan.round == 7:
            answered.append(answering(message))
            if len(answered) == 2:
                raise Killed
        return answering(message)

    with pytest.raises(Killed):
        run(study, sites, tmp_path / "run", with_faults({(6, "lyon"): lost}, dying))
    forget_sites()
    run(study, sites, tmp_path / "run")
    np.testing.assert_allclose(rest, flat(load_file(tmp_path / "run" / "model/weights.safetensors")), rtol=0, atol=1e-5)


# --- the law ---------------------------------------------------------------------------------------

NO_TRACE = [*({**method_settings(kind)} for kind in METHODS), *({"uplink": [{"kind": kind}]} for kind in CODECS)]
FAULTS = {(2, "lyon"), (3, "lyon"), (3, "porto"), (5, "porto"), (6, "berlin")}


def named(settings: dict[str, Any]) -> str:
    """Return a case's name."""
    return str(settings["method"]["kind"] if "method" in settings else settings["uplink"][0]["kind"])


def seen_in(result: dict[str, Any]) -> Any:
    """Return what must be equal: what counted and was measured in every round, and the end."""
    rounds = [
        {
            "accepted": item["accepted"],
            "update_norm": item["update_norm"],
            "sites": {site: {**facts, "seconds": 0} for site, facts in item["sites"].items()},
        }
        for item in result["rounds"]
    ]
    return rounds, {site: facts["test"] for site, facts in result["sites"].items()}


@pytest.mark.parametrize("settings", NO_TRACE, ids=named)
def test_reply_that_does_not_count_leaves_no_trace(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, settings: dict[str, Any]
) -> None:
    """A run in which replies are lost is to the last bit the one in which those sites were never reached.

    Also where several are lost in a row, and in the last round: what a site serves and its test counts are equal.
    """
    study, ends = make_study(rounds=6, quorum=1, **settings), []
    for under_, fault in (("lost", lost), ("unreached", unreached)):
        sites, folder = make_sites(under=under_), tmp_path / under_ / "run"
        result = run(study, sites, folder, with_faults(dict.fromkeys(FAULTS, fault)))
        served = [
            (path.parent / "state" / "quick" / "run" / "models/personal/weights.safetensors") for path in sites.values()
        ]
        ends.append(
            (seen_in(result), (folder / "model/weights.safetensors").read_bytes(), [load_file(p) for p in served])
        )
    np.testing.assert_equal(ends[0], ends[1])


def test_rejected_reply_leaves_no_trace_either(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """What the server judged is one with what was lost, and the round's record says why."""
    study, ends = make_study(rounds=4, quorum=1, **method_settings("scaffold")), []
    for under_, fault in (("rejected", rejected), ("unreached", unreached)):
        folder = tmp_path / under_ / "run"
        result = run(study, make_sites(under=under_), folder, with_faults({(2, "lyon"): fault}))
        ends.append((seen_in(result), (folder / "model/weights.safetensors").read_bytes()))
        assert {"lyon": "not_finite" if fault is rejected else "crash"} == result["rounds"][1]["rejected"]
    assert ends[0] == ends[1]


# --- what the plan tells ---------------------------------------------------------------------------


def test_plan_tells_the_last_accepted_round_and_how_often_a_site_was_asked(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """By hand over four rounds; a server that is started again knows both from its checkpoint."""
    study, sites, plans = make_study(rounds=4, quorum=1), make_sites(), list[Plan]()

    def noting(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if site == "lyon" and isinstance(plan, RoundPlan | FinishPlan):
            plans.append(plan)
            if isinstance(plan, RoundPlan) and plan.round in (1, 3):
                return lost(message, answering)
            if isinstance(plan, FinishPlan) and len(plans) == 5:
                raise KeyboardInterrupt
        return answering(message)

    with pytest.raises(KeyboardInterrupt):
        run(study, sites, tmp_path / "run", noting)
    run(study, sites, tmp_path / "run", noting)
    seen = [(plan.accepted, plan.asked) for plan in plans if isinstance(plan, RoundPlan | FinishPlan)]
    assert [(None, 1), (None, 2), (2, 3), (2, 4), (4, 4), (4, 4)] == seen
    state = state_of(study, tmp_path / "run")
    assert ({"berlin": 4, "lyon": 4, "porto": 4}, {"berlin": 4, "lyon": 4, "porto": 4}) == (state.accepted, state.asked)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"round": 3, "asked": 4}, "asked 4 times in 3 rounds"),
        ({"round": 3, "asked": 3, "accepted": 3}, "accepted is round 3, expected one before round 3"),
        ({"round": 3, "asked": 3, "accepted": 1, "base": 2}, "base is round 2, but the last accepted round is 1"),
        ({"round": 3, "asked": 0}, "asked"),
        ({"kind": "finish", "round": 3, "asked": 4}, "asked 4 times in 3 rounds"),
        ({"kind": "finish", "round": 3, "asked": 3, "accepted": 4}, "expected one before round 4"),
    ],
)
def test_plan_of_what_cannot_have_been_is_refused(fields: dict[str, Any], sentence: str) -> None:
    """More training than rounds, or a memory from the future: a sentence, before anything is done."""
    text = json.dumps({"kind": "round", "study": "0" * 64, "run": "run", "site": "berlin"} | fields)
    with pytest.raises(ProtocolError, match=sentence):
        parse_plan(text)


# --- a site without its state ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["scaffold", "feddyn", "fedper"])
def test_site_that_lost_what_the_server_counts_on_is_refused_with_a_sentence(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, method: str
) -> None:
    """Variates of SCAFFOLD and gradients of FedDyn would never be matched again; others go on if the site says so."""
    study = make_study(rounds=4, quorum=2, **method_settings(method))
    sites = make_sites(on_lost_state="start_anew")

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if site == "porto" and isinstance(plan, RoundPlan) and plan.round == 3:
            _warm.clear()
            for name in ("manifest.json", "manifest.json.copy", "round-000001.safetensors", "round-000002.safetensors"):
                (sites["porto"].parent / "state" / "quick" / "run" / name).unlink()
        return answering(message)

    result = run(study, sites, tmp_path / "run", deliver)
    if method == "fedper":
        assert [{}] * 4 == [item["rejected"] for item in result["rounds"]]
        assert sorted(SIZES) == result["rounds"][3]["accepted"]
        warned = [event.message for event in RunFolder(tmp_path / "run").read_events() if isinstance(event, RunWarning)]
        assert any("'porto': what it kept" in text and "in round 3; it began anew" in text for text in warned)
        return
    assert [{}, {}, {"porto": "failure"}, {"porto": "failure"}] == [item["rejected"] for item in result["rounds"]]
    told = (sites["porto"].parent / "state" / "events.jsonl").read_text()
    assert "site 'porto' no longer has what it kept after round 2 of run 'run'" in told
    assert "put its state folder back, or start a new run" in told


def test_site_whose_state_was_damaged_goes_on_from_the_one_before(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """In the round and at the finish, each with a warning in the run's log; what vanished is refused until told."""
    study, sites = make_study(rounds=4, quorum=2, **method_settings("fedper")), make_sites()
    lyon = sites["lyon"].parent / "state" / "quick" / "run"

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        folder = sites["porto"].parent / "state" / "quick" / "run"
        if site == "porto" and isinstance(plan, RoundPlan | FinishPlan) and plan.accepted in (2, 4):
            _warm.clear()
            (folder / f"round-{plan.accepted:06d}.safetensors").write_bytes(b"damaged")
        if site == "lyon" and isinstance(plan, RoundPlan) and plan.round == 3:
            _warm.clear()
            for path in [*lyon.glob("manifest*"), *lyon.glob("round*")]:
                path.unlink()
        return answering(message)

    result = run(study, sites, tmp_path / "run", deliver)
    assert [{}, {}, {"lyon": "failure"}, {"lyon": "failure"}] == [item["rejected"] for item in result["rounds"]]
    told = [event.message for event in RunFolder(tmp_path / "run").read_events() if isinstance(event, RunWarning)]
    wanted = ["in round 3; it went on from that after round 1", "in round 4; it went on from that after round 3"]
    assert wanted == [text.partition("damaged or gone ")[2] for text in told if "'porto'" in text]
    lyon_log = (sites["lyon"].parent / "state" / "events.jsonl").read_text()
    assert 'set on_lost_state = \\"start_anew\\" in its site.toml' in lyon_log
