"""Keys, signing requests and certificates as both sides read them: a site's own, and the key that signs orders.

Private keys are readable by their owner only and are never moved: a site sends a signing request, which holds its
name and its public key. What comes from outside is bounded, and is refused with a sentence.
"""

import base64
import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from common.errors import ConfigError
from common.host.files import write_atomically

PRIVATE, PUBLIC = 0o600, 0o644
"""Modes of the files."""
MAX_PEM_BYTES = 16_384
"""No key, request, certificate or small set of them is near that long."""
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""As `common.study.names.SiteName`; here, because the process that talks to the server goes without pydantic."""
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_UNREADABLE = (
    *(ValueError, TypeError, OverflowError),
    *(UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension),
    NotImplementedError,  # a compressed point in OpenSSH form
)
"""What cryptography raises for bytes that it does not take."""


# --- a site's key -----------------------------------------------------------------------------------


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
    content = _read(path, what="public key")
    try:
        key = serialization.load_ssh_public_key(content)
    except _UNREADABLE as error:
        raise ConfigError(f"'{path}' is not a public key in OpenSSH form: {error}") from error
    return _accepted(key, who=f"'{path}'")


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a site's private key.

    Raises:
        ConfigError: the file cannot be read, or is not an EC key without passphrase.
    """
    content = _read(path, what="private_key")
    try:
        key = serialization.load_ssh_private_key(content, None)
    except _UNREADABLE as error:
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


# --- a site's request for a certificate ------------------------------------------------------------


@dataclass(frozen=True)
class SigningRequest:
    """What a site asks a certificate for: its name and public key, signed with the private one."""

    name: str
    key: ec.EllipticCurvePublicKey
    pem: bytes

    @property
    def fingerprint(self) -> str:
        """The public key's fingerprint."""
        return fingerprint(self.key)


def signing_request(key: ec.EllipticCurvePrivateKey, *, name: str) -> bytes:
    """Return a signing request (PEM) for a site's key and name."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(common_name(name))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def make_signing_request(private_key: Path, *, name: str) -> Path:
    """Write the signing request of a site's key beside it; return its path.

    Raises:
        ConfigError: the key cannot be read.
        StateError: the folder is unwritable.
    """
    path = request_path(private_key)
    write_atomically(path, signing_request(read_private_key(private_key), name=name), mode=PUBLIC)
    return path


def request_path(private_key: Path) -> Path:
    """Return where the request of a key lies: `site.key` -> `site.csr`, `site.key.new` -> `site.key.new.csr`."""
    return private_key.with_name(private_key.name.removesuffix(".key") + ".csr")


def read_signing_request(source: Path | bytes) -> SigningRequest:
    """Read a signing request and check all that it says of itself.

    Raises:
        ConfigError: it cannot be read, is no request, is not signed with its own key, has a key that consilium does
            not take, or a name that is no site's.
    """
    if isinstance(source, Path):
        who, content = f"'{source}'", _read(source, what="signing request")
    else:
        who, content = "the signing request", _bounded(source, who="the signing request")
    _refuse_other_files(content, who)
    with _parsing(who, "a signing request (PEM)"):
        request = x509.load_pem_x509_csr(content)
        key, names = request.public_key(), request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        signed = request.is_signature_valid
    accepted = _accepted(key, who=who)
    if not signed:
        raise ConfigError(
            f"{who} is not signed with its own key, so it was damaged or forged; ask the site for it again"
        )
    if len(names) != 1 or not SITE_NAME.fullmatch(str(names[0].value)):
        shown = ", ".join(repr(str(name.value)[:80]) for name in names[:3]) or "no name"
        raise ConfigError(f"{who} is for {shown}, expected one site's name: small letters, digits and hyphens")
    return SigningRequest(str(names[0].value), accepted, content)


def common_name(text: str) -> x509.Name:
    """Return a subject that consists of this name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _refuse_other_files(content: bytes, who: str) -> None:
    """Tell the files that people mix up with the request."""
    if b"PRIVATE KEY" in content:
        raise ConfigError(f"{who} is a private key, which must never leave its site; the site sends its .csr file")
    if content.startswith((b"ecdsa-", b"ssh-")):
        raise ConfigError(f"{who} is a public key in OpenSSH form; the site sends its .csr file instead")


def _accepted(key: object, *, who: str) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        kind = type(key).__name__
        raise ConfigError(f"{who} has a {kind}, expected an EC public key (consilium site init makes one)")
    if not isinstance(key.curve, _CURVES):
        raise ConfigError(f"{who} has an EC key on curve {key.curve.name}, expected P-256, P-384 or P-521")
    return key


# --- certificates -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """What a certificate says: whose it is, for which key, and until when."""

    name: str
    fingerprint: str
    ends: datetime
    x509: x509.Certificate


def read_certificate(pem: bytes, *, who: str = "the certificate") -> Certificate:
    """Read a certificate (PEM; of several the first).

    Raises:
        ConfigError: it is none, or has no name or no EC key.
    """
    content = _bounded(pem, who=who)
    with _parsing(who, "a certificate (PEM)"):
        certificate = x509.load_pem_x509_certificate(content)
        key, names = certificate.public_key(), certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ends = certificate.not_valid_after_utc
    if len(names) != 1:
        raise ConfigError(f"{who} has {len(names)} names, expected one")
    return Certificate(str(names[0].value), fingerprint(_accepted(key, who=who)), ends, certificate)


def fingerprint_of_certificate(pem: bytes) -> str:
    """Return the fingerprint of a certificate's key, as `fingerprint` does.

    Raises:
        ConfigError: it is no certificate of an EC key.
    """
    return read_certificate(pem).fingerprint


def read_authorities(pem: bytes, *, who: str = "the list of authorities") -> list[x509.Certificate]:
    """Read the certificates (PEM) that a site trusts: one, or more while an authority is being replaced.

    Raises:
        ConfigError: they are none.
    """
    content = _bounded(pem, who=who)
    with _parsing(who, "a certificate (PEM)"):
        return x509.load_pem_x509_certificates(content)


def check_site_certificate(pem: bytes, *, key: ec.EllipticCurvePublicKey, name: str, authorities: bytes) -> None:
    """Check that a certificate is this site's, for this key, signed by one of the authorities, and not over.

    Raises:
        ConfigError: with what is wrong.
    """
    certificate = read_certificate(pem)
    if certificate.name != name:
        raise ConfigError(f"the certificate is for {certificate.name[:80]!r}, this is site '{name}'")
    if certificate.fingerprint != fingerprint(key):
        raise ConfigError(f"the certificate is for the key {certificate.fingerprint}, expected {fingerprint(key)}")
    if not any(_signed_by(certificate.x509, authority) for authority in read_authorities(authorities)):
        raise ConfigError(f"the certificate of site '{name}' is signed by none of the study's authorities")
    if certificate.ends <= datetime.now(UTC):
        raise ConfigError(f"the certificate of site '{name}' was valid until {certificate.ends:%Y-%m-%d %H:%M} UTC")


def certificate_hosts(pem: bytes) -> list[str]:
    """Return the DNS names and IP addresses a certificate is for, in its order."""
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in `_parsing`
            certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, *_UNREADABLE):
        return False
    return True


@contextmanager
def _parsing(who: str, what: str) -> Iterator[None]:
    """Turn what cryptography raises and warns of, for bytes from outside, into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd lengths and numbers, which the checks after it refuse or allow
            yield
    except _UNREADABLE as error:
        raise ConfigError(f"{who} is not {what}, or it is damaged: {error}") from error


# --- the study's key, which signs orders ------------------------------------------------------------


def make_study_key(folder: Path) -> None:
    """Write the key that signs orders, `study.key` (owner only), where it is missing, and `study.pub` with it.

    Raises:
        ConfigError: there is something else in `study.key`.
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
    content = _read(path, what="the study's key")
    try:
        key = serialization.load_pem_private_key(content, None)
    except _UNREADABLE as error:
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
        who, content = f"study_key '{source}'", _read(source, what="study_key")
    else:
        who, content = "the study's key", _bounded(source, who="the study's key")
    try:
        key = serialization.load_pem_public_key(content)
    except _UNREADABLE as error:
        raise ConfigError(f"{who} is not a public key (PEM): {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{who} is a {type(key).__name__}, expected an Ed25519 key")
    return key


def _read(path: Path, *, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what} '{path}': {error.strerror or error}") from error
    return _bounded(content, who=f"'{path}'")


def _bounded(content: bytes, *, who: str) -> bytes:
    if len(content) > MAX_PEM_BYTES:
        raise ConfigError(f"{who} has more than {MAX_PEM_BYTES} bytes, so it is no key, request or certificate")
    return content
