"""The token of a group of devices: 256 random bits, and the key that follows from them.

A device shows the token to nobody: a private key follows from it, and the TLS handshake proves that the device has that
key. The server keeps the public part, so that it compares no secret and has none to lose. The token names its study and
its group, which are no secrets, so that a mix-up is seen before anything is sent.

The key follows by HKDF (Krawczyk, "Cryptographic Extraction and Key Derivation", 2010; RFC 5869) with 128 bits more
than the order of P-256 has, taken modulo that order less one (FIPS 186-5, A.2.1: the bias is below 2^-128).
"""

import base64
import re
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consilium.common.errors import ConfigError

SECRET_BYTES = 32
MOST_CHARACTERS = 512
"""No token, with a line end, is nearly this long."""
_SALT = b"consilium group token 1"
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of P-256."""
_FORM = re.compile(r"([a-z0-9][a-z0-9-]{0,62})/([a-z0-9][a-z0-9-]{0,55})/([A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class GroupToken:
    """The token of a study's group; its secret is in no `repr`.

    Args:
        secret: 32 random bytes.
    """

    study: str
    group: str
    secret: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The token as it is handed out: `STUDY/GROUP/` and 43 characters."""
        return f"{self.study}/{self.group}/{base64.urlsafe_b64encode(self.secret).decode().rstrip('=')}"

    def key(self) -> ec.EllipticCurvePrivateKey:
        """Return the P-256 key that follows from the token."""
        info = f"{self.study}/{self.group}".encode()
        content = HKDF(algorithm=hashes.SHA256(), length=48, salt=_SALT, info=info).derive(self.secret)
        return ec.derive_private_key(int.from_bytes(content) % (_ORDER - 1) + 1, ec.SECP256R1())


def new_token(study: str, group: str) -> GroupToken:
    """Return a new token of a group."""
    return GroupToken(study, group, secrets.token_bytes(SECRET_BYTES))


def parse_token(text: str) -> GroupToken:
    """Return the token that a text is; the error shows nothing of the text, which may hold most of a token.

    Raises:
        ConfigError: it is none.
    """
    found = _FORM.fullmatch(text.strip()) if len(text) <= MOST_CHARACTERS else None
    secret = base64.urlsafe_b64decode(found[3] + "=") if found is not None else b""
    if found is None or GroupToken(found[1], found[2], secret).text != text.strip():
        raise ConfigError(
            "this is no group's token: expected STUDY/GROUP/ and 43 letters, digits, '-' and '_', as 'consilium server "
            f"group-token' has printed it, got {len(text.strip())} characters; was a part of it lost?"
        )
    return GroupToken(found[1], found[2], secret)
