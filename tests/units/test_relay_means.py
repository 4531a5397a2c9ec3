"""A relay's means: one for each round of a run, whoever is there, whoever asks and however often."""

import math
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeStudy

from consilium.common.codecs import Identity
from consilium.common.errors import ProtocolError, StateError
from consilium.common.protocol.plans import RoundPlan
from consilium.common.protocol.relays import LeafAnswer, answers_in, plan_for_relay
from consilium.common.protocol.replies import RoundReply
from consilium.common.study.study import StudyConfig
from consilium.server.relays.exchange import RelayedExchange
from consilium.server.relays.known import Known, write_known
from consilium.server.relays.relay import Relay
from consilium.server.study.exchange import Answer, Mailing, gone
from consilium.server.study.run_folder import RunFolder

RUN, DIGEST = "run-1", 64 * "a"
SIZES = {"berlin": 100, "lyon": 50, "porto": 80}
NORTH = {"north": list(SIZES)}
UPDATES = {"berlin": 1.0, "lyon": -2.0, "porto": 7.25}
AT_START = Identity().encode({"w": np.zeros(2, np.float32)})


@dataclass
class Leaves:
    """An exchange with three sites that always train to the same updates; a test says who is away."""

    away: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    strangers: int = 0
    patient: bool = True

    def connected(self) -> frozenset[str]:
        """Return the sites that are there, and those of other studies."""
        return frozenset(SIZES.keys() - self.away) | {f"other-{number}" for number in range(self.strangers)}

    def converse(self) -> "LeavesConversation":
        """Return a conversation."""
        return LeavesConversation(self)


@dataclass
class LeavesConversation:
    """A conversation with the three sites."""

    leaves: Leaves
    mailing: Mailing | None = None

    def open(self) -> frozenset[str]:
        """Return no site: each has answered."""
        return frozenset()

    def send(self, mailing: Mailing) -> None:
        """Take plans in."""
        self.mailing = mailing

    def answers(
        self, *, absent_seconds: float | None = None, until: Callable[[], float] = lambda: math.inf
    ) -> Generator[Answer, None, None]:
        """Yield one answer of each site."""
        assert self.mailing is not None
        for site, plan in self.mailing.plans.items():
            if site in self.leaves.away:
                yield gone(site)
                continue
            self.leaves.asked.append(site)
            assert isinstance(plan, RoundPlan)
            stamp: dict[str, Any] = {"run": RUN, "site": site, "pid": 1, "seconds": 1.0, "round": plan.round}
            metrics = {"global.loss": 0.5, "train.loss": 0.5}
            reply = RoundReply(**stamp, num_examples=SIZES[site], metrics=metrics)
            delta = np.full(2, UPDATES[site], np.float32)
            yield Answer(site, reply=reply, payload=Identity().encode({"w": delta}))

    def give_up(self, sites: Collection[str]) -> None:
        """Take back plans."""

    def close(self) -> None:
        """Take back all plans."""


def relay_of(folder: Path, leaves: Leaves, study: StudyConfig) -> Relay:
    """Return a relay as it is after a start, in a run whose handshake is over."""
    write_known(folder, Known(digest=DIGEST, study=study.seen_by("berlin"), sizes=SIZES))
    return Relay("north", lambda _: leaves, lambda _: RunFolder(folder), lambda: SIZES, 1)


def asked_for(
    relay: Relay, *sites: str, number: int = 1, payload: bytes = AT_START, least: int = 2
) -> tuple[dict[str, LeafAnswer], bytes]:
    """Ask a relay for a round of some sites; return their answers and the mean."""
    plans = {site: RoundPlan(study=64 * "b", run=RUN, site=site, round=number, asked=1) for site in sites or SIZES}
    plan = plan_for_relay("north", plans, run=RUN, study=DIGEST, seconds=9, absent_seconds=0, least=least)
    reply, content = relay.answer(plan, payload)
    return {one.site: one for one in answers_in(reply, content, plans)}, content[: reply.update_bytes]


def test_relay_answers_a_round_again_as_it_did_whoever_is_there_by_then(tmp_path: Path, make_study: MakeStudy) -> None:
    """Of two sites, then of all three, also after a start of the relay: the same mean, and nobody trains again.

    A second mean would give the third's update: (230 m - 150 n) / 80 = 7.25.
    """
    study, leaves = make_study(relays=NORTH), Leaves(away={"porto"})
    first, mean = asked_for(relay_of(tmp_path, leaves, study))
    assert {"berlin": None, "lyon": None, "porto": "gone"} == {site: one.problem for site, one in first.items()}
    np.testing.assert_allclose(
        np.asarray(Identity().decode(mean)["w"], np.float64), (1.0 * 100 - 2.0 * 50) / 150, atol=1e-7
    )
    leaves.away.clear()
    for _ in range(2):
        again, same = asked_for(relay_of(tmp_path, leaves, study))
        assert mean == same
        assert (first["berlin"], first["lyon"], "late") == (again["berlin"], again["lyon"], again["porto"].problem)
        assert "has sent its mean of round 1 without site 'porto'" in again["porto"].detail
    assert ["berlin", "lyon"] == leaves.asked
    following, _ = asked_for(relay_of(tmp_path, leaves, study), number=2)
    assert {None} == {one.problem for one in following.values()}


def test_relay_makes_no_second_mean_of_fewer_sites_or_from_other_weights(tmp_path: Path, make_study: MakeStudy) -> None:
    """What was sent of three sites is not said of two, and is no answer to other weights; both are refused."""
    relay = relay_of(tmp_path, leaves := Leaves(), make_study(relays=NORTH))
    asked_for(relay)
    with pytest.raises(ProtocolError, match="which holds porto too, and now asked for the round without it"):
        asked_for(relay, "berlin", "lyon")
    with pytest.raises(ProtocolError, match="from other weights than those sent now"):
        asked_for(relay, payload=Identity().encode({"w": np.ones(2, np.float32)}))
    assert list(SIZES) == leaves.asked


def test_relay_keeps_the_means_of_the_rounds_that_may_be_asked_for_again(tmp_path: Path, make_study: MakeStudy) -> None:
    """The last three are there, and a round before them is refused; a mean that is damaged or gone is not made anew."""
    relay = relay_of(tmp_path, leaves := Leaves(), make_study(relays=NORTH))
    for number in range(1, 6):
        asked_for(relay, number=number)
    kept = sorted(path.name for path in (tmp_path / "means").iterdir())
    assert [f"{number}.{kind}" for number in (3, 4, 5) for kind in ("json", "safetensors")] == kept
    assert 15 == len(leaves.asked)
    with pytest.raises(ProtocolError, match="a mean of round 5 was sent already, and of rounds before 3 none is sent"):
        asked_for(relay, number=2)
    (tmp_path / "means/4.safetensors").unlink()
    (tmp_path / "means/5.json").write_text("{")
    for number, sentence in ((4, "which was sent: start a new run"), (5, r"'.*5\.json' is damaged")):
        with pytest.raises(StateError, match=sentence):
            asked_for(relay, number=number)
    assert 15 == len(leaves.asked)


def test_relay_makes_no_mean_that_the_quorum_has_no_use_for(tmp_path: Path, make_study: MakeStudy) -> None:
    """Below what the server says that it needs of this relay nothing is sent or kept, so all may be asked again."""
    relay = relay_of(tmp_path, leaves := Leaves(away={"porto"}), make_study(relays=NORTH))
    first, mean = asked_for(relay, least=3)
    assert b"" == mean
    assert {"berlin": "sum", "lyon": "sum", "porto": "gone"} == {site: one.problem for site, one in first.items()}
    leaves.away.clear()
    again, mean = asked_for(relay, least=3)
    assert {None} == {one.problem for one in again.values()}
    np.testing.assert_allclose(
        np.asarray(Identity().decode(mean)["w"], np.float64), (100 - 100 + 7.25 * 80) / 230, atol=1e-6
    )


@pytest.mark.parametrize(("quorum", "least"), [("all", 3), (5, 2), (6, 3), (2, 2), (None, 2)])
def test_server_says_how_many_of_a_relay_its_quorum_needs(
    make_study: MakeStudy, quorum: int | str | None, least: int
) -> None:
    """The quorum less all sites elsewhere, and two at least: of six sites three are behind the relay."""
    study = make_study(sites=[*SIZES, "rome", "turin", "ulm"], relays=NORTH, quorum=quorum)
    plans = {site: RoundPlan(study=64 * "b", run=RUN, site=site, round=1, asked=1) for site in SIZES}
    exchange = RelayedExchange(None, study, RUN, DIGEST)  # type: ignore[arg-type]  # nothing is asked
    assert least == exchange.mail("north", plans, 9.0, None).least  # type: ignore[union-attr]  # it is a RelayPlan


def test_relay_speaks_of_its_own_sites_alone(tmp_path: Path, make_study: MakeStudy) -> None:
    """Of a thousand and more that are connected to it the server hears only of those that the study has behind it."""
    relay = relay_of(tmp_path, Leaves(away={"lyon"}, strangers=1_001), make_study(relays=NORTH))
    plan = plan_for_relay("north", {}, run=RUN, study=DIGEST, seconds=9, absent_seconds=0)
    assert ("berlin", "porto") == relay.answer(plan, None)[0].online
