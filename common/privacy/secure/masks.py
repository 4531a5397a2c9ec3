"""Words that travel in place of numbers, and the masks that hide them: key streams of AES-256 in counter mode.

Addition is modulo 2**32 (narrow words) and 2**64 (wide ones), so masks cancel exactly, in any order. A uniform mask
makes the sum uniform: what is masked cannot be told from random words by anyone without the seed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Narrow = npt.NDArray[np.uint32]
Wide = npt.NDArray[np.uint64]

_PIECE = 2**18
"""Bytes of a key stream that are made at a time; with the words that they mask, they fit a processor's cache."""
_ZEROS = bytes(_PIECE)


@dataclass(frozen=True, eq=False)
class Words:
    """The words of one site, or a sum of them: one narrow word for each floating-point parameter, wide ones beside."""

    narrow: Narrow
    wide: Wide

    @classmethod
    def zeros(cls, narrow: int, wide: int) -> "Words":
        """Return so many words of each kind, all 0."""
        return cls(np.zeros(narrow, np.uint32), np.zeros(wide, np.uint64))

    def copy(self) -> "Words":
        """Return the same words in memory of their own."""
        return Words(self.narrow.copy(), self.wide.copy())

    def add(self, other: "Words") -> None:
        """Add other words, as many of each kind, in place."""
        np.add(self.narrow, other.narrow, out=self.narrow)
        np.add(self.wide, other.wide, out=self.wide)


def add_mask(words: Words, seed: bytes, *, sign: int = 1) -> None:
    """Add (`sign` = 1) or take off (-1) the mask of a seed, in place.

    Args:
        seed: 32 bytes that nobody else can guess; of one seed only one mask is ever made.
    """
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    room, apply = np.empty(_PIECE + 15, np.uint8), np.add if sign == 1 else np.subtract
    for kind in (words.narrow, words.wide):
        size = kind.dtype.itemsize
        for start in range(0, kind.size, _PIECE // size):
            part = kind[start : start + _PIECE // size]
            stream.update_into(_ZEROS[: part.nbytes], room.data)
            apply(part, room[: part.nbytes].view(kind.dtype), out=part)
