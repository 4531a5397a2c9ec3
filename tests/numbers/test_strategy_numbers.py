"""Each strategy's own numbers, worked out by hand, and what it is in its degenerate cases."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import TypeAdapter

from consilium.common.protocol.plans import CONTROL
from consilium.common.study.signals import EFFECTIVE_STEPS, START_LOSS
from consilium.common.study.strategies import StrategyConfig
from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Array
from consilium.server.strategies import STRATEGIES, ServerState, Step, Strategy, Update, build_strategy
from consilium.server.strategies.contract import blocks, gram, middle_mean
from consilium.server.strategies.fedadagrad import FedAdagrad
from consilium.server.strategies.fedadam import FedAdam
from consilium.server.strategies.fedavg import FedAvg
from consilium.server.strategies.fedavgm import FedAvgM
from consilium.server.strategies.feddyn import FedDyn
from consilium.server.strategies.fedexp import FedExP
from consilium.server.strategies.fednova import FedNova
from consilium.server.strategies.fedyogi import FedYogi
from consilium.server.strategies.geometric_median import GeometricMedian
from consilium.server.strategies.krum import Krum
from consilium.server.strategies.median import Median
from consilium.server.strategies.per_fedavg import PerFedAvg
from consilium.server.strategies.qfedavg import QFedAvg
from consilium.server.strategies.reptile import Reptile
from consilium.server.strategies.scaffold import Scaffold
from consilium.server.strategies.trimmed_mean import TrimmedMean

Numbers = float | Sequence[float]
START = 10.0
FORM: dict[str, Array] = {
    "body": np.zeros((2, 3), np.float32),
    "head": np.zeros(4),
    "bn.var": np.ones(2, np.float32),
    "bn.count": np.array(0),
}
BUFFERS = frozenset({"bn.var", "bn.count"})


def sent(*deltas: Numbers, metrics: Mapping[str, Sequence[float]] | None = None) -> list[Update]:
    """Updates of the array `w` from sites a, b, c, ..., with the metrics given per site."""
    return [
        Update(chr(ord("a") + k), {"w": np.array(value, float)}, 1, {n: each[k] for n, each in (metrics or {}).items()})
        for k, value in enumerate(deltas)
    ]


def begun(strategy: Strategy, size: int = 0) -> ServerState:
    """The state before round 1 with an array `w` at START: a scalar, or `size` of them."""
    return strategy.init({"w": np.full(size, START) if size else np.array(START)})


def shared(updates: Sequence[Update], *shares: float) -> dict[str, float]:
    """The shares of sites a, b, c, ...; equal ones if none are given."""
    given = shares or (1 / len(updates),) * len(updates)
    return {update.site: share for update, share in zip(updates, given, strict=True)}


def moved(strategy: Strategy, *rounds: Sequence[Update], shares: Sequence[float] = ()) -> list[float]:
    """Return `w` after each round."""
    state, seen = begun(strategy), []
    for updates in rounds:
        state = strategy.apply(state, updates, shared(updates, *shares)).state
        seen.append(float(state.weights["w"]))
    return seen


def exactly(*values: float) -> Any:
    """Return what equals these values but for rounding."""
    return pytest.approx(list(values), rel=1e-13)


def mixed(seed: int, sites: int = 5) -> list[Update]:
    """Updates of the arrays in FORM, with random values and all that any strategy needs."""
    generator = np.random.default_rng(seed)
    return [
        Update(
            f"site-{k}",
            {
                name: np.asarray(generator.normal(size=array.shape) * 9).astype(array.dtype)
                for name, array in FORM.items()
            },
            1,
            {START_LOSS: generator.uniform(0.1, 3), EFFECTIVE_STEPS: 4.0},
        )
        for k in range(sites)
    ]


def same_weights(one: Step, other: Step) -> None:
    """Check that two steps lead to the same bits."""
    np.testing.assert_equal(dict(one.state.weights), dict(other.state.weights))


UNEQUAL = {"site-0": 0.4, "site-1": 0.05, "site-2": 0.3, "site-3": 0.25, "site-4": 0.0}
EQUAL = dict.fromkeys(UNEQUAL, 0.2)
ALIKE: Mapping[str, float] = defaultdict(lambda: 1 / 7)
"""Equal shares of whatever sites."""


def stepped(strategy: Strategy, shares: Mapping[str, float], updates: Sequence[Update] | None = None) -> Step:
    """Return a strategy's first step."""
    return strategy.apply(strategy.init(FORM, BUFFERS), mixed(1) if updates is None else updates, shares)


# --- FedAvg ----------------------------------------------------------------------------------------


def test_fedavg_gives_the_numbers_worked_out_by_hand() -> None:
    """w = 10; deltas 17, -34 and 8.5 with 1000, 500 and 200 of 1700 examples.

    mean = (1000 * 17 + 500 * (-34) + 200 * 8.5) / 1700 = (17000 - 17000 + 1700) / 1700 = 1, so w = 10 + 1 = 11.
    """
    assert exactly(11) == moved(
        FedAvg(learning_rate=1.0), sent(17, -34, 8.5), shares=[1000 / 1700, 500 / 1700, 200 / 1700]
    )


def test_fedavg_of_trained_weights_is_their_weighted_mean() -> None:
    """McMahan's form: w(t+1) = sum (n_k / n) w_k(t+1); with equal shares 0.5 * 3 + 0.5 * 9 = 6, whatever w(t) was."""
    for start in (0.0, 2.0, -4.0):
        updates = sent(3.0 - start, 9.0 - start)
        state = FedAvg(learning_rate=1.0).init({"w": np.array([start])})
        updates = [replace(u, delta={"w": u.delta["w"].reshape(1)}) for u in updates]
        assert 6.0 == FedAvg(learning_rate=1.0).apply(state, updates, shared(updates)).state.weights["w"][0]


def test_fedavg_of_one_site_is_its_own_weights() -> None:
    """A single site trains alone: weights + delta, share 1."""
    start, change = np.array([1.0, 2.0], np.float32), np.array([0.5, -0.25], np.float32)
    step = FedAvg(learning_rate=1.0).apply(
        FedAvg(learning_rate=1.0).init({"w": start}), [Update("berlin", {"w": change}, 12, {})], {"berlin": 1.0}
    )
    assert ([1.5, 1.75], {"berlin": 1.0}) == (step.state.weights["w"].tolist(), dict(step.shares))


def test_fedavg_rounds_counters() -> None:
    """A BatchNorm counter at 7 with deltas 3 (share 2/3) and 6 (1/3): 7 + 4 = 11, an int64."""
    start = FedAvg(learning_rate=1.0).init({"count": np.array(7)})
    updates = [Update("a", {"count": np.array(3)}, 20, {}), Update("b", {"count": np.array(6)}, 10, {})]
    count = FedAvg(learning_rate=1.0).apply(start, updates, {"a": 2 / 3, "b": 1 / 3}).state.weights["count"]
    assert (11, np.dtype(np.int64), ()) == (int(count), count.dtype, count.shape)


def test_fedavg_learning_rate_scales_the_trained_arrays_alone() -> None:
    """Mean 4: the weight moves by 0.5 * 4 = 2, the running mean by 4."""
    weights = {"w": np.array(10.0), "bn.mean": np.array(10.0)}
    updates = [Update(s, {"w": np.array(v), "bn.mean": np.array(v)}, 1, {}) for s, v in (("a", 3.0), ("b", 5.0))]
    state = FedAvg(learning_rate=0.5).init(weights, frozenset({"bn.mean"}))
    after = FedAvg(learning_rate=0.5).apply(state, updates, {"a": 0.5, "b": 0.5}).state.weights
    assert (12.0, 14.0) == (float(after["w"]), float(after["bn.mean"]))


def test_fedavg_keeps_no_memory() -> None:
    """A checkpoint of FedAvg is the weights and the round."""
    step = stepped(FedAvg(learning_rate=1.0), EQUAL)
    assert ({}, {}) == (dict(step.state.memory), dict(step.state.along))


# --- what is FedAvg in a degenerate case -----------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvgM(momentum=0.0, learning_rate=1.0),
        Scaffold(num_sites=5, learning_rate=1.0),
        Reptile(anneal=False, step=1.0, rounds=1),
        Reptile(rounds=9, step=1.0, anneal=True),
    ],
    ids=["fedavgm-momentum-0", "scaffold-weights", "reptile-step-1", "reptile-round-1"],
)
def test_strategy_in_its_plain_case_is_fedavg(strategy: Strategy) -> None:
    """Bit for bit, with unequal shares, over floats, running statistics and counters."""
    updates = [replace(u, control={"body": u.delta["body"], "head": u.delta["head"]}) for u in mixed(1)]
    same_weights(stepped(FedAvg(learning_rate=1.0), UNEQUAL), stepped(strategy, UNEQUAL, updates))


@pytest.mark.parametrize(
    "strategy", [PerFedAvg(), QFedAvg(learning_rate=0.03, q=0.0)], ids=["per_fedavg", "qfedavg-q-0"]
)
def test_unweighted_strategy_in_its_plain_case_is_fedavg_with_equal_shares(strategy: Strategy) -> None:
    """Bit for bit, whatever shares are given; the step tells equal ones."""
    step = stepped(strategy, UNEQUAL)
    same_weights(stepped(FedAvg(learning_rate=1.0), EQUAL), step)
    assert EQUAL == dict(step.shares)


@pytest.mark.parametrize(
    ("strategy", "shares"),
    [(FedNova(), UNEQUAL), (TrimmedMean(trim=0), UNEQUAL)],
    ids=["fednova-equal-steps", "trimmed_mean-trim-0"],
)
def test_strategy_that_divides_otherwise_is_close_to_fedavg(strategy: Strategy, shares: dict[str, float]) -> None:
    """Equal steps, or nothing trimmed: FedAvg but for the last bits of a float32."""
    step, expected = stepped(strategy, UNEQUAL), stepped(FedAvg(learning_rate=1.0), shares)
    weights: Mapping[str, Any] = step.state.weights
    for name, array in expected.state.weights.items():
        np.testing.assert_allclose(weights[name], array.astype(np.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "strategy",
    [Krum(attackers=0, keep=3), GeometricMedian(iterations=32, smoothing=1e-06)],
    ids=["krum", "geometric_median"],
)
def test_strategy_that_sets_shares_is_fedavg_with_these(strategy: Strategy, seed: int) -> None:
    """Bit for bit: all arrays move by the mean that the step's shares give, summed in the order of site names."""
    step = stepped(strategy, UNEQUAL, mixed(seed))
    same_weights(stepped(FedAvg(learning_rate=1.0), step.shares, mixed(seed)), step)


@pytest.mark.parametrize("kind", [kind for kind in STRATEGIES if kind not in ("trimmed_mean", "krum")])
def test_strategy_of_one_site_takes_its_buffers_whole(kind: str) -> None:
    """A single site's share is 1, and its running variance and counter are the server's."""
    config: StrategyConfig = TypeAdapter(StrategyConfig).validate_python({"kind": kind})
    strategy = build_strategy(config, rounds=1, num_sites=1, learning_rate=0.1)
    update = replace(mixed(3)[0], control={"body": FORM["body"], "head": FORM["head"]})
    step = strategy.apply(strategy.init(FORM, BUFFERS), [update], {"site-0": 1.0})
    assert {"site-0": 1.0} == dict(step.shares)
    for name in BUFFERS:
        np.testing.assert_equal(add_scaled(FORM, update.delta)[name], step.state.weights[name])


# --- FedAvgM ---------------------------------------------------------------------------------------


def test_fedavgm_gives_the_numbers_worked_out_by_hand() -> None:
    """learning_rate 0.5, momentum 0.9, shares 1/4 and 3/4.

    Round 1: mean 5/4 + 3/4 = 2, v = 2, w = 10 + 0.5 * 2 = 11.
    Round 2: mean -4/4 + 0 = -1, v = 0.9 * 2 - 1 = 0.8, w = 11 + 0.4 = 11.4.
    Round 3: mean 0, v = 0.72, w = 11.4 + 0.36 = 11.76.
    """
    rounds = [sent(5, 1), sent(-4, 0), sent(0, 0)]
    assert exactly(11, 11.4, 11.76) == moved(FedAvgM(learning_rate=0.5, momentum=0.9), *rounds, shares=[0.25, 0.75])


def test_fedavgm_remembers_the_velocity_in_float64() -> None:
    """v = 0.9 * 2 - 1 = 0.8 after the two rounds above, for a float32 array as well."""
    state = FedAvgM(learning_rate=1.0, momentum=0.9).init({"w": np.zeros(1, np.float32)})
    for value in (2, -1):
        state = (
            FedAvgM(learning_rate=1.0, momentum=0.9)
            .apply(state, [Update("a", {"w": np.full(1, value, np.float32)}, 1, {})], {"a": 1.0})
            .state
        )
    assert {"momentum/w"} == set(state.memory)
    assert np.float64 == state.memory["momentum/w"].dtype
    assert exactly(0.8) == state.memory["momentum/w"].tolist()


# --- FedExP ----------------------------------------------------------------------------------------


def test_fedexp_gives_the_numbers_worked_out_by_hand() -> None:
    """Shares 1/4 and 3/4, deltas 10 and -2, epsilon 0.5: mean 1, mean square 25 + 3 = 28, step 28 / (2 * 1.5) = 28/3.

    w = 10 + 28/3. Then 2 and 2: mean 2, mean square 4, 4 / (2 * 4.5) < 1, so step 1 and w = 12 + 28/3.
    """
    rounds = [sent(10, -2), sent(2, 2)]
    assert exactly(10 + 28 / 3, 12 + 28 / 3) == moved(FedExP(epsilon=0.5), *rounds, shares=[0.25, 0.75])


def test_fedexp_of_equal_updates_is_fedavg() -> None:
    """The step of sites that agree is max(1, 1/2) = 1, whatever the size of the updates: FedAvg's bits."""
    for scale in (1e-3, 1.0, 1e3):
        updates = [
            replace(u, delta={n: (a.astype(np.float64) * scale).astype(a.dtype) for n, a in mixed(1)[0].delta.items()})
            for u in mixed(1)
        ]
        same_weights(
            stepped(FedAvg(learning_rate=1.0), UNEQUAL, updates), stepped(FedExP(epsilon=0.001), UNEQUAL, updates)
        )


def test_fedexp_of_updates_at_right_angles_steps_half_their_number() -> None:
    """6 sites that each move another coordinate by 3: mean square 9, square of the mean 6 * 0.25, step 9 / 3 = 3.

    So every coordinate moves by 3 * 0.5 = 1.5; the norms are over all arrays together, not array by array.
    """
    deltas = np.eye(6) * 3
    updates = [Update(f"s{k}", {"u": d[:2].copy(), "w": d[2:].copy()}, 1, {}) for k, d in enumerate(deltas)]
    strategy = FedExP(epsilon=1e-12)
    state = strategy.init({"u": np.zeros(2), "w": np.zeros(4)})
    after = strategy.apply(state, updates, {u.site: 1 / 6 for u in updates}).state.weights
    np.testing.assert_allclose(np.full(6, 1.5), np.concatenate([after["u"], after["w"]]), rtol=1e-9)


def test_fedexp_serves_the_mean_of_the_last_two_iterates() -> None:
    """Deltas 4, then 2, then -1, of one site: w = 14, 16, 15, and served are 14 (the first), 15 and 15.5."""
    strategy = FedExP(epsilon=0.001)
    state, served = begun(strategy), []
    assert 10 == state.served["w"]
    for value in (4, 2, -1):
        state = strategy.apply(state, sent(value), {"a": 1.0}).state
        served.append(float(state.served["w"]))
    assert (exactly(14, 15, 15.5), 15.0) == (served, float(state.weights["w"]))


def test_fedexp_looks_at_trained_arrays_alone() -> None:
    """Running statistics that differ change no step, move by the mean, and are served as they are."""
    weights = {"w": np.array(10.0), "bn.mean": np.array(0.0)}
    updates = [
        replace(u, delta={**u.delta, "bn.mean": np.array(v)}) for u, v in zip(sent(2, 2), (900.0, -700.0), strict=True)
    ]
    strategy = FedExP(epsilon=0.001)
    state = strategy.init(weights, frozenset({"bn.mean"}))
    for _ in range(2):
        state = strategy.apply(state, updates, {"a": 0.5, "b": 0.5}).state
    assert (14.0, 200.0) == (float(state.weights["w"]), float(state.weights["bn.mean"]))
    assert {"w": 13.0, "bn.mean": 200.0} == dict(state.served)


def test_other_strategies_serve_their_weights() -> None:
    """What the run ends with is the weights, where a strategy does not say otherwise."""
    state = stepped(FedAvgM(learning_rate=1.0, momentum=0.9), EQUAL).state
    np.testing.assert_equal(dict(state.weights), dict(state.served))


# --- FedDyn ----------------------------------------------------------------------------------------


def test_feddyn_gives_the_numbers_worked_out_by_hand() -> None:
    """Four sites in the study, of which two answer: shares given are not read, h counts all four.

    Round 1, deltas 3 and 5: -h/alpha = 8 / 4 = 2, w = 10 + 4 + 2 = 16.
    Round 2, deltas -2 and 0: -h/alpha = 2 - 2 / 4 = 1.5, w = 16 - 1 + 1.5 = 16.5.
    """
    rounds = [sent(3, 5), sent(-2, 0)]
    assert exactly(16, 16.5) == moved(FedDyn(num_sites=4), *rounds, shares=[0.9, 0.1])
    assert {"a": 0.5, "b": 0.5} == dict(FedDyn(num_sites=1).apply(begun(FedDyn(num_sites=1)), sent(1, 2), {}).shares)


def test_feddyn_stays_where_the_sites_stay() -> None:
    """Deltas that cancel leave no drift: w and h are as they were, however large the deltas."""
    state = FedDyn(num_sites=2).apply(begun(FedDyn(num_sites=1)), sent(50, -50), {}).state
    assert (10.0, 0.0) == (float(state.weights["w"]), float(state.memory["drift/w"]))


# --- FedAdam, FedYogi, FedAdagrad ------------------------------------------------------------------


def test_fedadam_gives_the_numbers_worked_out_by_hand() -> None:
    """learning_rate 0.5, beta1 0.9, beta2 0.75, tau 3; so v = 9 at first. No bias correction.

    Round 1: d = (10 + 16) / 2 = 13, m = 1.3, v = 0.75 * 9 + 0.25 * 169 = 49, w = 10 + 0.5 * 1.3 / (7 + 3) = 10.065.
    Round 2: d = -23, m = 1.17 - 2.3 = -1.13, v = 0.75 * 49 + 0.25 * 529 = 169, w = 10.065 - 0.5 * 1.13 / (13 + 3).
    """
    strategy = FedAdam(learning_rate=0.5, beta1=0.9, beta2=0.75, tau=3.0)
    assert exactly(10.065, 10.065 - 0.565 / 16) == moved(strategy, sent(10, 16), sent(-20, -26))


def test_fedyogi_gives_the_numbers_worked_out_by_hand() -> None:
    """learning_rate 0.75, beta1 0.9, beta2 0.75, tau 5; so v = 25 at first.

    Round 1: d = 24, m = 2.4, d**2 > v, so v = 25 + 0.25 * 576 = 169, w = 10 + 0.75 * 2.4 / (13 + 5) = 10.1.
    Round 2: d = -10, m = 2.16 - 1 = 1.16, d**2 < v, so v = 169 - 25 = 144, w = 10.1 + 0.75 * 1.16 / (12 + 5).
    Round 3: d = -12, m = 1.044 - 1.2 = -0.156, d**2 = v, so v stays, w = ... - 0.75 * 0.156 / 17.
    """
    strategy = FedYogi(learning_rate=0.75, beta1=0.9, beta2=0.75, tau=5.0)
    second = 10.1 + 0.87 / 17
    assert exactly(10.1, second, second - 0.117 / 17) == moved(strategy, sent(20, 28), sent(-10, -10), sent(-12, -12))


@pytest.mark.parametrize(("beta1", "expected"), [(0.0, (10.25, 9.875)), (0.9, (10.025, 9.99875))])
def test_fedadagrad_gives_the_numbers_worked_out_by_hand(beta1: float, expected: tuple[float, float]) -> None:
    """learning_rate 0.5, tau 3; so v = 9 at first; d = 4, then -12.

    v = 9 + 16 = 25, then 25 + 144 = 169. With beta1 = 0: m = 4, w = 10 + 0.5 * 4 / (5 + 3) = 10.25; m = -12,
    w = 10.25 - 0.5 * 12 / (13 + 3) = 9.875. With beta1 = 0.9: m = 0.4, w = 10.025; m = 0.36 - 1.2 = -0.84,
    w = 10.025 - 0.42 / 16 = 9.99875.
    """
    strategy = FedAdagrad(learning_rate=0.5, beta1=beta1, tau=3.0)
    assert exactly(*expected) == moved(strategy, sent(3, 5), sent(-14, -10))


@pytest.mark.parametrize(
    "strategy",
    [
        FedAdam(tau=0.5, learning_rate=0.1, beta1=0.9, beta2=0.99),
        FedYogi(tau=0.5, learning_rate=0.01, beta1=0.9, beta2=0.99),
        FedAdagrad(tau=0.5, learning_rate=0.1, beta1=0.0),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_adaptive_memory_starts_at_0_and_tau_squared(strategy: Strategy) -> None:
    """m = 0, v = tau**2 = 0.25 in float64 for every trained float, nothing for buffers and counters."""
    memory = strategy.init(FORM, BUFFERS).memory
    assert {"m/body", "m/head", "v/body", "v/head"} == set(memory)
    for name in ("body", "head"):
        np.testing.assert_array_equal(memory[f"m/{name}"], np.zeros(FORM[name].shape))
        np.testing.assert_array_equal(memory[f"v/{name}"], np.full(FORM[name].shape, 0.25))
    assert {np.dtype(np.float64)} == {array.dtype for array in memory.values()}


@pytest.mark.parametrize(
    "strategy",
    [
        FedAdam(learning_rate=0.1, beta1=0.9, beta2=0.99, tau=0.001),
        FedYogi(learning_rate=0.01, beta1=0.9, beta2=0.99, tau=0.001),
        FedAdagrad(learning_rate=0.1, beta1=0.0, tau=0.001),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_adaptive_step_is_bounded_whatever_the_update(strategy: Any) -> None:
    """|m| / (sqrt(v) + tau) <= (1 - beta1) * d / sqrt((1 - beta2) * d**2): no delta, however large, moves w far.

    With the defaults 0.1 / 0.1 = 1 for Adam and Yogi, 1 for Adagrad; times the learning rate.
    """
    w = moved(strategy, sent(1e6))[0]
    assert pytest.approx(strategy.learning_rate, rel=1e-3) == w - START


# --- q-FedAvg --------------------------------------------------------------------------------------


def test_qfedavg_gives_the_numbers_worked_out_by_hand() -> None:
    """learning_rate 0.5, so L = 2; q = 2; F = 1 and 4; deltas 1 and -0.5, so u = -2 and 1.

    F**q = 1 and 16; h = 2 * 1 * 4 + 2 * 1 = 10 and 2 * 4 * 1 + 2 * 16 = 40; sum F**q u = -2 + 16 = 14;
    w = 10 - 14 / 50 = 9.72; shares 1/17 and 16/17.
    """
    strategy = QFedAvg(q=2.0, learning_rate=0.5)
    updates = sent(1, -0.5, metrics={START_LOSS: [1, 4]})
    step = strategy.apply(begun(strategy), updates, {})
    assert pytest.approx(9.72, rel=1e-9) == step.state.weights["w"]
    assert pytest.approx({"a": 1 / 17, "b": 16 / 17}, rel=1e-9) == dict(step.shares)


def test_qfedavg_norm_is_over_all_trained_arrays_and_no_others() -> None:
    """L = 1, q = 1, one site with F = 2 and deltas 3 and 4: h = 25 + 2 = 27, so w = 10 + 2 * 3 / 27, 10 + 2 * 4 / 27.

    A running mean that moves by 1000 changes nothing in that, and moves by 1000.
    """
    names = {"one": 3.0, "two": 4.0, "bn.mean": 1000.0}
    strategy = QFedAvg(q=1.0, learning_rate=1.0)
    state = strategy.init({name: np.array(10.0) for name in names}, frozenset({"bn.mean"}))
    update = Update("a", {name: np.array(value) for name, value in names.items()}, 1, {START_LOSS: 2.0})
    after = strategy.apply(state, [update], {}).state.weights
    assert pytest.approx([10 + 6 / 27, 10 + 8 / 27, 1010], rel=1e-9) == [float(after[name]) for name in names]


def test_qfedavg_leaves_out_a_site_without_loss() -> None:
    """L = 1, q = 1, F = 0 and 1, deltas 2 and 1: h = 4 + 0 and 1 + 1; w = 10 + (0 * 2 + 1 * 1) / 6."""
    strategy = QFedAvg(q=1.0, learning_rate=1.0)
    step = strategy.apply(begun(strategy), sent(2, 1, metrics={START_LOSS: [0, 1]}), {})
    assert pytest.approx(10 + 1 / 6, rel=1e-8) == step.state.weights["w"]
    assert pytest.approx({"a": 0, "b": 1}, abs=1e-9) == dict(step.shares)


@pytest.mark.parametrize("q", [0.0, 0.1, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("losses", [(0, 0), (0, 3), (1e-8, 1e8)])
def test_qfedavg_of_any_losses_is_a_number(q: float, losses: tuple[float, float]) -> None:
    """No division by a loss of 0, no overflow of a power: w stays between where it was and the farthest site."""
    strategy = QFedAvg(q=q, learning_rate=0.01)
    step = strategy.apply(begun(strategy), sent(1, 2, metrics={START_LOSS: losses}), {})
    assert 10 <= float(step.state.weights["w"]) <= 12
    assert pytest.approx(1) == sum(step.shares.values())
    if losses == (0, 0):
        assert {"a": 0.5, "b": 0.5} == dict(step.shares)


@pytest.mark.parametrize("q", [0.001, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("told", [2.0, 6.0, 1e100])
def test_qfedavg_gives_no_site_of_four_more_than_half(q: float, told: float) -> None:
    """Whatever loss it tells; one that gives it less counts as it is."""
    strategy = QFedAvg(q=q, learning_rate=0.1)
    others = sum(loss**q for loss in (1.0, 2.0, 3.0))
    bounded = strategy.apply(begun(strategy), sent(1, 2, 3, -4, metrics={START_LOSS: [1, 2, 3, told]}), {})
    assert pytest.approx(min(0.5, told**q / (others + told**q))) == bounded.shares["d"]
    if told**q > others:
        losses = [1, 2, 3, others ** (1 / q)]
        half = strategy.apply(begun(strategy), sent(1, 2, 3, -4, metrics={START_LOSS: losses}), {})
        assert pytest.approx(float(half.state.weights["w"]), rel=1e-9) == float(bounded.state.weights["w"])


def test_qfedavg_of_three_sites_believes_any_loss() -> None:
    """Of three, two others say little: 4 of 4 + 1 + 1."""
    strategy = QFedAvg(q=1.0, learning_rate=0.1)
    step = strategy.apply(begun(strategy), sent(1, 2, 3, metrics={START_LOSS: [4, 1, 1]}), {})
    assert pytest.approx(4 / 6) == step.shares["a"]


def test_qfedavg_refuses_a_negative_loss() -> None:
    """No power of it would be a number; the message names the site."""
    strategy = QFedAvg(learning_rate=0.1, q=0.1)
    with pytest.raises(ValueError, match=r"site 'b' sent start\.loss -1, expected >= 0"):
        strategy.apply(begun(strategy), sent(1, 2, metrics={START_LOSS: [1, -1]}), {})


Site = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def least_squares(site: Site, w: npt.NDArray[np.float64]) -> float:
    """Return a site's loss."""
    x, y = site
    return float(np.mean((x @ w - y) ** 2) / 2)


def gradient_steps(site: Site, w: npt.NDArray[np.float64], rate: float, steps: int) -> npt.NDArray[np.float64]:
    """Return where some steps of gradient descent lead at a site."""
    x, y = site
    for _ in range(steps):
        w = w - rate * x.T @ (x @ w - y) / len(y)
    return w


def qfedavg_of_the_paper(
    w: npt.NDArray[np.float64], sites: Sequence[Site], *, q: float, rate: float, steps: int
) -> npt.NDArray[np.float64]:
    """One round of Li 2020, algorithm 2, in the paper's order: every site works out its own two terms."""
    lipschitz = 1.0 / rate
    top, bottom = np.zeros_like(w), 0.0
    for site in sites:
        loss = least_squares(site, w) + 1e-10
        change = lipschitz * (w - gradient_steps(site, w, rate, steps))
        top += np.power(loss, q) * change
        bottom += q * np.power(loss, q - 1.0) * np.linalg.norm(change) ** 2 + lipschitz * np.power(loss, q)
    return w - top / bottom


@pytest.mark.parametrize("q", [0.0, 0.1, 1.0, 3.0])
def test_qfedavg_agrees_with_a_transcription_of_the_papers_algorithm(q: float) -> None:
    """Three sites with least squares of their own, 3 rounds of 5 gradient steps: equal to 1e-5, and the loss falls."""
    generator, rate, steps = np.random.default_rng(8), 0.05, 5
    sites: list[Site] = []
    for slope, rows in (([1.0, -2.0, 0.5], 12), ([2.0, 0.0, 0.0], 30), ([-1.0, -1.0, 3.0], 7)):
        x = generator.normal(size=(rows, 3))
        sites.append((x, x @ slope + 0.1 * generator.normal(size=rows)))
    strategy = QFedAvg(q=q, learning_rate=rate)
    state, expected = strategy.init({"w": np.zeros(3)}), np.zeros(3)
    for _ in range(3):
        w: Any = state.weights["w"]
        updates = [
            Update(name, {"w": gradient_steps(site, w, rate, steps) - w}, 1, {START_LOSS: least_squares(site, w)})
            for name, site in zip("abc", sites, strict=True)
        ]
        state = strategy.apply(state, updates, {}).state
        expected = qfedavg_of_the_paper(expected, sites, q=q, rate=rate, steps=steps)
        np.testing.assert_allclose(state.weights["w"], expected, rtol=1e-5, atol=0)  # type: ignore[arg-type]  # these are floats
    assert sum(least_squares(site, expected) for site in sites) < sum(least_squares(s, np.zeros(3)) for s in sites)


# --- SCAFFOLD --------------------------------------------------------------------------------------


def with_control(updates: Sequence[Update], *controls: float) -> list[Update]:
    """Return the updates with changes of a control variate."""
    return [replace(u, control={"w": np.array(value)}) for u, value in zip(updates, controls, strict=True)]


def test_scaffold_gives_the_numbers_worked_out_by_hand() -> None:
    """learning_rate 0.5; 4 sites in the study, 2 of which answer.

    Round 1: mean (2 + 4) / 2 = 3, w = 10 + 1.5 = 11.5; c = 0 + (2 + 6) / 4 = 2.
    Round 2: mean -1, w = 11.5 - 0.5 = 11; c = 2 + (-4 + 1) / 4 = 1.25.
    """
    strategy = Scaffold(learning_rate=0.5, num_sites=4)
    state, seen = begun(strategy), []
    for deltas, controls in (((2.0, 4.0), (2.0, 6.0)), ((-3.0, 1.0), (-4.0, 1.0))):
        updates = with_control(sent(*deltas), *controls)
        state = strategy.apply(state, updates, shared(updates)).state
        seen.append((float(state.weights["w"]), float(state.along[CONTROL + "w"])))
    assert [(11.5, 2.0), (11.0, 1.25)] == seen


def test_scaffold_control_is_a_mean_over_all_sites_whatever_the_shares() -> None:
    """Shares 0.9 and 0.1 move w by 0.9 * 2 + 0.1 * 4 = 2.2; c by (2 + 6) / 2 = 4 all the same."""
    strategy = Scaffold(num_sites=2, learning_rate=1.0)
    state = strategy.apply(begun(strategy), with_control(sent(2, 4), 2, 6), {"a": 0.9, "b": 0.1}).state
    assert pytest.approx(12.2) == float(state.weights["w"])
    assert 4.0 == float(state.along[CONTROL + "w"])


def test_scaffold_control_starts_at_zero_for_trained_floats_in_their_own_dtype() -> None:
    """None for running statistics and counters: their gradients do not exist."""
    along = Scaffold(learning_rate=1.0, num_sites=1).init(FORM, BUFFERS).along
    np.testing.assert_equal(dict(along), {CONTROL + name: np.zeros_like(FORM[name]) for name in ("body", "head")})
    assert {"control/body": np.float32, "control/head": np.float64} == {name: a.dtype for name, a in along.items()}


def test_scaffold_sends_along_nothing_but_the_control() -> None:
    """What else travelled in the round (candidate weights) is not carried on."""
    strategy = Scaffold(learning_rate=1.0, num_sites=1)
    state = begun(strategy)
    state = replace(state, along={**state.along, "candidate-a/w": np.array(3.0)})
    assert {CONTROL + "w"} == set(strategy.apply(state, with_control(sent(1), 1), {"a": 1.0}).state.along)


# --- FedNova ---------------------------------------------------------------------------------------


def test_fednova_gives_the_numbers_worked_out_by_hand() -> None:
    """Shares 1/4 and 3/4, 1 and 4 steps, deltas 2 and 4.

    Per step 2 and 1, their mean 0.5 + 0.75 = 1.25; mean steps 0.25 + 3 = 3.25; w = 10 + 3.25 * 1.25 = 14.0625.
    FedAvg would be 10 + 0.5 + 3 = 13.5.
    """
    updates = sent(2, 4, metrics={EFFECTIVE_STEPS: [1, 4]})
    assert exactly(14.0625) == moved(FedNova(), updates, shares=[0.25, 0.75])
    assert exactly(13.5) == moved(FedAvg(learning_rate=1.0), updates, shares=[0.25, 0.75])


def test_fednova_lets_no_site_lead_by_stepping_more() -> None:
    """Two sites that pull as hard in opposite directions, one with 4 steps and one with 1, cancel: w stays 10.

    Per step -1 and 1, their mean 0. FedAvg would go to 10 + (-4 + 1) / 2 = 8.5.
    """
    updates = sent(-4, 1, metrics={EFFECTIVE_STEPS: [4, 1]})
    assert exactly(10) == moved(FedNova(), updates)


def test_fednova_averages_buffers_with_the_shares_given() -> None:
    """A running mean moves by 0.25 * 2 + 0.75 * 4 = 3.5, whatever the steps."""
    updates = sent(2, 4, metrics={EFFECTIVE_STEPS: [1, 4]})
    state = FedNova().init({"w": np.array(10.0)}, frozenset({"w"}))
    assert 13.5 == FedNova().apply(state, updates, {"a": 0.25, "b": 0.75}).state.weights["w"]


def test_fednova_refuses_a_site_without_steps() -> None:
    """An update of no steps cannot be divided; the message names the site."""
    updates = sent(1, 1, metrics={EFFECTIVE_STEPS: [1, 0]})
    with pytest.raises(ValueError, match=r"site 'b' sent train\.effective_steps 0, expected more than 0"):
        FedNova().apply(begun(FedNova()), updates, shared(updates))


# --- Reptile, Per-FedAvg ---------------------------------------------------------------------------


def test_reptile_step_shrinks_to_0_over_the_rounds() -> None:
    """step 0.8 of 4 rounds: 0.8, 0.6, 0.4, 0.2 of a mean of 5, so w = 14, 17, 19, 20; more rounds change nothing."""
    rounds = [sent(4, 6)] * 6
    assert exactly(14, 17, 19, 20, 20, 20) == moved(Reptile(step=0.8, rounds=4, anneal=True), *rounds)
    assert exactly(14, 17, 19, 20, 20, 20) == moved(
        Reptile(step=0.8, rounds=4, anneal=True), *([sent(2, 6)] * 6), shares=[0.25, 0.75]
    )


def test_reptile_without_annealing_keeps_its_step() -> None:
    """0.8 of 5 in every round, whatever their number."""
    assert exactly(14, 18, 22) == moved(Reptile(step=0.8, anneal=False, rounds=2), *([sent(4, 6)] * 3))


def test_per_fedavg_is_the_plain_mean() -> None:
    """(1 + 2 + 6) / 3 = 3, with shares of a third, whatever shares are given."""
    updates = sent(1, 2, 6)
    step = PerFedAvg().apply(begun(PerFedAvg()), updates, {"a": 0.5, "b": 0.5, "c": 0.0})
    assert pytest.approx(13, rel=1e-13) == step.state.weights["w"]
    assert {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3} == dict(step.shares)


# --- median and trimmed mean -----------------------------------------------------------------------


def test_median_of_an_odd_number_is_the_middle_value() -> None:
    """Of 1, 100 and 2 it is 2, c's alone."""
    step = Median().apply(begun(Median()), sent(1, 100, 2), ALIKE)
    assert (12.0, {"a": 0.0, "b": 0.0, "c": 1.0}) == (float(step.state.weights["w"]), dict(step.shares))


def test_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    """Of 1, 100, 2 and 4 it is (2 + 4) / 2 = 3, half c's and half d's."""
    step = Median().apply(begun(Median()), sent(1, 100, 2, 4), ALIKE)
    assert (13.0, {"a": 0.0, "b": 0.0, "c": 0.5, "d": 0.5}) == (float(step.state.weights["w"]), dict(step.shares))


def test_median_is_taken_coordinate_by_coordinate() -> None:
    """Of (1, 5, 0, 7), (2, 4, 1, 8) and (9, -7, 2, 6) it is (2, 4, 1, 7); b leads in 3 of 4 coordinates, a in 1."""
    step = Median().apply(begun(Median(), 4), sent([1, 5, 0, 7], [2, 4, 1, 8], [9, -7, 2, 6]), ALIKE)
    assert [12, 14, 11, 17] == step.state.weights["w"].tolist()
    assert {"a": 0.25, "b": 0.75, "c": 0.0} == dict(step.shares)


def test_median_counts_equal_values_in_the_order_of_sites() -> None:
    """Three equal values: the middle one is b's; of 31 zeros, at every other site, the last is in the middle of 61."""
    assert {"a": 0.0, "b": 1.0, "c": 0.0} == dict(Median().apply(begun(Median()), sent(5, 5, 5), ALIKE).shares)
    many = [Update(f"site-{k:02}", {"w": np.array(k % 2 * 1.0)}, 1, {}) for k in range(61)]
    assert 1.0 == Median().apply(begun(Median()), many, ALIKE).shares["site-60"]


@pytest.mark.parametrize(("deltas", "expected"), [((3, 5, 9, 4), 11), ((3, 6, 9, 5), 13), ((-3, -8, 40), 4)])
def test_median_of_counters_is_rounded_to_the_nearest(deltas: Sequence[int], expected: int) -> None:
    """From 7: 4.5 is rounded to 4 and 5.5 to 6, the even neighbours; -3 is exact."""
    updates = [Update(site, {"n": np.array(value)}, 1, {}) for site, value in zip("abcd", deltas, strict=False)]
    count = Median().apply(Median().init({"n": np.array(7)}), updates, ALIKE).state.weights["n"]
    assert (expected, np.dtype(np.int64)) == (int(count), count.dtype)


def test_median_of_nothing_has_equal_shares() -> None:
    """Without a coordinate no site is in the middle."""
    empty = [Update(site, {"w": np.zeros((0, 2))}, 1, {}) for site in "abcd"]
    step = Median().apply(Median().init({"w": np.zeros((0, 2))}), empty, ALIKE)
    assert ((0, 2), dict.fromkeys("abcd", 0.25)) == (step.state.weights["w"].shape, dict(step.shares))


def test_trimmed_mean_gives_the_numbers_worked_out_by_hand() -> None:
    """Of 6, 1000, 1, 2 and 4 without the lowest and highest: (6 + 2 + 4) / 3 = 4, a third each of a, d and e."""
    step = TrimmedMean(trim=1).apply(begun(TrimmedMean(trim=1)), sent(6, 1000, 1, 2, 4), ALIKE)
    assert pytest.approx(14, rel=1e-13) == step.state.weights["w"]
    assert pytest.approx({"a": 1 / 3, "b": 0, "c": 0, "d": 1 / 3, "e": 1 / 3}) == dict(step.shares)


def test_trimmed_mean_trims_each_coordinate_for_itself() -> None:
    """(1, 7), (2, 8) and (3, -9) with trim 1 leave 2 of b and 7 of a: half of the shares each."""
    step = TrimmedMean(trim=1).apply(begun(TrimmedMean(trim=1), 2), sent([1, 7], [2, 8], [3, -9]), ALIKE)
    assert ([12, 17], {"a": 0.5, "b": 0.5, "c": 0.0}) == (step.state.weights["w"].tolist(), dict(step.shares))


def test_trimmed_mean_with_two_trimmed_of_five_is_the_median() -> None:
    """Only the middle value is left; bit for bit."""
    same_weights(stepped(Median(), EQUAL), stepped(TrimmedMean(trim=2), EQUAL))


def test_trimmed_mean_rounds_counters() -> None:
    """From 0: of 1, 2, 5 and 90 the middle two, 3.5, are rounded to 4; of 1, 2, 4, 6 and 90 the middle three to 4."""
    for values, expected in (((1, 2, 5, 90), 4), ((1, 2, 4, 6, 90), 4), ((1, 2, 3, 6, 90), 4)):
        updates = [Update(site, {"n": np.array(v)}, 1, {}) for site, v in zip("abcde", values, strict=False)]
        step = TrimmedMean(trim=1).apply(TrimmedMean(trim=1).init({"n": np.array(0)}), updates, ALIKE)
        assert expected == step.state.weights["n"]


def test_trimmed_mean_with_too_few_updates_says_how_many_it_needs() -> None:
    """4 updates are not enough to trim 2 at each end."""
    with pytest.raises(ValueError, match="trim 2 needs at least 5 updates, got 4"):
        TrimmedMean(trim=2).apply(begun(TrimmedMean(trim=1)), sent(1, 2, 3, 4), ALIKE)


# --- Krum ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "expected", "kept"), [(1, 11.0, "b"), (2, 12.0, "bc")])
def test_krum_gives_the_numbers_worked_out_by_hand(keep: int, expected: float, kept: str) -> None:
    """0, 1, 3, 4.5 and 100 with f = 1: scores over the 5 - 1 - 2 = 2 closest.

    a: 1 + 9 = 10; b: 1 + 4 = 5; c: 2.25 + 4 = 6.25; d: 2.25 + 12.25 = 14.5; e: far. Krum takes b, two of
    Multi-Krum b and c with mean 2.
    """
    strategy = Krum(attackers=1, keep=keep)
    step = strategy.apply(begun(strategy), sent(0, 1, 3, 4.5, 100), ALIKE)
    assert expected == step.state.weights["w"]
    assert {site: 1 / keep if site in kept else 0.0 for site in "abcde"} == dict(step.shares)


def test_krum_sums_squares() -> None:
    """0, 0.1, 3, 5 and 7: squares b: 0.01 + 8.41 = 8.42, d: 4 + 4 = 8, so d; distances would take b, 3 against 4."""
    assert exactly(15) == moved(Krum(attackers=1, keep=1), sent(0, 0.1, 3, 5, 7))


def test_krum_takes_the_first_of_equal_scores() -> None:
    """0, 1, 3, 4 and 100: b and c both have 1 + 4 = 5; b comes first in the order of names.

    Of 61 sites, 31 with 0 and 30 with 5, those with 0 have equal scores: the first two are sites 0 and 2.
    """
    assert exactly(11) == moved(Krum(attackers=1, keep=1), sent(0, 1, 3, 4, 100))
    assert exactly(13) == moved(Krum(attackers=1, keep=1), sent(0, 3, 1, 4, 100))
    many = [Update(f"site-{k:02}", {"w": np.array(k % 2 * 5.0)}, 1, {}) for k in range(61)]
    shares = Krum(keep=2, attackers=1).apply(begun(Krum(attackers=1, keep=1)), many, ALIKE).shares
    assert ["site-00", "site-02"] == [site for site, share in shares.items() if share]


def test_krum_of_attackers_is_one_of_the_others() -> None:
    """Two of seven sites together send 1e6 times the delta: neither is chosen, whatever their names."""
    honest = [1.0, 1.1, 0.9, 1.05, 0.95]
    for place in range(6):
        deltas = [*honest[:place], 1e6, 1e6, *honest[place:]]
        strategy = Krum(attackers=2, keep=1)
        shares = strategy.apply(begun(strategy), sent(*deltas), ALIKE).shares
        assert 0 == shares["abcdefg"[place]] == shares["abcdefg"[place + 1]]


def test_krum_measures_distance_over_trained_arrays_only() -> None:
    """A running mean far from the others' does not rule b out; it then moves by b's."""
    weights = {"w": np.array(10.0), "bn.mean": np.array(0.0)}
    updates = sent(0, 1, 3, 4.5, 100)
    updates = [replace(u, delta={**u.delta, "bn.mean": np.array(999.0 * (u.site == "b"))}) for u in updates]
    after = (
        Krum(attackers=1, keep=1)
        .apply(Krum(attackers=1, keep=1).init(weights, frozenset({"bn.mean"})), updates, ALIKE)
        .state.weights
    )
    assert (11.0, 999.0) == (float(after["w"]), float(after["bn.mean"]))


@pytest.mark.parametrize(("attackers", "keep", "least"), [(1, 1, 5), (2, 1, 7), (0, 1, 3), (1, 4, 7)])
def test_krum_with_too_few_updates_says_how_many_it_needs(attackers: int, keep: int, least: int) -> None:
    """2 f + 3, and more where many are kept: keep <= n - f - 2."""
    strategy = Krum(attackers=attackers, keep=keep)
    strategy.apply(begun(strategy), sent(*range(least)), ALIKE)
    with pytest.raises(ValueError, match=f"attackers {attackers} and keep {keep} needs at least {least} updates"):
        strategy.apply(begun(strategy), sent(*range(least - 1)), ALIKE)


# --- medians, trimmed means and Krum with shares ---------------------------------------------------


def repeated(values: Iterable[float], weights: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the values in order, each as often as it counts."""
    return np.array(sorted(value for value, weight in zip(values, weights, strict=True) for _ in range(weight)))


WHOLE_WEIGHTS = [((1, 2, 3, 4, 5), seed) for seed in range(6)] + [((3, 1, 1, 1, 0), 6), ((1, 1, 2, 2, 2), 7)]


@pytest.mark.parametrize(("weights", "seed"), WHOLE_WEIGHTS)
def test_weighted_median_is_that_of_repeated_values(weights: tuple[int, ...], seed: int) -> None:
    """A site with weight 3 is three sites that sent the same: NumPy's median of the values, each so often."""
    values = np.random.default_rng(seed).permutation(np.arange(5) ** 2 * 1.25)
    updates = sent(*values)
    step = Median().apply(begun(Median()), updates, shared(updates, *(w / sum(weights) for w in weights)))
    assert pytest.approx(START + float(np.median(repeated(values, weights))), rel=1e-13) == step.state.weights["w"]
    used = sum(value * step.shares[site] for value, site in zip(values, "abcde", strict=True))
    assert pytest.approx(used) == float(step.state.weights["w"]) - START


@pytest.mark.parametrize("trim", [0, 1, 2])
@pytest.mark.parametrize(("weights", "seed"), WHOLE_WEIGHTS)
def test_weighted_trimmed_mean_is_that_of_repeated_values(weights: tuple[int, ...], seed: int, trim: int) -> None:
    """Each value 5 times its weight, and trim times all weights of them left out at each end, sorted as a list."""
    values = np.random.default_rng(seed).permutation(np.arange(5) ** 2 * 1.25)
    total, updates, strategy = sum(weights), sent(*values), TrimmedMean(trim=trim)
    many = repeated(values, [5 * weight for weight in weights])[trim * total : (5 - trim) * total]
    step = strategy.apply(begun(strategy), updates, shared(updates, *(w / total for w in weights)))
    assert pytest.approx(START + float(many.sum()) / len(many), rel=1e-12) == step.state.weights["w"]
    used = sum(value * step.shares[site] for value, site in zip(values, "abcde", strict=True))
    assert pytest.approx(used, rel=1e-12) == float(step.state.weights["w"]) - START


def test_weighted_median_gives_the_numbers_worked_out_by_hand() -> None:
    """1, 7 and 9 with 0.5, 0.2, 0.3: half is with 1, so (1 + 7) / 2; with 0.6 it is 1, and a share of 0 is nobody."""
    for shares, expected in (((0.5, 0.2, 0.3), 4.0), ((0.6, 0.2, 0.2), 1.0), ((0.5, 0.0, 0.5), 5.0)):
        assert [START + expected] == moved(Median(), sent(1, 7, 9), shares=shares)


def test_weighted_trimmed_mean_counts_a_site_across_the_line_in_part() -> None:
    """Of 0, 1 and 10 with 0.5, 0.3 and 0.2, a third at each end is left out: 1/6 of 0 and 1/6 of 1 stay."""
    updates, strategy = sent(0, 1, 10), TrimmedMean(trim=1)
    step = strategy.apply(begun(strategy), updates, shared(updates, 0.5, 0.3, 0.2))
    assert pytest.approx(START + 0.5) == float(step.state.weights["w"])
    assert pytest.approx({"a": 0.5, "b": 0.5, "c": 0.0}) == dict(step.shares)


@pytest.mark.parametrize("sites", [3, 4, 7, 14, 49])
@pytest.mark.parametrize("strategy", [Median(), TrimmedMean(trim=1), Krum(attackers=0, keep=1)], ids=lambda s: str(s))
def test_shares_that_are_equal_change_no_bit(strategy: Strategy, sites: int) -> None:
    """Whatever the equal number: 1, and 1 over the number of sites, give the same weights and parts."""
    updates = mixed(3, sites)
    one, other = (stepped(strategy, {update.site: share for update in updates}, updates) for share in (1.0, 1 / sites))
    same_weights(one, other)
    assert dict(one.shares) == dict(other.shares)
    if isinstance(strategy, Median):
        values: Any = np.median(np.stack([update.delta["head"] for update in updates]), axis=0)
        np.testing.assert_array_equal(values, one.state.weights["head"])


def test_multi_krum_weighs_those_whom_it_keeps() -> None:
    """b and c are the most central whatever their shares; with 0.3 and 0.1 they count 3/4 and 1/4: 1.5."""
    strategy, updates = Krum(attackers=1, keep=2), sent(0, 1, 3, 4.5, 100)
    step = strategy.apply(begun(strategy), updates, shared(updates, 0.2, 0.3, 0.1, 0.0, 0.4))
    assert pytest.approx(START + 1.5) == float(step.state.weights["w"])
    assert pytest.approx({"a": 0, "b": 0.75, "c": 0.25, "d": 0, "e": 0}) == dict(step.shares)
    step = strategy.apply(begun(strategy), updates, shared(updates, 0.6, 0.0, 0.0, 0.0, 0.4))
    assert {"a": 0.0, "b": 0.5, "c": 0.5, "d": 0.0, "e": 0.0} == dict(step.shares)


def test_shares_below_a_half_cannot_drag_a_median() -> None:
    """Two sites with 0.49 of the shares send a million: the median stays among the others' 0.9, 1 and 1.1."""
    updates = sent(1.0, 1e6, 0.9, 1.1, 1e6)
    w = Median().apply(begun(Median()), updates, shared(updates, 0.17, 0.245, 0.17, 0.17, 0.245)).state.weights["w"]
    assert 10.9 <= float(w) <= 11.1


# --- geometric median ------------------------------------------------------------------------------


@pytest.mark.parametrize(("iterations", "expected"), [(1, 10.6), (2, 10 + 1 / 3)])
def test_geometric_median_gives_the_numbers_worked_out_by_hand(iterations: int, expected: float) -> None:
    """0, 0 and 3 with equal shares: z = 1 with distances 1, 1, 2, so b ~ 2 : 2 : 1 and z = 3 / 5 = 0.6.

    Again: distances 0.6, 0.6, 2.4, so b ~ 4 : 4 : 1 and z = 3 / 9.
    """
    assert exactly(expected) == moved(GeometricMedian(iterations=iterations, smoothing=1e-06), sent(0, 0, 3))


def test_geometric_median_weighs_by_the_shares_given_and_smooths() -> None:
    """Shares 1/2, 1/4, 1/4 of 0, 4 and 12: z = 0 + 1 + 3 = 4 with distances 4, 0 and 8; smoothing 1 makes 0 a 1.

    b = 1/8, 1/4 and 1/32 ~ 4 : 8 : 1, so z = (8 * 4 + 12) / 13 = 44 / 13 and the shares are 4/13, 8/13, 1/13.
    """
    strategy = GeometricMedian(iterations=1, smoothing=1.0)
    updates = sent(0, 4, 12)
    step = strategy.apply(begun(strategy), updates, shared(updates, 0.5, 0.25, 0.25))
    assert pytest.approx(10 + 44 / 13, rel=1e-13) == step.state.weights["w"]
    assert pytest.approx({"a": 4 / 13, "b": 8 / 13, "c": 1 / 13}) == dict(step.shares)


def test_geometric_median_of_one_site_is_its_own_delta() -> None:
    """Distance 0 to itself; exactly."""
    assert [14.5] == moved(GeometricMedian(iterations=32, smoothing=1e-06), sent(4.5))


def test_geometric_median_of_equal_deltas_is_that_delta_with_the_shares_given() -> None:
    """All distances are smoothed alike."""
    step = stepped(
        GeometricMedian(iterations=32, smoothing=1e-06),
        UNEQUAL,
        [replace(u, delta=mixed(1)[0].delta) for u in mixed(1)],
    )
    assert pytest.approx(UNEQUAL) == dict(step.shares)


def test_geometric_median_is_where_the_pulls_balance() -> None:
    """At the least sum of distances the weighted unit vectors towards the deltas sum to 0; over both trained arrays."""
    strategy, updates = GeometricMedian(iterations=1000, smoothing=1e-06), mixed(4)
    state = strategy.init(FORM, BUFFERS)
    shares = {"site-0": 0.3, "site-1": 0.1, "site-2": 0.2, "site-3": 0.25, "site-4": 0.15}

    def trained(arrays: Mapping[str, Array]) -> npt.NDArray[np.float64]:
        return np.concatenate([arrays[name].reshape(-1).astype(np.float64) for name in state.optimised])

    z = trained(strategy.apply(state, updates, shares).state.weights)  # FORM's are 0
    ways = [(shares[u.site], trained(u.delta) - z) for u in updates]
    pull = sum(share * way / np.linalg.norm(way) for share, way in ways)
    assert np.linalg.norm(pull) < 1e-5
    assert 0.1 < np.linalg.norm(sum(share * way for share, way in ways))  # the mean is elsewhere


def test_geometric_median_stays_with_the_majority() -> None:
    """Two of five sites send a million times the delta: the step stays near 1 where the mean is 400000."""
    w = moved(GeometricMedian(iterations=200, smoothing=1e-06), sent(1.0, 1e6, 0.9, 1.1, 1e6))[0]
    assert pytest.approx(11, abs=0.2) == w


# --- helpers in base -------------------------------------------------------------------------------


def test_gram_is_the_inner_products_over_the_names_given() -> None:
    """Deltas (1, 2), (3, -1) over two arrays, a third left out: 1 + 4, 3 - 2, 9 + 1."""
    rows = ((1.0, 2.0), (3.0, -1.0))
    arrays = [{"u": np.array(u), "v": np.array([v], np.float32), "x": np.array(99.0)} for u, v in rows]
    updates = [Update(site, delta, 1, {}) for site, delta in zip("ab", arrays, strict=True)]
    assert [[5, 1], [1, 10]] == gram(updates, ("u", "v")).tolist()


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 7, 100])
def test_blocks_hold_every_coordinate_once(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a block, also where it divides an array's: the same coordinates, Gram matrix and median."""
    updates = mixed(6)
    expected = gram(updates, ("body", "head")), middle_mean(updates, FORM, UNEQUAL, trim=1)
    equal = middle_mean(updates, FORM, EQUAL, trim=1)
    monkeypatch.setattr("consilium.server.strategies.contract.BLOCK_BYTES", 8 * len(updates) * length)
    seen: dict[str, list[float]] = {name: [] for name in FORM}
    for name, start, values in blocks(updates, FORM):
        assert (len(seen[name]), True) == (start, len(values) <= length)
        seen[name].extend(values[:, 3].tolist())
    assert {name: array.reshape(-1).tolist() for name, array in updates[3].delta.items()} == seen
    np.testing.assert_allclose(gram(updates, ("body", "head")), expected[0], rtol=1e-12)
    mean, parts = middle_mean(updates, FORM, UNEQUAL, trim=1)
    np.testing.assert_equal(mean, expected[1][0])
    assert pytest.approx(expected[1][1], rel=1e-12) == parts
    np.testing.assert_equal(middle_mean(updates, FORM, EQUAL, trim=1), equal)
