"""Teach agents to balance a pole at four sites whose physics differ, by federated behaviour cloning.

Every site is gymnasium's CartPole with another pole, another gravity or a motor that is wired the other way round. An
expert of the site (the optimal linear regulator of its own physics) shows a few short trajectories; what it saw and did
is the site's data, and never leaves it. Two tables say for how many of 500 steps the learnt policies hold the pole:
trained alone, together with one policy for all, fine-tuned, and with a personal head; and at a site that comes later
with three trajectories, which begins with the policy of the other three.

Run: `python examples/agents.py [--seeds 2]`, with `pip install gymnasium`. A seed draws trajectories and initial
weights; the episodes that returns are measured on are the same for all seeds, and intervals count both.
"""

import argparse
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import solve_discrete_are
from torch import Tensor, nn

import consilium as cs
from consilium.common.intervals.interval import within
from consilium.findings import Evidence, interval_of, over_sites
from consilium.findings.decimals import bounds, point

Floats = npt.NDArray[np.float64]
States = npt.NDArray[np.float32]
Actions = npt.NDArray[np.int64]
Policy = Callable[[States], Actions]
Returns = dict[str, dict[str, Floats]]
"""Per policy and site for how many steps each episode lasts: `(episodes,)`, or `(seeds, episodes)`."""

SITES: dict[str, dict[str, float]] = {
    "standard": {},
    "long-pole": {"length": 2.0},
    "jupiter": {"gravity": 24.8},
    "reversed": {"force_mag": -10.0},
}
"""What differs at each site from CartPole-v1: a pole four times as long, gravity, and a motor wired the other way."""
CLASSES = ["left", "right"]
UNITS = (2.4, 3.0, 0.21, 3.0)
"""A large position, speed, angle and angular speed, in m, m/s, rad and rad/s."""
TRAJECTORIES, STEPS_EACH, SLIPS = 10, 25, 0.1
"""Trajectories of a site, the steps of each, and how often the expert's hand slips, which shows more states."""
NEW_TRAJECTORIES = 3
LAST_STEP, EPISODES = 500, 30
RATE, EPOCHS = 0.02, 4
TUNING = 40
"""Passes of fine-tuning."""
TRAINING: Any = {"epochs": EPOCHS, "optimiser": "adam", "learning_rate": RATE, "momentum": 0.0, "batch_size": 32}
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg + fine-tuning": {"kind": "fine_tune", "epochs": TUNING, "optimiser": "adam", "learning_rate": RATE},
    "FedPer": {"kind": "fedper"},
}


class Demonstration(NamedTuple):
    """States `(N, 4)`, the expert's actions `(N,)` and the number of the trajectory `(N,)`: a client's data."""

    states: States
    actions: Actions
    trajectory: Actions


class Units(nn.Module):
    """Divides states `(B, 4)` by what is large, so that all are of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("units", torch.tensor(UNITS))

    def forward(self, states: Tensor) -> Tensor:
        """Return the states in these units `(B, 4)`."""
        assert isinstance(self.units, Tensor)
        return states / self.units


def network(seed: int) -> nn.Module:
    """Return a policy that has learnt nothing: logits `(B, 2)` of left and right."""
    torch.manual_seed(seed)
    layers = OrderedDict[str, nn.Module](units=Units(), hidden=nn.Linear(4, 32), bend=nn.Tanh(), head=nn.Linear(32, 2))
    return nn.Sequential(layers)


def carts(site: str, count: int, steps: int) -> Any:
    """Return a site's environment, `count` times side by side."""
    made: Any = gymnasium.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point").unwrapped
    made.max_episode_steps = steps
    for name, value in SITES[site].items():
        setattr(made, name, value)
    made.polemass_length = made.masspole * made.length
    return made


def expert(site: str) -> Policy:
    """Return the optimal linear regulator of a site's physics, which pushes with full force to its side."""
    cart = carts(site, 1, 1)
    share = cart.masspole / cart.total_mass
    inertia = cart.length * (4 / 3 - share)
    falls, turns = cart.gravity / inertia, -1 / (cart.total_mass * inertia)
    moves = 1 / cart.total_mass - share * cart.length * turns
    drift = np.array([[0, 1, 0, 0], [0, 0, -share * cart.length * falls, 0], [0, 0, 0, 1], [0, 0, falls, 0]])
    a = np.eye(4) + cart.tau * drift
    b = cart.tau * cart.force_mag * np.array([[0.0], [moves], [0.0], [turns]])
    cost = solve_discrete_are(a, b, np.diag(1 / np.square(UNITS)), np.eye(1))
    push = -np.linalg.solve(np.eye(1) + b.T @ cost @ b, b.T @ cost @ a)[0]
    return lambda states: (states @ push > 0).astype(np.int64)


def policy_of(module: nn.Module) -> Policy:
    """Return the policy of a network: the action with the larger logit."""

    def policy(states: States) -> Actions:
        with torch.no_grad():
            actions: Actions = module(torch.from_numpy(states)).argmax(1).numpy()
        return actions

    return policy


def rollout(
    site: str, policy: Policy, episodes: int, *, steps: int, seed: int, slips: float = 0.0
) -> tuple[Floats, Demonstration]:
    """Return for how many steps each episode lasts `(episodes,)`, and what the policy saw and did.

    Args:
        slips: how often a push goes to a random side in place of the policy's.
    """
    begin = seed * len(SITES) + list(SITES).index(site)  # no two sites begin their episodes alike
    cart, chance = carts(site, episodes, steps), np.random.default_rng(begin)
    states, _ = cart.reset(seed=begin)
    lasted, alive = np.zeros(episodes), np.ones(episodes, dtype=bool)
    seen = list[Demonstration]()
    while alive.any():
        actions = policy(states)
        seen.append(Demonstration(states[alive], actions[alive], np.flatnonzero(alive)))
        done = np.where(chance.random(episodes) < slips, chance.integers(0, 2, episodes), actions)
        states, _, fallen, over, _ = cart.step(done)
        lasted += alive
        alive &= ~(fallen | over)
    return lasted, Demonstration(*(np.concatenate(parts) for parts in zip(*seen, strict=True)))


def demonstrate(site: str, trajectories: int, *, seed: int) -> Demonstration:
    """Return what an expert shows at its site."""
    return rollout(site, expert(site), trajectories, steps=STEPS_EACH, seed=seed, slips=SLIPS)[1]


def return_of(site: str, module: nn.Module) -> Floats:
    """Return for how many steps each episode of a policy lasts; the same episodes for every policy."""
    return rollout(site, policy_of(module), EPISODES, steps=LAST_STEP, seed=0)[0]


def study(method: dict[str, Any], seed: int, rounds: int, *, alone: bool) -> cs.Study:
    """Return the study of one method."""
    return cs.Study(
        name="agents",
        seed=seed,
        rounds=rounds,
        evaluate_every=rounds,
        method=method,
        split={"test": 0.2, "validation": 0.2},
        local_baseline=alone,
        training=TRAINING,
    )


def joined(seed: int, rounds: int) -> Returns:
    """Return per policy and site how long every episode lasts, where all four sites train together."""
    clients = {site: demonstrate(site, TRAJECTORIES, seed=seed) for site in SITES}
    returns: Returns = {}
    for name, method in METHODS.items():
        alone = name != "FedPer"
        result = cs.simulate(study(method, seed, rounds, alone=alone), clients, network(seed), classes=CLASSES)
        if alone:
            returns["alone"] = {site: return_of(site, result.model(site, "local")) for site in SITES}
            returns["FedAvg"] = {site: return_of(site, result.model()) for site in SITES}
        returns[name] = {site: return_of(site, result.model(site)) for site in SITES}
    return returns


def adapted(seed: int, rounds: int) -> Returns:
    """Return the same for sites that come later, each with a few trajectories and the policy of the other three."""
    returns: Returns = {name: {} for name in ("as received", "head", "all layers", "from scratch")}
    for site in SITES:
        others = {name: demonstrate(name, TRAJECTORIES, seed=seed) for name in SITES if name != site}
        fedavg = study({"kind": "fedavg"}, seed, rounds, alone=False)
        received = cs.simulate(fedavg, others, network(seed), classes=CLASSES).model()
        few = demonstrate(site, NEW_TRAJECTORIES, seed=1000 + seed)[:2]
        how: Any = {"epochs": TUNING, "lr": RATE, "optimiser": "adam", "batch_size": 16, "seed": seed}
        returns["as received"][site] = return_of(site, received)
        returns["head"][site] = return_of(site, cs.fine_tune(received, few, layers="head", **how).module)
        returns["all layers"][site] = return_of(site, cs.fine_tune(received, few, **how).module)
        returns["from scratch"][site] = return_of(site, cs.fine_tune(network(seed), few, **how).module)
    return returns


def over_seeds(seeds: list[Returns]) -> Returns:
    """Return per policy and site the returns of all seeds `(seeds, episodes)`."""
    return {name: {site: np.stack([one[name][site] for one in seeds]) for site in of} for name, of in seeds[0].items()}


def table(returns: Returns, *, less: tuple[str, str]) -> list[str]:
    """Return the lines of a table: mean returns with 95 % intervals, and the difference of two of the policies."""
    one, other = less
    gains = {site: returns[one][site] - returns[other][site] for site in SITES}
    columns = {name: cells(of, "number") for name, of in returns.items()}
    columns[f"{one} - {other}"] = cells(gains, "difference")
    widths = {name: max(22, len(name) + 3) for name in columns}
    lines = [f"{'site':10}" + "".join(f"{name:>{width}}" for name, width in widths.items())]
    for site in (*SITES, "mean"):
        lines.append(f"{site:10}" + "".join(f"{columns[name][site]:>{width}}" for name, width in widths.items()))
    return lines


def cells(rows: Mapping[str, Floats], kind: Literal["number", "difference"]) -> dict[str, str]:
    """Return mean and interval of every site's rows `(seeds, episodes)`, and of the mean over the sites."""
    evidence = {site: Evidence.of_rows(of) for site, of in rows.items()}
    intervals = {site: interval_of(of, kind=kind) for site, of in evidence.items()}
    intervals["mean"] = over_sites(list(evidence.values()), [1.0] * len(evidence), kind=kind)
    sign = kind == "difference"
    least = -LAST_STEP if sign else 0
    known = {site: within(one, least, LAST_STEP) for site, one in intervals.items()}
    return {site: f"{point(one, 0, sign=sign)} {bounds(one, 0, sign=sign)}" for site, one in known.items()}


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(1, options.seeds + 1)
    print(f"steps of {LAST_STEP} that a pole is held, {len(SITES)} sites with {TRAJECTORIES} trajectories each:")
    for line in table(over_seeds([joined(seed, options.rounds) for seed in seeds]), less=("FedPer", "alone")):
        print(line)
    print(f"\na site that comes later, with {NEW_TRAJECTORIES} trajectories, and the FedAvg policy of the other three:")
    for line in table(
        over_seeds([adapted(seed, options.rounds) for seed in seeds]), less=("all layers", "from scratch")
    ):
        print(line)


if __name__ == "__main__":
    main()
