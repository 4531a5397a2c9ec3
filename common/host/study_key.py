"""The study's key, which signs orders."""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from consilium.common.errors import ConfigError
from consilium.common.host.files import write_atomically
from consilium.common.host.keys import PRIVATE, PUBLIC, UNREADABLE, bounded, read_bounded


def make_study_key(folder: Path) -> None:
    """Write the key that signs orders, `study.key` (owner only), where it is missing, and `study.pub` with it.

    Raises:
        ConfigError: `study.key` is not such a key.
        StateError: the folder is unwritable.
    """
    private, public = folder / "study.key", folder / "study.pub"
    if not private.exists():
        content = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomically(private, content, mode=PRIVATE)
    content = (
        read_study_key(private)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    if not public.exists() or public.read_bytes() != content:
        write_atomically(public, content, mode=PUBLIC)


def read_study_key(path: Path) -> Ed25519PrivateKey:
    """Read the key that signs orders.

    Raises:
        ConfigError: the file cannot be read, or is not an Ed25519 key without passphrase.
    """
    content = read_bounded(path, what="the study's key")
    try:
        key = serialization.load_pem_private_key(content, None)
    except UNREADABLE as error:
        raise ConfigError(f"the study's key '{path}' is not a readable private key (PEM): {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"the study's key '{path}' is a {type(key).__name__}, expected an Ed25519 key")
    return key


def read_study_public(source: Path | bytes) -> Ed25519PublicKey:
    """Read the key that a site checks orders with.

    Raises:
        ConfigError: it cannot be read, or is not an Ed25519 key.
    """
    if isinstance(source, Path):
        who, content = f"study_key '{source}'", read_bounded(source, what="study_key")
    else:
        who, content = "the study's key", bounded(source, who="the study's key")
    try:
        key = serialization.load_pem_public_key(content)
    except UNREADABLE as error:
        raise ConfigError(f"{who} is not a public key (PEM): {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{who} is a {type(key).__name__}, expected an Ed25519 key")
    return key
