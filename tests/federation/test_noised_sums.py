"""Federations of 51 sites whose sums hide each of them: the truth but for the noise that was promised, and no more."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import MakeSites, MakeStudy
from dp_accounting.pld import privacy_loss_distribution
from federations import Wire, run
from flwr.app import Message
from safetensors.numpy import load_file
from scipy.stats import kstest

from consilium.client.app import forget_sites
from consilium.client.flower.message import plan_of
from consilium.common.codecs import Identity
from consilium.common.protocol.plans import Plan, RoundPlan, UnmaskPlan
from consilium.common.protocol.replies import RoundReply
from consilium.common.study.study import StudyConfig
from consilium.running.in_process import Answering, Deliver

SITES = tuple(f"site-{number:02}" for number in range(51))
QUORUM, NOISE, CLIP, HONEST = 50, 3.0, 0.05, 33
Floats = npt.NDArray[np.float64]


def study_of(make: MakeStudy, *, secure: bool = True, **changes: Any) -> StudyConfig:
    """Return a study of 51 sites, of which 50 must answer and 17 may collude."""
    columns = {name: {"kind": "number"} for name in "ab"}
    scale = {name: {"mean": 0.0, "std": 1.0} for name in "ab"}
    settings = {
        "sites": list(SITES),
        "quorum": QUORUM,
        "rounds": 1,
        "model": {"name": "mlp", "hidden": [4000]},
        "local_baseline": False,
        "round_timeout_seconds": 2.0,
        "weighting": {"factors": [{"kind": "size", "exponent": 0}]},
        "task": {"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": columns, "scale": scale},
        "privacy": {"secure_aggregation": secure, "sites": {"noise": NOISE, "clip": CLIP}},
    }
    return make(**settings | changes)


def flat(arrays: Mapping[str, Any]) -> Floats:
    """Return all numbers of a model in one row."""
    return np.concatenate([arrays[name].reshape(-1) for name in sorted(arrays)]).astype(np.float64)


def final(folder: Path) -> Floats:
    """Return the weights that a run ended with."""
    return flat(load_file(folder / "model/weights.safetensors"))


def losing(site: str, kind: type[Plan], *, seen: Wire) -> Deliver:
    """Return a delivery in which a site never gets plans of a kind."""

    def deliver(name: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, kind) and name == site:
            return None
        return seen(name, message, answering)

    return deliver


def test_sum_is_the_truth_but_for_the_noise_of_its_sites(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The clipped updates, as the same sites send them in the clear, have the same mean, but for noise.

    One of 51 sites is lost. Of the other 50 the noise has the deviation z C sqrt(50 / 33) / 50, which 16,001 numbers
    tell to 2 %: it would be 19 % less if only the 33 had added some, and 29 % more with a second noise at the server.
    """
    clear, masked, missing = Wire(), Wire(), SITES[7]
    plain, secure, rows = study_of(make_study, secure=False), study_of(make_study), dict.fromkeys(SITES, 40)
    run(plain, make_sites(rows, under="a"), tmp_path / "a" / "run", clear)
    gone = losing(missing, RoundPlan, seen=masked)
    result = run(secure, make_sites(rows, under="b"), tmp_path / "b" / "run", gone)
    answered = [site for site in SITES if site != missing]
    updates = [flat(Identity().decode(next(clear.rounds(site)).up or b"")) for site in answered]
    start = flat(Identity().decode(next(clear.rounds(SITES[0])).down or b""))
    assert all(np.linalg.norm(update) <= CLIP * (1 + 1e-4) for update in updates)
    noise = final(tmp_path / "b" / "run") - start - np.mean(updates, axis=0)
    expected = NOISE * CLIP * math.sqrt(50 / HONEST) / 50
    assert 16_001 == noise.size
    assert noise.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 4 * expected / math.sqrt(noise.size)
    assert kstest(noise / expected, "norm").pvalue > 1e-4
    assert answered == list(result["rounds"][0]["accepted"])


def test_report_says_what_an_independent_account_says(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Every round's record: epsilon of one normal mechanism per round, by dp-accounting; and no number of the data.

    Nothing is measured for the server, and no count says how many updates were longer than the clip.
    """
    study = study_of(make_study, rounds=2, model={"name": "linear"})
    seen = Wire()
    result = run(study, make_sites(dict.fromkeys(SITES, 40)), tmp_path / "run", seen)
    one = privacy_loss_distribution.from_gaussian_mechanism(NOISE, value_discretization_interval=1e-4)
    oracle = [one.self_compose(number).get_epsilon_for_delta(1e-5) for number in (1, 2)]
    assert [pytest.approx(value, rel=2e-3) for value in oracle] == [item["site_epsilon"] for item in result["rounds"]]
    for site in SITES:
        assert [{}, {}] == [
            dict(item.reply.metrics) for item in seen.rounds(site) if isinstance(item.reply, RoundReply)
        ]
    assert all(item["sites"][site]["metrics"] == {} for item in result["rounds"] for site in SITES)
    assert "shortened" not in (tmp_path / "run" / "events.jsonl").read_text()


class Killed(BaseException):
    """The server's process ends here."""


@pytest.mark.nightly
def test_sum_that_was_to_be_unmasked_has_the_same_noise_after_a_restart(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The server dies when a mask was opened, the sites start again: they send the same words, noise included."""
    study = study_of(make_study, model={"name": "linear"})
    sites, before, after, opened = make_sites(dict.fromkeys(SITES, 40)), Wire(), Wire(), list[str]()

    def dying(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, UnmaskPlan):
            if opened:
                raise Killed
            opened.append(site)
        return before(site, message, answering)

    with pytest.raises(Killed):
        run(study, sites, tmp_path / "run", dying)
    forget_sites()
    result = run(study, sites, tmp_path / "run", after)
    assert list(SITES) == list(result["rounds"][0]["accepted"])
    for site in SITES:
        assert next(before.rounds(site)).up == next(after.rounds(site)).up
