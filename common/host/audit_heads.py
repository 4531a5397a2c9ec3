"""Heads of a site's audit log, signed with the site's own key: who holds one can tell whether the log was changed.

A head is the number of the log's lines and the SHA-256 of the last one (`chained.py`).
"""

import base64
import binascii

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from consilium.common.host.chained import Head

_DOMAIN = b"consilium audit 1\0"
"""Prefix of the signed bytes, so that a signature is valid for nothing else."""
_ALGORITHM = ec.ECDSA(hashes.SHA256())


def sign_head(head: Head, *, site: str, key: ec.EllipticCurvePrivateKey) -> str:
    """Return the signature of a head, in base64."""
    return base64.b64encode(key.sign(_content(head, site), _ALGORITHM)).decode()


def is_signed(head: Head, signature: str, *, site: str, key: ec.EllipticCurvePublicKey) -> bool:
    """Return whether a head was signed by the site with this key."""
    try:
        key.verify(base64.b64decode(signature, validate=True), _content(head, site), _ALGORITHM)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _content(head: Head, site: str) -> bytes:
    return _DOMAIN + f"{site}\0{head.count}\0{head.sha256}".encode()
