"""Site-level differential privacy: noise on the mean update, so that the weights do not tell what one site sent.

McMahan, Ramage, Talwar and Zhang (2018), "Learning differentially private recurrent language models", algorithm 1,
<https://arxiv.org/abs/1710.06963>, with all sites of the cohort in a round and equal weights:

    mean = (1 / K) * (sum over sites of delta * min(1, C / |delta|)  +  N(0, (z C)^2))

with K the updates of the round, C the `clip` and z the noise multiplier. Against the round in which one site sent
nothing but zeros, the sum moves by at most C: one Gaussian mechanism of noise z a round. Who took part is no secret,
and which sites a round asks follows from the study's seed, so nothing is subtracted for sites that were not asked.

The server itself is trusted here: the weights that it sends and the model that the run ends with are protected, the
numbers that sites report to it (losses, counts) are not. In secure sums sites add the noise, in shares, and the server
adds none: see `common/privacy/secure/noise.py`. The multiplier is found here in both cases, and sites check it.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from consilium.common.errors import ModelError, listed
from consilium.common.privacy.accounting import Charge, epsilon_of, noise_for
from consilium.common.privacy.secure.fixed import too_coarse
from consilium.common.privacy.secure.noise import noise_share
from consilium.common.study.privacy import SiteLevelPrivacy
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arithmetic import add_scaled, norm
from consilium.common.weights.arrays import Array, Weights, spec
from consilium.common.weights.scaled import Scaled
from consilium.server.strategies import ServerState, Update

Entropy = Callable[[int], bytes]
"""`entropy(count)` gives so many bytes that nobody can guess: `os.urandom`, and in tests whatever they choose."""


def check_site_noise_fits(config: StudyConfig, state: ServerState) -> None:
    """Check that all that sites share is moved by gradients, and that words can hold it, before the first round.

    Raises:
        ModelError: a study with site-level noise shares running statistics or whole numbers, or too many numbers.
    """
    if config.privacy.sites is None:
        return
    if state.averaged:
        raise ModelError(
            f"privacy.sites: arrays {listed(state.averaged, 4)} are running statistics or whole numbers, which noise "
            "would make useless: set model.batch_norm = 'freeze' or 'local', or take a model without BatchNorm"
        )
    share = noise_share(config, multiplier_of_sums(config))
    numbers = sum(math.prod(spec(state.weights, name)[0]) for name in state.weights)
    if share is not None and not share.holds(numbers):
        raise ModelError(f"privacy.sites: {too_coarse(numbers, share)}")


def with_site_noise(
    config: StudyConfig, updates: Sequence[Update], shares: Mapping[str, float], *, entropy: Entropy = os.urandom
) -> Sequence[Update]:
    """Return updates whose mean has the noise of a round; without site-level privacy, the updates as they are.

    In secure sums they stay as they are too: each site has added its share.

    No update is longer than `clip` in these, whatever a site or a codec made of it. The first of them carries all of
    the noise, so that any rule that takes the mean gets it.

    Raises:
        ValueError: shares that are not equal; the rules of a study see to it that they are.
    """
    privacy = config.privacy.sites
    if privacy is None or config.privacy.secure_aggregation:
        return updates
    if any(not math.isclose(share, 1 / len(updates), rel_tol=1e-9) for share in shares.values()):
        raise ValueError(f"site-level noise needs equal shares, got {dict(shares)}")
    first, *others = [replace(update, delta=_shortened(update.delta, privacy.clip)) for update in updates]
    noise = {name: _normal(spec(first.delta, name)[0], entropy) for name in first.delta}
    scale = noise_multiplier(privacy, rounds=config.rounds) * privacy.clip
    arrays = {name: first.delta[name] for name in first.delta}
    return [replace(first, delta=add_scaled(arrays, noise, scale)), *others]


def with_cohort_noise(
    mean: Weights, privacy: SiteLevelPrivacy, *, multiplier: float, expected: int, entropy: Entropy = os.urandom
) -> dict[str, Array]:
    """Return the mean of the updates of a cohort in which every user takes part by chance, with the noise of a round.

    Args:
        mean: the sum of the updates, none longer than `clip`, divided by `expected`.
        multiplier: the noise in units of `clip`.
        expected: how many users a cohort has in the mean: it divides the sum whoever came, as it tells of nobody.
    """
    noise = {name: _normal(spec(mean, name)[0], entropy) for name in mean}
    return add_scaled(mean, noise, multiplier * privacy.clip / expected)


def noise_multiplier(privacy: SiteLevelPrivacy, *, rounds: int, rate: float = 1.0) -> float:
    """Return the noise of a round in units of `clip`: as given, or such that all rounds keep to the budget.

    Args:
        rate: the probability with which a site, or a user, takes part in a round, each by itself.
    """
    if privacy.noise is not None:
        return privacy.noise
    assert privacy.epsilon is not None
    return noise_for(privacy.epsilon, privacy.delta, rate=rate, steps=rounds)


def multiplier_of_sums(config: StudyConfig) -> float | None:
    """Return the noise of each secure sum in units of `clip`; None where a study's sums do not hide whole sites."""
    if config.privacy.sites is None or not config.privacy.secure_aggregation:
        return None
    return noise_multiplier(config.privacy.sites, rounds=config.rounds)


def site_epsilon(config: StudyConfig, *, rounds_done: int) -> float | None:
    """Return what the rounds so far tell of any one site; None without site-level privacy.

    In secure sums that is what they tell whoever sees them together with as many sites as the study says may collude,
    where no more sites have answered than had to. What they tell the server alone is `site_epsilon_alone`.
    """
    privacy = config.privacy.sites
    if privacy is None:
        return None
    noise = noise_multiplier(privacy, rounds=config.rounds)
    return epsilon_of([Charge("sgd", noise, steps=rounds_done)], privacy.delta)


def site_epsilon_alone(config: StudyConfig, *, answers: Sequence[int]) -> float | None:
    """Return what secure sums tell the server of any one site if no site tells it its own noise; else None.

    Args:
        answers: how many sites are in the sum of each round so far.
    """
    share = noise_share(config, multiplier_of_sums(config))
    if share is None:
        return None
    assert config.privacy.sites is not None
    return epsilon_of([Charge("sgd", share.multiplier_of(count)) for count in answers], config.privacy.sites.delta)


def _shortened(delta: Weights, clip: float) -> Weights:
    length = norm(delta)
    factor = 1.0 if length <= clip else clip / length * (1 - 1e-6)  # 1e-6: rounding in float32
    return delta if factor == 1 else Scaled(delta, dict.fromkeys(delta, factor))


def _normal(shape: tuple[int, ...], entropy: Entropy) -> npt.NDArray[np.float64]:
    """Return independent standard normal numbers, from the operating system's entropy and not from the study's seed.

    A new key is expanded by ChaCha20 (RFC 8439), and made normal by Box and Muller (1958); floating-point numbers are
    no real ones, which is the limit of every such noise (Mironov 2012).
    """
    half = (math.prod(shape) + 1) // 2
    stream = Cipher(algorithms.ChaCha20(entropy(32), bytes(16)), mode=None).encryptor()
    words = np.frombuffer(stream.update(bytes(16 * half)), dtype="<u8")
    u, v = ((words >> np.uint64(11)) * 2.0**-53).reshape(2, half)
    radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * math.pi * v
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: math.prod(shape)].reshape(shape)
