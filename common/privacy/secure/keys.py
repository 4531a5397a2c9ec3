"""The keys of a run: made by each site for this run alone, signed with the key that people have checked.

A site believes a run's key of another site only with a signature of that site's own key, which came in the bundle: the
server passes keys on, and can bring in none.
"""

import json

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256

from consilium.common.errors import ProtocolError
from consilium.common.privacy.secure.context import pair_secret

SEAL_BYTES = 16
"""How much longer a sealed text is."""


def make_run_key() -> str:
    """Return a new private key, in hexadecimal digits."""
    return X25519PrivateKey.generate().private_bytes_raw().hex()


def public_of(private: str) -> str:
    """Return the public part of a run's key, in hexadecimal digits."""
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(private)).public_key().public_bytes_raw().hex()


def signed(key: ec.EllipticCurvePrivateKey, public: str, *, study: str, run: str, site: str) -> str:
    """Return the signature of a site's own key under its key of a run, in hexadecimal digits."""
    return key.sign(_statement(public, study, run, site), ec.ECDSA(SHA256())).hex()


def check_signature(
    key: ec.EllipticCurvePublicKey, signature: str, public: str, *, study: str, run: str, site: str
) -> None:
    """Check that a run's key is that of a site.

    Raises:
        ProtocolError: the site's own key has not signed it, for this run of this study.
    """
    try:
        key.verify(bytes.fromhex(signature), _statement(public, study, run, site), ec.ECDSA(SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise ProtocolError(
            f"the key of site '{site}' for run '{run}' is not signed with the key of that site that people have checked"
        ) from error


def _statement(public: str, study: str, run: str, site: str) -> bytes:
    return json.dumps(["consilium key of a run 1", study, run, site, public]).encode()


def exchanged(private: str, public: str, *, study: str, run: str, own: str, peer: str) -> bytes:
    """Return the secret of this site and another one in a run.

    Raises:
        ProtocolError: the other site's key is none.
    """
    try:
        other = X25519PublicKey.from_public_bytes(bytes.fromhex(public))
        shared = X25519PrivateKey.from_private_bytes(bytes.fromhex(private)).exchange(other)
    except ValueError as error:  # wrong length, or a point of small order
        raise ProtocolError(f"the key of site '{peer}' for run '{run}' is no key") from error
    pairs = sorted(((own, public_of(private)), (peer, public)))
    return pair_secret(shared, study=study, run=run, names=[name for name, _ in pairs], keys=[key for _, key in pairs])


def seal(key: bytes, text: bytes) -> bytes:
    """Return a text that only who has the key can read or make.

    Args:
        key: 32 bytes, used for one text: that is why the nonce may be constant.
    """
    return AESGCM(key).encrypt(bytes(12), text, None)


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """Return the text, or None for one that was not sealed with this key."""
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, None)
    except (InvalidTag, ValueError):
        return None
