"""Sites that answer by a script: the server's rounds without a site, a network or a clock."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

import common
from common.codecs import Identity
from common.protocol import (
    DataCard,
    FailureReply,
    FinishPlan,
    FinishReply,
    HandshakePlan,
    HandshakeReply,
    InitialWeightsPlan,
    InitialWeightsReply,
    Plan,
    RoundPlan,
    RoundReply,
    ScalePlan,
    ScaleReply,
    Versions,
)
from common.protocol import (
    TestCounts as Counts,
)
from common.study.study import StudyConfig
from common.study.task import ImageTask
from common.weights.arrays import Array, Weights, digest
from server.strategies import build_strategy
from server.study.exchange import NOTHING, Answer
from server.study.run import Study, run_study
from server.study.run_folder import RunFolder
from server.weighting import build_weighting

SITES = ("berlin", "madrid", "paris")
CODEC = Identity()
INITIAL: dict[str, Array] = {
    "body.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "bn.count": np.array(0),
}
NUM_EXAMPLES = {"berlin": 1000, "madrid": 500, "paris": 200}
VERSIONS = {
    "consilium": common.__version__,
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
    stop_in_round: int | None = None
    asked: list[Plan] = field(default_factory=list)

    def connected(self) -> frozenset[str]:
        """Return the sites that are online."""
        return self.online

    def ask(
        self,
        plans: Mapping[str, Plan],
        *,
        payload: bytes | None,
        timeout_seconds: float,
        instead: Mapping[str, bytes] = NOTHING,
        most_bytes: int = 0,
    ) -> Iterator[Answer]:
        """Yield every site's answer, the last site first."""
        for site, plan in reversed(plans.items()):
            self.asked.append(plan)
            if isinstance(plan, RoundPlan) and plan.round == self.stop_in_round:
                raise Stopped
            number = getattr(plan, "round", 0)
            yield self.script.get((plan.kind, number, site), lambda answer: answer)(
                honest(site, plan, instead.get(site, payload))
            )


def honest(site: str, plan: Plan, payload: bytes | None) -> Answer:
    """Return what a working site answers: its delta moves the weights half the way to the site's own target."""
    stamp: dict[str, Any] = {"run": plan.run, "site": site, "pid": 4711, "seconds": 0.25}
    match plan:
        case HandshakePlan():
            counts = {"num_examples": NUM_EXAMPLES[site] + 40, "num_train": NUM_EXAMPLES[site]}
            card = CARD.model_copy(update=counts)
            digests = {"initial_digest": digest(INITIAL), "shared_digest": digest(INITIAL)}
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
            counts = Counts(num_test=20, majority=11, local=15, global_=16, personal=17, pairs=(14, 1, 3, 2))
            return Answer(site, reply=FinishReply(**stamp, round=plan.round, test=counts))


def trained(site: str, weights: Weights) -> dict[str, Array]:
    target = np.float32(SITES.index(site) + 1)
    return {"body.weight": (target - weights["body.weight"]) / 2, "bn.count": np.array(3)}


def make_study(folder: Path, exchange: ScriptedExchange, **settings: Any) -> Study:
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
        digest="d1",
        run="run-1",
        exchange=exchange,
        strategy=build_strategy(config.strategy, rounds=config.rounds, num_sites=3, learning_rate=0.1),
        weighting=build_weighting(config.weights_by),
        folder=RunFolder(folder),
    )


def run(folder: Path, script: Mapping[tuple[str, int, str], Alter] | None = None, **settings: Any) -> dict[str, Any]:
    return run_study(
        make_study(folder, ScriptedExchange(script or {}), **settings), transport={"transport": "scripted"}
    )


def final_weights(folder: Path) -> dict[str, Array]:
    with safe_open(RunFolder(folder).weights, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in RunFolder(folder).read_events() if event["event"] == name]


# --- how an answer is altered ----------------------------------------------------------------------


def reply_with(**changes: Any) -> Alter:
    return lambda answer: replace(answer, reply=answer.reply.model_copy(update=changes))  # type: ignore[union-attr]


def delta_with(**changes: Array | None) -> Alter:
    def alter(answer: Answer) -> Answer:
        delta = {name.replace("__", "."): array for name, array in changes.items()}
        whole = {**CODEC.decode(answer.payload or b""), **delta}
        kept = {name: array for name, array in whole.items() if array is not None}
        return replace(answer, payload=CODEC.encode(kept))

    return alter


def problem(kind: str, detail: str) -> Alter:
    return lambda answer: Answer(answer.site, problem=kind, detail=detail, bytes_down=answer.bytes_down)


def failure(error: str, message: str) -> Alter:
    def alter(answer: Answer) -> Answer:
        reply = FailureReply(run="run-1", site=answer.site, pid=1, seconds=0.1, error=error, message=message)
        return replace(answer, reply=reply, payload=None)

    return alter


def card_with(**changes: Any) -> Alter:
    def alter(answer: Answer) -> Answer:
        assert isinstance(answer.reply, HandshakeReply)
        return reply_with(card=answer.reply.card.model_copy(update=changes))(answer)

    return alter


def join_after_round(number: int, exchange: ScriptedExchange, site: str) -> Mapping[tuple[str, int, str], Alter]:
    def alter(answer: Answer) -> Answer:
        exchange.online |= {site}
        return answer

    return {("round", number, "berlin"): alter}


def run_with_late(folder: Path, script: Mapping[tuple[str, int, str], Alter], **settings: Any) -> dict[str, Any]:
    exchange = ScriptedExchange(online=frozenset({"berlin", "madrid"}))
    exchange.script = {**join_after_round(2, exchange, "paris"), **script}
    study = make_study(folder, exchange, rounds=4, **{"min_sites": 2, "quorum": 2, **settings})
    return run_study(study, transport={"transport": "scripted"})
