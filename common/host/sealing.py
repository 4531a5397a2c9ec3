"""A file under a passphrase: AES-256-GCM in chunks, with a key from scrypt; nothing of it is given out unchecked.

    magic, 16 bytes of salt, 7 bytes of nonce, then chunks of 1 MiB, each with its tag of 16 bytes

The nonce of chunk i is the file's 7 bytes, i in 4 bytes, and 1 for the last chunk, else 0 (STREAM; Hoang, Reyhanitabar,
Rogaway, Vizar 2015, "Online authenticated-encryption and its nonce-reuse misuse-resistance"): chunks cannot be changed,
moved, left out, or cut off at the end.
"""

import io
import os
import secrets
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from consilium.common.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAGIC = b"consilium sealed 1\n"
CHUNK_BYTES = 2**20
LEAST_PASSPHRASE = 12
"""Fewest characters of a passphrase: whoever has the file can try others as fast as scrypt lets them."""
_SALT, _NONCE, _TAG = 16, 7, 16
_MOST_CHUNKS = 2**32


def check_passphrase(passphrase: str) -> str:
    """Return a passphrase that is long enough.

    Raises:
        ConfigError: it is not.
    """
    if len(passphrase) < LEAST_PASSPHRASE:
        raise ConfigError(f"the passphrase has {len(passphrase)} characters, expected at least {LEAST_PASSPHRASE}")
    return passphrase


def sealed(pieces: Iterable[bytes], passphrase: str) -> Iterator[bytes]:
    """Yield a file under a passphrase, whose content comes piece by piece."""
    salt, nonce = secrets.token_bytes(_SALT), secrets.token_bytes(_NONCE)
    head = MAGIC + salt + nonce
    cipher, waiting, number = AESGCM(_key(passphrase, salt)), bytearray(), 0
    yield head
    for piece in pieces:
        waiting += piece
        while len(waiting) > CHUNK_BYTES:  # the last chunk is known as such only at the end
            yield cipher.encrypt(_nonce(nonce, number, last=False), bytes(waiting[:CHUNK_BYTES]), head)
            del waiting[:CHUNK_BYTES]
            number += 1
    yield cipher.encrypt(_nonce(nonce, number, last=True), bytes(waiting), head)


def is_sealed(file: IO[bytes]) -> bool:
    """Return whether a file, open at its beginning, is under a passphrase; it is there again afterwards."""
    begins = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    return begins


class Unsealed(io.RawIOBase):
    """What a file under a passphrase holds, to be read from its beginning to its end.

    Raises:
        ConfigError: when it is opened or read: another passphrase, or a file that was changed or cut.
    """

    def __init__(self, file: IO[bytes], passphrase: str) -> None:
        head = file.read(len(MAGIC) + _SALT + _NONCE)
        if len(head) != len(MAGIC) + _SALT + _NONCE:
            raise ConfigError(_WRONG)
        self._file, self._head, self._number = file, head, 0
        self._nonce, self._cipher = head[-_NONCE:], AESGCM(_key(passphrase, head[len(MAGIC) : -_NONCE]))
        self._next, self._open, self._ended = self._chunk(), memoryview(b""), False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Read into a buffer; return how many bytes, 0 at the end."""
        if not self._open and not self._ended:
            self._open = memoryview(self._decrypted())
        into = memoryview(buffer).cast("B")
        count = min(len(into), len(self._open))
        into[:count], self._open = self._open[:count], self._open[count:]
        return count

    def _decrypted(self) -> bytes:
        content, self._next = self._next, self._chunk()
        self._ended = not self._next
        try:
            plain = self._cipher.decrypt(_nonce(self._nonce, self._number, last=self._ended), content, self._head)
        except InvalidTag:
            raise ConfigError(_WRONG) from None
        self._number += 1
        return plain

    def _chunk(self) -> bytes:
        return self._file.read(CHUNK_BYTES + _TAG)


_WRONG = "the passphrase is another one, or the file was changed or cut"


def _nonce(prefix: bytes, number: int, *, last: bool) -> bytes:
    if number >= _MOST_CHUNKS:
        raise ConfigError(f"a file under a passphrase holds at most {_MOST_CHUNKS * CHUNK_BYTES / 2**50:.0f} PiB")
    return prefix + number.to_bytes(4, "big") + bytes([last])


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(passphrase.encode())


def passphrase_in(variable: str) -> str | None:
    """Return the passphrase in an environment variable; None where there is none.

    Raises:
        ConfigError: it is too short.
    """
    value = os.environ.get(variable)
    return None if value is None else check_passphrase(value)
