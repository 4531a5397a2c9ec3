"""Intervals from counts: against scipy's Beta quantiles, known tables, coverage, and laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from common import protocol
from consilium.statistics import MEASURES, Estimate, Measures, estimate


def counts(pairs: tuple[int, int, int, int], *, majority: int = 0, global_: int | None = None) -> protocol.TestCounts:
    """Return the counts of one site whose paired table is `pairs`."""
    both, only_local, only_personal, _ = pairs
    return protocol.TestCounts(
        num_test=sum(pairs),
        majority=majority,
        local=both + only_local,
        global_=global_,
        personal=both + only_personal,
        pairs=pairs,
    )


def of(measures: Measures, name: str) -> Estimate:
    """Return an estimate that must be there."""
    found = measures[name]
    assert found is not None
    return found


@pytest.mark.parametrize(("right", "tested"), [(0, 20), (3, 20), (40, 200), (170, 200), (200, 200)])
def test_accuracy_interval_is_the_jeffreys_interval(right: int, tested: int) -> None:
    """Majority and global: quantiles of Beta(k + 1/2, n - k + 1/2), up to the noise of 20,000 draws."""
    site = estimate({"berlin": counts((tested, 0, 0, 0), majority=right, global_=right)}, seed=1).sites["berlin"]
    expected = stats.beta.ppf([0.025, 0.975], right + 0.5, tested - right + 0.5)
    for name in ("majority", "global"):
        assert right / tested == of(site, name).value
        assert expected == pytest.approx([of(site, name).low, of(site, name).high], abs=0.005)


def test_local_and_personal_intervals_are_marginals_of_the_dirichlet() -> None:
    """The sum of two cells of Dirichlet(pairs + 1/2) is Beta(k + 1, n - k + 1)."""
    site = estimate({"berlin": counts((150, 10, 25, 15))}, seed=1).sites["berlin"]
    for name, right in (("local", 160), ("personal", 175)):
        expected = stats.beta.ppf([0.025, 0.975], right + 1, 200 - right + 1)
        assert right / 200 == of(site, name).value
        assert expected == pytest.approx([of(site, name).low, of(site, name).high], abs=0.003)


def test_difference_without_discordant_pairs_is_symmetric_around_zero() -> None:
    """Both models right on the same examples: no difference, and an interval that favours neither."""
    difference = of(estimate({"berlin": counts((180, 0, 0, 20))}, seed=1).sites["berlin"], "personal_minus_local")
    assert difference.value == 0
    assert difference.low < 0 < difference.high
    assert -difference.low == pytest.approx(difference.high, abs=0.002)


def test_difference_is_negated_when_local_and_personal_swap() -> None:
    """Swapping the two discordant cells turns the interval round."""
    better = of(estimate({"berlin": counts((175, 5, 15, 5))}, seed=1).sites["berlin"], "personal_minus_local")
    worse = of(estimate({"berlin": counts((175, 15, 5, 5))}, seed=1).sites["berlin"], "personal_minus_local")
    assert better.value == pytest.approx(0.05)
    assert better.value == -worse.value
    assert [better.low, better.high] == pytest.approx([-worse.high, -worse.low], abs=0.003)


def test_difference_is_paired() -> None:
    """With the same accuracies, fewer discordant pairs give a narrower interval."""
    paired = of(estimate({"berlin": counts((160, 0, 10, 30))}, seed=1).sites["berlin"], "personal_minus_local")
    crossed = of(estimate({"berlin": counts((130, 30, 40, 0))}, seed=1).sites["berlin"], "personal_minus_local")
    assert paired.value == pytest.approx(crossed.value)
    assert paired.low > 0 > crossed.low


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    """300 simulated test splits of known accuracies: the intervals hold the truth in 91 to 99 % of them."""
    both, only_local, only_personal = 0.7, 0.05, 0.15
    tables = np.random.default_rng(7).multinomial(100, [both, only_local, only_personal, 0.1], size=300)
    truth = {"local": both + only_local, "personal": both + only_personal, "personal_minus_local": 0.1}
    hits = dict.fromkeys(truth, 0)
    for index, (a, b, c, d) in enumerate(tables.tolist()):
        site = estimate({"berlin": counts((a, b, c, d))}, seed=index).sites["berlin"]
        for name, value in truth.items():
            hits[name] += of(site, name).low <= value <= of(site, name).high
    assert all(0.91 <= hit / 300 <= 0.99 for hit in hits.values()), hits


def test_over_sites_are_the_mean_the_weighted_mean_and_the_minimum() -> None:
    """Point estimates by hand: local 0.9 of 10 and 0.5 of 30; differences 0.1 and -0.1."""
    sites = {"berlin": counts((9, 0, 1, 0), global_=5), "lyon": counts((12, 3, 0, 15), global_=15)}
    result = estimate(sites, seed=1)
    assert of(result.mean, "local").value == pytest.approx(0.7)
    assert of(result.weighted_mean, "local").value == pytest.approx(0.6)
    assert of(result.worst, "local").value == pytest.approx(0.5)
    assert of(result.mean, "global").value == pytest.approx(0.5)
    assert of(result.worst, "personal_minus_local").value == pytest.approx(-0.1)


def test_mean_interval_is_narrower_than_a_sites_own() -> None:
    """The mean of four equal, independent sites has half a site's width."""
    result = estimate({name: counts((160, 10, 10, 20)) for name in ("a", "b", "c", "d")}, seed=1)
    site, mean = of(result.sites["a"], "local"), of(result.mean, "local")
    assert (mean.high - mean.low) == pytest.approx((site.high - site.low) / 2, rel=0.05)


def test_no_global_model_at_one_site_means_no_global_number_over_sites() -> None:
    """None stays None, and a mean over part of the sites is not given."""
    result = estimate({"berlin": counts((8, 1, 1, 0)), "lyon": counts((8, 1, 1, 0), global_=9)}, seed=1)
    assert result.sites["berlin"]["global"] is None
    assert of(result.sites["lyon"], "global").value == 0.9
    assert all(measures["global"] is None for measures in (result.mean, result.weighted_mean, result.worst))


def test_no_sites_gives_no_numbers() -> None:
    """Nothing was tested: every measure over the sites is None."""
    assert dict.fromkeys(MEASURES) == estimate({}, seed=1).mean


def test_numbers_depend_on_seed_and_not_on_other_sites() -> None:
    """The same seed gives the same bits, alone or beside other sites and in any order."""
    berlin, lyon = counts((175, 5, 15, 5)), counts((75, 5, 15, 5))
    alone = estimate({"berlin": berlin}, seed=1).sites["berlin"]
    assert alone == estimate({"lyon": lyon, "berlin": berlin}, seed=1).sites["berlin"]
    assert alone != estimate({"berlin": berlin}, seed=2).sites["berlin"]


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
    with pytest.raises(ValidationError):
        protocol.TestCounts.model_validate(counts((175, 5, 15, 5)).model_dump() | wrong)


cells = st.integers(min_value=0, max_value=300)
tables = st.tuples(cells, cells, cells, cells).filter(lambda table: sum(table) > 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(tables, min_size=1, max_size=4), st.integers(min_value=0, max_value=2**31 - 1))
def test_intervals_are_ordered_and_in_range(sites: list[tuple[int, int, int, int]], seed: int) -> None:
    """low < high within [0, 1] (differences: [-1, 1]); the means lie between the sites' extremes."""
    result = estimate({f"site-{index}": counts(table, global_=0) for index, table in enumerate(sites)}, seed=seed)
    for measures in (*result.sites.values(), result.mean, result.weighted_mean, result.worst):
        for name in MEASURES:
            found = of(measures, name)
            assert (-1 if name == "personal_minus_local" else 0) <= found.low < found.high <= 1
    for name in MEASURES:
        values = [of(measures, name).value for measures in result.sites.values()]
        for measures in (result.mean, result.weighted_mean):
            assert min(values) - 1e-12 <= of(measures, name).value <= max(values) + 1e-12
        assert min(values) == of(result.worst, name).value
