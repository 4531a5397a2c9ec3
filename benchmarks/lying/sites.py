"""Sites that are played in this process, some of which lie: what they send goes through the real server."""

import math
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import consilium.common
from consilium.common.codecs import Identity
from consilium.common.protocol.cards import DataCard, Versions
from consilium.common.protocol.counts import TestCounts
from consilium.common.protocol.plans import FinishPlan, HandshakePlan, InitialWeightsPlan, Plan, RoundPlan
from consilium.common.protocol.replies import FinishReply, HandshakeReply, InitialWeightsReply, RoundReply
from consilium.common.seeds import seed_for
from consilium.common.weights.arrays import Array, Weights, digest
from consilium.server.study.exchange import Answer, Mailing
from lying.digits import CLASSES, EXAMPLES, Data, poisoned, trained


@dataclass
class Lie:
    """What a bad site sends in place of its update."""

    attack: str
    sites: int

    def data(self, data: Data) -> Data:
        """Return what it trains on."""
        if self.attack == "label flip":
            return Data(data.x, CLASSES - 1 - data.y)
        return poisoned(data) if self.attack.startswith("backdoor") else data

    def update(self, delta: Mapping[str, Any], seed: int) -> dict[str, Array]:
        """Return what it sends."""
        factors = {"x10": 10.0, "x100": 100.0, "sign flip": -1.0, "backdoor": float(self.sites)}
        if self.attack == "1e30":
            return {name: np.full_like(array, 1e30) for name, array in delta.items()}
        if self.attack == "drift":
            return mixed(delta, {name: np.ones_like(array) for name, array in delta.items()}, 1.0, 1.5)
        if self.attack == "hidden flip":
            chance = np.random.default_rng(seed)
            noise = {name: chance.normal(size=array.shape).astype(np.float32) for name, array in delta.items()}
            return mixed(delta, noise, -HIDDEN * HIDDEN_COSINE, HIDDEN * (1 - HIDDEN_COSINE**2) ** 0.5)
        return {name: np.float32(factors.get(self.attack, 1.0)) * array for name, array in delta.items()}


HIDDEN_COSINE, HIDDEN = 1 / 6, 3.0


def mixed(delta: Mapping[str, Any], way: Mapping[str, Any], of_delta: float, of_way: float) -> dict[str, Array]:
    """Return so much of an update, and so many of its lengths in another direction."""
    lengths = [np.sqrt(sum(float(np.sum(array**2)) for array in each.values())) for each in (delta, way)]
    factor = np.float32(of_way * lengths[0] / lengths[1])
    return {name: np.float32(of_delta) * array + factor * way[name] for name, array in delta.items()}


@dataclass
class Sites:
    """Sites that are played in this process, some of which lie."""

    data: Mapping[str, Data]
    weights: dict[str, Array]
    lies: Mapping[str, Lie]
    seed: int
    patient: bool = True
    final: dict[str, Any] = field(default_factory=dict)

    def connected(self) -> frozenset[str]:
        """Return all sites."""
        return frozenset(self.data)

    def converse(self) -> "Played":
        """Return a conversation in which all answer at once."""
        return Played(self)

    def answer(self, site: str, plan: Plan, payload: bytes | None) -> Answer:
        """Return one site's answer to one plan."""
        stamp: dict[str, Any] = {"run": plan.run, "site": site, "pid": 1, "seconds": 0.0}
        match plan:
            case HandshakePlan():
                return Answer(site, reply=HandshakeReply(**stamp, **self.facts(site)))
            case InitialWeightsPlan():
                return Answer(site, reply=InitialWeightsReply(**stamp), payload=Identity().encode(self.weights))
            case RoundPlan():
                sent = Identity().encode(self.update(site, plan.round, Identity().decode(payload or b"")))
                reply = RoundReply(**stamp, round=plan.round, num_examples=EXAMPLES, metrics={})
                return Answer(site, reply=reply, payload=sent)
            case FinishPlan():
                self.final = dict(Identity().decode(payload or b""))
                tested = TestCounts(num_test=1, majority=0, global_=0, personal=0)
                return Answer(site, reply=FinishReply(**stamp, round=plan.round, test=tested))
        raise AssertionError(f"no plan of kind '{plan.kind}' is expected")

    def update(self, site: str, number: int, weights: Weights) -> dict[str, Array]:
        """Return what a site sends in a round."""
        lie, seed = self.lies.get(site), seed_for(self.seed, site, number)
        if lie is None:
            return trained(weights, self.data[site], seed)
        return lie.update(trained(weights, lie.data(self.data[site]), seed), seed)

    def facts(self, site: str) -> dict[str, Any]:
        """Return what a site tells in the handshake; of its classes which it has."""
        version = consilium.common.__version__
        names = tuple(str(label) for label in np.unique(self.data[site].y))
        card = DataCard(
            num_examples=EXAMPLES + 1,
            num_train=EXAMPLES,
            num_validation=0,
            num_test=1,
            num_skipped=0,
            classes=names,
            schema_digest="0" * 64,
        )
        versions = Versions(consilium=version, flwr="0", torch="0", torchvision="0", python="0")
        own = digest(self.weights)
        return {"versions": versions, "card": card, "initial_digest": own, "shared_digest": own, "shared_buffers": ()}


@dataclass
class Played:
    """A conversation with sites that answer as soon as they are asked."""

    sites: Sites
    sent: dict[str, tuple[Plan, bytes | None]] = field(default_factory=dict)

    def open(self) -> frozenset[str]:
        """Return the sites that have been asked and not heard."""
        return frozenset(self.sent)

    def send(self, mailing: Mailing) -> None:
        """Give each site its plan."""
        self.sent |= {site: (plan, mailing.payload_for(site)) for site, plan in mailing.plans.items()}

    def answers(
        self, *, absent_seconds: float | None = None, until: Callable[[], float] = lambda: math.inf
    ) -> Generator[Answer, None, None]:
        """Yield each site's answer; none is ever late."""
        while self.sent:
            site = min(self.sent)
            yield self.sites.answer(site, *self.sent.pop(site))

    def give_up(self, sites: Collection[str]) -> None:
        """Take back the plans of some sites."""
        self.sent = {site: plan for site, plan in self.sent.items() if site not in sites}

    def close(self) -> None:
        """Take back all plans."""
        self.sent.clear()
