"""A hospital's policy against a coordinator who has the study's key: every rule refuses, in a line of the audit log."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import PLAIN_SGD, MakeSites, MakeStudy
from coordinators import KEY, Server, give_keys, with_fixed_scales

from consilium.client.app import answer_order, answer_plan, forget_sites
from consilium.client.privacy.audit import FILE, verified
from consilium.client.privacy.policy.approvals import approve_run, approved_runs, withdraw_run
from consilium.client.privacy.policy.gate import Gate
from consilium.client.privacy.policy.order_rules import forget_sizes
from consilium.client.privacy.policy.rules import LEFT_OUT, RULES, rules_named
from consilium.common.errors import PolicyRefused, error_named
from consilium.common.protocol.flower_orders import MessageOrder
from consilium.common.protocol.parse import parse_reply
from consilium.common.protocol.plans import FinishPlan, HandshakePlan, RoundPlan
from consilium.common.protocol.replies import FailureReply, FinishReply, HandshakeReply, RoundReply
from consilium.common.study.load import load_site, study_text
from consilium.common.study.policy import UNBOUND, PolicyConfig
from consilium.common.study.study import StudyConfig
from consilium.common.wire.envelope import Order, sign_order

YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
PRIVATE: Mapping[str, Any] = {"epsilon": 8.0}
BEGUN = "begun"
"""What the coordinator has done before its attack: it shook hands, and has the initial weights."""


@dataclass(frozen=True)
class Attack:
    """What a coordinator asks, and the policy that refuses it.

    Args:
        policy: of the hospital, in addition to the defaults.
        study: settings of the coordinator's study.
        words: part of the sentence.
        before: what is done at the site's disk first.
    """

    rule: str
    words: str
    policy: Mapping[str, Any] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Path], object] = lambda _: None


def private(**examples: Any) -> dict[str, Any]:
    """Return settings of a study that promises something."""
    return {"privacy": {"examples": {**PRIVATE, **examples}}}


def training(**changes: Any) -> dict[str, Any]:
    """Return settings of a study that trains in another way."""
    return {"training": {"batch_size": 8, "learning_rate": 0.1, **({"epochs": 1} | changes)}}


def fill(state_dir: Path) -> None:
    """Let a site's state be larger than a megabyte."""
    state_dir.mkdir(exist_ok=True)
    (state_dir / "large").write_bytes(bytes(1_000_001))


OPEN = {"accepted_study": False}
ATTACKS = [
    Attack("accepted_study", "has accepted no study", {"accepted_study": True}),
    Attack(
        "approve_runs", "run 'run-1' is not approved yet: .* 'consilium site approve-run run-1'", {"approve_runs": True}
    ),
    Attack("expires", f"obeys no plan after {YESTERDAY}", {"expires": YESTERDAY}),
    Attack(
        "methods",
        "allows the methods fedavg, and is asked for ditto",
        {"methods": ["fedavg"]},
        {"method": {"kind": "ditto"}},
    ),
    Attack(
        "strategies", "strategies fedavg, .* for fedavgm", {"strategies": ["fedavg"]}, {"strategy": {"kind": "fedavgm"}}
    ),
    Attack(
        "weightings",
        "weightings size, .* for loss",
        {"weightings": ["size"]},
        {"weighting": {"factors": [{"kind": "loss"}]}},
    ),
    Attack("models", "models linear, and is asked for mlp", {"models": ["linear"]}),
    Attack("codecs", "codecs zstd, .* for int8", {"codecs": ["zstd"]}, {"downlink": [{"kind": "int8"}]}),
    Attack("require_privacy", "obeys private studies only", {"require_privacy": True}),
    Attack("max_epsilon", "an epsilon of 3 in all, and the study is to spend 8", {"max_epsilon": 3.0}, private()),
    Attack("max_delta", "a delta of 1e-06, and the study has 0.001", {"max_delta": 1e-6}, private(delta=0.001)),
    Attack(
        "min_noise",
        "multiplier of at least 2, and the study has 0.5",
        {"min_noise": 2.0},
        private(epsilon=None, noise=0.5),
    ),
    Attack("unit", "the study protects single rows", {}, private(unit="example")),
    Attack("require_secure_aggregation", "with secure aggregation only", {"require_secure_aggregation": True}),
    Attack("min_sites", "at least 4 sites in all, and the study has 3", {"min_sites": 4}),
    Attack("min_examples", "takes part with at least 50 examples, and holds fewer", {"min_examples": 50}),
    Attack("min_batch", "at least 8 examples, and the study has batches of 1", {}, training(batch_size=1)),
    Attack("min_batch", "leaves it fewer to train on", {}, {"split": {"test": 0.9, "validation": 0.0}}),
    Attack(
        "max_steps", "at most 10000 steps in a round, .* for 1000000000000", {}, training(steps=10**12, epochs=None)
    ),
    Attack("max_steps", "at most 10000 steps in a round, .* for 40000", {}, training(epochs=10_000)),
    Attack("max_steps", "at most 10000 steps", {}, {"method": {"kind": "fine_tune", "epochs": 10**9}}),
    Attack("max_rounds", "at most 1000 rounds of a study, and this one has 1000000000000", {}, {"rounds": 10**12}),
    Attack("requests_per_hour", "obeys 2 plans an hour", {"requests_per_hour": 2}, {BEGUN: True}),
    Attack("max_state_mb", "keeps at most 1 MB of state", {"max_state_mb": 1}, before=fill),
    Attack("kept_updates", "the coordinator keeps its updates", {}, {"keep_updates": True}),
    Attack("forbidden_arrays", "never lets these arrays leave", {"forbidden_arrays": ["*Weight"]}),
    Attack(
        "metrics",
        "leave: train.*; the study needs update.loss",
        {"metrics": ["train.*"]},
        {"weighting": {"factors": [{"kind": "loss"}]}},
    ),
]
ENDLESS = {"privacy", "training", "split", "rounds", BEGUN, "keep_updates"}
LATER = [each for each in ATTACKS if each.rule != "max_steps" and not ENDLESS & each.study.keys()]
"""Those whose study would be run to its end in moments, were it allowed."""


@pytest.fixture
def make_study(make_study: MakeStudy) -> MakeStudy:
    """Return the function that builds a study, with fixed scales: no order has to settle them."""
    return with_fixed_scales(make_study)


@pytest.fixture
def site(make_sites: MakeSites) -> Iterator[Path]:
    """Yield the settings of a site with keys, and without a policy of its own."""
    path = make_sites({"berlin": 40})["berlin"]
    give_keys(path)
    forget_sites()
    yield path
    forget_sites()


def write_policy(site: Path, **rules: Any) -> None:
    """Write a site's policy, which obeys studies that were not accepted unless it says otherwise."""
    (site.parent / "policy.toml").write_text(tomli_w.dumps(OPEN | rules))


def lines(site: Path) -> list[dict[str, Any]]:
    """Return the lines of a site's audit log."""
    path = load_site(site).state_dir / FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def begun(site: Path, study: StudyConfig, run: str = "run-1") -> tuple[Server, bytes]:
    """Return a server whose handshake a site has answered, and the initial weights."""
    server = Server(site, study, run)
    assert isinstance(reply := server.shake_hands(), HandshakeReply), reply
    return server, server.initial()


def one_round(server: Server, weights: bytes, number: int = 1) -> Any:
    """Return the reply to a round."""
    return server.send(RoundPlan(**server.who, round=number, asked=number), weights)[0]


# --- every rule refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.rule)
def test_rule_refuses_a_signed_plan_and_its_audit_log_says_so(
    attack: Attack, site: Path, make_study: MakeStudy
) -> None:
    """The coordinator has the study's key and a plan of its own; the site names the rule, and no arrays leave."""
    write_policy(site, **attack.policy)
    attack.before(load_site(site).state_dir)
    settings = dict(attack.study)
    if settings.pop(BEGUN, False):
        server, weights = begun(site, make_study(**settings))
        reply = one_round(server, weights)
    else:
        server = Server(site, make_study(**settings))
        reply = server.shake_hands()
    assert isinstance(reply, FailureReply) and "PolicyRefused" == reply.error, reply
    assert reply.message.startswith("site 'berlin' ") and reply.message.endswith(f"({attack.rule} in its policy)")
    with pytest.raises(PolicyRefused, match=attack.words):
        raise error_named(reply.error, reply.message)
    last = lines(site)[-1]
    assert ("PolicyRefused", "run-1", reply.message, 0) == tuple(
        last[name] for name in ("answer", "run", "message", "bytes_up")
    )


def test_every_rule_has_an_attack_and_every_field_a_rule() -> None:
    """A new field of the policy is done when a hostile coordinator was refused by it, or kept from what it hides."""
    refusing = {rule.__name__ for rules in RULES.values() for rule in rules}
    assert set(PolicyConfig.model_fields) == set(rules_named()) == refusing | set(LEFT_OUT)
    assert refusing == {attack.rule for attack in ATTACKS}


@pytest.mark.parametrize("attack", LATER, ids=lambda attack: attack.rule)
def test_policy_that_is_made_stricter_holds_from_the_next_plan_on(
    attack: Attack, site: Path, make_study: MakeStudy
) -> None:
    """A study that has begun is refused too, by a site that was not started again; nothing of the round is trained."""
    write_policy(site, **UNBOUND.model_dump(exclude={"expires", "min_noise"}))
    server, weights = begun(site, make_study(**attack.study))
    assert isinstance(reply := one_round(server, weights), RoundReply), reply
    write_policy(site, **attack.policy)
    attack.before(load_site(site).state_dir)
    forget_sizes()
    reply = one_round(server, weights, 2)
    assert isinstance(reply, FailureReply) and f"({attack.rule} in its policy)" in reply.message


def test_no_policy_means_careful_defaults_over_the_wire_and_none_in_one_process(
    site: Path, make_study: MakeStudy
) -> None:
    """A server's order meets them; a person who holds all data in one process does not."""
    study = make_study(**training(batch_size=1))
    assert "has accepted no study" in Server(site, study).shake_hands().message
    (site.parent / "study.toml").write_text(study_text(study))
    assert "(min_batch in its policy)" in Server(site, study, "run-2").shake_hands().message
    view = study.seen_by("berlin")
    assert isinstance(answer_plan(site, HandshakePlan(study=view, run="run-3", site="berlin"), None)[0], HandshakeReply)


def test_policy_that_cannot_be_read_obeys_nothing(site: Path, make_study: MakeStudy) -> None:
    """A wrong key or a typing error opens no door; the server is not told what the file says."""
    for text in ("min_bach = 8\n", "min_batch = 0\n", "min_batch =", "[accepted_study]\n"):
        (site.parent / "policy.toml").write_text(text)
        reply = Server(site, make_study()).shake_hands()
        sentence = "this site's policy cannot be read, so it obeys nothing; its log says why"
        assert ("PolicyRefused", sentence) == (reply.error, reply.message)
        assert ("PolicyRefused", sentence) == (lines(site)[-1]["answer"], lines(site)[-1]["message"])


# --- what leaves ------------------------------------------------------------------------------------


def test_metrics_leave_by_name_and_with_few_digits(site: Path, make_study: MakeStudy) -> None:
    """Others stay, whatever the study measures; the number of steps, which FedNova divides by, is exact."""
    write_policy(site, metrics=["train.*", "global.loss"], metric_digits=2)
    study = make_study(strategy={"kind": "fednova"}, training=PLAIN_SGD)
    reply = one_round(*begun(site, study))
    assert {"train.loss", "global.loss", "train.effective_steps"} == set(reply.metrics)
    assert all(value == float(f"{value:.2g}") for name, value in reply.metrics.items() if name.endswith("loss"))
    assert sorted(reply.metrics) == lines(site)[-1]["metrics"]


def test_study_that_is_stopped_by_what_may_not_leave_is_refused(site: Path, make_study: MakeStudy) -> None:
    """The server could not say when it ends; stopped by what leaves, or not at all, the same study is obeyed."""
    write_policy(site, metrics=["train.*", "personal.loss"])
    refused = Server(site, make_study(stopping={"patience": 2, "metric": "accuracy"})).shake_hands()
    assert "PolicyRefused" == refused.error
    assert "the study needs personal.accuracy" in refused.message
    begun(site, make_study(stopping={"patience": 2}), "run-2")


def test_class_counts_with_a_small_cell_stay(site: Path, make_study: MakeStudy) -> None:
    """A class of fewer than `least_count` rows is a few persons; then no count leaves, since the rest would tell it."""
    site.write_text("share_class_counts = true\n" + site.read_text())
    write_policy(site)
    counts = Server(site, make_study()).shake_hands().card.class_counts
    assert min(counts.values()) >= 5
    write_policy(site, least_count=min(counts.values()) + 1)
    assert Server(site, make_study(), "run-2").shake_hands().card.class_counts is None


@pytest.mark.parametrize("rules", [{"share_majority": False}, {"least_count": 30}], ids=["never", "small"])
def test_class_balance_does_not_leave_with_the_test_counts(
    rules: dict[str, Any], site: Path, make_study: MakeStudy
) -> None:
    """How often the constant answer is right is the number of test rows of one class: the policy keeps it."""
    write_policy(site, least_count=1)
    server, weights = begun(site, make_study(rounds=1))
    one_round(server, weights)
    test = server.send(FinishPlan(**server.who, round=1, asked=1), weights)[0].test
    assert 0 < test.majority < test.num_test
    write_policy(site, **rules)
    kept = server.send(FinishPlan(**server.who, round=1, asked=1), weights)[0].test
    assert test.model_copy(update={"majority": None}) == kept


# --- the attackers of WIRE.md and PRIVACY.md ----------------------------------------------------------


def test_five_finishes_under_new_names_read_the_test_split_once(site: Path, make_study: MakeStudy) -> None:
    """By content, whatever the run is called, with weights that differ a little each time."""
    write_policy(site)
    answers = []
    for number in range(5):
        server, weights = begun(site, make_study(rounds=1), f"run-{number}")
        server.send(RoundPlan(**server.who, round=1, asked=1), weights)
        other = bytearray(weights)
        other[-1] ^= number
        answers.append(server.send(FinishPlan(**server.who, round=1, asked=1), bytes(other))[0])
    assert isinstance(answers[0], FinishReply)
    assert all("has read the test split of this data for this study already" in each.message for each in answers[1:])
    asked = [line for line in lines(site) if line["kind"] == "finish"]
    assert ["ok"] + ["ProtocolError"] * 4 == [line["answer"] for line in asked]


def test_crafted_weights_find_no_batch_to_read(site: Path, make_study: MakeStudy) -> None:
    """An accepted study is no licence: the same hospital asks for noise or sums before any weights are looked at."""
    study = make_study(**training(steps=1, epochs=None))
    (site.parent / "study.toml").write_text(study_text(study))
    for rules in ({"require_privacy": True}, {"require_secure_aggregation": True}, {"min_batch": 16}):
        write_policy(site, accepted_study=True, **rules)
        reply = Server(site, study, f"run-{next(iter(rules)).replace('_', '-')}").shake_hands()
        assert isinstance(reply, FailureReply) and f"({next(iter(rules))} in its policy)" in reply.message


def test_orders_without_the_key_write_no_line_and_refusals_of_an_hour_are_bounded(
    site: Path, make_study: MakeStudy
) -> None:
    """Strangers cannot fill the disk, nor can who has the key: of 150 refusals 100 are written, the rest counted."""
    write_policy(site)
    begun(site, make_study())
    for number in range(5):
        order = Order(number=number, run="run-9", site="berlin", kind="plan", text="{}")
        answer_order(site, sign_order(order, KEY)[:-1], None)
    assert 2 == len(lines(site))
    write_policy(site, approve_runs=True)
    for number in range(150):
        Server(site, make_study(), f"invented-{number}").shake_hands()
    assert 102 == len(lines(site))
    approve_run(site.parent, "run-1")
    assert isinstance(Server(site, make_study(), "run-1").shake_hands(), FailureReply)  # its number was used before
    server = Server(site, make_study(), "run-1")
    server.number = 10
    assert isinstance(server.shake_hands(), HandshakeReply)
    assert 50 == lines(site)[-1]["refusals_before"]


# --- approvals --------------------------------------------------------------------------------------


def test_run_is_obeyed_once_a_person_has_approved_it_and_only_with_its_study(site: Path, make_study: MakeStudy) -> None:
    """Refused, approved with the study that it asked for, obeyed; another study under its name is refused."""
    write_policy(site, approve_runs=True)
    server, other = Server(site, make_study()), Server(site, make_study(rounds=2))
    assert "is not approved yet" in server.shake_hands().message
    approve_run(site.parent, "run-1", study=lines(site)[-1]["study"])
    other.number = 1
    assert "has approved run 'run-1' with study" in other.shake_hands().message
    server.number = 2
    assert isinstance(server.shake_hands(), HandshakeReply)
    assert withdraw_run(site.parent, "run-1") and not withdraw_run(site.parent, "run-1")
    assert {} == approved_runs(site.parent)
    assert "is not approved yet" in server.send(RoundPlan(**server.who, round=1, asked=1), b"")[0].message


def test_flower_app_is_under_the_rules_of_orders_and_not_those_of_studies(site: Path) -> None:
    """Expiry, approval of runs and the number of plans hold for it; that no study was accepted does not matter."""
    message = MessageOrder(
        run="run-1",
        site="berlin",
        app="a" * 64,
        message_id="b" * 32,
        message_type="train",
        group_id="",
        ttl=9.0,
        run_config={},
    )

    def send(number: int) -> Any:
        order = Order(number=number, run="run-1", site="berlin", kind="flower", text=message.model_dump_json())
        return parse_reply(answer_order(site, sign_order(order, KEY), None)[0], site="berlin")

    assert "has not approved the Flower app" in send(1).message
    for rules in ({"expires": YESTERDAY}, {"approve_runs": True}):
        write_policy(site, **rules)
        assert f"({next(iter(rules))} in its policy)" in send(1).message
        assert ("flower", "PolicyRefused") == (lines(site)[-1]["kind"], lines(site)[-1]["answer"])


# --- the process that talks to the server -----------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"accepted_study": True}, "has accepted no study"),
        ({"expires": YESTERDAY}, "its policy has expired"),
        ({"approve_runs": True}, "run 'run-1' is not approved here"),
        ({"requests_per_hour": 2}, "2 plans were obeyed within the hour"),
    ],
    ids=["accepted_study", "expires", "approve_runs", "requests_per_hour"],
)
def test_large_payload_is_not_fetched_against_the_policy(
    rules: dict[str, Any], words: str, site: Path, make_study: MakeStudy
) -> None:
    """Before its bytes are in memory; the refusal has a line of the audit log, which the worker goes on with."""
    write_policy(site)
    state = load_site(site).state_dir
    gate = Gate(site, state, site.parent / "key")
    order = Order(number=1, run="run-1", site="berlin", kind="plan", text="{}", payload_size=10**9)
    for _ in range(2):
        gate.check(order)
    write_policy(site, **rules)
    with pytest.raises(PolicyRefused, match=words):
        gate.check(order)
    (line,) = lines(site)
    assert ("PolicyRefused", "run-1", 0) == (line["answer"], line["run"], line["bytes_down"])
    Server(site, make_study(), "run-2").shake_hands()
    assert 2 == len(list(verified(state / FILE, site="berlin", keys=())))
    (site.parent / "policy.toml").write_text("not TOML")
    gate.check(order)  # the worker refuses it
