"""Messages between a server and a relay: nothing is lost on the way, and nothing is believed that was not asked for."""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeStudy
from messages import REPLIES

from consilium.common.errors import ProtocolError
from consilium.common.protocol.plans import FinishPlan, HandshakePlan, InitialWeightsPlan, Plan, RelayPlan, RoundPlan
from consilium.common.protocol.relays import (
    LeafAnswer,
    answers_in,
    most_bytes_of_leaf,
    pack_answers,
    plan_for_relay,
    plans_in,
    within,
)
from consilium.common.protocol.replies import HandshakeReply, RelayReply, RoundReply
from consilium.common.study.study import StudyConfig
from consilium.server.relays.exchange import RelayedExchange, _by_leaf
from consilium.server.relays.relay import Relay
from consilium.server.study.exchange import Answer, Mailing
from consilium.server.study.run_folder import RunFolder

RUN, DIGEST = "run-1", 64 * "a"
NORTH = {"north": ["berlin", "lyon"]}


def rounds(*leaves: str) -> dict[str, Plan]:
    """Return plans of one round that differ in what each site has done before."""
    return {
        leaf: RoundPlan(run=RUN, site=leaf, study=number * "b" + (64 - number) * "c", round=3, asked=number)
        for number, leaf in enumerate(leaves, start=1)
    }


def mailed(plans: Mapping[str, Plan]) -> RelayPlan:
    """Return plans as a relay reads them."""
    plan = plan_for_relay("north", plans, run=RUN, study=DIGEST, seconds=5.0, absent_seconds=None)
    return RelayPlan.model_validate_json(plan.model_dump_json())


def reply_to(leaf: str, **changes: Any) -> RoundReply:
    """Return a site's reply to the round."""
    values = {"run": RUN, "site": leaf, "pid": 1, "seconds": 0.1, "round": 3, "num_examples": 9, "metrics": {}}
    return RoundReply(**{**values, **changes})


def relay_reply(**changes: Any) -> RelayReply:
    """Return a relay's reply."""
    return RelayReply(**{"run": RUN, "site": "north", "pid": 1, "seconds": 0.1, "online": ("berlin",), **changes})


def test_relay_reads_the_plans_that_the_server_made(make_study: MakeStudy) -> None:
    """Of a handshake, of a round and of the end; the study is there once, and each site's view of it in its plan."""
    study = make_study(relays=NORTH)
    greeted = {leaf: HandshakePlan(study=study.seen_by(leaf), run=RUN, site=leaf) for leaf in NORTH["north"]}
    first = {"berlin": InitialWeightsPlan(run=RUN, site="berlin", study=DIGEST)}
    ended = {leaf: FinishPlan(run=RUN, site=leaf, study=DIGEST, round=3, accepted=2, asked=3) for leaf in greeted}
    for plans in (greeted, first, rounds("berlin", "lyon"), ended, {}):
        assert plans == plans_in(mailed(plans))
    assert "round" in mailed(rounds("berlin", "lyon")).common


def test_relay_refuses_plans_for_others() -> None:
    """A plan under a site's name that is for another site, of another run, or for a relay is none."""
    for changes in ({"site": "porto"}, {"run": "run-2"}, {"kind": "relay", "seconds": 1}, {"round": 0}):
        plan = mailed(rounds("berlin", "lyon"))
        own = {**plan.own, "berlin": {**plan.own["berlin"], **changes}}
        common = {name: value for name, value in plan.common.items() if name not in changes}
        with pytest.raises(ProtocolError, match="berlin"):
            plans_in(plan.model_copy(update={"own": own, "common": common}))


def test_server_reads_what_the_sites_answered() -> None:
    """Replies and problems, each by its site, with the bytes of the mean before them."""
    answers = [
        LeafAnswer(site="berlin", reply=reply_to("berlin")),
        LeafAnswer(site="lyon", problem="gone", detail="not there"),
    ]
    payload = pack_answers(answers, b"mean")
    assert tuple(answers) == answers_in(relay_reply(update_bytes=4), memoryview(payload), rounds("berlin", "lyon"))
    assert b"mean" == payload[:4]


HOSTILE: dict[str, tuple[list[LeafAnswer], str]] = {
    "a stranger": (
        [LeafAnswer(site="berlin", reply=reply_to("berlin")), LeafAnswer(site="rome", problem="gone")],
        "rome",
    ),
    "one twice": ([LeafAnswer(site="berlin", problem="gone")] * 2, "one is missing or there twice"),
    "one missing": ([LeafAnswer(site="berlin", problem="gone")], "one is missing or there twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_server_refuses_answers_of_others_than_it_asked(name: str) -> None:
    """A relay speaks once for each of its sites that was asked, and for no other."""
    answers, sentence = HOSTILE[name]
    with pytest.raises(ProtocolError, match=sentence):
        answers_in(relay_reply(), pack_answers(answers, b""), rounds("berlin", "lyon"))


def test_site_whose_card_is_too_long_stops_no_other(make_study: MakeStudy) -> None:
    """Half a megabyte of a site's card goes on with the others', and a longer one is a problem of that site alone."""
    study = make_study(relays=NORTH)
    asked = {leaf: HandshakePlan(study=study.seen_by(leaf), run=RUN, site=leaf) for leaf in NORTH["north"]}
    (card,) = (one for one in REPLIES if isinstance(one, HandshakeReply))
    long, longer = (
        LeafAnswer(
            site=leaf,
            reply=card.model_copy(
                update={"run": RUN, "site": leaf, "shared_buffers": tuple(f"buffer.{n:043}" for n in range(number))}
            ),
        )
        for leaf, number in (("berlin", 10_000), ("lyon", 30_000))
    )
    told = [within(one, most_bytes_of_leaf(asked.values())) for one in (long, longer)]
    assert long == told[0]
    assert "protocol" == told[1].problem
    assert "site 'lyon' answered with" in told[1].detail
    assert tuple(told) == answers_in(relay_reply(), pack_answers(told, b""), asked)


def test_server_refuses_damaged_and_swollen_answers() -> None:
    """More bytes of an update than came, text that is none, and a few bytes that would fill the memory."""
    asked = rounds("berlin", "lyon")
    bomb = zlib.compress(b"[" + b" " * 10_000_000, 9)
    for reply, payload, sentence in (
        (relay_reply(update_bytes=99), b"short", "99 are its update"),
        (relay_reply(), b"no zlib", "damaged"),
        (relay_reply(), bomb, "longer than"),
        (relay_reply(), zlib.compress(b'[{"site": "berlin"}]'), "expected a reply or a problem"),
    ):
        with pytest.raises(ProtocolError, match=sentence):
            answers_in(reply, payload, asked)


def test_reply_of_another_site_under_a_site_is_refused() -> None:
    """What a relay says of one site cannot stand for another, and no relay's reply stands for a site's."""
    for reply in (reply_to("lyon"), relay_reply(site="berlin")):
        with pytest.raises(ValueError, match="not one of site 'berlin'"):
            LeafAnswer(site="berlin", reply=reply)


def exchanged(study: StudyConfig) -> RelayedExchange:
    """Return the server's side of a study's relays, without a wire."""
    return RelayedExchange(None, study, RUN, DIGEST)  # type: ignore[arg-type]  # nothing is asked


def test_answer_of_a_relay_is_one_for_each_of_its_sites(make_study: MakeStudy) -> None:
    """Each has its own reply and the mean; bytes count once; the sites that a relay says are there are its own."""
    relayed, asked = exchanged(make_study(relays=NORTH)), rounds("berlin", "lyon")
    answers = [LeafAnswer(site=leaf, reply=reply_to(leaf)) for leaf in asked]
    reply = relay_reply(update_bytes=4, online=("berlin", "porto", "rome"))
    whole = Answer("north", reply=reply, payload=pack_answers(answers, b"mean"), bytes_up=100)
    told = list(_by_leaf(whole, asked, relayed))
    assert ["berlin", "lyon"] == [one.site for one in told]
    assert [b"mean", b"mean"] == [one.payload for one in told]
    assert [100, 0] == [one.bytes_up for one in told]
    assert {"north": frozenset({"berlin"})} == relayed._online


@pytest.mark.parametrize(
    ("answer", "problem", "sentence"),
    [
        (Answer("north", problem="gone", detail="site 'north' is not connected"), "gone", "relay 'north' is not"),
        (Answer("north", problem="timeout", detail="no answer of site 'north'"), "timeout", "carries one at a time"),
        (Answer("north", reply=reply_to("north")), "protocol", "expected RelayReply of run 'run-1': is it a site?"),
        (Answer("north", reply=relay_reply(run="run-2"), payload=b""), "protocol", "expected RelayReply of run"),
    ],
)
def test_relay_without_a_usable_answer_has_none_for_any_of_its_sites(
    make_study: MakeStudy, answer: Answer, problem: str, sentence: str
) -> None:
    """Each of them is away as the relay is, or its answer is wrong as the relay's is."""
    told = list(_by_leaf(answer, rounds("berlin", "lyon"), exchanged(make_study(relays=NORTH))))
    assert {"berlin": problem, "lyon": problem} == {one.site: one.problem for one in told}
    assert all(sentence in one.detail and one.reply is None for one in told)


class Busy:
    """An exchange with a relay that does not answer in time; its own conversation."""

    def connected(self) -> frozenset[str]:
        """Return the relay."""
        return frozenset(NORTH)

    def converse(self) -> "Busy":
        """Return a conversation."""
        return self

    def send(self, _: Mailing) -> None:
        """Take plans in."""

    def answers(self, **_: Any) -> Iterator[Answer]:
        """Yield that there is no answer."""
        yield Answer("north", problem="timeout", detail="no answer of site 'north'")

    def close(self) -> None:
        """Take back all plans."""


def test_relay_that_is_busy_has_no_site_there_and_the_log_says_why(
    make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    """A second run is told what it waits for: a relay carries one run at a time."""
    relayed = RelayedExchange(Busy(), make_study(relays=NORTH), RUN, DIGEST)  # type: ignore[arg-type]  # asked one thing
    assert frozenset() == relayed.connected()
    assert "relay=north does not say which sites it has: does it carry another run?" in caplog.text


def test_names_of_relays_and_their_sites_are_checked(make_study: MakeStudy) -> None:
    """A relay is no site, and each of its sites is one of the study's and of no other relay."""
    for relays, sentence in (
        ({"berlin": ["lyon", "porto"]}, "'berlin' is also the name of a site"),
        ({"north": ["berlin"]}, "'north' has 1 site, expected 2 or more"),
        ({"north": ["berlin", "rome"]}, "'rome' of 'north' is not one of sites"),
        ({"north": ["berlin", "lyon"], "south": ["lyon", "porto"]}, "under 'north' and under 'south'"),
        ({"north": ["berlin", "south"], "south": ["lyon", "porto"]}, "relays of relays do not work"),
    ):
        with pytest.raises(Exception, match=sentence):
            make_study(relays=relays)
    view = make_study(relays=NORTH).seen_by("lyon")
    assert {"north": ("lyon",)} == view.relays
    assert {} == make_study(relays=NORTH).seen_by("porto").relays


class Nobody:
    """An exchange with no site."""

    patient = True

    def connected(self) -> frozenset[str]:
        """Return no site."""
        return frozenset()


def test_relay_says_who_is_not_enrolled_and_what_it_does_not_know(tmp_path: Path) -> None:
    """A site that nobody approved here is away, and what mends it is said; a run without a handshake is refused."""
    relay = Relay("north", lambda _: Nobody(), lambda _: RunFolder(tmp_path), lambda: {"lyon"}, 1)  # type: ignore[arg-type,return-value]  # nobody is asked
    asked = rounds("berlin")
    reply, payload = relay.answer(mailed(asked), b"")
    (answer,) = answers_in(reply, payload, asked)
    assert "gone" == answer.problem
    assert "not enrolled at relay 'north', where 'consilium server approve'" in answer.detail
    with pytest.raises(ProtocolError, match="has had no handshake at this relay"):
        relay.answer(mailed(rounds("lyon")), b"")
