"""The mathematics of secure sums: shares, masks, whole words, weights; each against a slow and plain oracle."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.errors import ProtocolError, UpdateRejected
from consilium.common.privacy.secure.context import Context
from consilium.common.privacy.secure.fixed import ERROR, Layout, to_mean, to_words
from consilium.common.privacy.secure.keys import exchanged, make_run_key, public_of, seal, unseal
from consilium.common.privacy.secure.masks import Words, add_mask
from consilium.common.privacy.secure.party import Party, opened_shares, sealed_bytes
from consilium.common.privacy.secure.shamir import PRIME, SHARE_BYTES, factors, join, random_bytes, split
from consilium.common.privacy.secure.sizes import MOST_SITES, threshold
from consilium.common.privacy.secure.weights import own_weight, per_step, reference_loss, reference_steps
from consilium.common.study.strategies import FedAvgStrategy, PerFedAvgStrategy
from consilium.common.study.training import TrainingConfig
from consilium.common.study.weightings import LossFactor, SizeFactor, WeightingConfig
from consilium.common.weights.arrays import Array

SECRETS = st.binary(min_size=32, max_size=32)
NAMES = ("berlin", "bern", "bonn", "graz", "lyon", "porto")


def context(cohort: Sequence[str] = NAMES[:4], **changes: Any) -> Context:
    """Return the context of a first attempt at a first round."""
    values: dict[str, Any] = {
        "study": "s" * 64,
        "run": "run",
        "round": 1,
        "attempt": 1,
        "weights": "w" * 64,
        "examples": 9,
        "loss": 0.0,
    }
    return Context(**{**values, "cohort": tuple(cohort), **changes})


def parties(names: Sequence[str] = NAMES[:4]) -> dict[str, Party]:
    """Return sites that have exchanged keys."""
    private = {name: make_run_key() for name in names}
    public = {name: public_of(key) for name, key in private.items()}
    return {
        name: Party(
            name,
            bytes.fromhex(private[name]),
            {
                other: exchanged(private[name], public[other], study="s", run="run", own=name, peer=other)
                for other in names
                if other != name
            },
        )
        for name in names
    }


def recovered(
    opened: dict[str, bytes], survivors: Sequence[str], dropped: Sequence[str], now: Context
) -> dict[tuple[str, str], bytes]:
    """Return the seeds that the shares of some sites give, without any of the server's code."""
    places = [now.cohort.index(name) + 1 for name in opened]
    by = factors(places)
    found = {}
    for number, pair in enumerate(opened_shares(survivors, dropped)):
        found[pair] = join([text[number * SHARE_BYTES :][:SHARE_BYTES] for text in opened.values()], by)
    return found


# --- shares ------------------------------------------------------------------------------------------


def test_prime_is_the_least_above_every_secret() -> None:
    """By Fermat's test to 64 bases, which no composite number of this kind is known to pass; none is between."""
    passes = [k for k in range(1, 298, 2) if all(pow(a, 2**256 + k - 1, 2**256 + k) == 1 for a in range(2, 12))]
    assert [297] == passes
    assert all(pow(a, PRIME - 1, PRIME) == 1 for a in range(2, 66))


@given(
    secret=SECRETS, sizes=st.integers(3, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), data=st.data()
)
def test_any_threshold_of_shares_give_the_secret(secret: bytes, sizes: tuple[int, int], data: st.DataObject) -> None:
    """Whichever of them, in whatever order."""
    number, least = sizes
    random = data.draw(st.binary(min_size=random_bytes(least), max_size=random_bytes(least)))
    shares = split(secret, shares=number, threshold=least, random=random)
    chosen = data.draw(st.permutations(range(number)))[:least]
    assert secret == join([shares[place] for place in chosen], factors([place + 1 for place in chosen]))


def test_shares_are_those_of_the_polynomial_in_exact_fractions() -> None:
    """f(x) = s + a x + b x**2 over the field; interpolated over the rationals it has the same constant."""
    s, a, b = 5, 7, 11
    random = a.to_bytes(48, "big") + b.to_bytes(48, "big")
    shares = split(s.to_bytes(32, "big"), shares=4, threshold=3, random=random)
    assert [s + a * x + b * x * x for x in (1, 2, 3, 4)] == [int.from_bytes(share, "big") for share in shares]
    lagrange = [math.prod((Fraction(j, j - i) for j in (1, 2, 4) if j != i), start=Fraction(1)) for i in (1, 2, 4)]
    assert [(f.numerator * pow(f.denominator, -1, PRIME)) % PRIME for f in lagrange] == factors([1, 2, 4])


def test_fewer_shares_say_nothing() -> None:
    """With t - 1 shares every secret is possible: there is a polynomial through them and any value at 0."""
    least, random = 3, bytes(range(96))
    shares = split(b"\x01" * 32, shares=5, threshold=least, random=random)
    for wrong in (0, 1, 2**255):
        by = factors([0, 1, 2])  # of the points (0, wrong), (1, share), (2, share)
        assert 3 == len(by)
        points = {0: wrong, 1: int.from_bytes(shares[0], "big"), 2: int.from_bytes(shares[1], "big")}
        third = _interpolated(points, at=3)
        given_by = [shares[0], shares[1], third.to_bytes(33, "big")]
        assert wrong == int.from_bytes(join(given_by, factors([1, 2, 3])), "big")


def _interpolated(points: dict[int, int], *, at: int) -> int:
    total = 0
    for i, value in points.items():
        up = math.prod(at - j for j in points if j != i)
        down = math.prod(i - j for j in points if j != i)
        total += value * up * pow(down, -1, PRIME)
    return total % PRIME


def test_shares_of_no_secret_are_refused() -> None:
    """A sum that is no number of 32 bytes, as a wrong share gives one now and then."""
    top = (PRIME - 1).to_bytes(SHARE_BYTES, "big")
    with pytest.raises(ValueError, match="no shares of one secret"):
        join([top], [1])


@pytest.mark.parametrize(("sites", "least"), [(3, 2), (4, 3), (5, 4), (6, 4), (9, 6), (16, 11), (64, 43)])
def test_threshold_is_two_thirds_rounded_up(sites: int, least: int) -> None:
    """So that floor(n / 3) may be missing, and two disjoint sets of so many sites never fit."""
    assert least == threshold(sites)
    assert sites - sites // 3 >= least
    assert 2 * least > sites


# --- masks -------------------------------------------------------------------------------------------


@given(seed=SECRETS, narrow=st.integers(0, 200_000), wide=st.integers(0, 40_000))
def test_mask_is_taken_off_again(seed: bytes, narrow: int, wide: int) -> None:
    """Whatever the numbers of words: of none, of less than a piece, and of several pieces."""
    words = Words(np.arange(narrow, dtype=np.uint32), np.arange(wide, dtype=np.uint64))
    add_mask(words, seed)
    add_mask(words, seed, sign=-1)
    assert np.array_equal(np.arange(narrow), words.narrow)
    assert np.array_equal(np.arange(wide), words.wide)


def test_mask_is_the_key_stream_of_aes() -> None:
    """FIPS 197, C.3: AES-256 with the key 00..1f turns 00112233..ff into 8ea2b7ca..; at counter 0 the block is E(0)."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes(range(32))
    words = Words.zeros(4, 0)
    add_mask(words, key)
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(bytes(16))
    assert block == words.narrow.tobytes()


def test_masks_differ_for_every_context_and_look_uniform() -> None:
    """Each part of the context changes every mask; the bits of a masked zero are half of them set."""
    words, sites = [], parties()
    changes: tuple[dict[str, Any], ...] = (
        *({}, {"round": 2}, {"attempt": 2}, {"run": "r"}, {"study": "t" * 64}, {"weights": "v" * 64}),
        *({"examples": 8}, {"loss": 1.0}, {"cohort": NAMES[:3]}),
    )
    for change in changes:
        zero = Words.zeros(4096, 3)
        sites["berlin"].mask(zero, context(**change))
        words.append(zero.narrow)
        assert abs(np.unpackbits(zero.narrow.view(np.uint8)).mean() - 0.5) < 0.01
    for one, other in itertools.combinations(words, 2):
        assert np.count_nonzero(one == other) < 3


@given(order=st.permutations(NAMES[:4]), missing=st.sampled_from([None, "bonn", "berlin"]))
def test_masks_cancel_exactly_in_any_order(order: list[str], missing: str | None) -> None:
    """The unmasked sum is that of the words, to the last bit, whoever came first and whoever did not come."""
    now, sites = context(), parties()
    chance = np.random.default_rng(1)
    plain = {
        name: Words(chance.integers(0, 2**32, 50, np.uint32), chance.integers(0, 2**63, 3, np.uint64))
        for name in NAMES[:4]
    }
    masked, sealed = {}, {}
    for name, words in plain.items():
        masked[name] = words.copy()
        sealed[name] = sites[name].mask(masked[name], now)
    survivors = [name for name in now.cohort if name != missing]
    dropped = [name for name in now.cohort if name == missing]
    total = Words.zeros(50, 3)
    for name in order:
        if name != missing:
            total.add(masked[name])
    answers = {
        name: sites[name].opened(now, {sender: sealed[sender][now.cohort.index(name)] for sender in survivors})
        for name in survivors[:3]
    }
    for (name, other), seed in recovered(answers, survivors, dropped, now).items():
        add_mask(total, seed, sign=-1 if name == other or name < other else 1)
    expected = Words.zeros(50, 3)
    for name in survivors:
        expected.add(plain[name])
    assert np.array_equal(expected.narrow, total.narrow)
    assert np.array_equal(expected.wide, total.wide)


def test_shares_for_another_site_or_context_stay_sealed() -> None:
    """Only the receiver can open them, and only in the context that they were sealed in."""
    now, sites = context(), parties()
    words = Words.zeros(1, 2)
    sealed = {name: sites[name].mask(words, now) for name in now.cohort}
    assert {sealed_bytes(4)} == {len(text) for of in sealed.values() for text in of}
    for_bern = {name: sealed[name][1] for name in now.cohort}
    assert 4 * SHARE_BYTES == len(sites["bern"].opened(now, for_bern))
    with pytest.raises(ProtocolError, match="site 'bonn': what site 'berlin' sealed for round 1 cannot be opened here"):
        sites["bonn"].opened(now, for_bern)
    with pytest.raises(ProtocolError, match="the server has told the two different things"):
        sites["bern"].opened(context(weights="v" * 64), for_bern)


def test_seal_is_broken_by_any_change() -> None:
    """And a text that is too short is none."""
    text = seal(bytes(32), b"shares")
    assert b"shares" == unseal(bytes(32), text)
    assert unseal(bytes(32), text[:-1]) is unseal(bytes(32), b"") is unseal(b"\1" * 32, text) is None


def test_key_of_small_order_is_refused() -> None:
    """With it everybody would know the secret."""
    with pytest.raises(ProtocolError, match="the key of site 'lyon' for run 'run' is no key"):
        exchanged(make_run_key(), "00" * 32, study="s", run="run", own="bern", peer="lyon")


# --- whole words -------------------------------------------------------------------------------------


def update(chance: np.random.Generator, size: int, scale: float) -> dict[str, Array]:
    """Return an update of two floating-point arrays and a counter."""
    return {
        "a": chance.normal(size=(size, 2), scale=scale).astype(np.float32),
        "b": chance.normal(size=size, scale=scale).astype(np.float64),
        "count": np.array(chance.integers(0, 10_000)),
    }


@pytest.mark.parametrize("sites", [3, 16, MOST_SITES])
@pytest.mark.parametrize("scale", [1e-4, 0.01, 1.0])
def test_mean_of_words_is_the_mean_of_updates(sites: int, scale: float) -> None:
    """To 1e-5 of the bound in every coordinate, of updates that are shortened as well as of others, with weights."""
    chance = np.random.default_rng(3)
    updates = [update(chance, 40, scale) for _ in range(sites)]
    weights = [1.0, *chance.uniform(0.1, 1, size=sites - 1)]
    layout = Layout.of(updates[0], {}, bound=1.0, sites=sites)
    total = Words.zeros(layout.narrow, layout.wide)
    for one, weight in zip(updates, weights, strict=True):
        total.add(to_words(layout, one, {}, weight))
    mean = to_mean(layout, total, sites=sites)
    norms = [math.hypot(*one["a"].reshape(-1).tolist(), *one["b"].tolist()) for one in updates]
    assert sum(length > 1 for length in norms) == mean.shortened
    for name in ("a", "b"):
        expected = sum(
            w * u[name].astype(np.float64) * min(1, 1 / n) for w, u, n in zip(weights, updates, norms, strict=True)
        ) / sum(weights)
        assert float(np.abs(mean.delta[name] - expected).max()) <= ERROR
        assert updates[0][name].dtype == mean.delta[name].dtype
    counts = sum(w * int(u["count"]) for w, u in zip(weights, updates, strict=True)) / sum(weights)
    assert abs(int(mean.delta["count"]) - counts) <= 0.5 + 1e-6


@pytest.mark.parametrize("sites", [3, 64])
def test_largest_possible_sum_does_not_wrap(sites: int) -> None:
    """All sites send the bound in one coordinate, all of one sign."""
    for sign in (1.0, -1.0):
        layout = Layout.of({"a": np.array([sign * 50.0])}, {}, bound=10.0, sites=sites)
        total = Words.zeros(layout.narrow, layout.wide)
        for _ in range(sites):
            total.add(to_words(layout, {"a": np.array([sign * 50.0])}, {}, 1.0))
        assert pytest.approx(sign * 10.0, abs=1e-4) == float(to_mean(layout, total, sites=sites).delta["a"][0])


def test_control_variates_are_averaged_without_weights_and_bound() -> None:
    """Scaffold adds up what sites send, whatever they count, and its numbers are those of gradients."""
    layout = Layout.of({"a": np.zeros(2)}, {"a": np.zeros(2, np.float32)}, bound=1.0, sites=3)
    total = Words.zeros(layout.narrow, layout.wide)
    for value, weight in ((100.0, 1.0), (-40.0, 0.5), (0.3, 0.25)):
        control = {"a": np.array([value, 1e-3], np.float32)}
        total.add(to_words(layout, {"a": np.zeros(2)}, control, weight))
    assert [pytest.approx(60.3 / 3, abs=1e-6), pytest.approx(1e-3, abs=1e-7)] == to_mean(
        layout, total, sites=3
    ).control["a"].tolist()


def test_impossible_sums_are_refused() -> None:
    """Masks that were not taken off, wrong shares, a site that cheats: the norm and the weights tell."""
    layout = Layout.of({"a": np.zeros(1000)}, {}, bound=1.0, sites=4)
    words = to_words(layout, {"a": np.full(1000, 0.01)}, {}, 1.0)
    add_mask(words, b"\1" * 32)
    with pytest.raises(UpdateRejected, match="impossible weights"):
        to_mean(layout, words, sites=4)
    words = Words.zeros(layout.narrow, layout.wide)
    words.wide[-2] = 4 * 2**26
    add_mask(Words(words.narrow, words.wide[:0]), b"\1" * 32)
    with pytest.raises(UpdateRejected, match=r"the sum of the updates has norm .*, expected at most 4 times 1"):
        to_mean(layout, words, sites=4)
    with pytest.raises(UpdateRejected, match="too little for an exact mean"):
        to_mean(layout, to_words(layout, {"a": np.full(1000, 0.01)}, {}, 1e-7), sites=4)


def test_integer_beyond_all_bounds_is_refused() -> None:
    """It would wrap, and the server would learn a wrong sum without noticing."""
    layout = Layout.of({"count": np.array(0)}, {}, bound=1.0, sites=3)
    with pytest.raises(UpdateRejected, match=r"array 'count' changes by 4\.29497e"):
        to_words(layout, {"count": np.array(2**32)}, {}, 1.0)


# --- weights -----------------------------------------------------------------------------------------


def weigh(
    factors_: Sequence[SizeFactor | LossFactor], n: int, loss: float, *, examples: int = 100, least: float = 0.0
) -> float:
    """Return one site's own weight."""
    config = WeightingConfig(factors=tuple(factors_))
    return own_weight(config, FedAvgStrategy(), n, {"update.loss": loss}, examples=examples, loss=least)


def test_own_weights_have_the_ratios_of_the_weighting() -> None:
    """n**a, and exp(-L / T) whatever the reference; two sites' ratio is what counts in a mean."""
    assert pytest.approx(math.sqrt(25 / 100)) == weigh([SizeFactor(exponent=0.5)], 25, 9.0) / weigh(
        [SizeFactor(exponent=0.5)], 100, 0.0
    )
    assert 1.0 == weigh([SizeFactor(exponent=0.0)], 3, 9.0)
    loss = [LossFactor(temperature=0.5)]
    assert pytest.approx(math.exp(-0.2 / 0.5)) == weigh(loss, 1, 0.9, least=0.3) / weigh(loss, 1, 0.7, least=0.3)
    both = weigh([SizeFactor(), *loss], 50, 0.7)
    assert pytest.approx(0.5 * math.exp(-0.7 / 0.5)) == both


def test_own_weight_is_at_most_1_whatever_the_server_says() -> None:
    """And where the strategy takes no weights it is 1."""
    assert 1.0 == weigh([SizeFactor()], 100, 0.0, examples=1)
    assert 1.0 == weigh([LossFactor()], 100, 0.1, least=5.0)
    plain = WeightingConfig(factors=(SizeFactor(),))
    assert 1.0 == own_weight(plain, PerFedAvgStrategy(), 3, {}, examples=100, loss=0.0)


def test_reference_of_losses_leaves_room_below_the_last_round() -> None:
    """Three temperatures; never below 0, and 0 where nothing is known."""
    by_loss = WeightingConfig(factors=(LossFactor(temperature=0.1),))
    assert pytest.approx(0.4) == reference_loss(by_loss, 0.7)
    assert 0.0 == reference_loss(by_loss, None) == reference_loss(by_loss, 0.2)
    assert 0.0 == reference_loss(WeightingConfig(), 5.0)


# --- updates per step --------------------------------------------------------------------------------


@given(examples=st.integers(1, 500), batch=st.integers(1, 70), epochs=st.integers(1, 4))
def test_reference_of_steps_is_no_more_than_a_site_takes(examples: int, batch: int, epochs: int) -> None:
    """A lone last row joins the batch before it, so that batches are never fewer than the whole ones."""
    training = TrainingConfig(batch_size=batch, epochs=epochs)
    batches = math.ceil(examples / batch) - (1 if batch > 1 and examples > batch and examples % batch == 1 else 0)
    assert 1 <= reference_steps(training, examples) <= epochs * batches
    assert 7.0 == reference_steps(TrainingConfig(batch_size=batch, steps=7), examples)


def test_update_per_step_is_never_longer_than_the_update() -> None:
    """Whatever the server says; without a count of the steps it is none."""
    assert 0.25 == per_step({"train.effective_steps": 8.0}, 2.0)
    assert 1.0 == per_step({"train.effective_steps": 8.0}, 100.0)
    for metrics in ({}, {"train.effective_steps": 0.0}):
        with pytest.raises(UpdateRejected, match=r"'train\.effective_steps' was not measured"):
            per_step(metrics, 1.0)


def test_factors_are_those_of_the_arrays_named_and_apply_after_the_bound() -> None:
    """An update of length 20 is shortened to 10, and then one of its arrays is halved: 8 and 6 become 4 and 6."""
    delta = {"a": np.array([16.0]), "b": np.array([12.0])}
    layout = Layout.of(delta, {}, bound=10.0, sites=3)
    total = Words.zeros(layout.narrow, layout.wide)
    for _ in range(3):
        total.add(to_words(layout, delta, {}, 0.5, factor_of={"a": 0.5}))
    mean = to_mean(layout, total, sites=3)
    assert [pytest.approx(4.0, abs=1e-6), pytest.approx(6.0, abs=1e-6)] == [float(mean.delta[n][0]) for n in "ab"]


def test_mean_that_is_to_be_divided_by_too_little_is_refused() -> None:
    """Its error would be divided too: one of 1e-8 of the bound by 1e-4 is more than `ERROR`."""
    layout = Layout.of({"a": np.zeros(10)}, {}, bound=1.0, sites=64)
    total = Words.zeros(layout.narrow, layout.wide)
    for _ in range(64):
        total.add(to_words(layout, {"a": np.full(10, 0.01)}, {}, 1.0))
    to_mean(layout, total, sites=64, least=1e-2)
    with pytest.raises(UpdateRejected, match="too little for an exact mean"):
        to_mean(layout, total, sites=64, least=1e-4)
