"""Noise on class counts: fixed by the key, of the promised distribution, and the key stays with the site."""

import math
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.client.data.noise import noise_key, noisy_counts
from consilium.client.privacy.commitment import KEY_BYTES
from consilium.common.errors import StateError

CLASSES = ("healthy", "ill", "unclear")
COUNTS = {"healthy": 120, "ill": 30}
KEY = bytes(range(KEY_BYTES))


def key(number: int) -> bytes:
    """Return a key made of a number."""
    return number.to_bytes(KEY_BYTES, "big")


def draws(epsilon: float, *, name: str = "ill", count: int = 10**6, number: int = 20_000) -> list[int]:
    """The noise on one count under many keys, far from 0 where it would be cut."""
    return [noisy_counts({name: count}, (name,), epsilon, key=key(index))[name] - count for index in range(number)]


def test_same_data_and_key_give_the_same_noise() -> None:
    """Asking again teaches nothing more."""
    assert noisy_counts(COUNTS, CLASSES, 0.5, key=KEY) == noisy_counts(dict(COUNTS), list(CLASSES), 0.5, key=KEY)


def test_asking_for_other_classes_or_in_another_order_gives_the_same_noise() -> None:
    """Else a study could average the noise away by asking in different ways."""
    expected = noisy_counts(COUNTS, CLASSES, 0.5, key=KEY)
    assert expected == noisy_counts(COUNTS, CLASSES[::-1], 0.5, key=KEY)
    assert expected["ill"] == noisy_counts(COUNTS, ("ill",), 0.5, key=KEY)["ill"]
    assert expected["ill"] == noisy_counts({"ill": 30}, (*CLASSES, "other"), 0.5, key=KEY)["ill"]


@pytest.mark.parametrize("change", ["key", "count", "class", "epsilon"])
def test_noise_depends_on_key_count_class_and_epsilon(change: str) -> None:
    """Each of them gives new noise; of 40 cases at most half may agree by chance."""
    agreeing = 0
    for number in range(40):
        before = noisy_counts({"ill": 500}, ("ill",), 0.1, key=key(number))["ill"] - 500
        name, count = "healthy" if change == "class" else "ill", 501 if change == "count" else 500
        epsilon, secret = 0.11 if change == "epsilon" else 0.1, key(number + 1000 if change == "key" else number)
        agreeing += before == noisy_counts({name: count}, (name,), epsilon, key=secret)[name] - count
    assert agreeing < 20


@given(
    st.dictionaries(st.sampled_from(CLASSES), st.integers(0, 10**6)),
    st.floats(1e-9, 1e3),
    st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES),
)
def test_all_classes_are_told_and_none_is_negative(counts: dict[str, int], epsilon: float, secret: bytes) -> None:
    """Also those that the site does not hold: which classes it lacks is noisy too."""
    told = noisy_counts(counts, CLASSES, epsilon, key=secret)
    assert CLASSES == tuple(told)
    assert all(type(count) is int and count >= 0 for count in told.values())


def test_counts_are_not_changed_in_place() -> None:
    """The site's own counts stay exact."""
    counts = dict(COUNTS)
    noisy_counts(counts, CLASSES, 0.5, key=KEY)
    assert COUNTS == counts


def test_large_epsilon_is_no_noise() -> None:
    """exp(-1000) is 0: nothing is added, and nothing overflows."""
    assert {"healthy": 120, "ill": 30, "unclear": 0} == noisy_counts(COUNTS, CLASSES, 1000.0, key=KEY)


@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_noise_has_mean_0_and_the_deviation_of_the_mechanism(epsilon: float) -> None:
    """Var(X - Y) = 2 a / (1 - a)**2 with a = exp(-epsilon); of 20 000 draws the mean is within four of its errors.

    epsilon 1: deviation sqrt(2 * 0.367879) / 0.632121 = 1.357; epsilon 0.2: 7.059, about 1.4 / epsilon.
    """
    noise, ratio = np.array(draws(epsilon)), math.exp(-epsilon)
    deviation = math.sqrt(2 * ratio) / (1 - ratio)
    assert pytest.approx(1.4 / epsilon, rel=0.05) == deviation
    assert pytest.approx(0, abs=4 * deviation / math.sqrt(len(noise))) == noise.mean()
    assert pytest.approx(deviation, rel=0.03) == noise.std()


def test_noise_is_two_sided_geometric() -> None:
    """P(k) = (1 - a) / (1 + a) * a**|k|, a = exp(-epsilon): what makes neighbouring counts differ by exp(epsilon).

    Chi-square over -4 .. 4 and the two tails, P(|k| > 4) = 2 a**5 / (1 + a): 10 degrees of freedom, of which 29.6
    is the 99.9 % quantile.
    """
    noise, ratio = Counter(draws(0.7)), math.exp(-0.7)
    total = sum(noise.values())
    expected = {k: total * (1 - ratio) / (1 + ratio) * ratio ** abs(k) for k in range(-4, 5)}
    tail = total * ratio**5 / (1 + ratio)
    chi_square = sum((noise[k] - count) ** 2 / count for k, count in expected.items())
    for seen in (sum(n for k, n in noise.items() if k > 4), sum(n for k, n in noise.items() if k < -4)):
        chi_square += (seen - tail) ** 2 / tail
    assert chi_square < 29.6


def test_noise_of_classes_and_of_neighbouring_counts_is_independent() -> None:
    """Correlations over 5000 keys are within four of their errors of 0, 1 / sqrt(5000) each."""
    reference = np.array(draws(0.5, number=5000))
    for name, count in (("healthy", 10**6), ("ill", 10**6 + 1)):
        other = np.array(draws(0.5, name=name, count=count, number=5000))
        assert abs(np.corrcoef(reference, other)[0, 1]) < 4 / math.sqrt(5000)


def test_noise_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    """32 random bytes with mode 0600; the second call reads the same, another site has another."""
    first = noise_key(tmp_path / "state", site="berlin")
    assert KEY_BYTES == len(first)
    assert 0o600 == stat.S_IMODE((tmp_path / "state" / "noise.key").stat().st_mode)
    assert first == noise_key(tmp_path / "state", site="berlin")
    assert first != noise_key(tmp_path / "other", site="lyon")


def test_damaged_noise_key_is_told(tmp_path: Path) -> None:
    """A new key would be new noise on the same counts, so none is made."""
    (tmp_path / "noise.key").write_bytes(b"short")
    with pytest.raises(StateError, match=r"^site 'berlin': '.*noise\.key' has 5 bytes, expected 32$"):
        noise_key(tmp_path, site="berlin")


def test_unreadable_noise_key_is_told(tmp_path: Path) -> None:
    """A folder in its place."""
    (tmp_path / "noise.key").mkdir()
    with pytest.raises(StateError, match=r"^site 'berlin': cannot read '.*noise\.key': "):
        noise_key(tmp_path, site="berlin")


def test_unwritable_state_folder_is_told(tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"^site 'berlin': state folder "):
        noise_key(tmp_path / "file" / "state", site="berlin")
