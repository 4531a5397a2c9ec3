"""Sites that answer by a script: the server's rounds without a site, a network or a clock."""

import json
import math
import time
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

import consilium.common
from consilium.common.codecs import Identity
from consilium.common.protocol.cards import DataCard, Versions
from consilium.common.protocol.counts import TestCounts as Counts
from consilium.common.protocol.plans import FinishPlan, HandshakePlan, InitialWeightsPlan, Plan, RoundPlan, ScalePlan
from consilium.common.protocol.replies import (
    FailureReply,
    FinishReply,
    HandshakeReply,
    InitialWeightsReply,
    RoundReply,
    ScaleReply,
)
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import ImageTask
from consilium.common.weights.arrays import Array, Weights, digest
from consilium.server.strategies import build_strategy
from consilium.server.study.context import Study
from consilium.server.study.exchange import Answer, Mailing, cut_off
from consilium.server.study.run import run_study
from consilium.server.study.run_folder import RunFolder
from consilium.server.weighting import build_weighting

SITES = ("berlin", "madrid", "paris")
CODEC = Identity()
INITIAL: dict[str, Array] = {
    "body.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "bn.count": np.array(0),
}
NUM_EXAMPLES = {"berlin": 1000, "madrid": 500, "paris": 200, "rome": 400, "turin": 600}
FIVE = tuple(NUM_EXAMPLES)
"""With two more, for what needs more sites than three."""
VERSIONS: dict[str, Any] = {
    "consilium": consilium.common.__version__,
    "flwr": "1.39.0",
    "torch": "2.9.0",
    "torchvision": "0.24.0",
    "python": "3.11",
}
CARD = DataCard(
    num_examples=100,
    num_train=60,
    num_validation=20,
    num_test=20,
    num_skipped=0,
    classes=("no", "yes"),
    schema_digest="5c4e3a" * 8,
)

STAMP: dict[str, Any] = {"run": "run-1", "site": "berlin", "pid": 1, "seconds": 0.1}

Alter = Callable[[Answer], Answer]


class Stopped(Exception):
    """The server's process ends here: neither caught nor expected by the code under test."""


@dataclass
class ScriptedExchange:
    """Sites that answer honestly, but for what is scripted; deterministic, in the order of the plans reversed.

    Args:
        script: (kind of plan, round or 0, site) -> what becomes of the honest answer.
        stop_in_round: the process ends while this round is being asked.
    """

    script: Mapping[tuple[str, int, str], Alter] = field(default_factory=dict)
    online: frozenset[str] = frozenset(SITES)
    patient: bool = False
    stop_in_round: int | None = None
    asked: list[Plan] = field(default_factory=list)
    seconds: Mapping[tuple[int, str], float] = field(default_factory=dict)
    """How long a site works on the plan of a round in a conversation, 1 by default; nobody waits for it in truth."""

    def converse(self) -> "ScriptedConversation":
        """Return a conversation in which each answer comes when its site is done."""
        return ScriptedConversation(self)

    def connected(self) -> frozenset[str]:
        """Return the sites that are online."""
        return self.online


@dataclass
class ScriptedConversation:
    """A conversation by a clock of its own; of answers that are due at the same time, the last sent comes first."""

    exchange: ScriptedExchange
    due: dict[str, tuple[float, int, Plan, bytes | None]] = field(default_factory=dict)
    now: float = 0.0
    count: int = 0

    def open(self) -> frozenset[str]:
        """Return the sites at work."""
        return frozenset(self.due)

    def send(self, mailing: Mailing) -> None:
        """Give every site its plan."""
        for site, plan in mailing.plans.items():
            assert site not in self.due
            self.exchange.asked.append(plan)
            number = getattr(plan, "round", 0)
            if isinstance(plan, RoundPlan) and number == self.exchange.stop_in_round:
                raise Stopped
            self.count -= 1
            seconds = self.exchange.seconds.get((number, site), 1.0)
            self.due[site] = self.now + seconds, self.count, plan, mailing.payload_for(site)

    def answers(
        self, *, absent_seconds: float | None = None, until: Callable[[], float] = lambda: math.inf
    ) -> Generator[Answer, None, None]:
        """Yield the answers in the order in which they are due."""
        while self.due:
            site = min(self.due, key=lambda name: self.due[name][:2])
            now, _, plan, payload = self.due.pop(site)
            if until() <= time.monotonic():
                yield cut_off(site)
                continue
            self.now = now
            answer = honest(site, plan, payload)
            alter = self.exchange.script.get((plan.kind, getattr(plan, "round", 0), site))
            yield alter(answer) if alter is not None else answer

    def give_up(self, sites: Collection[str]) -> None:
        """Let some sites work in vain."""
        self.due = {site: work for site, work in self.due.items() if site not in sites}

    def close(self) -> None:
        """Let all work in vain."""
        self.due.clear()


def honest(site: str, plan: Plan, payload: bytes | None) -> Answer:
    """Return what a working site answers: its delta moves the weights half the way to the site's own target."""
    stamp: dict[str, Any] = {"run": plan.run, "site": site, "pid": 4711, "seconds": 0.25}
    match plan:
        case HandshakePlan():
            counts = {"num_examples": NUM_EXAMPLES[site] + 40, "num_train": NUM_EXAMPLES[site]}
            card = CARD.model_copy(update=counts)
            digests: dict[str, Any] = {"initial_digest": digest(INITIAL), "shared_digest": digest(INITIAL)}
            reply = HandshakeReply(**stamp, versions=Versions(**VERSIONS), card=card, shared_buffers=(), **digests)
            return Answer(site, reply=reply, bytes_up=10, bytes_down=20)
        case ScalePlan():
            return Answer(site, reply=ScaleReply(**stamp))
        case InitialWeightsPlan():
            initial = InitialWeightsReply(**stamp)
            return Answer(site, reply=initial, payload=CODEC.encode(INITIAL))
        case RoundPlan():
            delta = CODEC.encode(trained(site, CODEC.decode(payload or b"")))
            metrics = {"global.loss": 1 / plan.round, "personal.loss": 0.5 / plan.round}
            done = RoundReply(**stamp, round=plan.round, num_examples=NUM_EXAMPLES[site], metrics=metrics)
            return Answer(site, reply=done, payload=delta, bytes_up=100, bytes_down=len(payload or b""))
        case FinishPlan():
            tested = Counts(num_test=20, majority=11, local=15, global_=16, personal=17, pairs=(14, 1, 3, 2))
            return Answer(site, reply=FinishReply(**stamp, round=plan.round, test=tested))
        case _:
            raise AssertionError(f"no scripted study asks for '{plan.kind}'")


def trained(site: str, weights: Weights) -> dict[str, Array]:
    """Return a site's delta: half the way to its own target."""
    target, body = np.float32(FIVE.index(site) + 1), np.asarray(weights["body.weight"], np.float32)
    return {"body.weight": (target - body) / 2, "bn.count": np.array(3)}


DIGEST = "d1" * 32
"""Of the study, as its checkpoints have it."""


def make_study(folder: Path, exchange: ScriptedExchange, **settings: Any) -> Study:
    """Return a study over scripted sites."""
    config = StudyConfig(
        **{
            "name": "hearts",
            "sites": SITES,
            "task": ImageTask(classes=("no", "yes")),
            "rounds": 3,
            "join_timeout_seconds": 0.15,
            **settings,
        }
    )
    return Study(
        config=config,
        digest=DIGEST,
        run="run-1",
        exchange=exchange,
        strategy=build_strategy(config.strategy, rounds=config.rounds, num_sites=3, learning_rate=0.1),
        weighting=build_weighting(config.weights_by),
        folder=RunFolder(folder),
    )


def run(folder: Path, script: Mapping[tuple[str, int, str], Alter] | None = None, **settings: Any) -> dict[str, Any]:
    """Run a study over scripted sites and return its result."""
    return completed(make_study(folder, ScriptedExchange(script or {}), **settings))


def completed(study: Study) -> dict[str, Any]:
    """Run a study to its end and return its result as it lies on disk."""
    return run_study(study, transport="scripted", tls=False).model_dump(mode="json")


def final_weights(folder: Path) -> dict[str, Array]:
    """Return a run's final weights."""
    with safe_open(RunFolder(folder).model / "weights.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the events of one name as they lie on disk."""
    return [event for event in log_of(folder) if event["event"] == name]


def log_of(folder: Path) -> list[dict[str, Any]]:
    """Return all events of a run as they lie on disk."""
    return [json.loads(line) for line in RunFolder(folder).events.read_text(encoding="utf-8").splitlines()]


# --- how an answer is altered ----------------------------------------------------------------------


def reply_with(**changes: Any) -> Alter:
    """Replace values of a reply."""
    return lambda answer: replace(answer, reply=answer.reply.model_copy(update=changes))  # type: ignore[union-attr]  # an honest answer has a reply


def delta_with(**changes: Array | None) -> Alter:
    """Replace arrays of an update; None removes one."""

    def alter(answer: Answer) -> Answer:
        delta = {name.replace("__", "."): array for name, array in changes.items()}
        whole = {**CODEC.decode(answer.payload or b""), **delta}
        kept = {name: array for name, array in whole.items() if array is not None}
        return replace(answer, payload=CODEC.encode(kept))

    return alter


def problem(kind: str, detail: str) -> Alter:
    """Replace the answer by a problem."""
    return lambda answer: Answer(answer.site, problem=kind, detail=detail, bytes_down=answer.bytes_down)


def failure(error: str, message: str) -> Alter:
    """Replace the reply by a failure of the site."""

    def alter(answer: Answer) -> Answer:
        reply = FailureReply(run="run-1", site=answer.site, pid=1, seconds=0.1, error=error, message=message)
        return replace(answer, reply=reply, payload=None)

    return alter


def card_with(**changes: Any) -> Alter:
    """Replace values of the card in a handshake."""

    def alter(answer: Answer) -> Answer:
        assert isinstance(answer.reply, HandshakeReply)
        return reply_with(card=answer.reply.card.model_copy(update=changes))(answer)

    return alter


def join_after_round(number: int, exchange: ScriptedExchange, site: str) -> Mapping[tuple[str, int, str], Alter]:
    """Have a site come online while a round is answered."""

    def alter(answer: Answer) -> Answer:
        exchange.online |= {site}
        return answer

    return {("round", number, "berlin"): alter}


def run_with_late(folder: Path, script: Mapping[tuple[str, int, str], Alter], **settings: Any) -> dict[str, Any]:
    """Run a study in which 'paris' comes after round 2."""
    exchange = ScriptedExchange(online=frozenset({"berlin", "madrid"}))
    exchange.script = {**join_after_round(2, exchange, "paris"), **script}
    study = make_study(folder, exchange, rounds=4, **{"min_sites": 2, "quorum": 2, **settings})
    return completed(study)


# --- what rounds come to ----------------------------------------------------------------------------


def expected_weights(rounds: Mapping[int, tuple[str, ...]] | int) -> dict[str, Array]:
    """Work out FedAvg over honest deltas in plain float64 arithmetic: round number -> sites that count."""
    plan = dict.fromkeys(range(1, rounds + 1), SITES) if isinstance(rounds, int) else rounds
    weights: dict[str, Any] = dict(INITIAL)
    for number in sorted(plan):
        total = sum(NUM_EXAMPLES[site] for site in plan[number])
        mean = sum(
            NUM_EXAMPLES[site] / total * trained(site, weights)["body.weight"].astype(np.float64)
            for site in plan[number]
        )
        weights = {
            "body.weight": (weights["body.weight"] + mean).astype(np.float32),
            "bn.count": weights["bn.count"] + 3,
        }
    return weights


def assert_close(expected: Mapping[str, Any], seen: Mapping[str, Any]) -> None:
    """Compare weights, the floats but for rounding."""
    assert expected.keys() == seen.keys()
    assert expected["bn.count"] == seen["bn.count"]
    np.testing.assert_allclose(expected["body.weight"], seen["body.weight"], rtol=1e-6)
