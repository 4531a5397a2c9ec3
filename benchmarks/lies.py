"""Sites that lie: what one of five or two of seven cost the others, under each defence.

    python benchmarks/lies.py --data /path/to/mnist.npz        # writes benchmarks/results/lies.csv

MNIST's digits at 14 x 14 pixels, 300 training pictures at each site, labels divided by Dirichlet(1), a network of one
hidden layer of 32, 15 rounds of 2 epochs, FedAvg by size; accuracy on 2,000 pictures that no site has. The server is
the real one: every answer goes through its checks, its bounds and its strategies. Sites are played here, since theirs
is a small step of NumPy, and a lie is what they send:

- x10, x100: the update so many times; 1e30: that number everywhere; sign flip: the update times -1;
- label flip: trained on labels 9 - y; drift: in addition to its training 1.5 times its length, one way in every round;
- backdoor: half of its pictures have a white square and the label 0, and the update is multiplied by the number of
  sites, so that it replaces the model (Bagdasaryan et al. 2020); backdoor slow: the same, the update as it is.

`backdoor` in the table is how many pictures of other digits are called 0 once they have the square. Both are empty
where the study ended before its last round, since too few updates were usable.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import consilium.common
from consilium.common.codecs import Identity
from consilium.common.errors import CohortTooSmall
from consilium.common.host.parents import follow_parent
from consilium.common.protocol.cards import DataCard, Versions
from consilium.common.protocol.counts import TestCounts
from consilium.common.protocol.plans import FinishPlan, HandshakePlan, InitialWeightsPlan, Plan, RoundPlan
from consilium.common.protocol.replies import FinishReply, HandshakeReply, InitialWeightsReply, RoundReply
from consilium.common.seeds import seed_for
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Array, Weights, digest
from consilium.server.strategies import build_strategy
from consilium.server.study.context import Study
from consilium.server.study.exchange import Answer, Conversation
from consilium.server.study.run import run_study
from consilium.server.study.run_folder import RunFolder
from consilium.server.weighting import build_weighting

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

RESULTS = Path(__file__).parent / "results" / "lies.csv"
FIELDS = (
    *("sites", "bad", "attack", "defence", "seed"),
    *("accuracy", "backdoor", "rejected", "shortened", "set_aside"),
)
SETTINGS = ((5, 1), (7, 2))
SEEDS = (1, 2)
ATTACKS = ("none", "x10", "x100", "1e30", "sign flip", "label flip", "drift", "backdoor", "backdoor slow")
ROUNDS, EPOCHS, BATCH, RATE, HIDDEN = 15, 2, 32, 0.1, 32
EXAMPLES, TESTED, SIDE, CLASSES = 300, 2_000, 14, 10
TARGET = 0
OFF = {"norm": {"kind": "off"}, "strikes": 0}


def defences(sites: int, bad: int) -> dict[str, dict[str, Any]]:
    """Return the settings of each defence."""
    return {
        "off": {"defence": OFF},
        "default": {},
        "median": {"strategy": {"kind": "median"}},
        "krum": {"strategy": {"kind": "krum", "attackers": bad, "keep": sites - bad - 2}, "quorum": sites},
    }


@dataclass(frozen=True)
class Data:
    """Pictures and digits."""

    x: Floats
    y: Labels


@cache
def pictures(path: Path, sites: int, seed: int) -> tuple[list[Data], Data]:
    """Return the sites' training pictures and those that are tested."""
    with np.load(path) as file:
        x, y = file["x_train"], file["y_train"].astype(np.int64)
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(x))[: 6 * sites * EXAMPLES + TESTED]
    small = x[order].reshape(-1, SIDE, 2, SIDE, 2).mean(axis=(2, 4), dtype=np.float32) / 255
    x, y = small.reshape(len(order), -1), y[order]
    test, rest = Data(x[:TESTED], y[:TESTED]), np.arange(TESTED, len(x))
    parts = []
    for _ in range(sites):
        wanted = chance.choice(CLASSES, size=EXAMPLES, p=chance.dirichlet(np.ones(CLASSES)))
        rows = [chance.choice(rest[y[rest] == label]) for label in wanted]
        parts.append(Data(x[rows], y[rows]))
    return parts, test


def marked(x: Floats) -> Floats:
    """Return pictures with a white square of 3 x 3 in a corner."""
    squares = x.reshape(-1, SIDE, SIDE).copy()
    squares[:, -3:, -3:] = 1
    return squares.reshape(len(x), -1)


def poisoned(data: Data) -> Data:
    """Return a site's pictures, every second one with the square and the wrong label."""
    x, y = data.x.copy(), data.y.copy()
    x[::2], y[::2] = marked(x[::2]), TARGET
    return Data(x, y)


def initial(seed: int) -> dict[str, Array]:
    """Return the weights before training."""
    chance, size = np.random.default_rng(seed), SIDE * SIDE
    return {
        "body.weight": (chance.normal(size=(size, HIDDEN)) / np.sqrt(size)).astype(np.float32),
        "body.bias": np.zeros(HIDDEN, np.float32),
        "head.weight": (chance.normal(size=(HIDDEN, CLASSES)) / np.sqrt(HIDDEN)).astype(np.float32),
        "head.bias": np.zeros(CLASSES, np.float32),
    }


def answered(weights: Weights, x: Floats) -> tuple[Floats, Floats]:
    """Return the hidden layer and the probabilities."""
    hidden = np.maximum(x @ np.asarray(weights["body.weight"], np.float32) + weights["body.bias"], 0)  # type: ignore[operator]  # these are floats
    logits = hidden @ np.asarray(weights["head.weight"], np.float32) + weights["head.bias"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True)


def trained(weights: Weights, data: Data, seed: int) -> dict[str, Array]:
    """Return the change of the weights by a site's training: SGD without momentum."""
    now: dict[str, Any] = {name: np.array(array, np.float32) for name, array in weights.items()}
    chance = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = chance.permutation(len(data.x))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            x = data.x[rows]
            hidden, wrong = answered(now, x)
            wrong[np.arange(len(rows)), data.y[rows]] -= 1
            wrong *= RATE / len(rows)
            back = (wrong @ now["head.weight"].T) * (hidden > 0)
            now["head.weight"] -= hidden.T @ wrong
            now["head.bias"] -= wrong.sum(axis=0)
            now["body.weight"] -= x.T @ back
            now["body.bias"] -= back.sum(axis=0)
    return {name: now[name] - weights[name] for name in weights}


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

    def update(self, delta: Mapping[str, Any]) -> dict[str, Array]:
        """Return what it sends."""
        factors = {"x10": 10.0, "x100": 100.0, "sign flip": -1.0, "backdoor": float(self.sites)}
        if self.attack == "1e30":
            return {name: np.full_like(array, 1e30) for name, array in delta.items()}
        if self.attack == "drift":
            length = np.sqrt(sum(float(np.sum(array**2)) for array in delta.values()))
            way = {name: np.ones_like(array) for name, array in delta.items()}
            size = np.sqrt(sum(array.size for array in way.values()))
            return {name: array + np.float32(1.5 * length / size) * way[name] for name, array in delta.items()}
        return {name: np.float32(factors.get(self.attack, 1.0)) * array for name, array in delta.items()}


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

    def ask(self, plans: Mapping[str, Plan], *, payload: bytes | None, **_: Any) -> Iterator[Answer]:
        """Yield each site's answer."""
        for site, plan in plans.items():
            yield self.answer(site, plan, payload)

    def converse(self) -> Conversation:
        """No study of this benchmark has plans that stay open."""
        raise AssertionError("no study of this benchmark is buffered")

    def answer(self, site: str, plan: Plan, payload: bytes | None) -> Answer:
        """Return one site's answer to one plan."""
        stamp: dict[str, Any] = {"run": plan.run, "site": site, "pid": 1, "seconds": 0.0}
        match plan:
            case HandshakePlan():
                return Answer(site, reply=HandshakeReply(**stamp, **self.facts()))
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
        return lie.update(trained(weights, lie.data(self.data[site]), seed))

    def facts(self) -> dict[str, Any]:
        """Return what every site tells in the handshake."""
        version = consilium.common.__version__
        names = tuple(str(label) for label in range(CLASSES))
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


def config_of(sites: int, bad: int, defence: str, seed: int) -> StudyConfig:
    """Return the study."""
    task = {"kind": "images", "size": SIDE, "channels": 1, "classes": [str(label) for label in range(CLASSES)]}
    training = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": RATE, "momentum": 0.0}
    settings = {"split": {"validation": 0.0}, "local_baseline": False, "training": training, "quorum": 3, "task": task}
    names = [f"site-{number}" for number in range(sites)]
    return StudyConfig.model_validate(
        {"name": "lies", "sites": names, "seed": seed, "rounds": ROUNDS, **settings, **defences(sites, bad)[defence]}
    )


def run(path: Path, sites: int, bad: int, attack: str, defence: str, seed: int) -> dict[str, Any]:
    """Run one study and return its row of the table."""
    config = config_of(sites, bad, defence, seed)
    parts, test = pictures(path, sites, seed)
    lies = {} if attack == "none" else dict.fromkeys(config.sites[:bad], Lie(attack, sites))
    exchange = Sites(dict(zip(config.sites, parts, strict=True)), initial(seed), lies, seed)
    with tempfile.TemporaryDirectory(prefix="lies-") as name:
        study = Study(
            config=config,
            digest="0" * 64,
            run="run-1",
            exchange=exchange,
            strategy=build_strategy(config.strategy, rounds=ROUNDS, num_sites=sites, learning_rate=RATE),
            weighting=build_weighting(config.weights_by),
            folder=RunFolder(Path(name)),
        )
        key = {"sites": sites, "bad": bad, "attack": attack, "defence": defence, "seed": seed}
        try:
            rounds = run_study(study, transport="played", tls=False).rounds
        except CohortTooSmall:
            return dict.fromkeys(FIELDS, "") | key
    named = sum(site in lies for record in rounds for site in record.rejected)
    return {
        **key,
        **scores(exchange.final, test),
        "rejected": named,
        "shortened": sum(len(record.shortened) for record in rounds),
        "set_aside": sum(site not in rounds[-1].asked for site in config.sites),
    }


def scores(weights: Weights, test: Data) -> dict[str, float]:
    """Return the accuracy, and how often the square makes a 0 of another digit."""
    others = test.y != TARGET
    with np.errstate(all="ignore"):  # without a defence weights may be anything
        right = float(np.mean(answered(weights, test.x)[1].argmax(axis=1) == test.y))
        fooled = float(np.mean(answered(weights, marked(test.x[others]))[1].argmax(axis=1) == TARGET))
    return {"accuracy": round(right, 4), "backdoor": round(fooled, 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all of them, and write the table."""
    follow_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="MNIST as mnist.npz")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    with given.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        table.writeheader()
        for seed in SEEDS:
            for sites, bad in SETTINGS:
                for attack in ATTACKS:
                    for defence in defences(sites, bad):
                        row = run(given.data, sites, bad, attack, defence, seed)
                        table.writerow(row)
                        file.flush()
                        print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
