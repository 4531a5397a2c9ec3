"""Studies through relays: the same weights, shares and results as without, and what a relay refuses or bounds."""

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy
from safetensors.numpy import load_file

from consilium.common.codecs import Identity
from consilium.common.errors import CohortTooSmall
from consilium.common.protocol.plans import RoundPlan
from consilium.common.protocol.replies import RoundReply
from consilium.common.results import RunResult
from consilium.common.study.study import StudyConfig
from consilium.running.direct import DirectConversation, DirectExchange
from consilium.running.engine import Engine
from consilium.running.in_process import run_in_process
from consilium.running.relayed import relayed
from consilium.server.app import run_steps
from consilium.server.study.exchange import Answer, Mailing, gone

TWELVE = {f"site-{number:02}": 20 + 2 * number for number in range(12)}
RELAYS = {
    "north": ["site-00", "site-01", "site-02", "site-03"],
    "middle": ["site-04", "site-05", "site-06", "site-07"],
    "south": ["site-08", "site-09", "site-10", "site-11"],
}
SGD = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.0}
PLAIN = {"defence": {"norm": {"kind": "off"}, "undo": False}}
"""Without what compares updates of all sites at the server: a relay compares those of its own."""

KINDS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedadam": {"strategy": {"kind": "fedadam"}},
    "feddyn": {"strategy": {"kind": "feddyn"}, "method": {"kind": "feddyn"}, "training": SGD},
    "reptile": {"strategy": {"kind": "reptile"}, "method": {"kind": "reptile"}, "training": SGD},
    "weights by size and loss, personal parts": {
        "weighting": {"factors": [{"kind": "size", "exponent": 0.5}, {"kind": "loss"}]},
        "method": {"kind": "fedper"},
    },
    "a bound of the study's own, and an integer that BatchNorm counts": {
        "defence": {"norm": {"kind": "fixed", "bound": 0.2}, "against": 0, "undo": False},
        "model": {"name": "mlp_bn", "hidden": [6]},
    },
}


def ended(make_sites: MakeSites, make_study: MakeStudy, folder: Path, **changes: Any) -> tuple[RunResult, Any]:
    """Run a study of the twelve sites in a folder; return its result and its final weights."""
    study = make_study(sites=list(TWELVE), local_baseline=False, **{**PLAIN, **changes})
    result = run_in_process(study, make_sites(TWELVE, under=folder.name), folder)
    return result, load_file(folder / "model/weights.safetensors")


@pytest.mark.parametrize("name", KINDS)
def test_relays_end_with_the_weights_and_results_of_a_flat_study(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, name: str
) -> None:
    """Three relays of four sites give what twelve sites give: weights, shares, measurements and test counts."""
    flat, weights = ended(make_sites, make_study, tmp_path / "flat", **KINDS[name])
    relayed, others = ended(make_sites, make_study, tmp_path / "relayed", relays=RELAYS, **KINDS[name])
    # an adaptive step divides by roots of squares: what differs by 1e-8 before may by 1e-4 after
    atol = 2e-3 if name == "fedadam" else 1e-6
    assert weights.keys() == others.keys()
    for array in weights:
        np.testing.assert_allclose(weights[array], others[array], atol=atol, rtol=0, err_msg=array)
    for one, other in zip(flat.rounds, relayed.rounds, strict=True):
        assert one.asked == other.asked
        assert one.accepted == other.accepted
        for site in one.accepted:
            assert pytest.approx(one.sites[site].weight, abs=1e-6) == other.sites[site].weight
            assert one.sites[site].num_examples == other.sites[site].num_examples
            assert pytest.approx(one.sites[site].metrics, rel=0.02) == other.sites[site].metrics
    assert flat.sites.keys() == relayed.sites.keys()
    for site in flat.sites:
        assert flat.sites[site].num_train == relayed.sites[site].num_train
        counts, same = flat.sites[site].test, relayed.sites[site].test
        assert counts is not None
        assert same is not None
        assert counts.num_test == same.num_test
        assert abs((counts.personal or 0) - (same.personal or 0)) <= (0 if atol == 1e-6 else 1)


def test_site_without_a_relay_takes_part_beside_them(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Of twelve sites four connect to the server, and the others through two relays; all count as they would alone."""
    two = {name: RELAYS[name] for name in ("north", "south")}
    _, weights = ended(make_sites, make_study, tmp_path / "flat", rounds=2)
    result, others = ended(make_sites, make_study, tmp_path / "relayed", rounds=2, relays=two)
    for array in weights:
        np.testing.assert_allclose(weights[array], others[array], atol=1e-6, rtol=0)
    assert sorted(TWELVE) == list(result.rounds[1].accepted)


@dataclass
class Altered:
    """An exchange whose sites' answers to rounds a test may change, or lose."""

    exchange: DirectExchange
    change: Callable[[Answer, int], Answer]
    patient: bool = False
    asked: list[str] = field(default_factory=list)

    def connected(self) -> frozenset[str]:
        """Return the names of the sites."""
        return self.exchange.connected()

    def converse(self) -> "AlteredConversation":
        """Return a conversation."""
        return AlteredConversation(self.exchange.converse(), self.change, self.asked)


@dataclass
class AlteredConversation:
    """A conversation whose answers a test may change."""

    conversation: DirectConversation
    change: Callable[[Answer, int], Answer]
    asked: list[str]

    def open(self) -> frozenset[str]:
        """Return the sites that have not answered."""
        return self.conversation.open()

    def send(self, mailing: Mailing) -> None:
        """Send plans, and note who was asked for round 2."""
        self.asked += [site for site, plan in mailing.plans.items() if isinstance(plan, RoundPlan) and plan.round == 2]
        self.conversation.send(mailing)

    def answers(self, **how: Any) -> Generator[Answer, None, None]:
        """Yield the answers, those to rounds as the test changes them."""
        for answer in self.conversation.answers(**how):
            yield self.change(answer, answer.reply.round) if isinstance(answer.reply, RoundReply) else answer

    def give_up(self, sites: Collection[str]) -> None:
        """Take back plans."""
        self.conversation.give_up(sites)

    def close(self) -> None:
        """Take back all plans."""
        self.conversation.close()


def altered_run(
    make_sites: MakeSites,
    study: StudyConfig,
    folder: Path,
    change: Callable[[Answer, int], Answer],
    *,
    patient: bool = False,
    asked: list[str] | None = None,
) -> RunResult:
    """Run a study with sites whose answers to rounds are changed, through its relays where it has some.

    Args:
        patient: whether a run waits for sites that are lost.
        asked: gets the names of those that are asked for round 2, each time.
    """
    sites = make_sites(TWELVE, under=folder.name)

    def exchange_with(names: Collection[str]) -> Altered:
        direct = DirectExchange({name: sites[name] for name in names}, Engine("exact"))
        return Altered(direct, change, patient, [] if asked is None else asked)

    exchange = relayed(study, folder, exchange_with) if study.relays else exchange_with(study.sites)
    for _ in run_steps(exchange, study.model_dump_json(), folder, transport="test", tls=False):
        pass
    return RunResult.model_validate_json((folder / "result.json").read_bytes())


def lost(*sites: str) -> Callable[[Answer, int], Answer]:
    """Return what loses the answers of some sites to round 2."""
    return lambda answer, number: gone(answer.site) if number == 2 and answer.site in sites else answer


def test_relay_answers_without_a_lost_site_and_the_quorum_counts_sites(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Eleven of twelve sites are a quorum of eleven; the weights are those of a flat study that lost the same site."""
    weights = []
    for name, relays in {"flat": {}, "relayed": RELAYS}.items():
        study = make_study(sites=list(TWELVE), relays=relays, quorum=11, rounds=2, local_baseline=False, **PLAIN)
        result = altered_run(make_sites, study, tmp_path / name, lost("site-05"))
        assert {"site-05": "gone"} == dict(result.rounds[1].rejected)
        assert sorted(TWELVE.keys() - {"site-05"}) == list(result.rounds[1].accepted)
        weights.append(load_file(tmp_path / name / "model/weights.safetensors"))
    for array in weights[0]:
        np.testing.assert_allclose(weights[0][array], weights[1][array], atol=1e-6, rtol=0)


def wrong(answer: Answer, _: int) -> Answer:
    """Return the answer of a site that sends NaN, another that sends a made-up size, and a third a huge update."""
    assert isinstance(answer.reply, RoundReply)
    delta: dict[str, Any] = dict(Identity().decode(answer.payload or b""))
    if answer.site == "site-00":
        return replace(answer, payload=Identity().encode({name: one * np.nan for name, one in delta.items()}))
    if answer.site == "site-04":
        return replace(answer, reply=answer.reply.model_copy(update={"num_examples": 10_000}))
    if answer.site == "site-08":
        return replace(answer, payload=Identity().encode({name: one * 1e4 for name, one in delta.items()}))
    return answer


def test_relay_checks_its_sites_as_a_server_does_before_it_adds_up(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """NaN, a made-up size and an update beyond belief are refused at the relays; the server's record says whose."""
    study = make_study(sites=list(TWELVE), relays=RELAYS, quorum=9, rounds=1, local_baseline=False)
    record = altered_run(make_sites, study, tmp_path / "run", wrong).rounds[0]
    assert {"site-00": "not_finite", "site-04": "num_examples", "site-08": "norm"} == dict(record.rejected)
    assert "site-00" in record.details["site-00"]
    assert 9 == len(record.accepted)


def test_relay_sends_no_sum_of_one_site(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Of a relay that three of four sites are lost of, the fourth does not count: its update would be seen alone."""
    study = make_study(sites=list(TWELVE), relays=RELAYS, quorum=8, rounds=2, local_baseline=False)
    record = altered_run(make_sites, study, tmp_path / "run", lost("site-00", "site-01", "site-02")).rounds[1]
    assert "sum" == record.rejected["site-03"]
    assert "relay 'north' sends no sum of fewer than 2 sites, and 1 of the 4 asked" in record.details["site-03"]


def lost_once(*sites: str) -> Callable[[Answer, int], Answer]:
    """Return what loses the first answer of some sites to round 2."""
    left = set(sites)

    def change(answer: Answer, number: int) -> Answer:
        if number == 2 and answer.site in left:
            left.remove(answer.site)
            return gone(answer.site)
        return answer

    return change


def test_run_waits_for_a_site_without_which_there_is_no_quorum_and_its_relay_sends_nothing_before(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """All twelve are needed and one is away: its relay's other sites are asked again with it, and the run goes on."""
    study = make_study(sites=list(TWELVE), relays=RELAYS, quorum="all", rounds=2, local_baseline=False, **PLAIN)
    asked: list[str] = []
    result = altered_run(make_sites, study, tmp_path / "run", lost_once("site-05"), patient=True, asked=asked)
    assert sorted(TWELVE) == list(result.rounds[1].accepted)
    assert sorted([*TWELVE, *RELAYS["middle"]]) == sorted(asked)


def test_relay_that_sent_its_mean_sends_no_other_of_the_round(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Two relays sent theirs without a site each, and ten of twelve are no quorum of eleven: no site is asked again.

    With second means of all four the server could reckon the updates of both sites, so the run ends and says why.
    """
    study = make_study(sites=list(TWELVE), relays=RELAYS, quorum=11, rounds=2, local_baseline=False, **PLAIN)
    asked: list[str] = []
    with pytest.raises(CohortTooSmall, match=r"relay 'middle' has sent its mean of round 2 without site 'site-05'"):
        altered_run(make_sites, study, tmp_path / "run", lost_once("site-01", "site-05"), patient=True, asked=asked)
    assert sorted(TWELVE) == sorted(asked)


def test_relay_with_one_usable_site_left_has_none_to_ask(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a relay's two sites one is set aside: the other is asked no more, and the run goes on with those of others."""
    relays = {"north": ["site-00", "site-01"], "south": ["site-08", "site-09", "site-10", "site-11"]}
    defence = {"norm": {"kind": "off"}, "undo": False, "strikes": 1}
    study = make_study(
        sites=list(TWELVE), relays=relays, quorum=8, rounds=2, local_baseline=False, defence=defence, min_sites=8
    )
    result = altered_run(make_sites, study, tmp_path / "run", wrong_size)
    assert sorted(TWELVE.keys() - {"site-00", "site-01"}) == list(result.rounds[1].asked)
    assert "site=site-01 is not asked: it is the only one left of relay=north" in caplog.text


def wrong_size(answer: Answer, _: int) -> Answer:
    """Return the answers, that of one site with a size that it did not announce."""
    if answer.site != "site-00" or not isinstance(answer.reply, RoundReply):
        return answer
    return replace(answer, reply=answer.reply.model_copy(update={"num_examples": 10_000}))
