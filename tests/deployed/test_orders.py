"""What a site obeys: what the study's key signed for it, once, in order, of the study that the run began with."""

import json
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSites, MakeStudy
from coordinators import KEY, STRANGER, Server, give_keys, order_of, signed
from hypothesis import given
from hypothesis import strategies as st

from consilium.client.app import answer_order, answer_plan, forget_sites
from consilium.client.privacy.audit import FILE
from consilium.client.site.site import Site
from consilium.client.wire.orders import LEDGER, MOST_KNOWN_RUNS, Orders
from consilium.common.errors import ConfigError, ProtocolError, StateError
from consilium.common.host.twice import copy_of
from consilium.common.protocol.parse import parse_reply
from consilium.common.protocol.plans import (
    FinishPlan,
    HandshakePlan,
    InitialWeightsPlan,
    KeysPlan,
    PeersPlan,
    Plan,
    RoundPlan,
    UnmaskPlan,
    study_digest,
)
from consilium.common.protocol.replies import FailureReply, FinishReply, HandshakeReply, RoundReply
from consilium.common.study.load import load_site, parse_study, study_text
from consilium.common.study.policy import PolicyConfig
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.wire.envelope import Order, sign_order

TASK = {"kind": "images", "classes": ["a", "b"]}
STUDY = parse_study(
    {"name": "hearts", "sites": ["berlin", "lyon", "porto"], "rounds": 5, "task": TASK}, source="test"
).seen_by("berlin")
OTHER = STUDY.model_copy(update={"rounds": 6})
RUN: dict[str, Any] = {"run": "run-1", "site": "berlin"}


def ledger(folder: Path, *, max_runs: int = 20, site: str = "berlin") -> Orders:
    """Open the ledger as a worker does that was just started."""
    return Orders(folder, site=site, key=KEY.public_key(), max_runs=max_runs)


def handshake(study: StudyConfig = STUDY, run: str = "run-1") -> HandshakePlan:
    """Return the plan of a handshake."""
    return HandshakePlan(study=study, run=run, site=study.sites[0])


def round_plan(number: int, study: StudyConfig = STUDY, run: str = "run-1") -> RoundPlan:
    """Return the plan of a round."""
    return RoundPlan(study=study_digest(study), run=run, site="berlin", round=number, asked=number)


def unmask_plan(number: int) -> UnmaskPlan:
    """Return the plan by which the masks of a round are taken off."""
    return UnmaskPlan(study=study_digest(STUDY), **RUN, round=number, attempt=1, survivors=("berlin", "lyon", "porto"))


def finish(number: int = 5) -> FinishPlan:
    """Return the plan of a finish."""
    return FinishPlan(study=study_digest(STUDY), **RUN, round=number, asked=number)


def obey(orders: Orders, plan: Plan, number: int) -> None:
    """Go through an order as `consilium.client.app` does, without the work."""
    order = orders.open(signed(plan, number), None)
    orders.admit(order, plan)
    orders.answered(order, plan)


def after(folder: Path, *plans: Plan) -> Orders:
    """Return a newly started worker's ledger after these plans, numbered from 1, were answered."""
    orders = ledger(folder)
    for number, plan in enumerate(plans, start=1):
        obey(orders, plan, number)
    return ledger(folder)


# --- the envelope ----------------------------------------------------------------------------------


def refused_when_opened(folder: Path, content: bytes, payload: bytes | None = None) -> str:
    """Return the sentence with which an order is refused after a handshake."""
    with pytest.raises(ProtocolError) as caught:
        after(folder, handshake()).open(content, payload)
    return str(caught.value)


def test_order_that_was_signed_for_this_site_is_opened(tmp_path: Path) -> None:
    """With and without a payload, as bytes or as a view of them, and of both kinds; opening alone writes nothing."""
    for payload in (None, b"", b"weights"):
        order = order_of(round_plan(1), 2, payload)
        seen = payload if payload is None else memoryview(payload)
        assert order == ledger(tmp_path).open(sign_order(order, KEY), seen)
    flower = Order(number=7, run="run-1", site="berlin", kind="flower", text="{}")
    assert flower == ledger(tmp_path).open(sign_order(flower, KEY), None)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "payload", "sentence"),
    [
        (lambda: signed(round_plan(1), 2, key=STRANGER), None, "not signed with the study's key"),
        (lambda: b"no order", None, "no order"),
        (
            lambda: signed(round_plan(1), 1),
            None,
            "order 1 of run 'run-1' was answered already: expected a number above 1",
        ),
        (lambda: signed(round_plan(1), 2, b"weights"), None, "came with a payload of 0 bytes, signed are 7"),
        (lambda: signed(round_plan(1), 2), b"weights", "came with a payload of 7 bytes, signed are 0"),
        (lambda: signed(round_plan(1), 2, b"weights"), b"weighty", "another payload than the one that was signed"),
        (lambda: signed(round_plan(1), 2), b"", "another payload than the one that was signed"),
        (
            lambda: sign_order(replace(order_of(round_plan(1), 2), site="lyon"), KEY),
            None,
            "this order is for site 'lyon', this is site 'berlin'",
        ),
        (
            lambda: sign_order(replace(order_of(round_plan(1), 2), run="../../x"), KEY),
            None,
            "name of the run in an order",
        ),
    ],
    ids=["forged", "noise", "replay", "payload lost", "payload added", "payload swapped", "empty", "site", "path"],
)
def test_order_that_is_not_to_be_obeyed_is_refused_before_its_plan_is_read(
    content: Callable[[], bytes], payload: bytes | None, sentence: str, tmp_path: Path
) -> None:
    """Each with its own sentence."""
    assert sentence in refused_when_opened(tmp_path, content(), payload)


def test_every_changed_byte_of_an_order_is_noticed(tmp_path: Path) -> None:
    """No byte of the order or of its signature is without meaning."""
    content, orders = signed(round_plan(1), 2), ledger(tmp_path)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        with pytest.raises(ProtocolError):
            orders.open(bytes(changed), None)


@given(numbers=st.lists(st.integers(min_value=0, max_value=2**64 - 1), min_size=1, max_size=8))
def test_numbers_are_obeyed_only_while_they_grow(
    numbers: Sequence[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the sequence, and restarted before each order: obeyed is what is above all that was obeyed before."""
    folder, highest = tmp_path_factory.mktemp("ledger"), 0
    for number in numbers:
        orders = ledger(folder)
        if number > highest:
            obey(orders, handshake(), number)
            highest = number
        else:
            with pytest.raises(ProtocolError, match="was answered already"):
                orders.open(signed(handshake(), number), None)


def test_every_run_and_kind_of_order_is_counted(tmp_path: Path) -> None:
    """A number is of one run; an order without a plan, and one that failed, are used up like any other."""
    orders = after(tmp_path, handshake(), round_plan(1))
    obey(orders, handshake(run="run-2"), 1)
    flower = Order(number=3, run="run-1", site="berlin", kind="flower", text="{}")
    orders.answered(orders.open(sign_order(flower, KEY), None))
    with pytest.raises(ProtocolError, match="order 3 of run 'run-1' was answered already"):
        ledger(tmp_path).open(signed(round_plan(2), 3), None)
    obey(ledger(tmp_path), round_plan(2), 4)


# --- the order of plans ----------------------------------------------------------------------------


def test_whole_run_is_obeyed_by_a_worker_that_is_restarted_before_every_plan(tmp_path: Path) -> None:
    """Handshake, initial weights, every round, the end; rounds in which a site was not asked are left out."""
    initial = InitialWeightsPlan(study=study_digest(STUDY), **RUN)
    plans: list[Plan] = [handshake(), initial, round_plan(1), round_plan(3), round_plan(5), finish()]
    for number, plan in enumerate(plans, start=1):
        obey(ledger(tmp_path), plan, number)


def test_keys_and_masks_are_asked_for_in_their_place(tmp_path: Path) -> None:
    """Keys after the handshake, also again, and masks after the round that they hide."""
    digest = study_digest(STUDY)
    keys: list[Plan] = [KeysPlan(study=digest, **RUN), PeersPlan(study=digest, **RUN, keys={})]
    rounds: list[Plan] = [round_plan(1), unmask_plan(1), *keys, round_plan(2), unmask_plan(2)]
    for number, plan in enumerate([handshake(), *keys, *rounds, finish()], start=1):
        obey(ledger(tmp_path), plan, number)


def test_server_that_resumed_asks_again(tmp_path: Path) -> None:
    """From its checkpoint: the handshake, the last round that was answered, and in the end the test counts."""
    past: list[Plan] = [handshake(), round_plan(1), round_plan(2), handshake(), round_plan(2), round_plan(5)]
    back: list[Plan] = [handshake(), round_plan(3), round_plan(4), round_plan(5)]  # its newest checkpoints were damaged
    orders = after(tmp_path, *past, *back)
    again: list[Plan] = [finish(), handshake(), finish()]
    for number, plan in enumerate(again, start=11):
        obey(orders, plan, number)


def test_study_that_may_stop_early_may_finish_after_any_of_its_rounds(tmp_path: Path) -> None:
    """After the third, or as if it had ended with an earlier one, and then never again; but not before the first."""
    early = parse_study(STUDY.model_dump(mode="json") | {"stopping": {"patience": 2}}, source="test")
    past: list[Plan] = [handshake(early), round_plan(1, early), round_plan(2, early), round_plan(3, early)]
    for number, sentence in ((0, "one of the study's 5 rounds, and not after round 0"), (6, "and not after round 6")):
        orders, plan = (
            after(tmp_path / str(number), *past),
            finish(number).model_copy(update={"study": study_digest(early)}),
        )
        with pytest.raises(ProtocolError, match=sentence):
            obey(orders, plan, len(past) + 1)
    for number in (1, 3):
        orders, plan = (
            after(tmp_path / str(number), *past),
            finish(number).model_copy(update={"study": study_digest(early)}),
        )
        obey(orders, plan, len(past) + 1)
        with pytest.raises(ProtocolError, match="no round comes after that"):
            obey(orders, round_plan(4, early), len(past) + 2)
        obey(orders, handshake(early), len(past) + 2)
        other = finish(2).model_copy(update={"study": study_digest(early)})
        with pytest.raises(ProtocolError, match=f"after the study's last round, {number}, and not after round 2"):
            obey(orders, other, len(past) + 3)


@pytest.mark.parametrize(
    ("past", "plan", "sentence"),
    [
        ([], round_plan(1), "run 'run-1' has had no handshake here"),
        ([], finish(), "had no handshake here"),
        ([handshake(run="run-2")], round_plan(1), "had no handshake here"),
        ([handshake()], round_plan(6), "ends with round 5, the plan is for round 6"),
        ([handshake()], round_plan(999_999), "ends with round 5, the plan is for round 999999"),
        ([handshake(), round_plan(4)], round_plan(1), "has answered round 4, the plan is for the earlier round 1"),
        (
            [handshake(), round_plan(4), round_plan(3), round_plan(2)],
            round_plan(1),
            "has answered round 4, the plan is for the earlier round 1",
        ),
        ([handshake(), round_plan(3)], round_plan(4, OTHER), "this plan is of another one"),
        ([handshake(), round_plan(3)], handshake(OTHER), "has trained another study than the one asked for now"),
        ([handshake(), finish()], handshake(OTHER), "has trained another study than the one asked for now"),
        ([handshake(), round_plan(5), finish()], round_plan(5), "has finished here"),
        ([handshake()], unmask_plan(1), "masks of round 1 are to be taken off, the last round answered here is 0"),
        ([handshake(), round_plan(3)], unmask_plan(2), "masks of round 2 are to be taken off, the last round answered"),
        ([handshake(), round_plan(3)], finish(3), "read after the study's last round, 5, and not after round 3"),
        ([handshake()], finish(0), "read after the study's last round, 5, and not after round 0"),
    ],
)
def test_plan_out_of_order_is_refused(past: list[Plan], plan: Plan, sentence: str, tmp_path: Path) -> None:
    """Signed and new, but not what may come next in this run; the refusal leaves the ledger as it was."""
    orders, number = after(tmp_path, *past), len(past) + 1
    order, before = orders.open(signed(plan, number), None), sorted(tmp_path.rglob("*"))
    with pytest.raises(ProtocolError, match=re.escape(sentence)) as caught:
        orders.admit(order, plan)
    assert "run 'run-1'" in str(caught.value)
    assert before == sorted(tmp_path.rglob("*"))


def test_study_may_be_corrected_until_the_first_round(tmp_path: Path) -> None:
    """A coordinator whose handshake failed at another site starts the same run again; nothing was trained yet."""
    orders = after(tmp_path, handshake(OTHER), handshake())
    obey(orders, round_plan(1), 3)


@pytest.mark.parametrize("changed", [{"run": "run-2"}, {"site": "lyon"}])
def test_plan_for_another_run_or_site_than_its_order_is_refused(changed: dict[str, str], tmp_path: Path) -> None:
    """What was signed names the run and the site twice, and they agree."""
    orders = after(tmp_path, handshake())
    plan = round_plan(1).model_copy(update=changed)
    order = orders.open(sign_order(replace(order_of(plan, 2), **RUN), KEY), None)
    with pytest.raises(ProtocolError, match=r"the plan is for run 'run-.' at site '.*', its order is signed for run"):
        orders.admit(order, plan)


# --- room ------------------------------------------------------------------------------------------


def test_invented_runs_do_not_fill_the_disk(tmp_path: Path) -> None:
    """Of 50 runs as many are admitted as the settings allow; the others leave no folder and no line in the ledger."""
    orders, refused = ledger(tmp_path, max_runs=3), []
    for number in range(50):
        plan = handshake(run=f"invented-{number}")
        order = orders.open(signed(plan, 1), None)
        try:
            orders.admit(order, plan)
        except ProtocolError as error:
            refused.append(str(error))
            continue
        (tmp_path / "hearts" / plan.run).mkdir(parents=True)
        orders.answered(order, plan)
    sentence = f"keeps 3 runs on its disk, and max_runs = 3 in its site.toml allows no further one: delete .*{tmp_path}"
    assert 47 == len(refused) == sum(1 for each in refused if re.search(sentence, each))
    assert 3 == len(list((tmp_path / "hearts").iterdir())) == len(json.loads((tmp_path / LEDGER).read_text())["runs"])


def test_deleted_folder_makes_room_for_a_run_and_not_for_old_orders(tmp_path: Path) -> None:
    """Folders of other studies count, the cache of features does not; a run without its folder stays in the ledger."""
    (tmp_path / ".features" / "cached").mkdir(parents=True)
    old = tmp_path / "kidneys" / "run-0"
    old.mkdir(parents=True)
    orders = ledger(tmp_path, max_runs=1)
    with pytest.raises(ProtocolError, match="then start run 'run-1' again"):
        obey(orders, handshake(), 1)
    old.rmdir()
    obey(orders, handshake(), 1)
    with pytest.raises(ProtocolError, match="was answered already"):
        obey(ledger(tmp_path, max_runs=1), handshake(), 1)
    (tmp_path / "hearts" / "run-1").mkdir(parents=True)
    obey(orders, handshake(), 2)  # it is there already


def test_full_ledger_takes_no_further_run(tmp_path: Path) -> None:
    """It forgets no run, so it has an end; the runs that it knows go on."""
    runs = {f"run-{number}": {"number": 1} for number in range(MOST_KNOWN_RUNS)}
    (tmp_path / LEDGER).write_text(json.dumps({"site": "berlin", "runs": runs}))
    with pytest.raises(ProtocolError, match=f"orders of {MOST_KNOWN_RUNS} runs, all that its ledger"):
        ledger(tmp_path).open(signed(handshake(run="one-more"), 1), None)
    obey(ledger(tmp_path), handshake(), 2)


# --- the file --------------------------------------------------------------------------------------


def test_ledger_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    """As is everything that a site keeps."""
    after(tmp_path, handshake())
    assert {LEDGER, f"{LEDGER}.copy"} == {path.name for path in tmp_path.iterdir()}
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"number":2', '"number":-2'),
        lambda text: text.replace('"number":2', '"number":2,"more":1'),
        lambda text: text.replace("run-1", "../run-1"),
    ],
    ids=["half", "empty", "list", "negative", "more", "path"],
)
def test_damaged_ledger_stops_the_site_and_is_kept(damage: Callable[[str], str], tmp_path: Path) -> None:
    """Nothing is obeyed by a site that does not know what it has answered; a person decides, and reads how.

    With its copy, orders that were answered stay so.
    """
    after(tmp_path, handshake(), round_plan(1))
    path = tmp_path / LEDGER
    good = path.read_text()
    path.write_text(damage(good))
    with pytest.raises(ProtocolError, match="order 2 of run 'run-1' was answered already"):
        ledger(tmp_path).open(signed(round_plan(1), 2), None)
    path.write_text(good)
    copy_of(path).unlink()
    path.write_text(damaged := damage(path.read_text()))
    with pytest.raises(StateError, match=r"ledger of orders '.*orders.json' is damaged, .* Put it and its copy back"):
        ledger(tmp_path)
    assert damaged == path.read_text()


def test_ledger_of_another_site_is_refused(tmp_path: Path) -> None:
    """Two sites do not share a state folder."""
    after(tmp_path, handshake())
    with pytest.raises(StateError, match=r"ledger of site 'berlin', expected 'lyon'"):
        ledger(tmp_path, site="lyon")


# --- plans -----------------------------------------------------------------------------------------


def test_plans_name_no_other_site_and_stay_small(make_study: MakeStudy) -> None:
    """In a study of 1,000 sites: the handshake tells how many there are, and a plan for a round is below 2 kB."""
    names = [f"hospital-{number:04d}" for number in range(1000)]
    columns = {f"measurement-{number}": {"kind": "number"} for number in range(200)}
    task = {"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": columns}
    study = make_study(sites=names, task=task, quorum=800, min_sites=900)
    view = study.seen_by(names[7])
    who: dict[str, Any] = {"run": "r" * 100, "site": names[7]}
    later: dict[str, Any] = {"study": study_digest(view), **who}
    plans = [
        HandshakePlan(study=view, **who),
        InitialWeightsPlan(**later),
        RoundPlan(**later, round=10**9, asked=10**9, accepted=10**9 - 1, share=1 / 3, base=10**9 - 1),
        FinishPlan(**later, round=10**9, asked=10**9, accepted=10**9),
    ]
    for plan in plans:
        text = plan.model_dump_json()
        assert {names[7]} == set(re.findall(r"hospital-\d{4}", text))
        assert len(text) < 2000 or isinstance(plan, HandshakePlan)
    assert 1000 == view.num_sites


@pytest.mark.parametrize(
    "rule",
    [
        {"weighting": {"factors": [{"kind": "size"}], "maximum": 0.4}},
        {"strategy": {"kind": "trimmed_mean", "trim": 1}},
    ],
    ids=["shares", "least sites"],
)
def test_study_as_a_site_sees_it_is_the_study_but_for_the_names(rule: dict[str, Any], make_study: MakeStudy) -> None:
    """Whatever rules the cohort must keep: the view is valid, gives the same cohort, and is the view of itself."""
    study = make_study(sites=["berlin", "lyon", "porto", "rome"], quorum=3, cohort_fraction=0.75, **rule)
    with pytest.raises(ConfigError):
        make_study(sites=["lyon"], **rule)
    view = study.seen_by("lyon")
    assert view == parse_study(view.model_dump(), source="test") == view.seen_by("lyon")
    assert (3, 3, ("lyon",)) == (study.cohort_size, view.cohort_size, view.sites)
    ignored = {"sites", "num_sites"}
    assert study.model_dump(exclude=ignored) == view.model_dump(exclude=ignored)
    with pytest.raises(ConfigError, match="site 'oslo' is not one of the sites of study 'quick'"):
        study.seen_by("oslo")


def test_handshake_that_names_other_sites_is_no_plan(make_study: MakeStudy) -> None:
    """A server that sends the whole study is of another release, or careless."""
    with pytest.raises(ValueError, match="names 3 sites, expected 'berlin' alone"):
        HandshakePlan(study=make_study(), **RUN)


# --- through the site ------------------------------------------------------------------------------


@pytest.fixture
def make_study(make_study: MakeStudy) -> MakeStudy:
    """Return the function that builds a study, with fixed scales: no order has to settle them."""
    fixed = {name: {"mean": 0.0, "std": 1.0} for name in "ab"}
    task = make_study().task.model_dump() | {"scale": fixed}
    return lambda **changes: make_study(**{"task": task, **changes})


@pytest.fixture
def site(make_sites: MakeSites) -> Iterator[Path]:
    """Yield the settings of a site that has the study's key and its own, and obeys studies that it has not accepted."""
    path = make_sites({"berlin": 40}, max_runs=2)["berlin"]
    give_keys(path)
    (path.parent / "policy.toml").write_text("accepted_study = false\n")
    forget_sites()
    yield path
    forget_sites()


def test_run_is_answered_by_a_worker_that_is_restarted_before_every_order(site: Path, make_study: MakeStudy) -> None:
    """Neither ledger nor study is only in memory: no second handshake is needed."""
    server = Server(site, make_study(rounds=2))
    assert isinstance(server.shake_hands(), HandshakeReply)
    forget_sites()
    weights = server.initial()
    for number in (1, 2):
        forget_sites()
        reply, delta = server.send(RoundPlan(**server.who, round=number, asked=number), weights)
        assert isinstance(reply, RoundReply) and delta is not None
    forget_sites()
    assert isinstance(server.send(FinishPlan(**server.who, round=2, asked=2), weights)[0], FinishReply)


def test_data_and_model_stay_in_memory_from_order_to_order(
    site: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run builds the site once; a second run of the same study builds it again at its handshake, and only then."""
    built: list[SiteConfig] = []
    servers = [Server(site, make_study(), run=name) for name in ("run-1", "run-2")]

    def counting(config: SiteConfig, study: StudyConfig, *, policy: PolicyConfig) -> Site:
        built.append(config)
        return Site(config, study, policy=policy)

    monkeypatch.setattr("consilium.client.app.Site", counting)
    for runs, server in enumerate(servers, start=1):
        server.shake_hands()
        weights = server.initial()
        server.send(RoundPlan(**server.who, round=1, asked=1), weights)
        assert runs == len(built)
    for server in servers:
        assert isinstance(server.send(RoundPlan(**server.who, round=2, asked=2), weights)[0], RoundReply)
    assert 2 == len(built)


def test_run_inside_the_ranges_goes_on_until_the_site_strikes_them(site: Path, make_study: MakeStudy) -> None:
    """Each plan is compared with what is accepted now, by a worker that has the study in memory too."""
    accepted = make_study(accept={"rounds": "<= 5"})
    (site.parent / "study.toml").write_text(study_text(accepted))
    assert (
        "rounds (asked for: 6; accepted: 3 and later up to 5)"
        in Server(site, make_study(rounds=6)).shake_hands().message
    )
    server = Server(site, make_study(rounds=5), run="run-2")
    assert isinstance(server.shake_hands(), HandshakeReply)
    weights = server.initial()
    assert isinstance(server.send(RoundPlan(**server.who, round=1, asked=1), weights)[0], RoundReply)
    site.write_text(f"accept_ranges = false\n{site.read_text()}")
    reply, _ = server.send(RoundPlan(**server.who, round=2, asked=2), weights)
    assert isinstance(reply, FailureReply) and "they differ in rounds (asked for: 5" in reply.message


def test_site_in_memory_is_of_no_use_to_a_run_without_a_handshake(site: Path, make_study: MakeStudy) -> None:
    """In one process too, where no ledger is kept: the same study, but under the name of another run."""
    server = Server(site, make_study())
    server.shake_hands()
    reply, _ = answer_plan(site, RoundPlan(**{**server.who, "run": "run-2"}, round=1, asked=1), server.initial())
    assert isinstance(reply, FailureReply) and "run 'run-2' had no handshake here" in reply.message


def test_what_is_refused_changes_nothing_at_the_site(site: Path, make_study: MakeStudy) -> None:
    """Forged, replayed, of another study, past the end, of one run too many: a sentence each, and no file differs.

    But for the audit log, which has a line for each of those that the study's key signed for this site anew.
    """
    study = make_study(rounds=2)
    server = Server(site, study)
    server.shake_hands()
    weights = server.initial()
    plan = RoundPlan(**server.who, round=1, asked=1)
    genuine = signed(plan, 3, weights)
    assert isinstance(parse_reply(answer_order(site, genuine, weights)[0], site="berlin"), RoundReply)
    state = load_site(site).state_dir
    Server(site, study, run="run-2").shake_hands()
    other: dict[str, Any] = {**server.who, "study": study_digest(make_study(rounds=3).seen_by("berlin"))}
    elsewhere: dict[str, Any] = {**server.who, "site": "lyon"}
    unknown = HandshakePlan(study=server.view, run="run-3", site="berlin")
    audit, lines = state / FILE, len((state / FILE).read_bytes().splitlines())
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file() and path != audit}
    for content, sentence in (
        (signed(plan, 4, weights, key=STRANGER), "not signed with the study's key"),
        (genuine, "order 3 of run 'run-1' was answered already"),
        (
            signed(RoundPlan(**server.who, round=999_999, asked=999_999), 4, weights),
            "ends with round 2, the plan is for round 999999",
        ),
        (signed(RoundPlan(**other, round=2, asked=2), 4, weights), "this plan is of another one"),
        (signed(RoundPlan(**elsewhere, round=2, asked=2), 4, weights), "for site 'lyon', this is site 'berlin'"),
        (signed(FinishPlan(**server.who, round=1, asked=1), 4, weights), "read after the study's last round, 2"),
    ):
        reply = parse_reply(answer_order(site, content, weights)[0], site="berlin")
        assert isinstance(reply, FailureReply)
        assert ("AnsweredAlready" if content == genuine else "ProtocolError") == reply.error
        assert sentence in reply.message
    reply = parse_reply(answer_order(site, signed(unknown, 1), None)[0], site="berlin")
    assert isinstance(reply, FailureReply) and "max_runs = 2" in reply.message and str(state) not in reply.message
    assert before == {path: path.read_bytes() for path in state.rglob("*") if path.is_file() and path != audit}
    refused = [json.loads(line) for line in audit.read_bytes().splitlines()[lines:]]
    assert [("ProtocolError", "run-1")] * 3 + [("ProtocolError", "run-3")] == [(e["answer"], e["run"]) for e in refused]


def test_plan_that_failed_is_used_up(site: Path, make_study: MakeStudy) -> None:
    """The same order is not tried again and again; the server signs a new one."""
    server = Server(site, make_study())
    server.shake_hands()
    assert isinstance(server.send(RoundPlan(**server.who, round=1, asked=1), b"no weights")[0], FailureReply)
    repeated = answer_order(site, signed(RoundPlan(**server.who, round=1, asked=1), 2, b"no weights"), b"no weights")[0]
    assert "was answered already" in repeated


def test_plan_that_failed_moves_no_run_forward(site: Path, make_study: MakeStudy) -> None:
    """Neither round nor end were reached: what comes before them may still be asked."""
    server = Server(site, make_study())
    server.shake_hands()
    weights = server.initial()
    for plan in (RoundPlan(**server.who, round=3, asked=3), FinishPlan(**server.who, round=3, asked=3)):
        assert isinstance(server.send(plan, b"no weights")[0], FailureReply)
    assert isinstance(server.send(RoundPlan(**server.who, round=1, asked=1), weights)[0], RoundReply)


def test_order_is_answered_without_the_studys_key_by_a_sentence(site: Path) -> None:
    """A site whose bundle was not accepted yet obeys nothing."""
    (site.parent / "study.pub").unlink()
    reply = parse_reply(answer_order(site, signed(handshake(), 1), None)[0], site="berlin")
    assert isinstance(reply, FailureReply)
