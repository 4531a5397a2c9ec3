"""Keys as both sides read them: bounded, and refused with a sentence; private ones are readable by their owner only."""

import base64
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from consilium.common.errors import ConfigError
from consilium.common.host.files import write_atomically

PRIVATE, PUBLIC = 0o600, 0o644
"""Modes of the files."""

MAX_PEM_BYTES = 16_384
"""No key, request, certificate or small set of them is nearly this long."""

CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

UNREADABLE = (
    *(ValueError, TypeError, OverflowError),
    *(UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension),
    NotImplementedError,  # a compressed point in OpenSSH form
)
"""Errors that `cryptography` raises for bytes that it cannot read."""


def make_site_key(path: Path, *, comment: str) -> Path:
    """Write a new P-256 key pair to `path` (owner only) and `path.pub`; return the public key's path.

    Raises:
        StateError: the folder is unwritable.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_atomically(path, private, mode=PRIVATE)
    public_path = path.with_name(path.name + ".pub")
    write_atomically(public_path, f"{openssh(key.public_key())} {comment}\n".encode(), mode=PUBLIC)
    return public_path


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a site's public key from a file in OpenSSH form.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    content = read_bounded(path, what="public key")
    try:
        key = serialization.load_ssh_public_key(content)
    except UNREADABLE as error:
        raise ConfigError(f"'{path}' is not a public key in OpenSSH form: {error}") from error
    return accepted_key(key, who=f"'{path}'")


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a site's private key.

    Raises:
        ConfigError: the file cannot be read, or is not an EC key without passphrase.
    """
    content = read_bounded(path, what="private_key")
    try:
        key = serialization.load_ssh_private_key(content, None)
    except UNREADABLE as error:
        raise ConfigError(f"private_key: '{path}' is not a readable private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"private_key: '{path}' is a {type(key).__name__}, expected an EC key")
    return key


def openssh(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key as one line in OpenSSH form, without a comment."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return a key's SHA-256 fingerprint as `ssh-keygen -lf` shows it; people compare it over the phone."""
    return fingerprint_of_line(openssh(key))


def fingerprint_of_line(line: str) -> str:
    """Return the fingerprint of a public key in OpenSSH form.

    Raises:
        ValueError: the line does not have that form.
    """
    _, text, *_ = line.split()
    digest = hashlib.sha256(base64.b64decode(text, validate=True)).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def accepted_key(key: object, *, who: str) -> ec.EllipticCurvePublicKey:
    """Return a public key of the kind that sites have.

    Raises:
        ConfigError: it is of another kind, or on another curve.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey):
        kind = type(key).__name__
        raise ConfigError(f"{who} has a {kind}, expected an EC public key (consilium site init makes one)")
    if not isinstance(key.curve, CURVES):
        raise ConfigError(f"{who} has an EC key on curve {key.curve.name}, expected P-256, P-384 or P-521")
    return key


@contextmanager
def parsing(who: str, what: str) -> Iterator[None]:
    """Turn the errors of `cryptography` on bytes from outside into one sentence, and silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd lengths and numbers, which the checks after it refuse or allow
            yield
    except UNREADABLE as error:
        raise ConfigError(f"{who} is not {what}, or it is damaged: {error}") from error


def read_bounded(path: Path, *, what: str) -> bytes:
    """Return the content of a file that is no longer than any key, request or certificate.

    Raises:
        ConfigError: it cannot be read, or is longer.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what} '{path}': {error.strerror or error}") from error
    return bounded(content, who=f"'{path}'")


def bounded(content: bytes, *, who: str) -> bytes:
    """Return the content; refuse one that is longer than any key, request or certificate.

    Raises:
        ConfigError: it is longer.
    """
    if len(content) > MAX_PEM_BYTES:
        raise ConfigError(f"{who} has more than {MAX_PEM_BYTES} bytes, so it is no key, request or certificate")
    return content
