"""Certificates as both sides read them, and a site's check of its own."""

import warnings
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from consilium.common.errors import ConfigError
from consilium.common.host.keys import UNREADABLE, accepted_key, bounded, fingerprint, parsing


@dataclass(frozen=True)
class Certificate:
    """A certificate's content: its owner's name, the key, and the end of its validity."""

    name: str
    fingerprint: str
    ends: datetime
    x509: x509.Certificate


def read_certificate(pem: bytes, *, who: str = "the certificate") -> Certificate:
    """Read a certificate (PEM; of several the first).

    Raises:
        ConfigError: it is not a certificate, or has no name or no EC key.
    """
    content = bounded(pem, who=who)
    with parsing(who, "a certificate (PEM)"):
        certificate = x509.load_pem_x509_certificate(content)
        key, names = certificate.public_key(), certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ends = certificate.not_valid_after_utc
    if len(names) != 1:
        raise ConfigError(f"{who} has {len(names)} names, expected one")
    return Certificate(str(names[0].value), fingerprint(accepted_key(key, who=who)), ends, certificate)


def fingerprint_of_certificate(pem: bytes) -> str:
    """Return the fingerprint of a certificate's key, as `fingerprint` does.

    Raises:
        ConfigError: it is no certificate of an EC key.
    """
    return read_certificate(pem).fingerprint


def read_authorities(pem: bytes, *, who: str = "the list of authorities") -> list[x509.Certificate]:
    """Read the certificates (PEM) that a site trusts: one, or more while an authority is being replaced.

    Raises:
        ConfigError: these are not certificates.
    """
    content = bounded(pem, who=who)
    with parsing(who, "a certificate (PEM)"):
        return x509.load_pem_x509_certificates(content)


def check_site_certificate(pem: bytes, *, key: ec.EllipticCurvePublicKey, name: str, authorities: bytes) -> None:
    """Check that a certificate is this site's, for this key, signed by one of the authorities, and not over.

    Raises:
        ConfigError: it is not; the sentence says in what.
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
            warnings.simplefilter("ignore")  # as in `parsing`
            certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True
