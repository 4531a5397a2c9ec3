"""Intervals of shares whose counts have noise: widened as errors add up, checked by simulation and by the table."""

import csv
import math

import numpy as np
import pytest
from paths import ROOT

from consilium.common.intervals.interval import Interval, widened
from consilium.common.protocol.counts import TestCounts as Counts
from consilium.findings import findings_of, share_of
from consilium.findings.noise import MOST_NOISE

Z = 1.959963984540054


def told(right: int, num: int, noise: float | None) -> Counts:
    """Return what a site of a private study tells of the model that it serves."""
    return Counts(num_test=num, personal=right, noise=noise)


def test_limits_move_as_independent_errors_add_up() -> None:
    """0.3 below and 0.4 above with noise of 0.4 / 1.96: sqrt(0.09 + 0.16) = 0.5 below, sqrt(0.16 + 0.16) above."""
    one = widened(Interval(0.0, -0.3, 0.4), 0.4 / Z, least=-9, most=9)
    assert one.bounds == pytest.approx((-0.5, math.sqrt(0.32)))


def test_without_noise_nothing_changes() -> None:
    """Neither an exact interval nor one without bounds is touched."""
    exact, none = Interval(0.5, 0.4, 0.6, 0.01), Interval(0.5)
    assert exact == widened(exact, 0.0, least=0, most=1)
    assert none == widened(none, 0.1, least=0, most=1)


@pytest.mark.parametrize("value", [0.05, 0.1, 0.2, -0.1])
@pytest.mark.parametrize("noise", [0.001, 0.02, 0.05, 0.2])
def test_p_is_small_only_where_the_interval_leaves_0_out(value: float, noise: float) -> None:
    """As of every difference."""
    half = 0.09
    before = math.erfc(Z * abs(value) / half / math.sqrt(2))
    one = widened(Interval(value, value - half, value + half, before), noise, least=-1, most=1)
    assert one.p is not None
    assert (one.p < 0.05) == (one.sign != 0)
    assert one.p >= before


def test_share_of_noised_counts_has_the_noise_in_its_interval() -> None:
    """80 of 100 with noise 5 on right and wrong: 5 sqrt(0.8^2 + 0.2^2) / 100 beside Jeffreys' own limits."""
    exact, noise = share_of(80, 100), 5 * math.hypot(0.8, 0.2) / 100
    found = findings_of({"a": told(80, 100, 5.0)}).sites["a"]["personal"]
    assert found is not None and exact.low is not None and exact.high is not None
    low, high = 0.8 - math.hypot(0.8 - exact.low, Z * noise), 0.8 + math.hypot(exact.high - 0.8, Z * noise)
    assert found.bounds == pytest.approx((low, high))
    assert found.value == 0.8


def test_exact_counts_have_the_interval_they_had() -> None:
    """An ordinary study is not touched."""
    assert share_of(80, 100) == findings_of({"a": told(80, 100, None)}).sites["a"]["personal"]


def test_noise_of_every_site_is_in_the_mean_over_sites() -> None:
    """Two sites alike: the mean's noise is that of one over sqrt(2)."""
    counts = {"a": told(80, 100, 5.0), "b": told(80, 100, 5.0)}
    noised = findings_of(counts).mean["personal"]
    exact = findings_of({site: told(80, 100, None) for site in counts}).mean["personal"]
    assert noised is not None and noised.low is not None and exact is not None and exact.low is not None
    noise = 5 * math.hypot(0.8, 0.2) / 100 / math.sqrt(2)
    assert noised.low == pytest.approx(0.8 - math.hypot(0.8 - exact.low, Z * noise))


def test_share_that_is_noise_is_not_shown() -> None:
    """A standard deviation of more than an eighth of the test patients leaves nothing to say; one of an eighth does."""
    assert findings_of({"a": told(80, 100, 100 * MOST_NOISE)}).sites["a"]["personal"] is not None
    assert findings_of({"a": told(80, 100, 100 * MOST_NOISE + 0.1)}).sites["a"]["personal"] is None


@pytest.mark.parametrize(("size", "share", "noise"), [(100, 0.8, 8.0), (400, 0.5, 20.0), (60, 0.95, 4.0)])
def test_intervals_hold_the_true_share_as_often_as_they_say(size: int, share: float, noise: float) -> None:
    """400 sites: nominally 95 %, so below 92 % has a chance of less than 1 %."""
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        right = int(random.binomial(size, share))
        cells = [max(0, count + round(random.normal(0, noise))) for count in (right, size - right)]
        one = findings_of({"a": told(round(size * cells[0] / sum(cells)), size, noise)}).sites["a"]["personal"]
        assert one is not None and one.low is not None and one.high is not None
        held += one.low <= share <= one.high
    assert held >= 0.92 * 400


def test_committed_table_holds_what_the_report_says_of_it() -> None:
    """Wrong at most in 1 of 20 over all rows; a row above that is of exact intervals' own steps, at little noise."""
    with (ROOT / "benchmarks" / "results" / "noised_counts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wrong = [float(row["wrong"]) for row in rows]
    assert len(rows) == 200
    assert sum(wrong) / len(wrong) <= 0.05
    assert max(float(row["wrong"]) for row in rows if int(row["noise"]) >= 8) <= 0.065
    assert max(wrong) <= 0.1
