"""A site's request for a certificate: its name and its public key, signed with the private one, which never moves."""

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from consilium.common.errors import ConfigError
from consilium.common.host.files import write_atomically
from consilium.common.host.keys import (
    PUBLIC,
    accepted_key,
    bounded,
    fingerprint,
    parsing,
    read_bounded,
    read_private_key,
)

SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""As `SiteName` of `common/study/names.py`; repeated: the process that talks to the server has no pydantic."""


@dataclass(frozen=True)
class SigningRequest:
    """A site's request for a certificate: its name and public key, signed with the private one."""

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
    """Write the signing request of a site's key next to the key; return its path.

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
    """Read a signing request and check all of its content.

    Raises:
        ConfigError: it cannot be read, is no request, is not signed with its own key, has a key that consilium does
            not take, or a name that is no site's.
    """
    if isinstance(source, Path):
        who, content = f"'{source}'", read_bounded(source, what="signing request")
    else:
        who, content = "the signing request", bounded(source, who="the signing request")
    _refuse_other_files(content, who)
    with parsing(who, "a signing request (PEM)"):
        request = x509.load_pem_x509_csr(content)
        key, names = request.public_key(), request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        signed = request.is_signature_valid
    accepted = accepted_key(key, who=who)
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
    """Refuse, by name, the files that people mix up with the request."""
    if b"PRIVATE KEY" in content:
        raise ConfigError(f"{who} is a private key, which must never leave its site; the site sends its .csr file")
    if content.startswith((b"ecdsa-", b"ssh-")):
        raise ConfigError(f"{who} is a public key in OpenSSH form; the site sends its .csr file instead")
