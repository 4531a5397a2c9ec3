"""The payload of a masked update: one container with its words, and the shares of its masks, sealed for each site."""

from dataclasses import dataclass

import numpy as np

from consilium.common.codecs import Form, Payload, form_of
from consilium.common.codecs.container import container_bytes, pack, unpack
from consilium.common.privacy.secure.fixed import Layout
from consilium.common.privacy.secure.masks import Words
from consilium.common.privacy.secure.party import sealed_bytes
from consilium.common.weights.arrays import Array, Spec

_NARROW, _WIDE, _SEALED = "narrow", "wide", "sealed"


@dataclass(frozen=True, eq=False)
class Masked:
    """What a site sends in a round.

    Args:
        words: masked.
        sealed: for each site of the cohort, in its order.
    """

    words: Words
    sealed: tuple[bytes, ...]


def to_payload(masked: Masked) -> bytes:
    """Return the bytes that travel."""
    sealed = np.frombuffer(b"".join(masked.sealed), np.uint8)
    arrays: dict[str, Array] = {_NARROW: masked.words.narrow, _WIDE: masked.words.wide, _SEALED: sealed}
    return pack(arrays, form_of(arrays))


def from_payload(payload: Payload, layout: Layout, *, sites: int) -> Masked:
    """Return what is in a payload; its words are views of it.

    Args:
        sites: of the round's cohort.

    Raises:
        ProtocolError: it has another form than the round's updates.
    """
    arrays = unpack(payload, _form(layout, sites), copy=False)
    size, sealed = sealed_bytes(sites), arrays[_SEALED].tobytes()
    return Masked(
        Words(arrays[_NARROW].view(np.uint32), arrays[_WIDE].view(np.uint64)),
        tuple(sealed[place * size : (place + 1) * size] for place in range(sites)),
    )


def payload_bytes(layout: Layout, *, sites: int) -> int:
    """Return how long a payload is."""
    return container_bytes(_form(layout, sites))


def _form(layout: Layout, sites: int) -> Form:
    form: dict[str, Spec] = {
        _NARROW: ((layout.narrow,), np.dtype("<u4")),
        _WIDE: ((layout.wide,), np.dtype("<u8")),
        _SEALED: ((sites * sealed_bytes(sites),), np.dtype("u1")),
    }
    return form
