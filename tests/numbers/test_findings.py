"""Intervals, p-values, verdicts and sentences: against formulas written out by hand, named cases, and laws."""

import math
from collections.abc import Callable
from dataclasses import astuple, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import optimize, stats

from consilium.common.protocol import counts as protocol
from consilium.common.protocol.patients import Patients
from consilium.findings import (
    DIFFERENCE,
    LEAST_PATIENTS,
    MEASURES,
    Evidence,
    Interval,
    findings_of,
    holm,
    interval_of,
    over_sites,
    over_splits,
    paired,
    redrawn,
    sentence,
    share_of,
    verdict,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def bounds(found: Interval | None) -> tuple[float, float]:
    """Return bounds that must be there."""
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def solved(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Return where a function has a value."""
    return float(optimize.brentq(lambda x: function(x) - target, low, high))


def mid_p(worse: int, better: int) -> float:
    """Return McNemar's exact two-sided p with half of the chance of what was seen, term by term."""
    few, total = min(worse, better), worse + better
    below = sum(math.comb(total, each) for each in range(few)) + math.comb(total, few) / 2
    return float(min(1.0, 2 * below / 2**total))


def rows_of(pairs: tuple[int, int, int, int]) -> Floats:
    """Return joined right minus alone right of every test row `(1, n)`."""
    both, alone, joined, neither = pairs
    return np.array([[0.0] * both + [-1.0] * alone + [1.0] * joined + [0.0] * neither])


# --- shares --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "num"), [(1, 20), (3, 20), (40, 200), (170, 200)])
def test_share_has_the_jeffreys_interval(right: int, num: int) -> None:
    """Quantiles of Beta(k + 1/2, n - k + 1/2)."""
    expected = stats.beta.ppf([0.025, 0.975], right + 0.5, num - right + 0.5)
    assert expected == pytest.approx(bounds(share_of(right, num)))


def test_all_right_is_not_certain() -> None:
    """21 of 21 right: 0.89 to 1.00, from one seed as from three; none right is the mirror."""
    low, high = bounds(share_of(21, 21))
    assert (0.89, 1.0) == (round(low, 2), high)
    assert bounds(share_of(21, 21)) == bounds(interval_of(Evidence.of_rows(np.ones((3, 21))), kind="share"))
    assert bounds(share_of(0, 21)) == pytest.approx([0, 1 - bounds(share_of(21, 21))[0]])


def test_share_of_several_seeds_is_worth_fewer_rows_where_they_disagree() -> None:
    """Variance over seeds plus variance over patients gives the rows that a binomial would need (Korn, Graubard)."""
    rows = np.repeat([[1.0] * 30 + [0.0] * 10], 3, axis=0)
    rows[1, :12] = 0
    value, per_patient = rows.mean(), rows.mean(axis=0)
    of_seeds, of_patients = rows.mean(axis=1).var(ddof=1) / 3, per_patient.var() / 40
    counted = 2 * of_seeds  # 1 + 4 / 2^2 times
    freedom = (counted + of_patients) ** 2 / (counted**2 / 2 + of_patients**2 / 39)
    worth = value * (1 - value) / (of_seeds + of_patients)
    worth *= (stats.t.ppf(0.975, 39) / stats.t.ppf(0.975, freedom)) ** 2
    expected = stats.beta.ppf([0.025, 0.975], value * worth + 0.5, (1 - value) * worth + 0.5)
    assert worth < 40
    assert expected == pytest.approx(bounds(interval_of(Evidence.of_rows(rows), kind="share")))


def test_share_counts_patients_rather_than_rows() -> None:
    """Every row there twice, of one patient: the interval of half as many rows; as rows of their own it is narrower."""
    rows, groups = np.repeat([[1.0] * 15 + [0.0] * 5], 2, axis=1), np.repeat(np.arange(20), 2)
    assert bounds(share_of(15, 20)) == pytest.approx(bounds(interval_of(Evidence.of_rows(rows, groups), kind="share")))
    assert bounds(share_of(30, 40)) == bounds(interval_of(Evidence.of_rows(rows), kind="share"))


def test_share_of_too_many_is_refused() -> None:
    """Counts that cannot be raise."""
    for right, num in ((5, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match="expected 0 to"):
            share_of(right, num)
    with pytest.raises(ValueError, match="expected four counts"):
        paired((0, 0, 0, 0))


# --- differences of shares -----------------------------------------------------------------------------


@pytest.mark.parametrize(("worse", "better"), [(4, 0), (6, 1), (8, 2), (0, 4), (1, 6), (2, 8)])
def test_few_pairs_that_differ_are_not_clear(worse: int, better: int) -> None:
    """0:4, 1:6 and 2:8 have an exact p above 0.05, and no clear effect is said of them at 30 or 300 rows."""
    for rest in (20, 290):
        found = paired((rest, worse, better, 0))
        assert mid_p(worse, better) == pytest.approx(found.p)
        assert verdict(found) == "unclear"


@pytest.mark.parametrize(("worse", "better", "expected"), [(0, 5, "helps"), (1, 9, "helps"), (9, 1, "hurts")])
def test_enough_pairs_that_differ_are_clear(worse: int, better: int, expected: str) -> None:
    """0:5 has a mid-p of 0.031, 1:9 one of 0.012."""
    assert expected == verdict(paired((20, worse, better, 0)))


def restricted_score(delta: float, worse: int, better: int, rows: int) -> float:
    """Return the score statistic at a difference, with the likelihood under it maximised by search."""
    least, most = max(0.0, -delta), (1 - delta) / 2

    def unlikely(share: float) -> float:  # of rows at which joined is worse
        parts = ((worse, share), (better, share + delta), (rows - worse - better, 1 - 2 * share - delta))
        return -sum(count * math.log(max(part, 1e-300)) for count, part in parts if count)

    share = optimize.minimize_scalar(unlikely, bounds=(least, most), method="bounded", options={"xatol": 1e-12}).x
    return float((better - worse - rows * delta) / math.sqrt(rows * (2 * share + delta - delta**2)))


@pytest.mark.parametrize(("worse", "better", "rows"), [(9, 14, 160), (30, 50, 200), (2, 12, 50), (20, 60, 1000)])
def test_difference_is_the_hull_of_tangos_interval_and_the_exact_one(worse: int, better: int, rows: int) -> None:
    """Tango 1998: score 1.96 at the limits, with the likelihood maximised under each; exact: 2.5 % beyond, as mid-p."""
    value, z = (better - worse) / rows, stats.norm.ppf(0.975)
    score = [
        solved(lambda delta: restricted_score(delta, worse, better, rows), z, value - 0.3, value),
        solved(lambda delta: restricted_score(delta, worse, better, rows), -z, value, value + 0.3),
    ]
    total, scale = worse + better, (worse + better) / rows

    def beyond(share: float, side: int) -> float:
        kept = range(better + 1, total + 1) if side > 0 else range(better)
        chances = [math.comb(total, each) * share**each * (1 - share) ** (total - each) for each in (*kept, better)]
        return float(math.fsum(chances[:-1]) + chances[-1] / 2)

    exact = [(2 * solved(lambda share: beyond(share, 1), 0.025, 1e-9, 1 - 1e-9) - 1) * scale]
    exact.append((2 * solved(lambda share: beyond(share, -1), 0.025, 1e-9, 1 - 1e-9) - 1) * scale)
    expected = [min(score[0], exact[0]), max(score[1], exact[1])]
    assert expected == pytest.approx(bounds(paired((rows - worse - better, worse, better, 0))), abs=1e-6)


def test_no_pairs_that_differ_leave_room_for_a_difference() -> None:
    """Both right on the same 50 of 100: Tango's limits are z^2 / (n + z^2), and p is 1."""
    found, z = paired((50, 0, 0, 50)), stats.norm.ppf(0.975)
    assert [-(z**2) / (100 + z**2), z**2 / (100 + z**2)] == pytest.approx(bounds(found))
    assert found.p == 1


def test_difference_is_paired() -> None:
    """With the same shares, fewer pairs that differ give a narrower interval."""
    assert bounds(paired((160, 0, 10, 30)))[0] > 0 > bounds(paired((130, 30, 40, 0)))[0]


counts = st.integers(min_value=0, max_value=60)
tables = st.tuples(counts, counts, counts, counts).filter(lambda table: sum(table) >= LEAST_PATIENTS)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_p_and_interval_never_disagree_and_swapping_turns_both_round(table: tuple[int, int, int, int]) -> None:
    """p below 0.05 exactly where 0 is outside; swapped models mirror; the value and the bounds are possible."""
    found, turned = paired(table), paired((table[0], table[2], table[1], table[3]))
    low, high = bounds(found)
    assert -1 <= low <= found.value <= high <= 1
    assert found.p is not None
    assert (found.p < 0.05) == (low > 0 or high < 0)
    assert [-high, -low, found.p] == pytest.approx([*bounds(turned), turned.p], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 40), st.booleans(), st.sampled_from([0.0, 0.5]))
def test_p_and_interval_agree_for_numbers_seeds_and_patients(
    seed: int, seeds: int, size: int, grouped: bool, shift: float
) -> None:
    """However many seeds, rows and patients: p below 0.05 exactly where 0 is outside, or neither is known."""
    generator = np.random.default_rng(seed)
    rows = generator.exponential(1, (seeds, size)) - 1 + shift
    groups = generator.integers(0, size, size) if grouped else None
    for found in (
        interval_of(Evidence.of_rows(rows, groups), kind="difference"),
        interval_of(Evidence.of_rows(np.sign(rows), groups), kind="difference"),
        over_sites([Evidence.of_rows(rows, groups), Evidence.of_rows(rows[:, ::-1])], [1, 3], kind="difference"),
    ):
        if found.low is not None and found.high is not None:
            assert found.low <= found.value <= found.high
            assert found.p is not None
            assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


# --- numbers, seeds, patients ----------------------------------------------------------------------------


def hall(t: float, skewness: float) -> float:
    """Return Hall's 1992 transformation of a t statistic; `skewness` is that of the mean."""
    return t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6


@pytest.mark.parametrize("sign", [1, -1])
def test_difference_of_numbers_is_the_hull_of_t_and_of_halls_interval(sign: int) -> None:
    """One seed: Student's limits, and those at which the transformed t is as far out as Student's quantile."""
    rows = sign * (np.random.default_rng(3).exponential(1, 14) - 0.4)
    mean, error, q = rows.mean(), stats.sem(rows), stats.t.ppf(0.975, 13)
    skewness = stats.skew(rows, bias=False) / math.sqrt(14)
    limits = [solved(lambda t: hall(t, skewness), end, -20, 20) for end in (q, -q)]
    found = interval_of(Evidence.of_rows(rows[None]), kind="difference")
    lows, highs = ((mean - q * error, mean - limits[0] * error), (mean + q * error, mean - limits[1] * error))
    assert [min(lows), max(highs)] == pytest.approx(bounds(found))
    t = mean / error
    assert max(2 * stats.t.sf(abs(t), 13), 2 * stats.t.sf(abs(hall(t, skewness)), 13)) == pytest.approx(found.p)


def crossed(seeds: int, patients: int) -> Floats:
    """Return differences with effects of seeds and of patients, these the same on both sides of their mean."""
    own = np.concatenate([half := np.random.default_rng(1).normal(0, 1, patients // 2), -half])
    rows: Floats = 0.5 + np.random.default_rng(2).normal(0, 0.3, seeds)[:, None] + own
    return rows


def test_seeds_and_patients_are_crossed_random_effects() -> None:
    """Variance over seeds / S plus variance over patients / n, Satterthwaite with the first counted twice for f = 2."""
    rows = crossed(3, 20)
    of_seeds, of_patients = rows.mean(axis=1).var(ddof=1) / 3, rows.mean(axis=0).var(ddof=1) / 20
    freedom = (2 * of_seeds + of_patients) ** 2 / ((2 * of_seeds) ** 2 / 2 + of_patients**2 / 19)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(of_seeds + of_patients)
    found = interval_of(Evidence.of_rows(rows), kind="difference")
    assert [rows.mean() - half, rows.mean() + half] == pytest.approx(bounds(found))
    p = 2 * stats.t.sf(rows.mean() / math.sqrt(of_seeds + of_patients), freedom)
    assert p == pytest.approx(found.p)


def test_seeds_that_disagree_are_not_averaged_away() -> None:
    """The mean of three seeds alone would be clear over 200 patients; their spread says otherwise."""
    rows = np.array([[-0.3], [0.2], [0.4]]) + np.random.default_rng(0).normal(0, 0.1, (3, 200))
    assert verdict(interval_of(Evidence.of_rows(rows.mean(axis=0, keepdims=True)), kind="difference")) == "helps"
    assert verdict(interval_of(Evidence.of_rows(rows), kind="difference")) == "unclear"


def test_seeds_that_are_all_alike_are_one_seed() -> None:
    """Training without randomness: three times the same rows say what one says."""
    rows = rows_of((40, 2, 9, 3))
    assert interval_of(Evidence.of_rows(rows), kind="difference") == interval_of(
        Evidence.of_rows(np.repeat(rows, 3, axis=0)), kind="difference"
    )


def test_patients_with_several_rows_are_drawn_together() -> None:
    """Sums `t` of patients with `m` rows: sum (t - m mean)^2 / n^2 times g / (g - 1), g by Kish's rule."""
    sizes = np.tile([1, 2, 3, 4], 5)
    groups = np.repeat(np.arange(20), sizes)
    patient = np.concatenate([half := np.random.default_rng(4).normal(0, 1, 4), -half] * 3)[:20]
    rows = 0.6 + patient[groups]
    totals, mean = np.array([rows[groups == one].sum() for one in range(20)]), rows.mean()
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    variance = ((totals - mean * sizes) ** 2).sum() / 50**2 * effective / (effective - 1)
    freedom = (sizes**2).sum() ** 2 / (sizes**4).sum() - 1
    found = interval_of(Evidence.of_rows(rows[None], groups), kind="difference")
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    low, high = bounds(found)
    assert low <= mean - half + 1e-12
    assert high >= mean + half - 1e-12
    assert [mean - half, mean + half] == pytest.approx([low, high], abs=0.3 * half)  # Hall's part is not far
    assert found.p is not None
    assert found.p >= 2 * stats.t.sf(mean / math.sqrt(variance), freedom) - 1e-12
    alone = bounds(interval_of(Evidence.of_rows(rows[None]), kind="difference"))
    assert alone[1] - alone[0] < 0.8 * (high - low)


@pytest.mark.parametrize(("rows", "value"), [([1.0, 1.0], 1.0), ([1.0, 0.0], 0.5), ([0.0, 0.0], 0.0)])
def test_patients_that_are_all_alike_have_the_interval_of_as_many_rows(rows: list[float], value: float) -> None:
    """Twelve patients of two rows, each with the same answers: McNemar and Tango of 12, in units of the difference."""
    groups = np.repeat(np.arange(12), 2)
    found = interval_of(Evidence.of_rows(np.array([rows * 12]), groups), kind="difference")
    single = paired((0, 0, 12, 0) if value else (12, 0, 0, 0))
    scale = value or 1
    assert (value, single.p) == (found.value, found.p)
    assert bounds(found) == pytest.approx([scale * bound for bound in bounds(single)])


def test_every_number_twice_of_one_patient_is_that_number_once() -> None:
    """Rows of one patient that say the same add nothing."""
    rows = np.random.default_rng(5).normal(0.3, 1, (3, 18))
    twice = Evidence.of_rows(np.repeat(rows, 2, axis=1), np.repeat(np.arange(18), 2))
    once, again = (interval_of(each, kind="difference") for each in (Evidence.of_rows(rows), twice))
    assert bounds(once) == pytest.approx(bounds(again))


@pytest.mark.parametrize(("moved", "expected"), [(5, "unclear"), (6, "helps")])
def test_nothing_is_clear_from_fewer_than_six_patients_that_moved(moved: int, expected: str) -> None:
    """2^(1 - 5) is 0.0625: however alike the differences, five to one side are no finding; with three seeds alike."""
    rows = np.zeros((3, 60))
    rows[:, :moved] = 0.3 + 0.01 * np.arange(moved)
    assert expected == verdict(interval_of(Evidence.of_rows(rows), kind="difference"))


def test_differences_without_any_spread_have_no_interval() -> None:
    """Every row 0.2 better: there is nothing to judge it by; every row 0: nothing moved at all."""
    found = interval_of(Evidence.of_rows(np.full((1, 20), 0.2)), kind="difference")
    assert pytest.approx(0.2) == found.value
    assert Interval(found.value) == found
    assert interval_of(Evidence.of_rows(np.full((2, 20), 0.0)), kind="difference").p == 1


def test_a_number_of_one_model_has_an_interval_and_no_p() -> None:
    """A mean error is not tested against 0."""
    found = interval_of(Evidence.of_rows(np.random.default_rng(0).exponential(1, (1, 40))), kind="number")
    assert bounds(found)[0] > 0
    assert found.p is None


def test_too_few_patients_have_no_interval() -> None:
    """Nine rows, or 40 rows of which one patient has 31: fewer than ten of equal size. A share still has one."""
    groups = np.concatenate([np.zeros(31, dtype=np.int64), np.arange(1, 10)])
    rows = np.array([[1.0] * 38 + [0.0] * 2])
    for evidence in (Evidence.of_rows(rows[:, -9:]), Evidence.of_rows(rows, groups)):
        found = interval_of(evidence, kind="difference")
        assert Interval(float(evidence.values[0])) == found
        assert verdict(found) == "too_few"
        assert bounds(interval_of(evidence, kind="share"))[0] < 1
    assert bounds(interval_of(Evidence.of_rows(np.ones((1, 10))), kind="difference"))[0] > 0


def test_order_of_rows_does_not_matter() -> None:
    """The same rows with their patients in another order give the same numbers."""
    generator = np.random.default_rng(8)
    rows, groups, order = generator.normal(0.2, 1, (2, 30)), generator.integers(0, 20, 30), generator.permutation(30)
    one, other = (
        interval_of(Evidence.of_rows(rows[:, each], groups[each]), kind="difference") for each in (np.arange(30), order)
    )
    assert bounds(one) == pytest.approx(bounds(other))


# --- metrics that are no mean of rows ------------------------------------------------------------------


def of_draws(shift: float, *, undefined: float = 0.0) -> Evidence:
    """Return evidence of a metric from draws around `shift`, of 40 rows and two seeds."""
    generator = np.random.default_rng(0)
    draws = shift + np.concatenate([half := generator.normal(0, 0.05, (2, 150)), -half], axis=1)
    draws[:, : int(300 * undefined)] = np.nan
    return Evidence(values=np.array([shift - 0.01, shift + 0.01]), draws=draws, num_rows=40)


def test_draws_give_the_patients_part_and_values_the_seeds() -> None:
    """Variance of the draws' means times n / (n - 1), plus variance of the seeds / S."""
    evidence = of_draws(0.12)
    assert evidence.draws is not None
    of_patients, of_seeds = evidence.draws.mean(axis=0).var() * 40 / 39, 0.0002 / 2
    freedom = (5 * of_seeds + of_patients) ** 2 / ((5 * of_seeds) ** 2 + of_patients**2 / 39)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(of_seeds + of_patients)
    low, high = bounds(interval_of(evidence, kind="difference"))
    assert high - low == pytest.approx(2 * half)
    assert verdict(interval_of(evidence, kind="difference")) == "helps"
    assert verdict(interval_of(of_draws(0.02), kind="difference")) == "unclear"


def test_skewed_draws_widen_the_side_of_their_tail() -> None:
    """Hall's interval of a metric whose draws have a tail below, as a share near 1 has: it reaches further below."""
    tail = -np.random.default_rng(0).exponential(0.1, (1, 300))
    evidence = Evidence(values=np.array([0.9]), draws=0.9 + tail - tail.mean(), num_rows=40)
    low, high = bounds(interval_of(evidence, kind="number"))
    half = stats.t.ppf(0.975, 39) * tail.std() * math.sqrt(40 / 39)
    assert high - 0.9 == pytest.approx(half)
    assert 0.9 - low > 1.2 * half


def test_metric_that_draws_mostly_leave_undefined_has_no_interval() -> None:
    """An interval of the draws that have it would be one of something else."""
    assert interval_of(of_draws(0.12, undefined=0.6), kind="difference").low is None
    assert interval_of(of_draws(0.12, undefined=0.3), kind="difference").low is not None


def test_redraws_take_whole_patients_and_are_the_same_for_two_models() -> None:
    """Each draw has as many patients as there are, each with all of its rows."""
    groups = np.array([7, 7, 3, 9, 9, 9])
    first, again, other = (list(redrawn(6, groups, draws=20, seed=1, who=who)) for who in ("a/0", "a/0", "b/0"))
    for rows in first:
        count = np.bincount(rows, minlength=6)
        assert count[0] == count[1]
        assert count[3] == count[4] == count[5]
        assert count[0] + count[2] + count[3] == 3
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert any(len(one) != len(two) or (one != two).any() for one, two in zip(first, other, strict=True))
    assert all(len(rows) == 6 for rows in redrawn(6, None, draws=3, seed=1, who="a"))


# --- over sites and splits -------------------------------------------------------------------------------


def test_over_sites_patients_are_independent_and_seeds_are_shared() -> None:
    """Weights w: sum of w^2 times each site's variance, and the variance of the weighted means per seed."""
    sites, weights = [crossed(3, 20), crossed(3, 20)[:, ::-1] * 0.5], np.array([0.25, 0.75])
    of_patients = [rows.mean(axis=0).var(ddof=1) / 20 for rows in sites]
    of_seeds = sum(w * rows.mean(axis=1) for w, rows in zip(weights, sites, strict=True)).var(ddof=1) / 3
    parts = [w**2 * one for w, one in zip(weights, of_patients, strict=True)]
    freedom = (2 * of_seeds + sum(parts)) ** 2 / ((2 * of_seeds) ** 2 / 2 + sum(one**2 / 19 for one in parts))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(of_seeds + sum(parts))
    value = sum(w * rows.mean() for w, rows in zip(weights, sites, strict=True))
    found = over_sites([Evidence.of_rows(rows) for rows in sites], [1, 3], kind="difference")
    assert [value - half, value + half] == pytest.approx(bounds(found))


def test_more_sites_do_not_shrink_what_seeds_share() -> None:
    """Twenty sites of the same seeds: where seeds disagree about all of them alike, the mean is as unsure as one."""
    generator, drift = np.random.default_rng(0), np.array([-0.2, 0.1, 0.3])
    sites = [Evidence.of_rows(drift[:, None] + generator.normal(0, 0.3, (3, 50))) for _ in range(20)]
    assert verdict(over_sites(sites, [1.0] * 20, kind="difference")) == "unclear"


def test_sites_without_weight_and_wrong_weights() -> None:
    """One site with all the weight is that site; weights that cannot be are refused."""
    one, two = Evidence.of_rows(rows_of((20, 1, 9, 3))), Evidence.of_rows(rows_of((9, 9, 1, 3)))
    assert interval_of(one, kind="difference") == over_sites([one, two], [2, 0], kind="difference")
    for weights in ([1.0], [0.0, 0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="weights"):
            over_sites([one, two], weights, kind="difference")


def test_many_small_sites_have_a_mean_with_an_interval() -> None:
    """Twenty sites of three rows each: none says anything alone, together they have 60 patients."""
    generator = np.random.default_rng(0)
    sites = [Evidence.of_rows(generator.normal(0.6, 1, (1, 3))) for _ in range(20)]
    assert {"too_few"} == {verdict(interval_of(one, kind="difference")) for one in sites}
    assert verdict(over_sites(sites, [1.0] * 20, kind="difference")) == "helps"
    assert bounds(over_sites([Evidence.of_rows(np.ones((1, 1)))] * 20, [1.0] * 20, kind="share")) == bounds(
        share_of(20, 20)
    )


def test_splits_have_the_corrected_t_interval() -> None:
    """Nadeau and Bengio 2003, equation 8: variance times (1/n + test/train)."""
    values = [0.1, 0.3, 0.2, 0.4, 0.25]
    error = math.sqrt((1 / 5 + 0.5) * np.var(values, ddof=1))
    found, half = over_splits(values, test_to_train=0.5), stats.t.ppf(0.975, 4) * error
    assert [0.25 - half, 0.25 + half] == pytest.approx(bounds(found))
    assert 2 * stats.t.sf(0.25 / error, 4) == pytest.approx(found.p)
    assert Interval(0.3) == over_splits([0.3], test_to_train=0.5)
    assert Interval(0.5) == over_splits([0.5] * 5, test_to_train=0.5)
    assert Interval(0.0, 0.0, 0.0, 1.0) == over_splits([0.0] * 5, test_to_train=0.5)


# --- the counts of a run, and the rows of a comparison ---------------------------------------------------


def told(local: Ints, personal: Ints, groups: Ints | None) -> protocol.TestCounts:
    """Return the counts that a site tells of which answers are right."""
    pairs = [int(((local == a) & (personal == b)).sum()) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0))]
    patients = None
    if groups is not None:
        sums = {"local": local, "personal": personal, "majority": local, "difference": personal - local}
        patients = protocol.PatientCounts(**{name: Patients.of_rows(rows, groups) for name, rows in sums.items()})
    return protocol.TestCounts(
        num_test=len(local),
        majority=int(local.sum()),
        local=int(local.sum()),
        personal=int(personal.sum()),
        pairs=(pairs[0], pairs[1], pairs[2], pairs[3]),
        patients=patients,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": 10**400, "fourths": 10**800},
        {"sizes": 36, "fourths": 1296},
        {"fourths": 289},
        {"cross": 17},
        {"worse": 1},
        {"total": 3},
    ],
)
def test_sums_of_patients_with_more_rows_than_there_are_are_refused(changes: dict[str, int]) -> None:
    """A number of 400 digits would be none that a report can use; of 6 rows of 3 patients none has more than 4."""
    told = Patients.of_rows(np.array([1, 1, 1, 1, 0, 0]), np.array([0, 0, 0, 0, 1, 2]))
    assert (3, 6, 18, 258, 4, 16, 16) == astuple(told)[:7]
    with pytest.raises(ValueError, match="cannot be"):
        replace(told, **changes)


def test_differences_of_patients_are_within_the_pairs() -> None:
    """Two rows are right with the joined model only: no three patients are better for it, and none is worse."""
    local, personal = np.array([1, 0, 0, 0, 1, 0]), np.array([1, 1, 1, 0, 1, 0])
    counts = told(local, personal, np.array([0, 1, 2, 3, 3, 4])).model_dump()
    counts["patients"]["difference"] |= {"better": 3, "worse": 1, "moved": 4, "squares": 4}
    with pytest.raises(ValidationError, match=r"better, worse and moved \(3, 1, 4\), expected at most \(2, 0, 2\)"):
        protocol.TestCounts.model_validate(counts)


@pytest.mark.parametrize("grouped", [False, True])
def test_counts_of_a_run_and_rows_of_a_comparison_agree_to_the_last_digit(grouped: bool) -> None:
    """Per site and over the sites, whichever way the same answers come: as counts and sums, or row by row."""
    generator = np.random.default_rng(11)
    run, rows = {}, {}
    for site, size in (("berlin", 60), ("lyon", 35), ("porto", 12)):
        local, personal = (generator.integers(0, 2, size) for _ in range(2))
        groups = generator.integers(0, size, size) if grouped else None
        run[site] = told(local, personal, groups)
        rows[site] = {
            "local": Evidence.of_rows(local[None].astype(np.float64), groups),
            "personal": Evidence.of_rows(personal[None].astype(np.float64), groups),
            DIFFERENCE: Evidence.of_rows((personal - local)[None].astype(np.float64), groups),
        }
    found = findings_of(run)
    for name, kind in (("local", "share"), ("personal", "share"), (DIFFERENCE, "difference")):
        evidence = [of[name] for of in rows.values()]
        for site, one in zip(run, evidence, strict=True):
            assert found.sites[site][name] == interval_of(one, kind=kind)  # type: ignore[arg-type]  # all kinds are tried
        assert found.mean[name] == over_sites(evidence, [1.0] * 3, kind=kind)  # type: ignore[arg-type]  # all kinds are tried
        assert found.weighted_mean[name] == over_sites(evidence, [60, 35, 12], kind=kind)  # type: ignore[arg-type]  # all kinds are tried


def test_findings_of_a_run_over_its_sites() -> None:
    """Means weigh sites alike or by test rows; the worst has no interval; one site without a model leaves no mean."""
    ones, zeros = np.ones(10, dtype=np.int64), np.zeros(30, dtype=np.int64)
    found = findings_of({"berlin": told(ones, ones, None), "lyon": told(zeros, 1 - zeros, None)})
    assert [0.5, 0.25, Interval(0.0)] == [
        found.mean["local"].value,  # type: ignore[union-attr]  # it was measured
        found.weighted_mean["local"].value,  # type: ignore[union-attr]  # it was measured
        found.worst["local"],
    ]
    assert found.mean["global"] is None
    assert found.worst["global"] is None
    assert {"berlin": "unclear", "lyon": "helps"} == found.verdicts
    assert dict.fromkeys(MEASURES) == findings_of({}).mean


def test_verdicts_of_a_run_count_all_its_sites() -> None:
    """0:6 has a mid-p of 0.016: clear among one, two and three sites, not among four; the interval stays as it is."""
    local = np.zeros(40, dtype=np.int64)
    personal = np.where(np.arange(40) < 6, 1, 0)
    alone, unclear = told(local, personal, None), told(local, local, None)
    for others, expected in ((0, "helps"), (2, "helps"), (3, "unclear")):
        found = findings_of({"berlin": alone} | {f"site-{place}": unclear for place in range(others)})
        assert expected == found.verdicts["berlin"]
        assert bounds(found.sites["berlin"][DIFFERENCE])[0] > 0


@pytest.mark.parametrize(
    ("of", "wrong"),
    [
        ("personal", {"total": 3}),
        ("personal", {"worse": 1}),
        ("majority", {"squares": 10**9}),
        ("difference", {"moved": 0}),
        ("difference", {"num": 19}),
        ("local", {"cross": 10**6}),
        ("local", {"better": 100}),
        ("personal", {"sizes": 10**4}),
    ],
)
def test_sums_over_patients_that_cannot_be_are_refused(of: str, wrong: dict[str, int]) -> None:
    """A site's sums are checked where they come in, against each other and against its counts."""
    generator = np.random.default_rng(0)
    local, personal, groups = (generator.integers(0, most, 40) for most in (2, 2, 20))
    right = told(local, personal, groups).model_dump(mode="json")
    assert protocol.TestCounts.model_validate(right) == told(local, personal, groups)
    with pytest.raises(ValidationError, match="sums over patients"):
        protocol.TestCounts.model_validate(
            right | {"patients": right["patients"] | {of: right["patients"][of] | wrong}}
        )
    for parts in ({"difference": None}, {"global_": right["patients"]["personal"]}):
        with pytest.raises(ValidationError, match="without"):
            protocol.TestCounts.model_validate(right | {"patients": right["patients"] | parts})


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_test": 201},
        {"local": 181},
        {"personal": 189},
        {"majority": 201},
        {"global_": 201},
        {"pairs": (185, -5, 5, 15)},
    ],
)
def test_counts_that_contradict_each_other_are_refused(wrong: dict[str, object]) -> None:
    """A site's counts are checked where they come in: a bad site is named there, and nobody's report is lost."""
    right = {"num_test": 200, "majority": 100, "local": 180, "global_": 0, "personal": 190, "pairs": (175, 5, 15, 5)}
    protocol.TestCounts.model_validate(right)
    with pytest.raises(ValidationError):
        protocol.TestCounts.model_validate(right | wrong)


# --- words ---------------------------------------------------------------------------------------------


def test_holm_multiplies_from_the_smallest_on() -> None:
    """Four p-values by hand: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04, not below the one before."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "none": None})
    assert found["none"] is None
    assert {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02} == pytest.approx({k: v for k, v in found.items() if v})
    ordered = [value for _, value in sorted(holm({str(one): one / 10 for one in range(1, 9)}).items()) if value]
    assert all(one <= two <= 1 for one, two in pairwise(ordered))


@pytest.mark.parametrize(
    ("difference", "smaller", "adjusted", "expected"),
    [
        (Interval(0.1, 0.01, 0.2, 0.01), False, None, "helps"),
        (Interval(0.1, 0.01, 0.2, 0.01), True, 0.04, "hurts"),
        (Interval(-0.1, -0.2, -0.01, 0.01), False, None, "hurts"),
        (Interval(-0.1, -0.2, -0.01, 0.01), True, None, "helps"),
        (Interval(0.1, 0.01, 0.2, 0.01), False, 0.05, "unclear"),
        (Interval(0.1, -0.01, 0.2, 0.07), False, None, "unclear"),
        (Interval(0.1), False, None, "too_few"),
        (None, False, None, "unknown"),
    ],
)
def test_verdict(difference: Interval | None, smaller: bool, adjusted: float | None, expected: str) -> None:
    """Clear only if the interval excludes 0 and the adjusted p, where there is one, is below 0.05."""
    assert expected == verdict(difference, smaller_is_better=smaller, p_adjusted=adjusted)


def test_one_test_row_each_is_no_finding() -> None:
    """Alone right and joined wrong on the only test row: nothing is said but that there is too little."""
    text = sentence("alice", share_of(1, 1), share_of(0, 1), paired((0, 1, 0, 0)))
    assert text == (
        "Too little to tell what joining does at alice: 1.00 -> 0.00 (no interval: fewer than 10 test patients)."
    )
    errors = Evidence.of_rows(np.array([[-0.4384]]))
    assert verdict(interval_of(errors, kind="difference"), smaller_is_better=True) == "too_few"


def test_sentences() -> None:
    """A bound that excludes 0 is never printed as 0; a metric other than accuracy is named; Holm is said."""
    alone, joined = Interval(0.64), Interval(0.72)
    clear = Interval(0.08, 0.0012, 0.13, 0.04)
    assert sentence("va", alone, joined, clear) == (
        "Joining helps va: 0.64 -> 0.72 (+0.08, 95 % interval +0.001 to +0.130)."
    )
    assert sentence("va", alone, joined, clear, p_adjusted=0.08) == (
        "Joining shows no clear effect at va: 0.64 -> 0.72 "
        "(+0.08, 95 % interval +0.001 to +0.130, not clear once all sites are counted)."
    )
    assert sentence("va", alone, joined, clear, metric="calibration_error", smaller_is_better=True) == (
        "Joining hurts va: calibration error 0.64 -> 0.72 (+0.08, 95 % interval +0.001 to +0.130)."
    )
    assert sentence("va", alone, joined, Interval(0.08, -0.001, 0.2, 0.06)).startswith("Joining shows no clear effect")
    assert sentence("va", None, joined, None) == (
        "No model was trained at va alone to compare with: 0.72 after joining."
    )
    assert "nothing can be said" in sentence("va", None, None, None, metric="auroc")


# --- how often they are right ------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 3])
def test_clear_is_seldom_said_where_there_is_nothing(seeds: int) -> None:
    """400 exact nulls of numbers and of shares, 15 patients: at most 8 % clear (more: benchmarks/coverage.py)."""
    found = {"number": 0, "share": 0}
    for study in range(400):
        generator = np.random.default_rng(study)
        drift = generator.normal(0, 0.25 * math.sqrt(seeds) * (seeds > 1), seeds)[:, None]
        rows = generator.normal(0, 1, 15) + generator.normal(0, 0.3, (seeds, 15)) + drift
        for name, values in (("number", rows), ("share", np.sign(rows) * (np.abs(rows) > 0.5))):
            found[name] += verdict(interval_of(Evidence.of_rows(values), kind="difference")) != "unclear"
    assert max(found.values()) <= 0.08 * 400, found


def test_sites_at_which_nobody_differs_leave_room_for_who_might() -> None:
    """30 and 30 patients, all answered alike: as sure as their number allows, and no surer than of one site of 60."""
    sites = [Evidence.of_rows(np.zeros((3, 30))), Evidence.of_rows(np.zeros((3, 30)))]
    one, both = interval_of(sites[0], kind="difference"), over_sites(sites, [1.0, 1.0], kind="difference")
    assert both.low is not None and both.high is not None and one.high is not None
    assert one.high / math.sqrt(2) == pytest.approx(both.high)
    assert (-both.high, 1.0) == (both.low, both.p)
