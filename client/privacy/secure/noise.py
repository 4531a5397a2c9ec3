"""A site's share of a secure sum's noise: it refuses too little of it, and adds it before the update is masked."""

import numpy as np

from consilium.client.privacy.discrete_many import DiscreteGaussians
from consilium.common.errors import ProtocolError
from consilium.common.privacy.accounting import Charge, keeps_to
from consilium.common.privacy.secure.masks import Words
from consilium.common.privacy.secure.noise import NoiseShare
from consilium.common.study.study import StudyConfig

_PIECE = 2**16
_CLOSE = 1 + 1e-9
_LEAST_NOISE = 0.1
"""As the study has it at least."""
"""Processors differ in the last digits of an account."""


def check_noise(study: StudyConfig, multiplier: float | None, *, who: str) -> None:
    """Check that a round's noise keeps what its study promises of whole sites.

    Args:
        multiplier: deviation of the sum's noise in units of the clip, as the round's plan has it; None: no noise.
        who: names the site and the round.

    Raises:
        ProtocolError: it does not, or there is noise in a study that promises none.
    """
    privacy = study.privacy.sites if study.privacy.hides_sites else None
    if privacy is None or multiplier is None:
        if privacy is None and multiplier is None:
            return
        says = "promises none" if privacy is None else "hides whole sites (privacy.sites)"
        what = "leaves out the noise of its sum" if multiplier is None else "asks for noise in its sum"
        raise ProtocolError(f"{who} {what}, but the study {says}")
    if multiplier < _LEAST_NOISE:
        raise ProtocolError(f"{who} asks for noise of {multiplier:g} times the clip, which promises nothing")
    if privacy.noise is not None:
        if multiplier != privacy.noise:
            raise ProtocolError(
                f"{who} asks for noise of {multiplier:g} times the clip, the study's is {privacy.noise:g}"
            )
        return
    assert privacy.epsilon is not None
    if not keeps_to(privacy.epsilon * _CLOSE, [Charge("sgd", multiplier, steps=study.rounds)], privacy.delta):
        raise ProtocolError(
            f"{who} asks for noise of {multiplier:g} times the clip, with which {study.rounds} rounds cost more than "
            f"privacy.sites.epsilon = {privacy.epsilon:g}"
        )


def add_noise(words: Words, share: NoiseShare, *, seed: bytes) -> None:
    """Add discrete Gaussian noise to the words of floating-point numbers, modulo 2**32, in place.

    Args:
        seed: 32 bytes that nobody else can guess, and that are used for these words alone.
    """
    noise = DiscreteGaussians(seed, share.deviation)
    for start in range(0, words.narrow.size, _PIECE):
        part = words.narrow[start : start + _PIECE]
        part += noise.draw(part.size).astype(np.uint32)
