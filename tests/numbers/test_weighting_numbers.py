"""Weighting: each factor's own numbers, worked out by hand or by an independent transcription, and its edges."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.study.signals import CANDIDATE_LOSSES, WITHOUT_ERROR
from consilium.server.strategies import Update
from consilium.server.strategies.fedavg import FedAvg
from consilium.server.weighting import Evidence, Factor, Reading, SignalMissing, Weighting
from consilium.server.weighting.afl import Afl, project_simplex
from consilium.server.weighting.auto import Auto
from consilium.server.weighting.divergence import Divergence
from consilium.server.weighting.fedadp import FedAdp
from consilium.server.weighting.fedce import FedCe
from consilium.server.weighting.feddg_ga import FedDgGa
from consilium.server.weighting.feddisco import FedDisco
from consilium.server.weighting.loss import Loss
from consilium.server.weighting.size import Size

LN2 = math.log(2)
Vector = npt.NDArray[np.float64]
PerSite = Mapping[str, float]


def told(number: int = 1, rounds: int = 10, seed: int = 1, **metrics: Sequence[float]) -> Evidence:
    """Evidence of sites a, b, c, ... with these metrics (dots and dashes as underscores), ten examples each."""
    count = len(next(iter(metrics.values())))
    real = {name: name.replace("_", ".").replace("candidate.", "candidate-") for name in metrics}
    updates = [
        Update(site, {}, 10, {real[name]: values[index] for name, values in metrics.items()})
        for index, site in enumerate("abcdefgh"[:count])
    ]
    return Evidence(updates, number, rounds, seed=seed)


def pointing(deltas: Mapping[str, Sequence[float]], number: int = 1, **metrics: Mapping[str, float]) -> Evidence:
    """Evidence of sites with these deltas of one trained array, ten examples each; beside it a buffer that is not."""
    updates = []
    for index, (site, values) in enumerate(sorted(deltas.items())):
        arrays = {"w": np.array(values), "bn.mean": np.array([1000.0 * (-1) ** index]), "bn.count": np.array(7 * index)}
        updates.append(Update(site, arrays, 10, {WITHOUT_ERROR: metrics.get("error", {}).get(site, 0.5)}))
    return Evidence(updates, number, rounds=10, optimised=("w",))


def counted(counts: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int] | None = None) -> Evidence:
    """Evidence of sites with these class counts, and as many examples unless `sizes` says otherwise."""
    sizes = sizes or {site: sum(own.values()) for site, own in counts.items()}
    return Evidence([Update(site, {}, sizes[site], {}) for site in sorted(sizes)], 1, 10, class_counts=counts)


def only(factor: Factor) -> Weighting:
    """Return a weighting of one factor."""
    return Weighting((("factor", factor, 1.0),), smoothing=0.0, minimum=0.0, maximum=1.0)


# --- loss ------------------------------------------------------------------------------------------


def test_loss_halves_a_weight_per_temperature_times_ln_2() -> None:
    """temperature 0.5; losses 0.1, 0.1 + 0.5 ln 2, 0.1 + 0.5 ln 4: exp(0) = 1, exp(-ln 2) = 1/2, exp(-ln 4) = 1/4."""
    reading = Loss(temperature=0.5).read(told(update_loss=[0.1, 0.1 + 0.5 * LN2, 0.1 + LN2]), {})
    assert pytest.approx({"a": 1.0, "b": 0.5, "c": 0.25}, abs=1e-15) == dict(reading.values)
    assert {"update_loss"} == set(reading.signals)


def test_loss_counts_differences_only() -> None:
    """The same differences high up, where a plain softmax would be 0 / 0, give the same weights."""
    values = Loss(temperature=1.0).read(told(update_loss=[5000.0, 5000.5]), {}).values
    assert pytest.approx({"a": 1.0, "b": math.exp(-0.5)}, abs=1e-12) == dict(values)


def test_loss_of_a_small_temperature_leaves_the_best_site() -> None:
    """And of a large one leaves no difference."""
    losses = told(update_loss=[0.3, 0.2, 0.4])
    assert {"a": 0.0, "b": 1.0, "c": 0.0} == dict(Loss(temperature=1e-9).read(losses, {}).values)
    assert pytest.approx(dict.fromkeys("abc", 1.0), abs=1e-8) == dict(Loss(temperature=1e9).read(losses, {}).values)


# --- FedDG-GA --------------------------------------------------------------------------------------


def test_feddg_ga_gives_the_numbers_worked_out_by_hand() -> None:
    """step 0.2, 10 rounds, four sites.

    Round 1: all 1/4. Round 2: the gaps of round 1 are 0.9 - 0.5, 0.7 - 0.5, 0.6 - 0.5, 0.6 - 0.5 = 0.4, 0.2, 0.1, 0.1;
    their mean is 0.2, the deviations 0.2, 0, -0.1, -0.1, of which the largest is 0.2; the step is 0.2 * (1 - 0 / 10):
    a = 0.45, 0.25, 0.15, 0.15. Round 3: gaps of round 2 0, 0.2, 0.1, 0.1, deviations -0.1, 0.1, 0, 0, step
    0.2 * (1 - 1 / 10) = 0.18: a = 0.27, 0.43, 0.15, 0.15.
    """
    first = FedDgGa(step=0.2).read(told(1, received_loss=[2.0, 1.0, 3.0, 4.0], update_loss=[0.5] * 4), {})
    assert dict.fromkeys("abcd", 0.25) == dict(first.values)
    second = FedDgGa(step=0.2).read(told(2, received_loss=[0.9, 0.7, 0.6, 0.6], update_loss=[0.4] * 4), first.memory)
    assert pytest.approx({"a": 0.45, "b": 0.25, "c": 0.15, "d": 0.15}, abs=1e-12) == dict(second.values)
    assert pytest.approx({"a": 0.4, "b": 0.2, "c": 0.1, "d": 0.1}, abs=1e-12) == dict(second.signals["gap"])
    third = FedDgGa(step=0.2).read(told(3, received_loss=[0.4, 0.6, 0.5, 0.5], update_loss=[0.4] * 4), second.memory)
    assert pytest.approx({"a": 0.27, "b": 0.43, "c": 0.15, "d": 0.15}, abs=1e-12) == dict(third.values)


def test_feddg_ga_clips_before_it_normalises() -> None:
    """step 1: 0.25 + (1, 0, -0.5, -0.5) = 1.25, 0.25, -0.25, -0.25, clipped to 1, 0.25, 0, 0, of 1.25."""
    first = FedDgGa(step=1.0).read(told(1, received_loss=[1.0] * 4, update_loss=[0.5] * 4), {})
    second = FedDgGa(step=1.0).read(told(2, received_loss=[0.9, 0.7, 0.6, 0.6], update_loss=[0.4] * 4), first.memory)
    assert pytest.approx({"a": 0.8, "b": 0.2, "c": 0.0, "d": 0.0}, abs=1e-12) == dict(second.values)


def test_feddg_ga_changes_nothing_while_all_gaps_are_equal() -> None:
    """Nor where they differ by rounding alone: the largest deviation is never blown up to a whole step."""
    first = FedDgGa(step=0.2).read(told(1, received_loss=[1.0] * 3, update_loss=[0.1, 0.2, 0.3]), {})
    second = FedDgGa(step=0.2).read(told(2, received_loss=[0.2, 0.3, 0.1 + 0.3], update_loss=[0.1] * 3), first.memory)
    assert 1 < len(set(second.signals["gap"].values())), "the case is about rounding"
    assert dict.fromkeys("abc", 1 / 3) == dict(second.values)


def test_feddg_ga_leaves_a_site_alone_that_was_not_in_the_round_before() -> None:
    """b misses round 2. In round 3 the gaps of a and c, 0 and 0.4, move these two by -0.18 and 0.18 from 1/3.

    Had b's loss of round 1 been taken, its gap 0.9 - 0.5 would have moved b too.
    """
    memory = FedDgGa(step=0.2).read(told(1, received_loss=[1.0] * 3, update_loss=[0.5] * 3), {}).memory
    two = told(2, received_loss=[0.6, 9.0, 0.6], update_loss=[0.5, 9.0, 0.5])
    memory = FedDgGa(step=0.2).read(Evidence([two.updates[0], two.updates[2]], 2, 10), memory).memory
    assert (0.5, 1.0) == (memory["update_loss/b"], memory["round/b"])
    third = FedDgGa(step=0.2).read(told(3, received_loss=[0.5, 0.9, 0.9], update_loss=[0.5] * 3), memory)
    assert {"a", "c"} == set(third.signals["gap"])
    assert pytest.approx({"a": 1 / 3 - 0.18, "b": 1 / 3, "c": 1 / 3 + 0.18}, abs=1e-12) == dict(third.values)


def test_feddg_ga_lets_a_late_joiner_in_with_the_mean() -> None:
    """a = 0.7, b = 0.3; c enters with their mean 0.5, so all of them over 1.5."""
    memory = {"a/a": 0.7, "a/b": 0.3}
    reading = FedDgGa(step=0.2).read(told(5, received_loss=[1.0] * 3, update_loss=[1.0] * 3), memory)
    assert pytest.approx({"a": 7 / 15, "b": 3 / 15, "c": 5 / 15}, abs=1e-12) == dict(reading.values)


def test_feddg_ga_agrees_with_a_transcription_of_the_paper() -> None:
    """Full participation, six rounds of random losses: weights adjusted at the end of each round, as published."""
    generator, rounds, sites = np.random.default_rng(5), 6, 4
    after_training, after_mean = generator.uniform(0.1, 1, (rounds, sites)), generator.uniform(0.1, 1, (rounds, sites))

    weights, expected = np.full(sites, 1 / sites), []
    for number in range(rounds):  # the paper counts from 0
        expected.append(weights)
        gap = after_mean[number] - after_training[number]
        spread = gap - gap.mean()
        weights = np.clip(weights + 0.2 * (1 - number / rounds) * spread / np.abs(spread).max(), 0, 1)
        weights = weights / weights.sum()

    memory: Mapping[str, float] = {}
    for number in range(rounds):
        received = after_mean[number - 1] if number else np.ones(sites)
        losses = told(number + 1, rounds, received_loss=received.tolist(), update_loss=after_training[number].tolist())
        reading = FedDgGa(step=0.2).read(losses, memory)
        assert pytest.approx(expected[number], abs=1e-12) == list(reading.values.values())
        memory = reading.memory


# --- FedAdp ----------------------------------------------------------------------------------------


def test_fedadp_gives_the_numbers_worked_out_by_hand() -> None:
    """Sizes 3 to 1, deltas (2, 0) and (0, 2): the mean is (1.5, 0.5), the angles atan(1/3) and atan(3).

    f(0.321751) = 5 (1 - exp(-exp(3.391247))) = 5 (1 - exp(-29.70)) = 5, f(1.249046) = 5 (1 - exp(-exp(-1.245229)))
    = 5 (1 - exp(-0.287875)) = 1.250723, and exp(1.250723 - 5) = 0.023535.
    """
    given_now = pointing({"a": (2.0, 0.0), "b": (0.0, 2.0)})
    sized = [Update(u.site, u.delta, size, {}) for u, size in zip(given_now.updates, (30, 10), strict=True)]
    given_now = Evidence(sized, 1, 10, optimised=("w",))
    reading = FedAdp(alpha=5.0).read(given_now, {})
    assert pytest.approx({"a": math.atan(1 / 3), "b": math.atan(3)}, abs=1e-12) == dict(reading.signals["angle"])
    assert pytest.approx({"a": 1.0, "b": 0.023535}, abs=1e-6) == dict(reading.values)

    shares = (
        Weighting((("size", Size(), 1.0), ("fedadp", FedAdp(alpha=5.0), 1.0)), smoothing=0.0, minimum=0.0, maximum=1.0)
        .weigh(given_now, {})
        .shares
    )
    height = {site: 5 * (1 - math.exp(-math.exp(-5 * (x - 1)))) for site, x in reading.signals["angle"].items()}
    papers = {"a": 30 * math.exp(height["a"]), "b": 10 * math.exp(height["b"])}  # n_k exp(f(theta_k))
    assert pytest.approx(papers["a"] / sum(papers.values()), abs=1e-12) == shares["a"]


def test_fedadp_smooths_over_the_rounds_a_site_took_part_in() -> None:
    """b takes part in rounds 1 and 3 only: angles pi / 4 and then 0 against itself, together pi / 8.

    a: pi / 4 in round 1, alone 0 in round 2: pi / 8.
    """
    first = FedAdp(alpha=5.0).read(pointing({"a": (1.0, 0.0), "b": (0.0, 1.0)}), {})
    assert pytest.approx({"a": math.pi / 4, "b": math.pi / 4}, abs=1e-12) == dict(first.signals["mean_angle"])
    second = FedAdp(alpha=5.0).read(pointing({"a": (0.0, 3.0)}, 2), first.memory)
    assert pytest.approx({"a": math.pi / 8}, abs=1e-7) == dict(second.signals["mean_angle"])
    assert pytest.approx((math.pi / 4, 1), abs=1e-12) == (second.memory["angle/b"], second.memory["count/b"])
    third = FedAdp(alpha=5.0).read(pointing({"b": (5.0, 0.0)}, 3), second.memory)
    assert pytest.approx({"b": math.pi / 8}, abs=1e-7) == dict(third.signals["mean_angle"])
    assert pytest.approx((math.pi / 8, 2), abs=1e-7) == (third.memory["angle/a"], third.memory["count/a"])


def test_fedadp_mean_angle_is_the_mean_of_three() -> None:
    """Angles 0, pi / 4 and again 0: (0 + pi / 4 + 0) / 3, which an average of averages would not give."""
    memory: Mapping[str, float] = {}
    for number, other in enumerate([(1.0, 0.0), (0.0, 1.0), (1.0, 0.0)], start=1):
        reading = FedAdp(alpha=5.0).read(pointing({"a": (1.0, 0.0), "b": other}, number), memory)
        memory = reading.memory
    assert pytest.approx(math.pi / 12, abs=1e-7) == reading.signals["mean_angle"]["a"]


@pytest.mark.parametrize(
    ("deltas", "angles"),
    [
        ({"a": (0.0, 0.0), "b": (1.0, 1.0)}, {"a": math.pi / 2, "b": 0.0}),
        ({"a": (0.3, 0.1), "b": (-0.3, -0.1)}, {"a": math.pi / 2, "b": math.pi / 2}),
        ({"a": (0.0, 0.0), "b": (0.0, 0.0)}, {"a": math.pi / 2, "b": math.pi / 2}),
        ({"a": (-1.0, 0.0), "b": (3.0, 0.0)}, {"a": math.pi, "b": 0.0}),
        ({"a": (1e-30, 0.0), "b": (1e-30, 0.0)}, {"a": 0.0, "b": 0.0}),
        ({"a": (0.1, 0.7), "b": (0.2, 0.1), "c": (-0.3, -0.8)}, dict.fromkeys("abc", math.pi / 2)),
    ],
    ids=["zero delta", "zero mean", "all zero", "opposite", "tiny", "zero mean but for rounding"],
)
def test_fedadp_angle_without_a_direction_is_a_right_one(deltas: dict[str, Any], angles: dict[str, float]) -> None:
    """Nothing is divided by 0; and however short, a direction is one."""
    assert pytest.approx(angles, abs=1e-7) == dict(FedAdp(alpha=5.0).read(pointing(deltas), {}).signals["angle"])


@pytest.mark.parametrize("alpha", [1e-6, 5.0, 800.0, 1e6])
def test_fedadp_takes_any_alpha(alpha: float) -> None:
    """Neither exp overflows: angles 0 and pi give weights 1 and at least 0, and a tiny alpha no difference."""
    values = FedAdp(alpha).read(pointing({"a": (-1.0, 0.0), "b": (3.0, 0.0)}), {}).values
    assert 1.0 == values["b"]
    assert 0 <= values["a"] <= 1
    assert (alpha < 1) == (values["a"] > 0.99)


# --- FedCE -----------------------------------------------------------------------------------------

CORNERS = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (1.0, 1.0)}
ERRORS = {"a": 0.1, "b": 0.3, "c": 0.6}


def test_fedce_gives_the_numbers_worked_out_by_hand() -> None:
    """Deltas (1, 0), (0, 1), (1, 1), errors 0.1, 0.3, 0.6.

    Round 1, p = 1/3: the others of a point to (1, 2), of b to (2, 1), of c to (1, 1): cosines 1 / sqrt(5) = 0.447214
    twice, and 1. Novelty 0.552786, 0.552786, 0, so N(c) = 0.5, 0.5, 0, and values 0.6, 0.8, 0.6 but for the 1e-6.
    Round 2, p = 0.3, 0.4, 0.3: the others of a point to (0.3, 0.7), cosine 0.3 / sqrt(0.58) = 0.393919, mean with
    round 1 0.420566; of b to (0.6, 0.3), cosine 0.447214 again; of c to (0.3, 0.4), cosine 0.7 / (sqrt(2) * 0.5) =
    0.989949, mean 0.994975. Novelty 0.579434, 0.552786, 0.005025 of 1.137245.
    """
    first = FedCe(mode="plus").read(pointing(CORNERS, error=ERRORS), {})
    assert pytest.approx({"a": 5**-0.5, "b": 5**-0.5, "c": 1.0}, abs=1e-12) == dict(first.signals["cosine"])
    assert pytest.approx({"a": 0.6, "b": 0.8, "c": 0.6}, abs=1e-5) == dict(first.values)
    second = FedCe(mode="plus").read(pointing(CORNERS, 2, error=ERRORS), first.memory)
    assert pytest.approx({"a": 0.393919, "b": 0.447214, "c": 0.989949}, abs=1e-5) == dict(second.signals["cosine"])
    assert pytest.approx({"a": 0.579434, "b": 0.552786, "c": 0.005025}, abs=1e-5) == dict(second.signals["novelty"])
    expected = {"a": 0.579434 / 1.137245 + 0.1, "b": 0.552786 / 1.137245 + 0.3, "c": 0.005025 / 1.137245 + 0.6}
    assert pytest.approx(expected, abs=1e-5) == dict(second.values)


def test_fedce_times_multiplies() -> None:
    """Novelty 0.5, 0.5, 0 times error 0.1, 0.3, 0.6 is 0.05, 0.15, 0 of 0.2."""
    values = FedCe(mode="times").read(pointing(CORNERS, error=ERRORS), {}).values
    assert pytest.approx({"a": 0.25, "b": 0.75, "c": 0.0}, abs=1e-5) == dict(values)
    assert all(value > 0 for value in values.values())


def test_fedce_waits_for_a_site_that_is_away_and_gives_a_new_one_the_mean() -> None:
    """Round 2 without c and with d, (1, 0): p relative to the mean was 0.9, 1.2, 0.9 for a, b, c; d has 1.

    The others of d point to 0.9 (1, 0) + 1.2 (0, 1), cosine 0.9 / 1.5 = 0.6; of a to 1.2 (0, 1) + (1, 0), cosine
    1 / sqrt(2.44) = 0.640184. c keeps its cosine 1 of one round and its p.
    """
    first = FedCe(mode="plus").read(pointing(CORNERS, error=ERRORS), {})
    later = {"a": CORNERS["a"], "b": CORNERS["b"], "d": (1.0, 0.0)}
    second = FedCe(mode="plus").read(pointing(later, 2, error=ERRORS), first.memory)
    assert pytest.approx({"a": 0.640184, "b": 0.0, "d": 0.6}, abs=1e-5) == dict(second.signals["cosine"])
    assert pytest.approx((0.9, 1.0, 1.0), abs=1e-5) == tuple(
        second.memory[f"{what}/c"] for what in ("coefficient", "cosine", "count")
    )
    assert pytest.approx(3.0, abs=1e-12) == sum(second.memory[f"coefficient/{site}"] for site in "abd")


def test_fedce_mean_cosine_is_the_mean_of_three() -> None:
    """Cosines 1, 0, 1 are 2/3 together."""
    memory: Mapping[str, float] = {}
    for number, other in enumerate([(1.0, 0.0), (0.0, 1.0), (1.0, 0.0)], start=1):
        memory = FedCe(mode="plus").read(pointing({"a": (1.0, 0.0), "b": other}, number), memory).memory
    assert pytest.approx((2 / 3, 3), abs=1e-12) == (memory["cosine/a"], memory["count/a"])


@pytest.mark.parametrize(
    "deltas",
    [
        {"a": (1.0, 2.0)},
        {"a": (1.0, 2.0), "b": (0.0, 0.0)},
        {"a": (0.0, 0.0), "b": (0.0, 0.0)},
        {"a": (1.0, 2.0), "b": (0.3, 0.1), "c": (-0.3, -0.1)},
        {"a": (2.0, 0.9), "b": (0.1, 0.1), "c": (0.2, 0.2), "d": (-0.3, -0.3)},
    ],
    ids=["one site", "others zero", "all zero", "others cancel", "others cancel but for rounding"],
)
def test_fedce_without_others_is_novel(deltas: dict[str, Any]) -> None:
    """There is nothing to have a cosine with: it is 0, the novelty 1."""
    reading = FedCe(mode="plus").read(pointing(deltas), {})
    assert pytest.approx((0.0, 1.0), abs=1e-9) == (reading.signals["cosine"]["a"], reading.signals["novelty"]["a"])


def test_fedce_of_equal_directions_and_no_errors_is_uniform() -> None:
    """All novelties and errors 0: the 1e-6 makes both halves uniform, in either mode."""
    same = pointing(dict.fromkeys("abcd", (1.0, 2.0)), error=dict.fromkeys("abcd", 0.0))
    assert pytest.approx(dict.fromkeys("abcd", 0.5), abs=1e-9) == dict(FedCe(mode="plus").read(same, {}).values)
    assert pytest.approx(dict.fromkeys("abcd", 0.25), abs=1e-9) == dict(FedCe(mode="times").read(same, {}).values)


# --- FedDisco --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "divergence", "values"),
    [
        ("kl", (1.0, 0.0), (0.1, 0.6)),
        ("l1", (1.0, 0.0), (0.1, 0.6)),
        ("l2", (0.5**0.5, 0.0), (0.6 - 0.5**1.5, 0.6)),
        ("cosine", (1 - 0.5**0.5, 0.0), (0.6 - 0.5 * (1 - 0.5**0.5), 0.6)),
    ],
)
def test_feddisco_gives_the_numbers_worked_out_by_hand(metric: Any, divergence: Any, values: Any) -> None:
    """Half of the examples each, a = 0.5, b = 0.1; labels (10, 0) and (5, 5), the ideal is (1/2, 1/2).

    KL ln 2 and 0, divided by their sum 1 and 0; L1 1/2 + 1/2; L2 sqrt(1/4 + 1/4); cosine 1 - 1 / sqrt(2).
    Values 0.5 - 0.5 d + 0.1.
    """
    reading = FedDisco(metric=metric, a=0.5, b=0.1).read(counted({"a": {"ill": 10}, "b": {"healthy": 5, "ill": 5}}), {})
    assert pytest.approx(divergence, abs=1e-12) == tuple(reading.signals["divergence"].values())
    assert pytest.approx(values, abs=1e-12) == tuple(reading.values.values())


def test_feddisco_compares_with_the_uniform_not_with_the_pooled_distribution() -> None:
    """Both sites hold 3 to 1, as all do together, yet each is 0.25 + 0.25 away from (1/2, 1/2)."""
    counts = {"a": {"healthy": 30, "ill": 10}, "b": {"healthy": 3, "ill": 1}}
    assert {"a": 0.5, "b": 0.5} == dict(
        FedDisco(metric="l1", a=0.5, b=0.1).read(counted(counts), {}).signals["divergence"]
    )


def test_feddisco_classes_are_those_of_all_sites() -> None:
    """A class that only a site of another round holds is one that the model must know: ln 3 - ln 2 = ln 1.5 away."""
    counts = {"a": {"healthy": 5, "ill": 5}, "b": {"healthy": 4}, "away": {"unclear": 2}}
    distances = FedDisco(a=0.5, b=0.1, metric="kl").read(counted(counts, {"a": 10, "b": 4}), {}).signals["divergence"]
    assert pytest.approx(math.log(1.5) / (math.log(1.5) + math.log(3)), abs=1e-12) == distances["a"]


def test_feddisco_of_ideal_sites_is_size() -> None:
    """All divergences 0 (their sum too): values n_k / n + b, and with b = 0 exactly the size shares."""
    counts = {"a": {"healthy": 15, "ill": 15}, "b": {"healthy": 5, "ill": 5}}
    assert pytest.approx({"a": 0.85, "b": 0.35}, abs=1e-12) == dict(
        FedDisco(a=0.5, b=0.1, metric="kl").read(counted(counts), {}).values
    )
    assert {"a": 0.75, "b": 0.25} == dict(only(FedDisco(b=0.0, a=0.5, metric="kl")).weigh(counted(counts), {}).shares)


def test_feddisco_takes_the_size_from_the_updates() -> None:
    """Noise on the counts changes the distribution only: 30 and 10 examples are 3/4 and 1/4, whatever was told."""
    reading = FedDisco(a=0.0, b=0.0, metric="kl").read(
        counted({"a": {"ill": 2}, "b": {"ill": 90}}, {"a": 30, "b": 10}), {}
    )
    assert {"a": 0.75, "b": 0.25} == dict(reading.values)


def test_feddisco_with_no_value_left_is_weighted_by_size() -> None:
    """a = 9, b = 0: 0.5 - 9 * 0.5 < 0 at both sites; a note says so, and nothing is divided by 0."""
    given_now = counted({"a": {"ill": 10}, "b": {"healthy": 10}})
    assert {"a": 0.0, "b": 0.0} == dict(FedDisco(a=9.0, b=0.0, metric="kl").read(given_now, {}).values)
    weighed = only(FedDisco(a=9.0, b=0.0, metric="kl")).weigh(given_now, {})
    assert {"a": 0.5, "b": 0.5} == dict(weighed.shares)
    assert ("weighted by size: the product of factor is 0 at every site",) == weighed.notes


def local_steps(x: Vector, y: Vector, start: Vector) -> Vector:
    """Five gradient steps on the mean squared error of a linear model."""
    w = start.copy()
    for _ in range(5):
        w -= 0.1 * x.T @ (x @ w - y) / len(y)
    return w


def transcribed_feddisco(
    data: Sequence[tuple[Vector, Vector]], counts: npt.NDArray[np.int64], rounds: int, a: float, b: float
) -> tuple[list[Vector], list[Vector]]:
    """FedDisco as published, with arrays and indices: the weights of every round, and the model after it."""
    sizes = np.array([len(y) for _, y in data], dtype=float)
    ideal = np.ones(counts.shape[1]) / counts.shape[1]
    labels = counts / counts.sum(axis=1, keepdims=True)
    safe = np.where(labels > 0, labels, 1.0)
    distance = np.sum(np.where(labels > 0, labels * np.log(safe / ideal), 0.0), axis=1)
    distance = distance / distance.sum()
    weights = np.maximum(sizes / sizes.sum() - a * distance + b, 0)
    weights = weights / weights.sum()
    model, models = np.zeros(data[0][0].shape[1]), []
    for _ in range(rounds):
        model = sum(p * local_steps(x, y, model) for p, (x, y) in zip(weights, data, strict=True))
        models.append(model)
    return [weights] * rounds, models


def test_feddisco_agrees_with_a_transcription_over_three_rounds() -> None:
    """Weights and aggregated model of a convex problem at four sites of different sizes and labels, to 1e-5."""
    generator = np.random.default_rng(0)
    counts = np.array([[40, 10, 10], [5, 25, 0], [8, 8, 9], [0, 0, 12]])
    data = [(generator.normal(size=(n, 4)), generator.normal(size=n)) for n in counts.sum(axis=1)]
    expected_weights, expected_models = transcribed_feddisco(data, counts, 3, 0.5, 0.1)

    strategy, names = FedAvg(learning_rate=1.0), "abcd"
    told_counts = {
        site: {f"class-{i}": int(n) for i, n in enumerate(row)} for site, row in zip(names, counts, strict=True)
    }
    state = strategy.init({"w": np.zeros(4)})
    for number in range(3):
        start = np.asarray(state.weights["w"], dtype=np.float64)
        updates = [
            Update(site, {"w": local_steps(x, y, start) - start}, len(y), {})
            for site, (x, y) in zip(names, data, strict=True)
        ]
        shares = (
            only(FedDisco(a=0.5, b=0.1, metric="kl"))
            .weigh(Evidence(updates, number + 1, 3, class_counts=told_counts), {})
            .shares
        )
        state = strategy.apply(state, updates, shares).state
        np.testing.assert_allclose(list(shares.values()), expected_weights[number], atol=1e-5, rtol=0)
        np.testing.assert_allclose(state.weights["w"].astype(np.float64), expected_models[number], atol=1e-5, rtol=0)


# --- divergence ------------------------------------------------------------------------------------

HALVES = {"a": {"ill": 10}, "b": {"healthy": 10}, "c": {"healthy": 10, "ill": 10}}


@pytest.mark.parametrize(
    ("measure", "favour", "apart", "typical"),
    [
        ("kl", "typical", 0.5, 1.0),
        ("kl", "rare", 2.0, 1.0),
        ("js", "typical", 0.75**0.75, 1.0),
        ("js", "rare", 0.75**-0.75, 1.0),
        ("entropy", "typical", 0.0, 1.0),
        ("entropy", "rare", 1.0, math.exp(-1)),
    ],
)
def test_divergence_gives_the_numbers_worked_out_by_hand(
    measure: Any, favour: Any, apart: float, typical: float
) -> None:
    """Labels (10, 0), (0, 10), (10, 10): together (20, 20), so qbar = (1/2, 1/2) and c is typical.

    KL((1, 0) || qbar) = ln 2, exp(-ln 2) = 1/2. JS: m = (3/4, 1/4), KL(q || m) = ln 4/3, KL(qbar || m) =
    (ln 2/3 + ln 2) / 2 = (ln 4/3) / 2, so JS = 3/4 ln 4/3. Entropy 0 of ln 2, and ln 2 of ln 2.
    """
    values = Divergence(measure, favour).read(counted(HALVES), {}).values
    assert pytest.approx({"a": apart, "b": apart, "c": typical}, abs=1e-12) == dict(values)


def test_divergence_compares_with_the_pooled_counts() -> None:
    """Labels (30, 10) and (0, 10) of 30 to 20 together: qbar = (3/5, 2/5).

    KL = 3/4 ln(5/4) + 1/4 ln(5/8) and ln(5/2): the larger site is the more typical.
    """
    reading = Divergence(measure="kl", favour="typical").read(
        counted({"a": {"healthy": 30, "ill": 10}, "b": {"ill": 10}}), {}
    )
    expected = {"a": 0.75 * math.log(1.25) + 0.25 * math.log(0.625), "b": math.log(2.5)}
    assert pytest.approx(expected, abs=1e-12) == dict(reading.signals["kl"])


def test_divergence_entropy_is_relative_to_the_classes_of_the_round() -> None:
    """Three classes between the sites: two equal ones are ln 2 of ln 3; a class that nobody holds is none."""
    counts = {"a": {"x": 5, "y": 5, "z": 0, "nobody": 0}, "b": {"z": 4}}
    values = Divergence(measure="entropy", favour="typical").read(counted(counts), {}).values
    assert pytest.approx({"a": LN2 / math.log(3), "b": 0.0}, abs=1e-12) == dict(values)


@pytest.mark.parametrize("measure", ["kl", "js", "entropy"])
def test_divergence_of_a_single_class_is_1(measure: Any) -> None:
    """All sites hold the same label: nothing diverges, and log C = 0 divides nothing."""
    reading = Divergence(measure=measure, favour="typical").read(counted({"a": {"ill": 3}, "b": {"ill": 9}}), {})
    assert {"a": 1.0, "b": 1.0} == dict(reading.values)


# --- AFL -------------------------------------------------------------------------------------------


def test_project_simplex_by_hand() -> None:
    """0.9, 0.5, -0.3: without the last, theta = (1.4 - 1) / 2 = 0.2; a point of the simplex stays."""
    assert pytest.approx({"a": 0.7, "b": 0.3, "c": 0.0}, abs=1e-12) == project_simplex({"a": 0.9, "b": 0.5, "c": -0.3})
    assert pytest.approx({"a": 0.7, "b": 0.3, "c": 0.0}, abs=1e-12) == project_simplex({"a": 0.7, "b": 0.3, "c": 0.0})
    assert {"a": 1.0} == project_simplex({"a": -7.0})


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_project_simplex_is_the_nearest_point(values: list[float]) -> None:
    """The conditions of the nearest point: on the simplex, moved by one theta where > 0, and below theta elsewhere."""
    seen = project_simplex({str(number): value for number, value in enumerate(values)})
    assert pytest.approx(1, abs=1e-9) == sum(seen.values())
    assert all(share >= 0 for share in seen.values())
    thetas = [value - seen[str(number)] for number, value in enumerate(values) if seen[str(number)] > 0]
    assert pytest.approx(thetas[0], abs=1e-9) == max(thetas) == pytest.approx(min(thetas), abs=1e-9)
    assert all(value <= thetas[0] + 1e-9 for number, value in enumerate(values) if seen[str(number)] == 0)


def test_afl_gives_the_numbers_worked_out_by_hand() -> None:
    """Rate 0.1, losses 1 and 0.5 (mean 0.75), from 1/2 each: 0.525, 0.475. Then losses 10 and 0: 1.025 and -0.025."""
    first = Afl(learning_rate=0.1).read(told(received_loss=[1.0, 0.5]), {})
    assert pytest.approx({"a": 0.525, "b": 0.475}, abs=1e-12) == dict(first.values)
    second = Afl(learning_rate=0.1).read(told(2, received_loss=[10.0, 0.0]), first.memory)
    assert pytest.approx({"a": 1.0, "b": 0.0}, abs=1e-12) == dict(second.values)


def test_afl_step_of_all_sites_is_the_published_one() -> None:
    """Taking the mean loss off moves along (1, ..., 1), which the projection undoes: project(lambda + rate * F)."""
    memory = {"lambda/a": 0.5, "lambda/b": 0.3, "lambda/c": 0.2}
    losses = [0.7, 2.9, 0.1]
    expected = project_simplex(
        {site: memory[f"lambda/{site}"] + 0.1 * f for site, f in zip("abc", losses, strict=True)}
    )
    assert pytest.approx(expected, abs=1e-12) == dict(
        Afl(learning_rate=0.1).read(told(received_loss=losses), memory).values
    )


def test_afl_site_that_is_away_keeps_its_weight() -> None:
    """c is away: a and b, with losses 3 and 1, move by 0.1 and -0.1 between them, and c's share waits for it."""
    memory = {"lambda/a": 0.3, "lambda/b": 0.3, "lambda/c": 0.4}
    reading = Afl(learning_rate=0.1).read(told(received_loss=[3.0, 1.0]), memory)
    assert pytest.approx({"a": 0.4, "b": 0.2}, abs=1e-12) == dict(reading.values)
    assert pytest.approx(0.4, abs=1e-12) == reading.memory["lambda/c"]


def test_afl_late_joiner_enters_with_its_part() -> None:
    """Two of four are new: each enters with 1/4, the others keep half of 0.6 and 0.4. All losses are equal."""
    reading = Afl(learning_rate=0.1).read(told(received_loss=[1.0] * 4), {"lambda/a": 0.6, "lambda/b": 0.4})
    assert pytest.approx({"a": 0.3, "b": 0.2, "c": 0.25, "d": 0.25}, abs=1e-12) == dict(reading.values)


def test_afl_finds_the_mixture_that_serves_the_worst_site_best() -> None:
    """F_k(w) = (w - c_k)**2 / 2 with c = 0, 0, 1 and w = sum lambda_k c_k: the worst loss is least at w = 1/2.

    Uniform weights give w = 1/3 with a worst loss of 2/9; at w = 1/2 all losses are 1/8, and the third site has 1/2.
    """
    centres, memory, w = np.array([0.0, 0.0, 1.0]), dict[str, float](), 1 / 3
    for number in range(1, 301):
        losses = (w - centres) ** 2 / 2
        reading = Afl(learning_rate=0.1).read(told(number, 300, received_loss=losses.tolist()), memory)
        w, memory = float(np.dot(list(reading.values.values()), centres)), dict(reading.memory)
    assert pytest.approx(0.5, abs=1e-6) == w
    assert pytest.approx(0.5, abs=1e-6) == reading.values["c"]


# --- auto ------------------------------------------------------------------------------------------


def started(sites: int = 3, seed: int = 1, **settings: Any) -> tuple[Auto, Reading]:
    """The factor and its first round."""
    values: dict[str, Any] = {"objective": "mean", "learning_rate": 1.0, "perturbation": 0.3}
    factor = Auto(**values | settings)
    return factor, factor.read(told(seed=seed, received_loss=[1.0] * sites), {})


def test_auto_sends_two_candidates_around_equal_weights() -> None:
    """beta is 0, so the values are 1 and the candidates exp(0.3 s) and exp(-0.3 s); both signs occur."""
    _, first = started()
    signs = first.signals["sign"]
    assert {-1.0, 1.0} == set(signs.values())
    assert dict.fromkeys("abc", 1.0) == dict(first.values)
    assert {site: math.exp(0.3 * sign) for site, sign in signs.items()} == dict(first.candidates["candidate-a"])
    assert {site: math.exp(-0.3 * sign) for site, sign in signs.items()} == dict(first.candidates["candidate-b"])


@pytest.mark.parametrize(("objective", "slope"), [("mean", (0.65 - 0.475) / 0.6), ("worst", (0.9 - 0.6) / 0.6)])
def test_auto_gives_the_numbers_worked_out_by_hand(objective: Any, slope: float) -> None:
    """Sizes 2, 1, 1; candidate a costs 0.5, 0.7, 0.9, b 0.4, 0.5, 0.6; c = 0.3, rate 2.

    Means 0.25 + 0.175 + 0.225 = 0.65 and 0.2 + 0.125 + 0.15 = 0.475, worst 0.9 and 0.6. beta = -2 * slope * s,
    less the mean over the sites: b was better, so the sites it favours gain.
    """
    factor, first = started(objective=objective, learning_rate=2.0)
    given_now = told(2, candidate_a_loss=[0.5, 0.7, 0.9], candidate_b_loss=[0.4, 0.5, 0.6])
    sized = [Update(u.site, {}, size, u.metrics) for u, size in zip(given_now.updates, (20, 10, 10), strict=True)]
    second = factor.read(Evidence(sized, 2, 10, seed=9), first.memory)
    signs = first.signals["sign"]
    beta = {site: -2 * slope * (sign - sum(signs.values()) / 3) for site, sign in signs.items()}
    assert pytest.approx(beta, abs=1e-12) == dict(second.signals["beta"])
    assert pytest.approx({site: math.exp(value) for site, value in beta.items()}, abs=1e-12) == dict(second.values)
    shifted = {site: math.exp(value - 0.3 * second.signals["sign"][site]) for site, value in beta.items()}
    assert pytest.approx(shifted, abs=1e-12) == dict(second.candidates["candidate-b"])
    assert {"a": 0.5, "b": 0.7, "c": 0.9} == dict(second.signals["candidate-a.loss"])


def test_auto_moves_only_who_was_in_the_candidates() -> None:
    """Round 1 with a and b, round 2 with b and c: a and b move apart by the signs, c is where their mean is, at 0.

    Slope (0.8 - 0.2) / 0.6 = 1 for the two who answer, so beta = -s for a and b.
    """
    factor, first = started(sites=2)
    two = told(2, candidate_a_loss=[9.0, 0.8, 0.8], candidate_b_loss=[9.0, 0.2, 0.2])
    second = factor.read(Evidence(two.updates[1:], 2, 10), first.memory)
    signs = first.signals["sign"]
    beta = {site: second.memory[f"beta/{site}"] for site in "abc"}
    assert pytest.approx({"a": -signs["a"], "b": -signs["b"], "c": 0.0}, abs=1e-12) == beta
    assert (1.0, 2.0, 2.0) == tuple(second.memory[f"sent/{site}"] for site in "abc")
    third = factor.read(told(3, candidate_a_loss=[0.8] * 3, candidate_b_loss=[0.8] * 3), second.memory)
    assert pytest.approx(beta, abs=1e-12) == dict(third.signals["beta"])


def test_auto_does_not_learn_from_a_round_without_candidates() -> None:
    """Candidates of round 1 say nothing in round 3: nobody has them any more, and nobody need measure them."""
    factor, first = started()
    third = factor.read(told(3, received_loss=[1.0] * 3), first.memory)
    assert dict.fromkeys("abc", 1.0) == dict(third.values)
    assert {"beta", "sign"} == set(third.signals)


def test_auto_says_who_did_not_measure_a_candidate() -> None:
    """Half of a comparison is none."""
    factor, first = started()
    given_now = told(2, candidate_a_loss=[0.5] * 3, candidate_b_loss=[0.5] * 3)
    lean = [*given_now.updates[:2], Update("c", {}, 10, {CANDIDATE_LOSSES[0]: 0.5})]
    with pytest.raises(SignalMissing, match=r"^candidate-b\.loss is missing from c$"):
        factor.read(Evidence(lean, 2, 10), first.memory)


def test_auto_keeps_log_weights_within_5() -> None:
    """A slope of 1e6 must not turn weights into 0 and infinity."""
    factor, first = started(sites=2)
    second = factor.read(told(2, candidate_a_loss=[6e5] * 2, candidate_b_loss=[0.0] * 2), first.memory)
    assert {-5.0, 5.0} == set(second.signals["beta"].values())


def test_auto_late_joiner_enters_with_the_mean() -> None:
    """Known: 1 and 0.5, so 0.75."""
    reading = Auto(objective="mean", learning_rate=1.0, perturbation=0.3).read(
        told(received_loss=[1.0] * 3), {"beta/a": 1.0, "beta/b": 0.5}
    )
    assert pytest.approx(math.exp(0.75), abs=1e-12) == reading.values["c"]


def test_auto_signs_are_fair_and_never_all_equal() -> None:
    """Over 400 seeds each site has each sign about as often: 200 +- 60, three standard deviations of 10 twice over."""
    drawn = [started(seed=seed)[1].signals["sign"] for seed in range(400)]
    assert all(2 == len(set(signs.values())) for signs in drawn)
    for site in "abc":
        assert 140 < sum(signs[site] > 0 for signs in drawn) < 260


@pytest.mark.parametrize("objective", ["mean", "worst"])
def test_auto_finds_a_better_mixture(objective: Any) -> None:
    """Sites end at 0, 1 and 6 (a bad site); on their own examples all want 1/2: equal weights give 7/3, a loss of 1.68.

    After 150 rounds of comparing candidates on these losses the mixture serves the sites with less than 0.02.
    """
    ends, memory, factor = (
        np.array([0.0, 1.0, 6.0]),
        dict[str, float](),
        Auto(objective=objective, learning_rate=1.0, perturbation=0.3),
    )

    def loss(weights: PerSite) -> float:
        shares = np.array(list(weights.values())) / sum(weights.values())
        return float((shares @ ends - 0.5) ** 2 / 2)

    given_now = told(received_loss=[1.0] * 3)
    losses = []
    for number in range(1, 151):
        reading = factor.read(given_now, memory)
        losses.append(loss(reading.values))
        a, b = ([loss(reading.candidates[name])] * 3 for name in ("candidate-a", "candidate-b"))
        given_now = told(number + 1, seed=number + 1, candidate_a_loss=a, candidate_b_loss=b)
        memory = dict(reading.memory)
    assert pytest.approx((7 / 3 - 0.5) ** 2 / 2, abs=1e-12) == losses[0]
    assert losses[-1] < 0.02


# --- size ------------------------------------------------------------------------------------------


def test_size_is_the_number_of_examples() -> None:
    """As told in the update; nothing is remembered."""
    reading = Size().read(counted({"a": {"ill": 3}, "b": {"ill": 4}}), {})
    assert ({"a": 3.0, "b": 4.0}, {}) == (dict(reading.values), dict(reading.memory))
