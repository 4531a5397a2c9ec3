"""Federations whose server sees sums alone: the same weights as without, drop-outs at every step, restarts."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy
from federations import Wire, global_bytes, run
from flwr.app import Message
from safetensors.numpy import load_file

from consilium.client.app import forget_sites
from consilium.client.flower.message import content_of, plan_of
from consilium.common.codecs import Identity
from consilium.common.errors import CohortTooSmall, ConfigError
from consilium.common.flower.message import unpack
from consilium.common.protocol.plans import KeysPlan, Plan, RoundPlan, UnmaskPlan
from consilium.common.weights.arrays import Array
from consilium.running.in_process import Answering, Deliver, InProcessGrid, deliver_always
from consilium.running.local_keys import provide_keys
from consilium.server.app import run_steps

SUM = {"secure_aggregation": True}
SIX = {"bern": 26, "bonn": 30, "graz": 24, "lyon": 34, "oslo": 22, "porto": 28}
SGD = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.0}
EQUAL = {"factors": [{"kind": "size", "exponent": 0}]}


def weights_in(folder: Path) -> dict[str, Array]:
    """Return the final weights of a run."""
    arrays: dict[str, Array] = load_file(folder / "model/weights.safetensors")
    return arrays


def assert_close(one: Mapping[str, Array], other: Mapping[str, Array], atol: float = 2e-6) -> None:
    """Assert that two models are the same but for the rounding of whole words."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        one_, other_ = array.astype(np.float64), other[name].astype(np.float64)
        np.testing.assert_allclose(one_, other_, atol=atol, err_msg=name)


def faults(numbers: set[int], kinds: tuple[type[Plan], ...], at: set[str], what: str) -> Deliver:
    """Return a delivery that loses plans (`plan`) or replies (`reply`) of some kinds, in some rounds, at some sites."""

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, kinds) and getattr(plan, "round", 0) in numbers and site in at:
            if what == "reply":
                answering(message)
            return None
        return answering(message)

    return deliver


def six(make_study: MakeStudy, **changes: Any) -> Any:
    """Return a study of six sites, of which four must answer."""
    values = {"sites": list(SIX), "quorum": 4, "rounds": 2, "round_timeout_seconds": 0.5, "weighting": EQUAL}
    return make_study(**{**values, **changes})


# --- the same weights --------------------------------------------------------------------------------

STRATEGIES: dict[str, dict[str, Any]] = {
    **{kind: {"strategy": {"kind": kind}} for kind in ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad")},
    **{
        kind: {"strategy": {"kind": kind}, "method": {"kind": kind}, "training": SGD}
        for kind in ("scaffold", "feddyn", "reptile", "per_fedavg")
    },
    "fednova": {"strategy": {"kind": "fednova"}},
    "fednova with momentum, BatchNorm and weights by loss": {
        "strategy": {"kind": "fednova"},
        "model": {"name": "mlp_bn", "hidden": [6]},
        "training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.05, "momentum": 0.9},
        "weighting": {"factors": [{"kind": "size"}, {"kind": "loss"}]},
    },
    "personal parts": {"method": {"kind": "fedper"}},
    "batch norm, whose counter is an integer": {"model": {"name": "mlp_bn", "hidden": [6]}},
    "weights by loss": {"weighting": {"factors": [{"kind": "loss", "temperature": 0.5}]}},
    "weights by size and loss": {"weighting": {"factors": [{"kind": "size", "exponent": 0.5}, {"kind": "loss"}]}},
    "equal weights": {"weighting": EQUAL},
    "a downlink codec": {"downlink": [{"kind": "int8"}]},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_secure_run_ends_with_the_weights_of_a_plain_one(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, name: str
) -> None:
    """Every strategy, weighting and link that can be combined, but for rounding; the shares are the same numbers."""
    plain = run(make_study(rounds=3, **STRATEGIES[name]), make_sites(under="a"), tmp_path / "a" / "run")
    secure = run(make_study(rounds=3, privacy=SUM, **STRATEGIES[name]), make_sites(under="b"), tmp_path / "b" / "run")
    # an adaptive step divides by roots of squares, a codec rounds: what differs by 1e-8 before may by 1e-4 after
    loose = name in ("fedadam", "fedyogi", "fedadagrad", "a downlink codec")
    assert_close(weights_in(tmp_path / "a" / "run"), weights_in(tmp_path / "b" / "run"), atol=2e-3 if loose else 5e-6)
    for one, other in zip(plain["rounds"], secure["rounds"], strict=True):
        for site in one["sites"]:
            assert pytest.approx(one["sites"][site]["weight"], abs=1e-3) == other["sites"][site]["weight"]


def test_updates_longer_than_the_bound_are_shortened_and_counted(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Each is at most as long as the bound, so the change of the weights is, too; the server learns how many were."""
    study = make_study(rounds=1, privacy={**SUM, "bound": 0.05})
    result = run(study, make_sites(), tmp_path / "run")
    assert result["rounds"][0]["update_norm"] <= 0.05 * (1 + 1e-4)
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "3 of 3 updates were longer than privacy.bound = 0.05 and were shortened to it" in events


def test_no_payload_tells_anything_of_its_update(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The words of a site are not correlated with its update, nor are sums of them with theirs."""
    changes: dict[str, Any] = {"rounds": 1, "model": {"name": "mlp", "hidden": [4000]}, "weighting": EQUAL}
    clear, masked = Wire(), Wire()
    run(make_study(**changes), make_sites(under="a"), tmp_path / "a" / "run", clear)
    run(make_study(**changes, privacy=SUM), make_sites(under="b"), tmp_path / "b" / "run", masked)
    update_sum, words_sum = np.zeros(16_001), np.zeros(16_001, np.uint32)
    for site in ("berlin", "lyon", "porto"):
        update = Identity().decode(next(clear.rounds(site)).up or b"")
        flat = np.concatenate([update[key].reshape(-1) for key in sorted(update)]).astype(np.float64)
        words = Identity().decode(next(masked.rounds(site)).up or b"")["narrow"].view(np.uint32)
        update_sum, words_sum = update_sum + flat, words_sum + words
        for told, truth in ((words, flat), (words_sum, update_sum)):
            assert abs(np.corrcoef(told.view(np.int32), truth)[0, 1]) < 0.05


# --- drop-outs ---------------------------------------------------------------------------------------

STEPS: dict[str, tuple[tuple[type[Plan], ...], str]] = {
    "before the upload": ((RoundPlan,), "plan"),
    "during the upload": ((RoundPlan,), "reply"),
    "after the upload": ((UnmaskPlan,), "plan"),
    "while unmasking": ((UnmaskPlan,), "reply"),
}


@pytest.mark.parametrize("step", STEPS)
def test_round_completes_with_a_third_of_the_sites_dropped(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, step: str
) -> None:
    """Two of six, at any step; the sum is that of the sites that sent, so a plain run with the same losses agrees."""
    kinds, what = STEPS[step]
    gone = faults({1, 2}, kinds, {"bonn", "oslo"}, what)
    plain = run(six(make_study), make_sites(SIX, under="a"), tmp_path / "a" / "run", gone)
    secure = run(six(make_study, privacy=SUM), make_sites(SIX, under="b"), tmp_path / "b" / "run", gone)
    assert_close(weights_in(tmp_path / "a" / "run"), weights_in(tmp_path / "b" / "run"))
    assert [r["accepted"] for r in plain["rounds"]] == [r["accepted"] for r in secure["rounds"]]
    assert (4 if RoundPlan in kinds else 6) == len(secure["rounds"][0]["accepted"])


def test_drop_outs_at_several_steps_of_one_round(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """One never gets the plan, another is gone after its upload: a third in all."""

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        lost = (RoundPlan, "bern"), (UnmaskPlan, "porto")
        return None if any(isinstance(plan, kind) and site == name for kind, name in lost) else answering(message)

    plain = faults({1, 2}, (RoundPlan,), {"bern"}, "plan")
    run(six(make_study), make_sites(SIX, under="a"), tmp_path / "a" / "run", plain)
    run(six(make_study, privacy=SUM), make_sites(SIX, under="b"), tmp_path / "b" / "run", deliver)
    assert_close(weights_in(tmp_path / "a" / "run"), weights_in(tmp_path / "b" / "run"))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (RoundPlan, "3 of 6 sites sent a usable update, a secure sum of this round needs 4"),
        (UnmaskPlan, "3 of 6 sites have opened their shares of the masks, expected 4"),
    ],
)
def test_round_with_too_many_drop_outs_ends_the_run(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, kind: type[Plan], sentence: str
) -> None:
    """Half of them: a sentence, and no weights."""
    gone = faults({1}, (kind,), {"bern", "bonn", "oslo"}, "plan")
    with pytest.raises(CohortTooSmall, match=sentence):
        run(six(make_study, privacy=SUM), make_sites(SIX), tmp_path / "run", gone)


def test_of_three_sites_none_may_be_missing(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The sum of two would tell each of them the other's update."""
    with pytest.raises(ConfigError, match=r"needs 3 updates of the 3 sites .* may have 2"):
        make_study(privacy=SUM, quorum=2)
    gone = faults({1}, (RoundPlan,), {"porto"}, "plan")
    with pytest.raises(CohortTooSmall, match="2 of 3 sites sent a usable update, a secure sum of this round needs 3"):
        run(make_study(privacy=SUM, round_timeout_seconds=0.5), make_sites(), tmp_path / "run", gone)


def test_unusable_payload_is_named_and_not_added(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A payload of another form is rejected; the site then counts as one that has sent nothing."""

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, RoundPlan) and site == "oslo":
            text, content = unpack(answering(message).content.config_records)
            return Message(content_of(text, (content or b"")[:-1]), reply_to=message)
        return answering(message)

    result = run(six(make_study, privacy=SUM), make_sites(SIX), tmp_path / "run", deliver)
    assert {"oslo": "protocol"} == result["rounds"][0]["rejected"]
    assert 5 == len(result["rounds"][0]["accepted"])


# --- restarts ----------------------------------------------------------------------------------------


class Killed(BaseException):
    """The server's process ends here."""


def killed(number: int, kind: type[Plan], *, after: int, deliver: Deliver = deliver_always) -> Deliver:
    """Return a delivery in which the server dies in a round, after some answers to plans of a kind."""
    answered: list[str] = []

    def dying(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, kind) and getattr(plan, "round", number) == number:
            if len(answered) == after:
                raise Killed
            answered.append(site)
        return deliver(site, message, answering)

    return dying


@pytest.mark.parametrize("sites_too", [False, True])
@pytest.mark.parametrize(
    ("kind", "after"), [(KeysPlan, 1), (RoundPlan, 0), (RoundPlan, 2), (UnmaskPlan, 0), (UnmaskPlan, 1)]
)
def test_restart_at_any_step_equals_no_restart(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, kind: type[Plan], after: int, sites_too: bool
) -> None:
    """Bit for bit, as masks cancel exactly: before and after sites have sent, and after they have opened masks."""
    study = make_study(rounds=3, privacy=SUM)
    run(study, make_sites(under="one"), tmp_path / "one" / "run")
    sites = make_sites(under="two")
    with pytest.raises(Killed):
        run(study, sites, tmp_path / "two" / "run", killed(2, kind, after=after))
    if sites_too:
        forget_sites()
    run(study, sites, tmp_path / "two" / "run")
    assert global_bytes(tmp_path / "one" / "run") == global_bytes(tmp_path / "two" / "run")


def test_sum_that_was_to_be_unmasked_needs_the_same_sites_again(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Sites have opened masks for that sum, and open none for another: the run waits for the site that is missing."""
    study, sites = six(make_study, privacy=SUM), make_sites(SIX)
    with pytest.raises(Killed):
        run(study, sites, tmp_path / "run", killed(2, UnmaskPlan, after=1))
    with pytest.raises(CohortTooSmall, match="5 of 6 sites sent a usable update, a secure sum of this round needs 6"):
        run(study, sites, tmp_path / "run", faults({2}, (RoundPlan,), {"oslo"}, "plan"))
    run(study, sites, tmp_path / "run")
    run(study, make_sites(SIX, under="b"), tmp_path / "b" / "run")
    assert global_bytes(tmp_path / "run") == global_bytes(tmp_path / "b" / "run")


def test_failed_round_goes_on_with_other_sites(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Nobody has opened a mask of it, so the sites mask it anew under the next attempt."""
    study, sites = six(make_study, privacy=SUM), make_sites(SIX)
    with pytest.raises(CohortTooSmall):
        run(study, sites, tmp_path / "run", faults({2}, (RoundPlan,), {"bern", "bonn", "oslo"}, "plan"))
    seen = Wire()
    run(study, sites, tmp_path / "run", seen)
    attempts = {item.plan.secure.attempt for item in seen.seen if isinstance(item.plan, RoundPlan) and item.plan.secure}
    assert {2} == attempts
    run(study, make_sites(SIX, under="b"), tmp_path / "b" / "run")
    assert global_bytes(tmp_path / "run") == global_bytes(tmp_path / "b" / "run")


class Growing(InProcessGrid):
    """A grid whose last site connects after the first round; before it, the run has yielded once."""

    late = "porto"
    rounds = 0

    def get_nodes(self) -> Any:
        """Return the sites that are online."""
        return [node for node in super().get_nodes() if node.name != self.late or self.rounds > 1]


def test_site_that_joins_late_is_in_the_sums_from_then_on(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The others get its key before the round, checked like all others."""
    study, sites = six(make_study, privacy=SUM, min_sites=4, rounds=3), make_sites(SIX)
    provide_keys(study, sites)
    grid = Growing(sites)
    for _ in run_steps(grid, study.model_dump_json(), tmp_path / "run", transport="in-process", tls=False):
        grid.rounds += 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [5, 6, 6] == [len(item["accepted"]) for item in result["rounds"]]


# --- before the first round --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda folder: (folder / "peers.json").unlink(),
            "'peers.json' is not there: ask the coordinator for a bundle",
        ),
        (lambda folder: (folder / "peers.json").write_text("{}"), "do not hold this site's own key"),
        (lambda folder: (folder / "peers.json").write_text("["), "cannot read"),
    ],
)
def test_study_does_not_start_at_a_site_without_the_others_keys(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, spoil: Callable[[Path], None], sentence: str
) -> None:
    """Nothing is trained; the server is told what is missing."""
    study, sites = make_study(privacy=SUM), make_sites()
    provide_keys(study, sites)
    spoil(sites["lyon"].parent)
    grid, seen = InProcessGrid(sites, deliver=Wire()), []
    with pytest.raises(ConfigError, match=sentence):
        seen += list(run_steps(grid, study.model_dump_json(), tmp_path / "run", transport="t", tls=False))
    assert [] == seen


# --- with noise for patients -------------------------------------------------------------------------


def test_noise_for_patients_is_in_what_is_summed(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Each site clips, draws its noise and charges its ledger as without sums; a round asked again draws no other.

    The server dies while masks are taken off, the sites start again: they have opened masks for that sum, and can only
    answer because the noised update is the one that was kept.
    """
    columns = {"a": {"kind": "number"}, "b": {"kind": "number"}}
    scale = {name: {"mean": 0.0, "std": 1.0} for name in columns}
    task = {"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": columns, "scale": scale}
    study = make_study(task=task, rounds=2, min_examples=2, privacy={**SUM, "examples": {"noise": 1.0}})
    sites = make_sites(dict.fromkeys(("berlin", "lyon", "porto"), 60))
    with pytest.raises(Killed):
        run(study, sites, tmp_path / "run", killed(1, UnmaskPlan, after=1))
    forget_sites()
    result = run(study, sites, tmp_path / "run")
    assert [3, 3] == [len(item["accepted"]) for item in result["rounds"]]
    spent = [item["sites"]["lyon"]["privacy"]["epsilon"] for item in result["rounds"]]
    assert 0 < spent[0] < spent[1]
