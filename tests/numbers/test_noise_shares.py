"""Noise that sites share in a secure sum: as much as was promised, room for it, and what it costs."""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import MakeStudy
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from scipy.stats import kstest, norm

from consilium.client.privacy.secure.noise import add_noise
from consilium.common.errors import ModelError, UpdateRejected
from consilium.common.privacy.accounting import Charge, epsilon_of
from consilium.common.privacy.secure.fixed import Layout, to_mean, to_words
from consilium.common.privacy.secure.masks import Words
from consilium.common.privacy.secure.noise import FAR, SPARE, NoiseShare, colluding_sites, fewest_answers, noise_share
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Array
from consilium.server.privacy.noise import (
    check_site_noise_fits,
    multiplier_of_sums,
    site_epsilon,
    site_epsilon_alone,
    with_site_noise,
)
from consilium.server.strategies import ServerState, Update

N, HONEST, CLIP, Z, SIZE = 50, 34, 2.0, 3.0, 20_000
DELTA = 1e-5
SHARE = NoiseShare(Z, HONEST, N)
GRID = list(itertools.product((0.1, 1.0, 30.0, 1000.0, 1e6), ((50, 34), (64, 21), (64, 64), (60, 1), (5000, 30))))
Floats = npt.NDArray[np.float64]


def layout(size: int = SIZE, share: NoiseShare | None = SHARE) -> Layout:
    """Return the layout of updates of one array."""
    return Layout.of({"w": np.zeros(size, np.float32)}, {}, bound=CLIP, sites=N, share=share)


def hidden(of: Layout, values: Floats, number: int) -> Words:
    """Return an update as words with one site's noise."""
    assert of.share is not None
    words = to_words(of, {"w": values.astype(np.float32)}, {}, 1.0)
    add_noise(words, of.share, seed=number.to_bytes(32, "big"))
    return words


def summed(of: Layout, values: Floats, sites: int = N, *, seed: int = 0) -> Words:
    """Return the sum of so many equal updates, each with noise of its own."""
    total = Words.zeros(of.narrow, of.wide)
    for number in range(sites):
        total.add(hidden(of, values, 1000 * seed + number))
    return total


def signed(words: Words) -> npt.NDArray[np.int64]:
    """Return the numbers that narrow words stand for."""
    return words.narrow.view(np.int32).astype(np.int64)


def study_of(make: MakeStudy, sites: int = 50, *, quorum: int | None = None, **privacy: Any) -> StudyConfig:
    """Return a study whose sums hide whole sites."""
    columns = {name: {"kind": "number"} for name in "ab"}
    scale = {name: {"mean": 0.0, "std": 1.0} for name in "ab"}
    return make(
        sites=[f"site-{number:02}" for number in range(sites)],
        quorum=quorum,
        rounds=20,
        model={"name": "linear"},
        weighting={"factors": [{"kind": "size", "exponent": 0}]},
        task={"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": columns, "scale": scale},
        privacy={"secure_aggregation": True, "sites": {"noise": 5.0, "clip": CLIP} | privacy},
    )


# --- how much ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("multiplier", "sites"), GRID)
def test_honest_sites_have_the_noise_together_and_words_have_room(multiplier: float, sites: tuple[int, int]) -> None:
    """In whole numbers: t s^2 >= z^2 length^2 + SPARE, hardly more, and N length + FAR sqrt(N) s < 2^31."""
    share = NoiseShare(multiplier, honest=sites[1], sites=sites[0])
    variance, wanted = share.honest * share.deviation**2, (multiplier * share.length) ** 2
    assert 1 <= share.length
    assert wanted + SPARE <= variance * (1 + 1e-12)
    assert variance <= wanted * (1 + 1e-3)
    assert share.sites * share.length + FAR * math.sqrt(share.sites) * share.deviation < 2**31
    assert multiplier <= share.multiplier_of(share.honest) * (1 + 1e-12)
    assert share.multiplier_of(share.honest) == pytest.approx(multiplier, rel=1e-3)


def test_noise_of_a_sum_is_normal_and_as_large_as_was_promised() -> None:
    """Of 50 sites, of which 34 would have been enough: deviation z C sqrt(50 / 34) in the sum, and no pattern."""
    of = layout()
    noise = signed(summed(of, np.zeros(SIZE))) * of.step
    expected = Z * CLIP * math.sqrt(N / HONEST)
    assert noise.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * SIZE))
    assert abs(noise.mean()) < 4 * expected / math.sqrt(SIZE)
    assert kstest(noise / expected, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 5 / math.sqrt(SIZE)


def test_mean_is_the_truth_but_for_noise() -> None:
    """Within 5.5 deviations in each of 20,000 numbers, at a site's own weight of 1."""
    truth = np.random.default_rng(5).normal(scale=0.9 * CLIP / math.sqrt(SIZE), size=SIZE)
    mean = to_mean(layout(), summed(layout(), truth), sites=N)
    off = (mean.delta["w"].astype(np.float64) - truth) / (Z * CLIP * math.sqrt(N / HONEST) / N)
    assert float(np.abs(off).max()) < 5.5
    assert off.std() == pytest.approx(1, rel=4 / math.sqrt(2 * SIZE))
    assert N == mean.weight


def test_server_adds_no_second_noise(make_study: MakeStudy) -> None:
    """What it gets from the sum stays as it is, to the last bit; in a study without secure sums it adds its own."""
    study = study_of(make_study)
    updates = [Update(f"site-{number:02}", {"w": np.ones(3, np.float32)}, 10, {}) for number in range(N)]
    shares = {update.site: 1 / N for update in updates}
    assert with_site_noise(study, updates, shares) is updates
    plain = study.model_copy(update={"privacy": study.privacy.model_copy(update={"secure_aggregation": False})})
    assert with_site_noise(plain, updates, shares) is not updates


# --- room --------------------------------------------------------------------------------------------


def test_largest_sum_with_its_noise_does_not_wrap() -> None:
    """All sites send the clip in one coordinate: 50 clips and their noise are there; without room they would not be."""
    of = layout(100)
    values = np.zeros(100)
    values[0] = 99.0
    total = signed(summed(of, values))[0] * of.step
    assert abs(total - N * CLIP) < 5 * Z * CLIP * math.sqrt(N / HONEST)
    roomless = layout(100, share=None).step
    assert N * CLIP / roomless + 5 * Z * CLIP / roomless > 2**31


@given(
    arrays_of.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e3, 1e3, width=32)),
    st.sampled_from([0.1, 3.0, 1e4, 1e6]),
)
def test_rounded_update_is_no_longer_than_the_clip(values: npt.NDArray[np.float32], multiplier: float) -> None:
    """In exact arithmetic of its words before the noise: rounding moves no update beyond what is paid for."""
    share = NoiseShare(multiplier, HONEST, N)
    if not share.holds(values.size):
        return
    words = to_words(layout(values.size, share), {"w": values}, {}, 1.0)
    assert sum(int(word) ** 2 for word in signed(words)) <= share.length**2


def test_hostile_roundings_would_be_longer_without_the_radius() -> None:
    """The test of the test above: 280 numbers that all round up, of a clip of 126 words."""
    share = NoiseShare(1e6, HONEST, N)
    assert round(share.length / math.sqrt(280)) ** 2 * 280 > share.length**2
    words = to_words(layout(280, share), {"w": np.full(280, 50.0, np.float32)}, {}, 1.0)
    assert sum(int(word) ** 2 for word in signed(words)) <= share.length**2


def test_words_too_coarse_for_a_model_are_refused(make_study: MakeStudy) -> None:
    """At the server before the first round, and at a site whatever the server says."""
    share = NoiseShare(1e6, HONEST, N)
    assert not share.holds(10_000)
    with pytest.raises(UpdateRejected, match=r"10000 numbers cannot be rounded to whole words of which \d+ stand for"):
        to_words(layout(10_000, share), {"w": np.zeros(10_000, np.float32)}, {}, 1.0)
    study = study_of(make_study, noise=1000.0)
    check_site_noise_fits(study, ServerState(0, {"w": np.zeros(10_000)}))
    huge = np.broadcast_to(np.float32(0), (50_000, 50_000))
    with pytest.raises(ModelError, match=r"privacy.sites: 2500000000 numbers cannot be rounded to whole words"):
        check_site_noise_fits(study, ServerState(0, {"w": huge}))


@pytest.mark.parametrize("size", [1, 100, SIZE])
def test_sum_longer_than_noise_and_clips_can_make_it_is_refused(size: int) -> None:
    """Honest sums pass, all of them at the clip; a sum that was not unmasked, or a cheating site's, does not.

    Of a single number noise could make nearly anything that fits into a word, so that none is too long.
    """
    of = layout(size)
    for seed in range(3):
        total = summed(of, np.full(size, 9.0), seed=seed)
        to_mean(of, total, sites=N)
    total.narrow[:] += np.uint32(2**31 // 3)
    if size == 1:
        return
    with pytest.raises(UpdateRejected, match="expected at most 50 times 2, with its noise"):
        to_mean(of, total, sites=N)


def test_weights_that_no_honest_sites_have_are_refused() -> None:
    """Every site counts 1, and none says whether it was shortened."""
    total = summed(layout(10), np.zeros(10))
    with pytest.raises(UpdateRejected, match="impossible weights"):
        to_mean(layout(10), total, sites=N - 1)
    total.wide[-1] = 1
    with pytest.raises(UpdateRejected, match="impossible weights"):
        to_mean(layout(10), total, sites=N)


# --- nothing exact beside it -------------------------------------------------------------------------


def test_nobody_tells_that_an_update_was_shortened() -> None:
    """That would be an exact count: the word is 0 for a long update as for a short one; without noise it tells."""
    for values, told in ((np.zeros(10), 0), (np.full(10, 99.0), 1)):
        assert 0 == int(hidden(layout(10), values, 1).wide[-1])
        without = to_words(layout(10, share=None), {"w": values.astype(np.float32)}, {}, 1.0)
        assert told == int(without.wide[-1])


@pytest.mark.parametrize(
    ("delta", "control", "weight", "sentence"),
    [
        ({"n": np.array(3)}, {}, 1.0, "arrays n have no noise"),
        ({}, {"w": np.zeros(2, np.float32)}, 1.0, "arrays control variate of w have no noise"),
        ({}, {}, 0.5, "noise hides sites that count the same, but this one counts 0.5"),
    ],
)
def test_what_has_no_noise_is_not_summed(
    delta: dict[str, Array], control: dict[str, Array], weight: float, sentence: str
) -> None:
    """Whole numbers, control variates, weights of one's own: a site refuses them before anything is masked."""
    delta = {"w": np.zeros(2, np.float32), **delta}
    of = Layout.of(delta, control, bound=CLIP, sites=N, share=SHARE)
    with pytest.raises(UpdateRejected, match=sentence):
        to_words(of, delta, control, weight)


# --- what it costs -----------------------------------------------------------------------------------


def exact(deviation: float, terms: int = 1, reach: int = 120) -> Floats:
    """Return the chances of the sum of discrete Gaussians from -reach to reach, by convolution."""
    values = np.arange(-reach, reach + 1)
    one = np.exp(-(values.astype(np.float64) ** 2) / (2 * deviation**2))
    one /= one.sum()
    total = one
    for _ in range(terms - 1):
        total = np.convolve(total, one)[reach : 3 * reach + 1]
    return total


@pytest.mark.parametrize(("deviation", "terms"), [(0.7, 2), (0.7, 4), (1.0, 2), (1.0, 5), (1.3, 3)])
def test_sum_of_shares_is_as_near_to_one_discrete_gaussian_as_the_theorem_says(deviation: float, terms: int) -> None:
    """Kairouz 2021, theorem 9: logarithms of chances differ by at most 5 sum exp(-2 pi^2 s^2 k / (k + 1)).

    Where they can be computed: here the difference is seen, and not far below the bound.
    """
    middle = slice(120 - 9, 120 + 10)
    logs = np.log(exact(deviation, terms)[middle]) - np.log(exact(deviation * math.sqrt(terms))[middle])
    bound = 5 * sum(math.exp(-2 * math.pi**2 * deviation**2 * k / (k + 1)) for k in range(1, terms))
    assert 1e-9 < float(np.abs(logs).max()) <= bound


def test_discrete_noise_costs_no_more_than_normal_noise_of_less_variance_by_spare() -> None:
    """The exact chances of three sites' sum, with 5 words more and without: delta is never above normal noise's.

    Of normal noise that has all of the variance it is, by a little: so what is taken off is not for nothing.
    """
    chances, variance, moved = exact(8.0, 3), 3 * 64.0, 5
    spared, whole = math.sqrt(variance - SPARE) / moved, math.sqrt(variance) / moved

    def normal(epsilon: float, noise: float) -> float:
        return float(
            norm.cdf(0.5 / noise - epsilon * noise) - math.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise)
        )

    for epsilon in np.linspace(0, 2.5, 26):
        found = float(np.maximum(0, chances[:-moved] - math.exp(epsilon) * chances[moved:]).sum())
        assert found <= normal(epsilon, spared) + 1e-12
        assert found >= 0.7 * normal(epsilon, whole)


@pytest.mark.parametrize("rounds", [1, 20, 400])
def test_epsilon_is_the_normal_one_and_below_that_of_the_paper(make_study: MakeStudy, rounds: int) -> None:
    """Two oracles: the exact normal delta (Balle and Wang 2018), and proposition 14 of Kairouz 2021 by dp-accounting.

    The latter is of concentrated privacy: rho = rounds / 2 (1 / z^2 + tau d), whose tau is 0 here.
    """
    study = study_of(make_study).model_copy(update={"rounds": 400})
    spent, z = site_epsilon(study, rounds_done=rounds), 5.0
    assert spent is not None
    noise = z / math.sqrt(rounds)
    delta = norm.cdf(0.5 / noise - spent * noise) - math.exp(spent) * norm.cdf(-0.5 / noise - spent * noise)
    assert DELTA * 0.98 <= float(delta) <= DELTA
    share = noise_share(study, z)
    assert share is not None
    tau = 10 * sum(math.exp(-2 * math.pi**2 * share.deviation**2 * k / (k + 1)) for k in range(1, share.honest))
    paper = RdpAccountant().compose(dp_event.ZCDpEvent(rho=rounds / 2 * (1 / z**2 + tau * 1e9 / 2)))
    bound = paper.get_epsilon(DELTA)
    assert 0.8 * bound < spent <= bound
    assert share.excess(10**9, rounds) < -800 * math.log(10)


def test_epsilon_against_the_server_alone_and_with_colluding_sites(make_study: MakeStudy) -> None:
    """Of 60 sites 50 must answer, of which 20 may collude: 30 carry what is promised, and all of them more.

    Without colluding sites the noise of a sum of n is z sqrt(n / 30), in whole words; sums of 50 and 60 compose.
    """
    study = study_of(make_study, 60, quorum=50)
    assert (50, 20) == (fewest_answers(study), colluding_sites(study))
    together, alone = site_epsilon(study, rounds_done=2), site_epsilon_alone(study, answers=[50, 60])
    least = epsilon_of([Charge("sgd", 5.0 * math.sqrt(n / 30)) for n in (50, 60)], DELTA)
    assert epsilon_of([Charge("sgd", 5.0, steps=2)], DELTA) == together
    assert alone == pytest.approx(least, rel=1e-4)
    assert together is not None
    assert alone is not None
    assert alone < 0.8 * together
    nobody = study_of(make_study, 60, quorum=50, colluding=0)
    assert (0, 50) == (colluding_sites(nobody), fewest_answers(nobody))
    share = noise_share(nobody, multiplier_of_sums(nobody))
    assert share is not None
    assert 50 == share.honest
    assert site_epsilon_alone(nobody, answers=[50, 50]) == pytest.approx(together, rel=1e-4)


def test_noise_of_colluding_sites_is_taken_off_and_the_promise_holds() -> None:
    """16 of 50 sites tell the server their noise: what is left has the deviation z C, not less."""
    of = layout()
    known = summed(of, np.zeros(SIZE), N - HONEST)
    left = (signed(summed(of, np.zeros(SIZE))) - signed(known)) * of.step
    assert left.std() == pytest.approx(Z * CLIP, rel=4 / math.sqrt(2 * SIZE))


def test_other_studies_have_no_shares(make_study: MakeStudy) -> None:
    """Neither sums without noise for sites, nor noise that the server adds."""
    secure = make_study(privacy={"secure_aggregation": True})
    assert multiplier_of_sums(secure) is None
    assert noise_share(secure, 1.0) is None
    assert site_epsilon_alone(secure, answers=[3]) is None
