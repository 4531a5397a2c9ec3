"""What a hospital can later show of the data that it had in a run, without telling anything of them before.

    opening = HMAC-SHA256(key, run || digest of the data),        commitment = SHA-256(opening || digest of the data)

The commitment goes into the handshake; digest and key stay at the site. Whoever has the commitment alone learns nothing
of the data: without the key, guesses of small tables cannot be tried. Nor does it tell whether two runs had the same
data. Shown the opening and the digest, an auditor checks it; no other data fit it, as nobody finds two inputs of one
SHA-256.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path

from consilium.common.errors import StateError
from consilium.common.host.files import check_writable, write_atomically

KEY_BYTES = 32
_KEY_FILE = "commitment.key"


@dataclass(frozen=True)
class Commitment:
    """One site's commitment to its data in one run.

    Args:
        data: digest (SHA-256) of the examples in their splits, as hexadecimal digits.
        opening: what shows that the commitment is to these data, as hexadecimal digits.
    """

    data: str
    opening: str

    @classmethod
    def of(cls, data: str, *, run: str, key: bytes) -> "Commitment":
        """Return the commitment to data in a run, by the site's own key."""
        return cls(data, hmac.new(key, f"{run}\n{data}".encode(), "sha256").hexdigest())

    @property
    def value(self) -> str:
        """What the site sends in the handshake, as hexadecimal digits."""
        return hashlib.sha256(f"{self.opening}\n{self.data}".encode()).hexdigest()


def commitment_key(state_dir: Path, *, site: str) -> bytes:
    """Return the site's own key for its commitments, made at the first call and kept in its state folder.

    Raises:
        StateError: the folder is unwritable, or the key there is unreadable or damaged.
    """
    return site_secret(state_dir / _KEY_FILE, site=site)


def site_secret(path: Path, *, site: str) -> bytes:
    """Return a secret of a site's own, made of the system's entropy at the first call; only its owner can read it.

    Raises:
        StateError: the folder is unwritable, or the file there is unreadable or damaged.
    """
    if not path.exists():
        check_writable(path.parent, what=f"site '{site}': state folder")
        write_atomically(path, os.urandom(KEY_BYTES), mode=0o600)
    try:
        key = path.read_bytes()
    except OSError as error:
        raise StateError(f"site '{site}': cannot read '{path}': {error.strerror or error}") from error
    if len(key) != KEY_BYTES:
        raise StateError(f"site '{site}': '{path}' has {len(key)} bytes, expected {KEY_BYTES}")
    return key
